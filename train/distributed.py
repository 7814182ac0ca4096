"""Several processes, started by ``torchrun``, that train one model: one batch, one loss, one set of statistics.

The global batch is divided among the processes. The loss is taken over all of it, and batch norms share
their statistics, so that the number of processes changes nothing but rounding.
"""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from dropgen_rt.errors import ResourceError, UsageError
from dropgen_rt.train.layers import BatchNorm3d
from dropgen_rt.train.norms import Normalised, Processes, normalise

Value = TypeVar("Value")
# The first process may prepare a large data set while the others wait.
PATIENCE = timedelta(hours=12)
# What torchrun sets beside WORLD_SIZE.
RENDEZVOUS = ("RANK", "MASTER_ADDR", "MASTER_PORT")
# What gloo and NCCL say then; they have no error class of their own for it.
LOST_PEER = re.compile(r"gloo.*(closed by peer|reset by peer|broken pipe)|ncclRemoteError", re.IGNORECASE | re.DOTALL)


@dataclass(frozen=True)
class Ranks:
    """This process's place among ``world``; 0 of 1 where there is one process."""

    rank: int = 0
    world: int = 1
    local: int = 0

    @property
    def first(self) -> bool:
        """Whether this process writes and speaks for all."""
        return self.rank == 0

    def share(self, batch: int) -> range:
        """The places in the global batch that are this process's. Raises UsageError if they are not alike many."""
        if batch % self.world:
            raise UsageError(f"batch {batch} for {self.world} processes: give a multiple of {self.world}")
        return range(self.rank, batch, self.world)

    def gather(self, value: Value) -> list[Value]:
        """Every process's value, in their order; all processes must call."""
        if self.world == 1:
            return [value]
        values: list[Any] = [None] * self.world
        dist.all_gather_object(values, value)
        return values

    def wait(self) -> None:
        """Until all processes are here."""
        if self.world > 1:
            dist.barrier()

    @contextmanager
    def first_before_others(self) -> Iterator[None]:
        """The first process goes through alone, then the others, who find what it left."""
        if not self.first:
            self.wait()
        yield
        if self.first:
            self.wait()


@contextmanager
def ranks_of_environment(device_type: str) -> Iterator[Ranks]:
    """The process group that torchrun's environment describes, or the one that there is; else a single process.

    Raises ResourceError where the exchange with another process ends: that one tells why. Raises UsageError for an
    environment that describes none.
    """
    if os.environ.get("WORLD_SIZE", "1") == "1":
        yield Ranks()
        return
    lacking = [name for name in RENDEZVOUS if name not in os.environ]
    if lacking:
        raise UsageError(
            f"WORLD_SIZE is {os.environ['WORLD_SIZE']}, but {', '.join(lacking)} not set; start several processes by "
            "torchrun, or unset WORLD_SIZE"
        )
    local = int(os.environ.get("LOCAL_RANK", "0"))
    if dist.is_initialized():
        yield Ranks(dist.get_rank(), dist.get_world_size(), local)
        return
    if device_type == "cuda":
        torch.cuda.set_device(local)
    dist.init_process_group("nccl" if device_type == "cuda" else "gloo", timeout=PATIENCE)
    try:
        yield Ranks(dist.get_rank(), dist.get_world_size(), local)
    except RuntimeError as error:
        if LOST_PEER.search(str(error)):
            raise ResourceError("another process of this training ended; its own message tells why") from error
        raise
    finally:
        dist.destroy_process_group()


class _Gather(torch.autograd.Function):
    """Concatenate over processes. Backward assumes that every process computes the same of the result."""

    @staticmethod
    def forward(context: Any, own: Tensor) -> Tensor:
        parts = [torch.empty_like(own) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, own)
        context.size = len(own)
        return torch.cat(parts)

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> Tensor:
        # The same gradient reaches all processes, so the sum over them is a product.
        first = dist.get_rank() * context.size
        return gradient[first : first + context.size] * dist.get_world_size()


def _total(own: Tensor) -> Tensor:
    """The sum over processes."""
    total = own.clone()
    dist.all_reduce(total)
    return total


def gather_batch(own: Tensor, ranks: Ranks) -> Tensor:
    """The global batch (b, …) from each process's part of it, differentiable."""
    if ranks.world == 1:
        return own
    whole: Tensor = _Gather.apply(own.contiguous())
    return whole


class SharedBatchNorm(BatchNorm3d):
    """A batch norm whose statistics are those of all processes. PyTorch's own needs CUDA."""

    def forward(self, x: Tensor) -> Tensor:
        return self.by_moments(x) if self.training else super().forward(x)

    def _normalise(self, x: Tensor) -> Normalised:
        return normalise(x, self.weight, self.bias, self.eps, processes=Processes(dist.get_world_size(), _total))


def share_batch_norms(network: nn.Module, ranks: Ranks) -> None:
    """Replace every learning batch norm, in place; names and states stay."""
    if ranks.world == 1:
        return
    for module in list(network.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, nn.BatchNorm3d) and any(p.requires_grad for p in child.parameters()):
                shared = SharedBatchNorm(child.num_features, child.eps, child.momentum)
                shared.load_state_dict(child.state_dict())
                setattr(module, name, shared)


def parallel(network: nn.Module, ranks: Ranks) -> nn.Module:
    """The network whose backward averages gradients over processes; itself where there is one."""
    if ranks.world == 1:
        return network
    return nn.parallel.DistributedDataParallel(network)

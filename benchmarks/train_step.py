"""One training step: ours against a plain loop of the reference's recipe, side by side in one run.

python benchmarks/train_step.py --out benchmarks/results/train_step.json [--device cuda] [--compile]

Both loops train the same network (same weights, frozen encoder, channel dropout, instance norm) on the same crops with
AdamW and Dice + cross-entropy. The plain one keeps tensors contiguous, and layers, the optimiser, denormal numbers and
freed memory as PyTorch has them; ours is what ``dropgen-rt train`` does. Each runs in a process of its own, and they
take turns step by step. The losses of all steps are compared: a step with other numerics would be no faster step. How
far either loop is off the plain one in float64 is told besides: where that is more than the difference allowed, no two
loops in that precision would agree. So is how far first losses are apart and first gradients off, where all weights are
the same still. Activations whose error changes their sign open or close ReLUs: gradients of fp32 are off by percents,
and those of bf16 by as much as they are large, in either loop.
"""

import argparse
import multiprocessing
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from recording import write
from torch import nn

from dropgen_rt.train import layers
from dropgen_rt.train.config import TrainConfig
from dropgen_rt.train.device import autocast, choose_device, move_to
from dropgen_rt.train.fast_cpu import fast_cpu
from dropgen_rt.train.loop import FUSED
from dropgen_rt.train.losses import make_loss
from dropgen_rt.train.network import ANATOMIX, PADDINGS, DropGen, segmentor_config

CLASSES = 4
# Steps that are not timed: they find algorithms and memory.
FIRST = 3
# Losses of the same steps in the two loops, relative: convolutions sum in another order, bf16 keeps eight bits.
SAME = {"fp32": 1e-3, "bf16": 3e-2}


class Trained(NamedTuple):
    """What one step took and gave; gradients only of the first, before which all loops have the same weights."""

    seconds: float
    loss: float
    gradient: NDArray[np.float64] | None


Step = Callable[[int], Trained]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--edge", type=int, default=48)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--width", type=int, default=8)
    parser.add_argument("--levels", type=int, default=4)
    parser.add_argument("--padding", choices=PADDINGS, default="reflect", help="Of the segmentor; paper: reflect.")
    parser.add_argument("--steps", type=int, default=5, help="Timed steps of each loop, taken in turns.")
    parser.add_argument("--precisions", nargs="+", choices=SAME, default=list(SAME))
    parser.add_argument("--compile", action="store_true")
    arguments = parser.parse_args()
    device = choose_device(arguments.device)
    exact = loop("float64", device, arguments, ours=False)
    steps = [exact(step) for step in range(arguments.steps + FIRST)]
    rows = {precision: compare(precision, device, arguments, steps) for precision in arguments.precisions}
    shape = {
        key: getattr(arguments, key) for key in ("edge", "batch", "width", "levels", "padding", "steps", "compile")
    }
    name = torch.cuda.get_device_name() if device.type == "cuda" else "cpu"
    write(arguments.out, {"device": name, "torch": torch.__version__, **shape, "precisions": rows})


def compare(
    precision: str, device: torch.device, arguments: argparse.Namespace, exact: Sequence[Trained]
) -> dict[str, float]:
    """Median step times in turns, their ratio, and how far both loops are apart, and off the ``exact`` one."""
    plain: list[Trained] = []
    ours: list[Trained] = []
    with stepping(precision, device, arguments, False) as run, stepping(precision, device, arguments, True) as run_ours:
        for step in range(arguments.steps + FIRST):
            plain.append(run(step))
            ours.append(run_ours(step))
    plain_s, ours_s = (float(np.median([step.seconds for step in steps[FIRST:]])) for steps in (plain, ours))
    apart = furthest(ours, plain)
    row = {
        "plain_s": round(plain_s, 4),
        "ours_s": round(ours_s, 4),
        "ratio": round(plain_s / ours_s, 3),
        "losses_apart": round(apart, 6),
        "first_losses_apart": float(f"{furthest(ours[:1], plain[:1]):.2g}"),
        "equal_numerics": bool(apart <= SAME[precision]),
        "plain_off_float64": round(furthest(plain, exact), 6),
        "ours_off_float64": round(furthest(ours, exact), 6),
        "plain_gradient_off_float64": float(f"{of_gradients(plain, exact):.2g}"),
        "ours_gradient_off_float64": float(f"{of_gradients(ours, exact):.2g}"),
    }
    print(f"{precision}: {row}")
    return row


def furthest(steps: Sequence[Trained], others: Sequence[Trained]) -> float:
    """The largest difference of losses, relative to those of ``others``."""
    return max(abs(step.loss - other.loss) / abs(other.loss) for step, other in zip(steps, others, strict=True))


def of_gradients(steps: Sequence[Trained], exact: Sequence[Trained]) -> float:
    """The Euclidean norm of the first gradients' difference, relative to that of the exact one."""
    assert steps[0].gradient is not None and exact[0].gradient is not None
    return float(np.linalg.norm(steps[0].gradient - exact[0].gradient) / np.linalg.norm(exact[0].gradient))


@contextmanager
def stepping(precision: str, device: torch.device, arguments: argparse.Namespace, ours: bool) -> Iterator[Step]:
    """A loop in a process of its own, for what ours asks of a process is not undone for the other."""
    spawn = multiprocessing.get_context("spawn")
    here, there = spawn.Pipe()
    process = spawn.Process(target=answer_steps, args=(there, precision, device, arguments, ours), daemon=True)
    process.start()
    there.close()  # it is the other's end

    def run(step: int) -> Trained:
        here.send(step)
        trained: Trained = here.recv()
        return trained

    try:
        yield run
    finally:
        here.close()
        process.join()


def answer_steps(
    connection: Connection, precision: str, device: torch.device, arguments: argparse.Namespace, ours: bool
) -> None:
    """Train the steps whose numbers come in, until none does."""
    with fast_cpu() if ours else nullcontext():
        run = loop(precision, device, arguments, ours)
        with suppress(EOFError):
            while True:
                connection.send(run(connection.recv()))


def loop(precision: str, device: torch.device, arguments: argparse.Namespace, ours: bool) -> Step:
    """A function of the step's number that trains one step.

    ``precision`` may be "float64", too, for a plain loop.
    """
    torch.manual_seed(0)
    config = TrainConfig(width=arguments.width, levels=arguments.levels, window=(arguments.edge,) * 3)
    inputs = 1 + ANATOMIX.out_channels
    segmentor = segmentor_config(inputs, CLASSES, config.width, config.levels, padding=arguments.padding)
    network = DropGen(segmentor, ANATOMIX, config.drop)
    layout = torch.channels_last_3d if ours else torch.contiguous_format
    if ours:
        move_to(network, device)
    else:
        use_plain_layers(network.to(device))
    kind = torch.float64 if precision == "float64" else torch.float32
    network.to(kind).train()
    forward = torch.compile(network) if ours and arguments.compile else network
    weights = [p for p in network.parameters() if p.requires_grad]
    fused = FUSED[device.type] if ours else None
    optimiser = torch.optim.AdamW(weights, config.learning_rate, weight_decay=config.weight_decay, fused=fused)
    loss_of = make_loss("dice_ce")

    def run(step: int) -> Trained:
        rng = np.random.default_rng(step)
        shape = (arguments.batch, 1, *config.window)
        image = torch.from_numpy(rng.random(shape, dtype=np.float32)).to(device, kind)
        target = (image * CLASSES).long().clamp_(0, CLASSES - 1)
        torch.manual_seed(step)
        settle(device)
        start = time.perf_counter()
        with nullcontext() if kind == torch.float64 else autocast(device, precision):
            logits = forward(image.contiguous(memory_format=layout))
        loss = loss_of(logits.to(kind), target)
        optimiser.zero_grad()
        loss.backward()
        gradient = None if step else torch.cat([p.grad.double().flatten() for p in weights]).cpu().numpy()
        torch.nn.utils.clip_grad_norm_(weights, config.gradient_clip)
        optimiser.step()
        settle(device)
        return Trained(time.perf_counter() - start, loss.item(), gradient)

    return run


def settle(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def use_plain_layers(network: nn.Module) -> None:
    """PyTorch's own layers in place of ours, which are named after them; weights and states stay."""
    for module in network.modules():
        if type(module).__module__ == layers.__name__:
            module.__class__ = type(module).__base__


if __name__ == "__main__":
    main()

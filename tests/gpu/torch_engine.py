"""A PyTorch network behind the contract of a GPU engine: the road's stand-in where there is no TensorRT.

It works on the device addresses and the stream that it is given, so that the whole road runs on any NVIDIA GPU.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

TYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
LOGIT_TYPES = {"fp32": "f32", "fp16": "f16", "bf16": "bf16"}


class _Memory:
    """Device memory as PyTorch's ``as_tensor`` takes it; bfloat16 goes as int16, which the interface knows."""

    def __init__(self, address: int, shape: Sequence[int], typestr: str) -> None:
        self.__cuda_array_interface__ = {
            "shape": tuple(shape), "typestr": typestr, "data": (address, False), "version": 3, "strides": None,
        }  # fmt: skip


def tensor_at(address: int, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """A tensor over memory that someone else owns."""
    if dtype == torch.float32:
        return torch.as_tensor(_Memory(address, shape, "<f4"), device="cuda")
    return torch.as_tensor(_Memory(address, shape, "<i2"), device="cuda").view(dtype)


class TorchEngine:
    """``network`` on the GPU in one precision; logits leave in that precision too."""

    name, device = "torch", "cuda:0"

    def __init__(self, network: nn.Module, channels: int, classes: int, window: Sequence[int], precision: str) -> None:
        self.version, self.precision = torch.__version__, precision
        self.logit_type = LOGIT_TYPES[precision]
        self._type, self._window = TYPES[precision], tuple(window)
        self._channels, self._classes = channels, classes
        self._network = network.to("cuda", self._type).eval()

    def forward(self, windows: Tensor) -> Tensor:
        """(b, channels, z, y, x) float32 -> logits in the engine's precision."""
        with torch.no_grad():
            return self._network(windows.to(self._type))

    def infer_device(self, windows: int, logits: int, batch: int, stream: int) -> None:
        with torch.cuda.stream(torch.cuda.ExternalStream(stream)):
            given = tensor_at(windows, (batch, self._channels, *self._window), torch.float32)
            tensor_at(logits, (batch, self._classes, *self._window), self._type).copy_(self.forward(given))

    def close(self) -> None:
        del self._network

"""Where a training runs, chosen once."""

import re
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

import torch
from torch import nn

from dropgen_rt.errors import DeviceMemoryError, MemoryLimitError, ResourceError, UsageError
from dropgen_rt.train.config import TrainConfig
from dropgen_rt.train.network import UNet

DEVICES = ("auto", "cpu", "cuda")


@contextmanager
def memory_told(smaller: str = "--batch, --window, --width or another --segmentor") -> Iterator[None]:
    """Raises DeviceMemoryError or MemoryLimitError where PyTorch finds no memory; ``smaller`` is what may be less."""
    try:
        yield
    except RuntimeError as error:
        advice = f"use a smaller {smaller}"
        if isinstance(error, torch.OutOfMemoryError):
            raise DeviceMemoryError(f"the GPU's memory does not hold this training; {advice}") from error
        if "can't allocate memory" in str(error):
            raise MemoryLimitError(f"this machine's memory does not hold this training; {advice}") from error
        raise


def choose_device(name: str) -> torch.device:
    """The device for "auto", "cpu", "cuda" or "cuda:N". Raises UsageError, or ResourceError if it is not there."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise ResourceError(f"device {name!r}: this PyTorch {torch.__version__} sees no NVIDIA GPU; use --device cpu")
    if not (name == "cpu" or re.fullmatch(r"cuda(:\d+)?", name)):
        raise UsageError(f"device {name!r}: accepted are {', '.join(DEVICES)} and cuda:N")
    if name.startswith("cuda:") and int(name[5:]) >= torch.cuda.device_count():
        raise ResourceError(f"device {name!r}: this machine has {torch.cuda.device_count()} GPUs, counted from 0")
    return torch.device(name)


def move_to(network: nn.Module, device: torch.device) -> None:
    """Move a network to the device, in the layout and the form in which it trains fastest there."""
    network.to(device, memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
    if device.type == "cpu":  # whether a GPU gains by it is not known
        for part in network.modules():
            if isinstance(part, UNet):
                part.prefer_speed()


def half_of(device: torch.device, precision: str) -> torch.dtype | None:
    """The type that a "precision" computes convolutions in, None for fp32.

    "auto" is bf16 on a GPU, as published, and fp32 on a CPU: not every network's gradients are right there in bf16.
    """
    if precision == "auto":
        precision = "bf16" if device.type == "cuda" else "fp32"
    return {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]


def require_sound_gradients(config: TrainConfig, device: torch.device) -> None:
    """Raises UsageError where PyTorch's gradients are wrong: see ``layers.Conv3d``, which only ``unet`` is made of."""
    if device.type == "cpu" and config.precision == "bf16" and config.segmentor != "unet":
        raise UsageError(
            f"precision bf16 on a CPU with segmentor {config.segmentor}: PyTorch's gradients are wrong there; "
            "use --precision fp32, or --segmentor unet"
        )


def autocast(device: torch.device, precision: str = "auto") -> AbstractContextManager:
    """Arithmetic in ``half_of(device, precision)``."""
    half = half_of(device, precision)
    return torch.autocast(device.type, half, enabled=half is not None)

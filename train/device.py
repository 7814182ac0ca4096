"""Where a training runs, chosen once."""

from contextlib import AbstractContextManager

import torch

from dropgen_rt.errors import ResourceError

DEVICES = ("auto", "cpu", "cuda")


def choose_device(name: str) -> torch.device:
    """The device for "auto", "cpu", "cuda" or "cuda:N". Raises ResourceError if that is not there."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise ResourceError(f"device {name!r}: this PyTorch {torch.__version__} sees no NVIDIA GPU; use --device cpu")
    return torch.device(name)


def autocast(device: torch.device) -> AbstractContextManager:
    """bf16 arithmetic on a GPU, as published; fp32 on a CPU, where bf16 is slower unless the CPU has it built in."""
    return torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda")

"""The road on an NVIDIA GPU: one small contract for the driver, two libraries behind it, and what runs on it."""

from dropgen_rt.gpu.device import Device, open_device

__all__ = ["Device", "open_device"]

"""The compiled CUDA kernels: shipped beside their sources, or compiled here once where nvcc is present."""

import shutil
import tempfile
from pathlib import Path

from dropgen_rt.errors import DeviceError
from dropgen_rt.gpu.device import Device
from dropgen_rt.kernels.architectures import ARCHITECTURES, ENTRY_POINTS
from dropgen_rt.kernels.compile import compile_kernels, source_folder


def has_kernels(capability: str) -> bool:
    """Whether ``load_kernels`` will find code for a GPU of this capability ("89" is 8.9)."""
    there = all(path.is_file() for path in _shipped().values()) or shutil.which("nvcc") is not None
    return there and int(capability) >= min(ARCHITECTURES)


def load_kernels(device: Device) -> None:
    """Make every kernel known to ``device``; the driver takes from each image the code for its architecture.

    Raises DeviceError if the package was built without nvcc and there is none here either.
    """
    shipped = _shipped()
    if all(path.is_file() for path in shipped.values()):
        return _load(device, shipped)
    major, minor = device.capability
    with tempfile.TemporaryDirectory() as folder:
        try:
            compiled = compile_kernels(Path(folder), [10 * major + minor])
        except (FileNotFoundError, RuntimeError) as error:
            raise DeviceError(
                f"this installation has no CUDA kernels ({error}); build it where nvcc is on the PATH, "
                "or use --device cpu"
            ) from error
        return _load(device, compiled)


def _shipped() -> dict[str, Path]:
    return {stem: source_folder() / f"{stem}.fatbin" for stem in ENTRY_POINTS}


def _load(device: Device, images: dict[str, Path]) -> None:
    for stem, image in images.items():
        device.load(image.read_bytes(), ENTRY_POINTS[stem])

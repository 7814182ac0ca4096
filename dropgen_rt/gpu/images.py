"""The compiled CUDA kernels: shipped beside their sources, or compiled here once where nvcc is present."""

import tempfile
from pathlib import Path

from dropgen_rt.errors import DeviceError
from dropgen_rt.gpu.device import Device
from dropgen_rt.kernels.architectures import ENTRY_POINTS
from dropgen_rt.kernels.compile import compile_kernels, source_folder


def load_kernels(device: Device) -> None:
    """Make every kernel known to ``device``; the driver takes from each image the code for its architecture.

    Raises DeviceError if the package was built without nvcc and there is none here either.
    """
    shipped = {stem: source_folder() / f"{stem}.fatbin" for stem in ENTRY_POINTS}
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


def _load(device: Device, images: dict[str, Path]) -> None:
    for stem, image in images.items():
        device.load(image.read_bytes(), ENTRY_POINTS[stem])

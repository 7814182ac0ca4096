"""Compile the CUDA files with nvcc: one image per stem, for one architecture or for all of them."""

import importlib.resources
import shutil
import subprocess
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from dropgen_rt.kernels.architectures import ARCHITECTURES, ENTRY_POINTS, NVCC_FLAGS


def source_folder() -> Path:
    """Where the .cu and .h files of the installed package lie."""
    return Path(str(importlib.resources.files("dropgen_rt.kernels")))


def fatbin_command(nvcc: str, source: Path, out: Path, architectures: Sequence[int]) -> list[str]:
    """nvcc's arguments: machine code for ``architectures``, and PTX of the last for GPUs that come after it."""
    last = max(architectures)
    codes = [f"-gencode=arch=compute_{number},code=sm_{number}" for number in architectures]
    codes.append(f"-gencode=arch=compute_{last},code=compute_{last}")
    return [nvcc, "-fatbin", *codes, *NVCC_FLAGS, "--threads", "0", str(source), "-o", str(out)]


def compile_kernels(
    out: Path, architectures: Sequence[int] = ARCHITECTURES, source: Path | None = None
) -> dict[str, Path]:
    """Write ``<stem>.fatbin`` for every stem into the folder ``out``.

    Raises FileNotFoundError without nvcc, and RuntimeError with nvcc's own words for what does not compile.
    """
    nvcc = shutil.which("nvcc")
    if nvcc is None:
        raise FileNotFoundError("nvcc is not on the PATH: install the CUDA toolkit")
    folder = source or source_folder()

    def one(stem: str) -> tuple[str, Path]:
        image = out / f"{stem}.fatbin"
        command = fatbin_command(nvcc, folder / f"{stem}.cu", image, architectures)
        run = subprocess.run(command, capture_output=True, text=True, check=False)
        if run.returncode:
            raise RuntimeError(f"nvcc cannot compile {stem}.cu: {run.stderr.strip()}")
        return stem, image

    with ThreadPoolExecutor() as pool:
        return dict(pool.map(one, ENTRY_POINTS))

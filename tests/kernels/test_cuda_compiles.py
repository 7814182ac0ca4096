"""Every CUDA file compiles for every architecture, without spilling registers. Needs nvcc, no GPU."""

import importlib.resources
import shutil
import subprocess
from pathlib import Path

import pytest

from dropgen_rt.kernels.architectures import ARCHITECTURES, ENTRY_POINTS, NVCC_FLAGS

NVCC = shutil.which("nvcc")
SOURCES = Path(str(importlib.resources.files("dropgen_rt.kernels")))


def test_every_cuda_file_is_listed():
    assert {path.stem for path in SOURCES.glob("*.cu")} == set(ENTRY_POINTS)


@pytest.mark.skipif(NVCC is None, reason="nvcc is not on the PATH: the CUDA files are not compiled")
@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("stem", ENTRY_POINTS)
def test_compiles_without_spills(stem, architecture, tmp_path):
    cubin = tmp_path / f"{stem}.cubin"
    flags = [f"-arch=sm_{architecture}", *NVCC_FLAGS, "-Xptxas", "-v,--warn-on-spills"]
    command = [NVCC, "-cubin", *flags, SOURCES / f"{stem}.cu", "-o", cubin]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert cubin.stat().st_size > 0
    for entry in ENTRY_POINTS[stem]:
        assert f"Compiling entry function '{entry}' for 'sm_{architecture}'" in run.stderr
    spills = [line for line in run.stderr.splitlines() if "spill stores" in line]
    assert len(spills) == len(ENTRY_POINTS[stem])
    for line in spills:
        assert "0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads" in line
    assert "warning" not in run.stderr

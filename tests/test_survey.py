"""The survey of the machine, with a driver of our own making in place of NVIDIA's."""

import ctypes
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from dropgen_rt import survey as module
from dropgen_rt.engines.contract import KINDS
from dropgen_rt.errors import UsageError
from dropgen_rt.survey import (
    OTHERS,
    Gpu,
    compilers,
    cores,
    cpu_name,
    driver_parts,
    has_cuda_provider,
    library_version,
    missing,
    other_version,
    require_extra,
    survey,
)

ROOT = Path(__file__).parents[1]

DRIVER = """
#include <string.h>
extern "C" {
int cuInit(unsigned) { return START; }
int cuDriverGetVersion(int* v) { *v = 13010; return 0; }
int cuDeviceGetCount(int* n) { *n = 1; return 0; }
int cuDeviceGet(int* d, int) { *d = 7; return 0; }
int cuDeviceGetName(char* s, int n, int) { strncpy(s, "Made-up GPU", n); return 0; }
int cuDeviceGetAttribute(int* v, int which, int d) {
  *v = d == 7 ? (which == 75 ? 8 : which == 76 ? 9 : -1) : -2;
  return 0;
}
int cuDeviceTotalMem_v2(size_t* b, int) { *b = 16ull << 30; return 0; }
int nvmlInit_v2() { return 0; }
int nvmlShutdown() { return 0; }
int nvmlSystemGetDriverVersion(char* s, unsigned n) { strncpy(s, "580.99", n); return 0; }
}
"""


@pytest.fixture
def driver(tmp_path, monkeypatch):
    """Compile a libcuda whose cuInit gives a status, and have it found."""
    original = ctypes.CDLL

    def make(status):
        source, library = tmp_path / "driver.cpp", tmp_path / f"driver{status}.so"
        source.write_text(DRIVER.replace("START", str(status)))
        subprocess.run([shutil.which("c++"), "-shared", "-fPIC", "-o", str(library), str(source)], check=True)
        monkeypatch.setattr(module.ctypes, "CDLL", lambda name: original(str(library)))

    return make


def test_a_gpu(driver):
    driver(0)
    found = survey()
    assert found.gpus == (Gpu(0, "Made-up GPU", "89", 16 << 30),)
    assert (found.driver_cuda, found.no_gpu, found.driver) == ("13.1", "", "580.99")


def test_a_driver_that_does_not_start(driver):
    driver(100)
    found = survey()
    assert found.gpus == () and found.no_gpu == "the NVIDIA driver refuses to start (error 100)"


def test_no_driver(monkeypatch):
    def absent(name):
        raise OSError(name)

    monkeypatch.setattr(module.ctypes, "CDLL", absent)
    found = survey()
    assert found.no_gpu == "no NVIDIA driver is installed"
    assert found.driver == "" and "rtx: no NVIDIA driver is installed" in missing(found)
    assert not any(there for name, there in driver_parts().items() if name.startswith("lib"))


def test_a_driver_without_nvml(driver, monkeypatch):
    driver(0)
    both = module.ctypes.CDLL

    def without(name):
        if "nvidia-ml" in name:
            raise OSError(name)
        return both(name)

    monkeypatch.setattr(module.ctypes, "CDLL", without)
    assert survey().gpus and survey().driver == ""
    assert (driver_parts()["libcuda.so.1"], driver_parts()["libnvidia-ml.so.1"]) == (True, False)


def test_what_is_missing_for_a_gpu(monkeypatch):
    found = module.Survey((Gpu(0, "H100", "90", 2**36),), "13.0", "")
    monkeypatch.setattr(module, "_version", lambda name, _: None if name in ("pycuda", "tensorrt") else "1.0")
    monkeypatch.setattr(module, "has_cuda_provider", lambda: False)
    lines = missing(found)
    assert "tensorrt: not installed (pip install 'dropgen-rt[tensorrt]')" in lines
    assert "rtx: pycuda is not installed (pip install 'dropgen-rt[rtx]')" in lines
    assert "rtx: it does not run on H100, sm_90" in lines and not any("tensorrt: it" in line for line in lines)
    assert any(line.startswith("onnxruntime on CUDA: its GPU wheel is not installed (pip uninstall") for line in lines)


def test_the_provider_of_onnxruntime(tmp_path, monkeypatch):
    assert not has_cuda_provider()  # tests run with the CPU wheel
    library = tmp_path / "onnxruntime" / "capi" / "libonnxruntime_providers_cuda.so"
    library.parent.mkdir(parents=True)
    (tmp_path / "onnxruntime" / "__init__.py").touch()
    library.touch()
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "onnxruntime", raising=False)
    assert has_cuda_provider()


def test_libraries_and_tools():
    assert {kind: library_version(kind) is not None for kind in KINDS}["openvino"]
    assert all(other_version(name) for name in OTHERS if name not in ("pycuda", "cuda-bindings"))
    assert compilers()["c++"] != "" and cpu_name() and cores() >= 1


@pytest.mark.parametrize("extra", ["train", "export"])
def test_a_command_whose_extra_is_not_whole_says_what_is_missing(extra, monkeypatch):
    """Whatever package of the extra it is."""
    require_extra(extra)
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    packages = listed["train"] + (listed["export"][1:] if extra == "export" else [])
    assert listed["export"][0] == "dropgen-rt[train]"
    for package in (re.split("[>=!]", package)[0] for package in packages):
        monkeypatch.setattr(module, "find_spec", lambda name, gone=package: None if name == gone else name)
        with pytest.raises(UsageError, match=rf"needs {package}; install it with: pip install 'dropgen-rt\[{extra}\]'"):
            require_extra(extra)


def test_asking_imports_no_engine():
    code = "import sys; from dropgen_rt.survey import *; survey(); [library_version(k) for k in KINDS]"
    code += "; print(sorted(sys.modules))"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert not any(f"'{name}'" in shown for name in ("openvino", "onnxruntime", "tensorrt", "tensorrt_rtx"))

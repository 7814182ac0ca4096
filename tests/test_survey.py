"""The survey of the machine, with a driver of our own making in place of NVIDIA's."""

import ctypes
import shutil
import subprocess
import sys

import pytest

from dropgen_rt import survey as module
from dropgen_rt.engines.contract import KINDS
from dropgen_rt.errors import UsageError
from dropgen_rt.survey import Gpu, compilers, cores, cpu_name, library_version, missing, require_module, survey

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
    assert (found.driver_cuda, found.no_gpu) == ("13.1", "")


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
    assert "rtx: no NVIDIA driver is installed" in missing(found)


def test_libraries_and_tools():
    assert {kind: library_version(kind) is not None for kind in KINDS}["openvino"]
    assert compilers()["c++"] != "" and cpu_name() and cores() >= 1
    require_module("numpy", "train")
    with pytest.raises(UsageError, match=r"needs absent_module; install it with: pip install 'dropgen-rt\[train\]'"):
        require_module("absent_module", "train")


def test_asking_imports_no_engine():
    code = "import sys; from dropgen_rt.survey import *; survey(); [library_version(k) for k in KINDS]"
    code += "; print(sorted(sys.modules))"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert not any(f"'{name}'" in shown for name in ("openvino", "onnxruntime", "tensorrt", "tensorrt_rtx"))

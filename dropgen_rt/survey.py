"""What this machine has: GPUs, drivers, engine libraries, compilers. Asks; loads nothing heavy; changes nothing."""

import ctypes
import os
import platform
import shutil
import subprocess
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

from dropgen_rt.engines.contract import KINDS, Kind
from dropgen_rt.errors import UsageError

# Engine -> (module, distributions that carry it, what to install)
LIBRARIES: dict[Kind, tuple[str, tuple[str, ...], str]] = {
    "openvino": ("openvino", ("openvino",), "pip install openvino"),
    "onnxruntime": ("onnxruntime", ("onnxruntime", "onnxruntime-gpu"), "pip install 'dropgen-rt[onnxruntime]'"),
    "tensorrt": ("tensorrt", ("tensorrt", "tensorrt-cu13", "tensorrt-cu12"), "pip install 'dropgen-rt[tensorrt]'"),
    "rtx": ("tensorrt_rtx", ("tensorrt-rtx", "tensorrt_rtx_cu13"), "pip install 'dropgen-rt[rtx]'"),
}

_COMPUTE_MAJOR, _COMPUTE_MINOR = 75, 76  # CUdevice_attribute of the driver API


@dataclass(frozen=True)
class Gpu:
    """``capability`` as NVIDIA writes it in file names: "89" is 8.9."""

    index: int
    name: str
    capability: str
    memory_bytes: int


@dataclass(frozen=True)
class Survey:
    """``driver_cuda`` is the newest CUDA that the driver runs, "" without one; ``no_gpu`` says why none is there."""

    gpus: tuple[Gpu, ...]
    driver_cuda: str
    no_gpu: str

    def library(self, kind: Kind) -> str | None:
        """The installed version of an engine's library, None if it is not installed."""
        return library_version(kind)


def library_version(kind: Kind) -> str | None:
    module, distributions, _ = LIBRARIES[kind]
    if find_spec(module) is None:
        return None
    for name in distributions:
        try:
            return version(name)
        except PackageNotFoundError:
            continue
    return "unknown"


def survey() -> Survey:
    """Ask the NVIDIA driver, through its own library, what is there."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return Survey((), "", "no NVIDIA driver is installed")
    if status := driver.cuInit(0):
        return Survey((), "", f"the NVIDIA driver refuses to start (error {status})")
    number = ctypes.c_int()
    driver.cuDriverGetVersion(ctypes.byref(number))
    newest = f"{number.value // 1000}.{number.value % 1000 // 10}"
    driver.cuDeviceGetCount(ctypes.byref(number))
    gpus = tuple(_gpu(driver, index) for index in range(number.value))
    return Survey(gpus, newest, "" if gpus else "the NVIDIA driver finds no GPU")


def _gpu(driver: ctypes.CDLL, index: int) -> Gpu:
    device, major, minor = ctypes.c_int(), ctypes.c_int(), ctypes.c_int()
    name, memory = ctypes.create_string_buffer(128), ctypes.c_size_t()
    driver.cuDeviceGet(ctypes.byref(device), index)
    driver.cuDeviceGetName(name, len(name), device)
    driver.cuDeviceGetAttribute(ctypes.byref(major), _COMPUTE_MAJOR, device)
    driver.cuDeviceGetAttribute(ctypes.byref(minor), _COMPUTE_MINOR, device)
    driver.cuDeviceTotalMem_v2(ctypes.byref(memory), device)
    return Gpu(index, name.value.decode(), f"{major.value}{minor.value}", memory.value)


def compilers() -> dict[str, str]:
    """First lines of what the compilers say of themselves; "" for one that is not there."""
    return {name: _first_line(name) for name in ("nvcc", "c++")}


def _first_line(name: str) -> str:
    path = shutil.which(name)
    if path is None:
        return ""
    shown = subprocess.run([path, "--version"], capture_output=True, text=True, check=False).stdout.splitlines()
    release = [line for line in shown if "release" in line]
    return (release or shown or [""])[0].strip()


def cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.is_file() else []
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor())


def cores() -> int:
    return len(os.sched_getaffinity(0))


def missing(found: Survey) -> list[str]:
    """For each engine that cannot run here: what is missing and how to get it."""
    lines = []
    for kind in KINDS:
        needs_gpu = kind in ("tensorrt", "rtx")
        if library_version(kind) is None:
            lines.append(f"{kind}: not installed ({LIBRARIES[kind][2]})")
        elif needs_gpu and not found.gpus:
            lines.append(f"{kind}: {found.no_gpu}")
    return lines


def require_module(module: str, extra: str) -> None:
    """Refuse, before a slow import fails, a command whose extra is not installed. Raises UsageError."""
    if find_spec(module) is None:
        raise UsageError(f"this command needs {module}; install it with: pip install 'dropgen-rt[{extra}]'")

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

# What runs an engine or helps to, beside the engines themselves: name -> (module, distribution, what it is for).
OTHERS = {
    "pycuda": ("pycuda", "pycuda", "runs TensorRT engines: pip install 'dropgen-rt[tensorrt]'"),
    "cuda-bindings": ("cuda", "cuda-bindings", "the GPU road where pycuda is not: pip install 'dropgen-rt[cuda]'"),
    "onnx": ("onnx", "onnx", "pip install onnx"),
    "SimpleITK": ("SimpleITK", "SimpleITK", "pip install SimpleITK"),
    "pydicom": ("pydicom", "pydicom", "pip install pydicom"),
    "torch": ("torch", "torch", "trains and exports: pip install 'dropgen-rt[train,export]'"),
}
CUDA_PROVIDER_HINT = "pip uninstall onnxruntime && pip install onnxruntime-gpu"

# What TensorRT for RTX runs on and builds for, as its documentation lists it; 7.5 has no bfloat16.
RTX_CAPABILITIES = ("75", "80", "86", "89", "120", "121")
# TensorRT 10 begins with Turing.
OLDEST_TENSORRT = 75

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
    """``driver_cuda`` is the newest CUDA that the driver runs, "" without one; ``no_gpu`` says why none is there.

    ``driver`` is the driver's own version, such as "580.159.04", "" if it does not tell.
    """

    gpus: tuple[Gpu, ...]
    driver_cuda: str
    no_gpu: str
    driver: str = ""

    def library(self, kind: Kind) -> str | None:
        """The installed version of an engine's library, None if it is not installed."""
        return library_version(kind)


def library_version(kind: Kind) -> str | None:
    module, distributions, _ = LIBRARIES[kind]
    return _version(module, distributions)


def other_version(name: str) -> str | None:
    """The installed version of one of OTHERS, None if it is not installed."""
    module, distribution, _ = OTHERS[name]
    return _version(module, (distribution,))


def _version(module: str, distributions: tuple[str, ...]) -> str | None:
    if find_spec(module) is None:
        return None
    for name in distributions:
        try:
            return version(name)
        except PackageNotFoundError:
            continue
    return "unknown"


def has_cuda_provider() -> bool:
    """Whether the installed ONNX Runtime is its GPU wheel: whether the library of its CUDA provider is there."""
    spec = find_spec("onnxruntime")
    places = (spec.submodule_search_locations or []) if spec is not None else []
    return any(any(Path(place).glob("capi/*onnxruntime_providers_cuda.*")) for place in places)


def runs_on(kind: Kind, capability: str) -> bool:
    """Whether an engine's library has kernels for GPUs of this capability ("89" is 8.9)."""
    if kind == "rtx":
        return capability in RTX_CAPABILITIES
    return kind != "tensorrt" or int(capability) >= OLDEST_TENSORRT


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
    return Survey(gpus, newest, "" if gpus else "the NVIDIA driver finds no GPU", _driver_version())


def _driver_version() -> str:
    """The driver's version as NVML tells it; "" where NVML is not there or does not start."""
    try:
        nvml = ctypes.CDLL("libnvidia-ml.so.1")
    except OSError:
        return ""
    text = ctypes.create_string_buffer(96)
    if nvml.nvmlInit_v2() or nvml.nvmlSystemGetDriverVersion(text, len(text)):
        return ""
    nvml.nvmlShutdown()
    return text.value.decode(errors="replace")


def driver_parts() -> dict[str, bool]:
    """The parts of NVIDIA's driver that are asked, and whether each is there."""
    return {name: _loads(name) for name in ("libcuda.so.1", "libnvidia-ml.so.1")} | {
        "nvidia-smi": shutil.which("nvidia-smi") is not None
    }


def _loads(name: str) -> bool:
    try:
        ctypes.CDLL(name)
    except OSError:
        return False
    return True


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
    return _cpu_line("model name") or platform.processor()


def cpu_has(*instructions: str) -> bool:
    """Whether the CPU has any of these instruction sets, by Linux' names; unknown elsewhere, so False."""
    return not set(instructions).isdisjoint(_cpu_line("flags").split())


def _cpu_line(key: str) -> str:
    """What Linux says of the first core; "" where it says nothing."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.is_file() else []
    return next((line.split(":")[1].strip() for line in lines if line.startswith(key)), "")


def cores() -> int:
    return len(os.sched_getaffinity(0))


def missing(found: Survey) -> list[str]:
    """For each engine that cannot run here, or not at its best: what is missing and how to get it."""
    from dropgen_rt.gpu.device import has_library

    lines = []
    for kind in KINDS:
        needs_gpu = kind in ("tensorrt", "rtx")
        if library_version(kind) is None:
            lines.append(f"{kind}: not installed ({LIBRARIES[kind][2]})")
        elif needs_gpu and not found.gpus:
            lines.append(f"{kind}: {found.no_gpu}")
        elif needs_gpu and other_version("pycuda") is None:
            lines.append(f"{kind}: pycuda is not installed (pip install 'dropgen-rt[{kind}]')")
    for gpu in found.gpus:
        lines += [f"{kind}: it does not run on {gpu.name}, sm_{gpu.capability}" for kind in ("tensorrt", "rtx")
                  if not runs_on(kind, gpu.capability)]  # fmt: skip
    if found.gpus and not has_cuda_provider():
        lines.append(f"onnxruntime on CUDA: its GPU wheel is not installed ({CUDA_PROVIDER_HINT})")
    elif found.gpus and not has_library():
        lines.append("onnxruntime on CUDA: windows pass through the host (pip install 'dropgen-rt[cuda]')")
    return lines


#: What the commands of an extra import.
_EXTRAS: dict[str, tuple[str, ...]] = {"train": ("torch", "monai", "einops", "matplotlib", "tensorboardX")}
_EXTRAS["export"] = (*_EXTRAS["train"], "onnxscript", "onnxruntime")


def require_extra(extra: str) -> None:
    """Refuse, before a slow import fails, a command whose extra is not installed whole. Raises UsageError."""
    for module in _EXTRAS[extra]:
        if find_spec(module) is None:
            raise UsageError(f"this command needs {module}; install it with: pip install 'dropgen-rt[{extra}]'")

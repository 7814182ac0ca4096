"""The one place that chooses an engine and a precision, and says why."""

from dataclasses import dataclass
from pathlib import Path

from dropgen_rt.engines.contract import KINDS, PRECISIONS, Engine, Kind, Precision
from dropgen_rt.errors import PrecisionError, ResourceError, UsageError
from dropgen_rt.model import Model
from dropgen_rt.survey import (
    CUDA_PROVIDER_HINT,
    LIBRARIES,
    RTX_CAPABILITIES,
    Gpu,
    Survey,
    has_cuda_provider,
    library_version,
    other_version,
    runs_on,
    survey,
)

# What runs on a GPU of NVIDIA's, best first, and of these what runs nowhere else.
_ON_GPUS: tuple[Kind, ...] = ("tensorrt", "rtx", "onnxruntime")
_GPU_ENGINES: tuple[Kind, ...] = ("tensorrt", "rtx")


@dataclass(frozen=True)
class Choice:
    """``precisions``: what may be tried, in order; with an explicit precision that is the only one."""

    kind: Kind
    device: str
    precisions: tuple[Precision, ...]
    reason: str


def choose(kind: str = "auto", precision: str = "auto", device: str = "auto", found: Survey | None = None) -> Choice:
    """Resolve every "auto", once.

    Raises UsageError for an unknown word, ResourceError for a library or device that is not there, and
    PrecisionError for a precision that the engine or the machine does not have.
    """
    _check_words(kind, precision, device)
    found = survey() if found is None else found
    engine, reason = (_automatic(device, found)) if kind == "auto" else (_explicit(kind, device, found), "as asked")
    where = _device(engine, device, found)
    offered = _precisions(engine, where)
    if precision == "auto":
        # From the first to fp32: there is none wider to go on to.
        tried = offered[: offered.index("fp32") + 1]
        return Choice(engine, where, tried, f"{reason}; precision auto: {_why(engine, offered)}")
    chosen = next((item for item in PRECISIONS if item == precision), None)
    if chosen not in offered:
        raise PrecisionError(
            f"precision {precision}: {engine} on {where} has no {precision} here ({_why(engine, offered)}); accepted "
            f"are {', '.join(offered)}, or auto"
        )
    return Choice(engine, where, (chosen,), f"{reason}; precision {precision} as asked")


def _check_words(kind: str, precision: str, device: str) -> None:
    for what, given, accepted in (("engine", kind, KINDS), ("precision", precision, PRECISIONS)):
        if given not in ("auto", *accepted):
            raise UsageError(f"{what} {given!r}: accepted are auto, {', '.join(accepted)}")
    name, colon, index = device.partition(":")
    whole = name == "cuda" and index.isascii() and index.isdigit() and len(index) < 4
    if name not in ("auto", "cpu", "cuda") or (colon and not whole):
        raise UsageError(f"device {device!r}: accepted are auto, cpu, cuda and cuda:N")


def _automatic(device: str, found: Survey) -> tuple[Kind, str]:
    if device == "cpu":
        return "openvino", "openvino is the CPU's engine"
    if device.startswith("cuda") or found.gpus:
        gpu = _require_gpu(device, found)
        lacks = {kind: _lacking(kind, gpu) for kind in _ON_GPUS}
        passed_over = "; ".join(f"{kind}: {reason}" for kind, reason in lacks.items() if reason)
        for kind in _ON_GPUS:
            if not lacks[kind]:
                found_here = f"{gpu.name} and {kind} {library_version(kind)} are here"
                return kind, found_here if kind == "tensorrt" else f"{found_here} ({passed_over})"
        if device.startswith("cuda"):
            raise ResourceError(f"device {device}: no engine for {gpu.name} is installed ({passed_over})")
        return "openvino", f"{gpu.name} is here but no engine for it is installed ({passed_over})"
    return "openvino", found.no_gpu


def _lacking(kind: Kind, gpu: Gpu) -> str:
    """What keeps an engine from running on this GPU, and how to get it; "" if nothing does."""
    if not runs_on(kind, gpu.capability):
        return f"it has no kernels for sm_{gpu.capability}"
    if library_version(kind) is None:
        return f"not installed, {LIBRARIES[kind][2]}"
    if kind == "onnxruntime":
        return "" if has_cuda_provider() else f"its GPU wheel is not installed, {CUDA_PROVIDER_HINT}"
    return "" if other_version("pycuda") is not None else f"pycuda is missing, pip install 'dropgen-rt[{kind}]'"


def _explicit(kind: str, device: str, found: Survey) -> Kind:
    engine = next(item for item in KINDS if item == kind)
    if library_version(engine) is None:
        raise ResourceError(f"engine {kind}: {LIBRARIES[engine][0]} is not installed; {LIBRARIES[engine][2]}")
    if engine in _GPU_ENGINES and device == "cpu":
        raise UsageError(f"engine {kind} runs on NVIDIA GPUs only; leave --device out, or use --engine openvino")
    if engine == "openvino" and device.startswith("cuda"):
        raise UsageError("engine openvino runs on the CPU only; leave --device out, or use --engine tensorrt")
    return engine


def _require_gpu(device: str, found: Survey) -> Gpu:
    if not found.gpus:
        raise ResourceError(f"device {device}: {found.no_gpu}; use --device cpu")
    index = int(device.partition(":")[2] or 0)
    if index >= len(found.gpus):
        raise ResourceError(f"device {device}: this machine has {len(found.gpus)} GPU(s), counted from cuda:0")
    return found.gpus[index]


def _device(kind: Kind, device: str, found: Survey) -> str:
    """Where the engine runs. Raises ResourceError for a GPU that is not there, or that the engine cannot use."""
    if kind == "openvino" or device == "cpu":
        return "cpu"
    if kind == "onnxruntime" and device == "auto" and not (found.gpus and has_cuda_provider()):
        return "cpu"
    gpu = _require_gpu("cuda:0" if device == "auto" else device, found)
    if lacking := _lacking(kind, gpu):
        known = f"; it runs on {', '.join(f'sm_{item}' for item in RTX_CAPABILITIES)}" if kind == "rtx" else ""
        raise ResourceError(f"engine {kind} on {gpu.name}: {lacking}{known}; see dropgen-rt doctor")
    return f"cuda:{gpu.index}"


def _precisions(kind: Kind, device: str) -> tuple[Precision, ...]:
    """What the engine computes here, the one to try first in front."""
    if kind == "openvino":
        from dropgen_rt.engines.openvino_engine import supported_precisions

        return supported_precisions()
    if kind == "onnxruntime":
        # fp32 first: over one scan fp16 took longer (benchmarks/gpu_engines.py).
        return ("fp32",) if device == "cpu" else ("fp32", "fp16")
    return ("fp16", "bf16", "fp32")


def _why(kind: Kind, offered: tuple[Precision, ...]) -> str:
    if kind == "openvino" and offered[0] == "fp32":
        return "this CPU has neither AVX512-BF16 nor AMX"
    if kind == "openvino":
        return f"this CPU computes {offered[0]} in hardware"
    return f"it offers {', '.join(offered)}"


def open_engine(
    model: Model,
    device: str = "auto",
    *,
    engine: str | None = None,
    precision: str | None = None,
    threads: int | None = None,
) -> Engine:
    """Open ``model``: the engine that build-engine installed for it, else OpenVINO in fp32.

    ``device`` is "auto", "cpu" or "cuda:N". Naming ``engine`` or ``precision`` ("auto" takes the first that is offered,
    without the gate, but never eight bits) compiles anew, past what is installed. ``threads`` limits a CPU engine.
    Raises ResourceError for a device or library that is not there, PrecisionError for a precision that it lacks,
    EngineError for an installed engine that was altered, ModelError for a graph that it cannot compile.
    """
    if engine is None and precision is None:
        from dropgen_rt.engine_files import open_installed

        _check_words("auto", "auto", device)
        installed = open_installed(model, device, threads)
        if installed is not None:
            return installed
        if device.startswith("cuda"):
            _automatic(device, survey())  # says what is missing
            raise ResourceError(
                f"device {device}: no engine of this model is built for it; run dropgen-rt build-engine"
            )
        device, precision = "cpu", "fp32"
    if engine is None and device == "auto":
        engine = "openvino"  # the engines of a GPU are built before they are opened
    choice = choose(engine or "auto", precision or "fp32", device)
    first = next(item for item in choice.precisions if item != "int8" or precision == "int8")
    return create(model, choice.kind, first, choice.device, threads=threads)


def create(
    model: Model,
    kind: Kind,
    precision: Precision,
    device: str,
    *,
    threads: int | None = None,
    compiled: bytes | None = None,
    runtime_cache: Path | None = None,
) -> Engine:
    """An engine with every choice made; ``compiled`` is what was kept of an earlier build. Slow imports wait here."""
    if kind == "openvino":
        from dropgen_rt.engines.openvino_engine import OpenVinoEngine

        return OpenVinoEngine(model, precision=precision, threads=threads, compiled=compiled)
    if kind == "onnxruntime":
        from dropgen_rt.engines.onnxruntime_engine import OnnxRuntimeEngine, OnnxRuntimeGpuEngine

        if device != "cpu" and _stays_on_gpu(device):
            return OnnxRuntimeGpuEngine(model, precision=precision, device=device)
        return OnnxRuntimeEngine(model, precision=precision, device=device, threads=threads)
    from dropgen_rt.engines.nvidia_engine import NvidiaEngine

    if compiled is None:
        raise UsageError(f"engine {kind}: build it first with dropgen-rt build-engine --engine {kind}")
    return NvidiaEngine(model, kind, precision, device, compiled, runtime_cache)


def _stays_on_gpu(device: str) -> bool:
    """Whether ONNX Runtime can work on the GPU's road; else windows and logits pass through the host."""
    from dropgen_rt.gpu.device import has_library
    from dropgen_rt.gpu.images import has_kernels

    gpu = _require_gpu(device, survey())
    return has_library() and has_kernels(gpu.capability)

"""Building for NVIDIA GPUs: TensorRT on the machine that will run it, TensorRT for RTX also ahead of time.

Both take a strongly typed graph (dropgen_rt.typed_graph): the precision of each layer is the graph's, not a flag.
"""

import importlib
from collections.abc import Callable, Sequence
from typing import Any

import onnx

from dropgen_rt import signing
from dropgen_rt.engines.contract import Kind, Precision
from dropgen_rt.errors import ModelError, ResourceError, UsageError
from dropgen_rt.model import Model
from dropgen_rt.store import cache_folder
from dropgen_rt.survey import RTX_CAPABILITIES
from dropgen_rt.typed_graph import typed

MODULES = {"tensorrt": "tensorrt", "rtx": "tensorrt_rtx"}
# What TensorRT for RTX can build for ahead of time.
ARCHITECTURES = RTX_CAPABILITIES


def load(kind: Kind) -> Any:
    """The engine's Python module. Its two flavours share one interface."""
    return importlib.import_module(MODULES[kind])


def check_arch(given: Sequence[str]) -> tuple[str, ...]:
    """Architectures such as "sm_86" or "86", as "86", sorted. Raises UsageError."""
    names = sorted({item.strip().removeprefix("sm_") for item in given}, key=lambda item: item.zfill(3))
    offered = ", ".join(f"sm_{item}" for item in ARCHITECTURES)
    if not names:
        raise UsageError(
            "engine rtx: this machine has no NVIDIA GPU, so name the GPUs to build for with --arch; accepted are "
            f"{offered}"
        )
    bad = [name for name in names if name not in ARCHITECTURES]
    if bad:
        raise UsageError(f"--arch {','.join(bad)}: no GPU that TensorRT for RTX builds for; accepted are {offered}")
    return tuple(names)


def build_plan(
    model: Model,
    kind: Kind,
    precision: Precision,
    batch: tuple[int, int, int],
    arch: tuple[str, ...],
    line: Callable[[str], None],
) -> bytes:
    """The engine file. ``batch`` is (smallest, usual, largest) windows at once, ``arch`` () means this GPU.

    Raises ModelError for a graph that cannot be built, UsageError for bf16 on capability 7.5.
    """
    if precision == "bf16" and "75" in arch:
        raise UsageError("precision bf16: sm_75 has none; choose --precision fp16, or leave sm_75 out")
    trt = load(kind)
    logger = _logger(trt)
    builder = trt.Builder(logger)
    if builder is None:
        raise ResourceError(f"{kind}: its builder does not start here; see dropgen-rt doctor")
    # Where the flag is gone there is no other kind of network.
    flag = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    network = builder.create_network(0 if flag is None else 1 << int(flag))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse(typed(model.content, precision)):
        raise ModelError(f"{model.path}: {kind} {trt.__version__} cannot read its graph ({parser.get_error(0).desc()})")
    config = _config(trt, builder, model, batch, arch)
    config.progress_monitor = _progress(trt, line)
    cache = _load_timing_cache(trt, kind, config) if kind == "tensorrt" else None
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise ModelError(f"{model.path}: {kind} {trt.__version__} cannot build it ({logger.last})")
    if cache is not None:
        _keep_timing_cache(kind, trt, config)
    return bytes(plan)


def _config(trt: Any, builder: Any, model: Model, batch: tuple[int, int, int], arch: tuple[str, ...]) -> Any:
    config = builder.create_builder_config()
    config.clear_flag(trt.BuilderFlag.TF32)  # fp32 layers stay fp32
    profile = builder.create_optimization_profile()
    window = (len(model.manifest.channels), *model.manifest.window)
    graph = onnx.load_model_from_string(model.content).graph
    profile.set_shape(graph.input[0].name, *[(size, *window) for size in batch])
    config.add_optimization_profile(profile)
    if arch:
        config.num_compute_capabilities = len(arch)
        for place, name in enumerate(arch):
            if not config.set_compute_capability(getattr(trt.ComputeCapability, f"SM{name}"), place):
                raise UsageError(f"--arch sm_{name}: TensorRT for RTX {trt.__version__} refuses it")
    return config


def _logger(trt: Any) -> Any:
    class Logger(trt.ILogger):
        """Keeps the last error for our own message; warnings go nowhere."""

        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.last = "no reason given"

        def log(self, severity: Any, message: str) -> None:
            if severity <= trt.ILogger.Severity.ERROR:
                self.last = message.strip().splitlines()[-1]

    return Logger()


def _progress(trt: Any, line: Callable[[str], None]) -> Any:
    class Progress(trt.IProgressMonitor):
        """Names the builder's outer phases as they begin; an inner phase has a parent and is not worth a line."""

        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            if not parent_phase:
                line(f"  {phase_name}")

        def phase_finish(self, phase_name: str) -> None:
            pass

        def step_complete(self, phase_name: str, step: int) -> bool:
            return True

    return Progress()


def _timing_path(kind: Kind, trt: Any) -> Any:
    folder = cache_folder()
    return None if folder is None else folder / f"{kind}-{trt.__version__}.timing"


def _load_timing_cache(trt: Any, kind: Kind, config: Any) -> Any:
    """Measured kernel times of earlier builds with this version; TensorRT itself refuses another GPU's."""
    path = _timing_path(kind, trt)
    known = signing.read_signed(path) if path is not None else b""
    cache = config.create_timing_cache(known)
    config.set_timing_cache(cache, False)
    return cache


def _keep_timing_cache(kind: Kind, trt: Any, config: Any) -> None:
    path = _timing_path(kind, trt)
    if path is not None:
        signing.write_signed(path, bytes(config.get_timing_cache().serialize()))

"""OpenVINO on the CPU: the embedded default, in fp32, bf16 or eight bits."""

import io
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import openvino
from numpy.typing import NDArray

from dropgen_rt.engines.contract import Precision, in_batches
from dropgen_rt.engines.openvino_int8 import quantise
from dropgen_rt.engines.openvino_means import sum_by_axes
from dropgen_rt.engines.openvino_upsampling import convolve_before_upsampling
from dropgen_rt.errors import EngineError, ModelError, PrecisionError
from dropgen_rt.golden import stored, synthetic_windows
from dropgen_rt.model import Model
from dropgen_rt.survey import cpu_has

VERSION = openvino.__version__.split("-")[0]
HINTS = {"fp32": "f32", "bf16": "bf16"}
EIGHT_BITS = {"i8", "u8"}
_CAPABILITIES = {"fp32": "FP32", "bf16": "BF16"}
_NEEDED = {"bf16": "AVX512-BF16 or AMX-BF16", "fp16": "fast fp16", "int8": "AVX512-VNNI or AVX-VNNI"}
# Linux' names of the instructions without which eight bits are hardly faster than fp32, and may overflow.
_VNNI = ("avx512_vnni", "avx_vnni")


def supported_precisions() -> tuple[Precision, ...]:
    """What this CPU computes in hardware, narrowest first; OpenVINO would emulate the rest, some 50 times slower.

    Never fp16: OpenVINO offers it for AVX512-FP16, where it took longer than fp32.
    """
    offered = openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    order: tuple[Precision, ...] = ("bf16", "fp32")
    eight: tuple[Precision, ...] = ("int8",) if "INT8" in offered and cpu_has(*_VNNI) else ()
    return eight + tuple(precision for precision in order if _CAPABILITIES[precision] in offered)


def hint(precision: Precision) -> str:
    """What OpenVINO is told; of int8 the type of all that is not in eight bits."""
    if precision != "int8":
        return HINTS[precision]
    return HINTS["bf16" if "bf16" in supported_precisions() else "fp32"]


def cpu_name() -> str:
    return str(openvino.Core().get_property("CPU", "FULL_DEVICE_NAME"))


class OpenVinoEngine:
    """The network compiled for this CPU. OpenVINO would choose bf16 by itself: the precision is always said.

    OpenVINO flushes denormal numbers to zero, which keeps convolutions fast, by a switch of the thread that
    compiles or runs. That thread is the engine's own, so that its caller's arithmetic stays as it was.
    """

    name = "openvino"
    device = "cpu"
    version = VERSION

    def __init__(
        self,
        model: Model,
        *,
        precision: Precision = "fp32",
        threads: int | None = None,
        compiled: bytes | None = None,
    ) -> None:
        """``compiled`` is what ``serialised`` gave earlier. OpenVINO's own cache folder is left out: it reads its files
        back unproved, and spares less than 0.1 s.

        ``threads`` None leaves their number to OpenVINO: one for each physical core that it may use.
        Raises PrecisionError for a precision that this CPU has no instructions for, EngineError for a ``compiled``
        that cannot be read, ModelError for a graph that cannot be compiled.
        """
        if precision not in supported_precisions():
            raise PrecisionError(
                f"precision {precision}: this CPU ({cpu_name()}) has no {_NEEDED.get(precision, precision)}, and "
                f"emulating it is slow; accepted here are {', '.join(supported_precisions())}; build the engine in one"
            )
        self.precision: str = precision
        self._largest_batch = model.manifest.largest_batch
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="openvino")
        properties: dict[str, object] = {
            "INFERENCE_PRECISION_HINT": hint(precision),
            "PERFORMANCE_HINT": "LATENCY",
            "CPU_DENORMALS_OPTIMIZATION": True,
        }
        if threads is not None:
            properties["INFERENCE_NUM_THREADS"] = threads
        try:
            self._compiled = self._thread.submit(_compile, model, precision, properties, compiled).result()
            self._request = self._compiled.create_infer_request()
            self._check_precision()
        except RuntimeError as error:
            self._thread.shutdown()
            reason = str(error).strip().splitlines()[-1]
            if compiled is not None:
                raise EngineError(f"{model.path}: OpenVINO {VERSION} cannot read its engine ({reason})") from error
            raise ModelError(f"{model.path}: OpenVINO {VERSION} cannot compile it ({reason})") from error
        except BaseException:
            self._thread.shutdown()
            raise

    def infer(self, windows: NDArray[np.float32]) -> NDArray[np.float32]:
        """(b, channels, z, y, x) float32 -> logits (b, classes, z, y, x) float32, valid until the next call."""
        return in_batches(self._infer, windows, self._largest_batch)

    def _infer(self, windows: NDArray[np.float32]) -> NDArray[np.float32]:
        try:
            self._thread.submit(self._request.infer, [windows], share_inputs=True).result()
        except RuntimeError as error:
            reason = str(error).strip().splitlines()[-1]
            raise ModelError(f"OpenVINO {VERSION} failed on a window ({reason}); try --engine onnxruntime") from error
        return self._request.get_output_tensor(0).data

    def serialised(self) -> bytes:
        """The compiled network as bytes, for ``compiled`` of the same OpenVINO on the same kind of CPU."""
        stream: io.BytesIO = self._compiled.export_model()
        return stream.getvalue()

    def convolution_precisions(self) -> set[str]:
        """The element types in which the compiled network's convolutions run, by OpenVINO's own names."""
        kinds = [node.get_rt_info() for node in self._compiled.get_runtime_model().get_ops()]
        return {_text(kind["runtimePrecision"]) for kind in kinds if "Convolution" in _text(kind["layerType"])}

    def _check_precision(self) -> None:
        """Raises PrecisionError where OpenVINO runs convolutions in another precision than it was told to."""
        found = self.convolution_precisions()
        if self.precision == "int8":
            if not found & EIGHT_BITS:
                raise PrecisionError(
                    f"precision int8: OpenVINO {VERSION} runs none of this network's convolutions in eight bits; "
                    "choose another --precision"
                )
        elif found - {HINTS[self.precision]}:
            raise PrecisionError(
                f"precision {self.precision}: OpenVINO {VERSION} runs convolutions in {', '.join(sorted(found))}; "
                "choose another --precision"
            )

    def close(self) -> None:
        del self._request, self._compiled
        self._thread.shutdown()

    def __enter__(self) -> "OpenVinoEngine":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def _compile(
    model: Model, precision: Precision, properties: dict[str, object], compiled: bytes | None
) -> openvino.CompiledModel:
    core = openvino.Core()
    if compiled is not None:
        return core.import_model(compiled, "CPU", properties)
    network = core.read_model(model.content)
    convolve_before_upsampling(network)
    if precision == "fp32":  # narrower types round more than the sums do
        sum_by_axes(network)
    if precision == "int8":
        golden = stored(model.content, model.manifest)
        quantise(network, synthetic_windows(model.manifest) if golden is None else golden.windows)
    return core.compile_model(network, "CPU", properties)


def _text(value: object) -> str:
    """A runtime-information entry as text; its type differs between OpenVINO's versions."""
    return str(value.astype(str)) if hasattr(value, "astype") else str(value)

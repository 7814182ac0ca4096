"""ONNX Runtime: the fp32 referee anywhere, and NVIDIA GPUs where its GPU wheel is installed."""

import math
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from dropgen_rt.engines.contract import Precision, in_batches
from dropgen_rt.engines.onnxruntime_means import sum_by_axes
from dropgen_rt.errors import DeviceError, DeviceMemoryError, ModelError, PrecisionError, ResourceError
from dropgen_rt.model import Model
from dropgen_rt.typed_graph import typed

VERSION = onnxruntime.__version__
_PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
_FLOAT = 4  # bytes
# What ONNX Runtime calls the memory that a provider works on.
_MEMORY = {"cpu": "cpu", "cuda": "cuda"}
# Of a GPU session. TensorFloat-32 has 10 bits of mantissa: not what fp32 says. Memory is taken as it is needed: by
# default it doubles, and the scan's sums are there too.
_CUDA = {"use_tf32": "0", "arena_extend_strategy": "kSameAsRequested"}


class OnnxRuntimeEngine:
    """fp32 on the CPU; fp32 or a typed fp16 graph on a GPU.

    Flushing denormal numbers is a switch of the thread that opens the session, so that thread is the engine's own.
    """

    name = "onnxruntime"
    version = VERSION

    def __init__(
        self, model: Model, *, precision: Precision = "fp32", device: str = "cpu", threads: int | None = None
    ) -> None:
        """``device`` is "cpu" or "cuda:N". Raises PrecisionError, ResourceError without a GPU wheel, or ModelError."""
        kind, _, index = device.partition(":")
        accepted: tuple[Precision, ...] = ("fp32",) if kind == "cpu" else ("fp32", "fp16")
        if precision not in accepted:
            raise PrecisionError(
                f"precision {precision}: ONNX Runtime on {kind} runs 3D convolutions in {' or '.join(accepted)}"
            )
        if _PROVIDERS[kind] not in onnxruntime.get_available_providers():
            raise ResourceError(
                f"device {device}: ONNX Runtime {VERSION} is the CPU wheel; "
                "pip uninstall onnxruntime && pip install onnxruntime-gpu"
            )
        self.precision: str = precision
        self.device = device
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.add_session_config_entry("session.set_denormal_as_zero", "1")
        if threads is not None:
            options.intra_op_num_threads = threads
        settings: dict[str, Any] = {} if kind == "cpu" else {"device_id": index or "0", **_CUDA}
        content = model.content if precision == "fp32" else typed(model.content, precision)
        content = sum_by_axes(content) if kind == "cpu" else content
        try:
            self._thread = ThreadPoolExecutor(1, thread_name_prefix="onnxruntime")
            self._session = self._thread.submit(
                onnxruntime.InferenceSession, content, options,
                providers=[(_PROVIDERS[kind], settings), *_then_cpu(kind)],
            ).result()  # fmt: skip
        except Exception as error:  # its exceptions share no root
            self._thread.shutdown()
            raise ModelError(f"{model.path}: ONNX Runtime {VERSION} cannot open it ({_last(error)})") from error
        if self._session.get_providers()[0] != _PROVIDERS[kind]:
            raise ResourceError(f"device {device}: ONNX Runtime {VERSION} could not start CUDA; check the driver")
        self._largest_batch = model.manifest.largest_batch
        self._input = self._session.get_inputs()[0].name

    def infer(self, windows: NDArray[np.float32]) -> NDArray[np.float32]:
        """(b, channels, z, y, x) float32 -> logits (b, classes, z, y, x) float32."""
        return in_batches(self._infer, windows, self._largest_batch)

    def _infer(self, windows: NDArray[np.float32]) -> NDArray[np.float32]:
        try:
            logits: NDArray[np.float32]
            (logits,) = self._thread.submit(self._session.run, None, {self._input: windows}).result()
        except Exception as error:  # as above
            raise ModelError(f"ONNX Runtime {VERSION} failed on {len(windows)} window(s) ({_last(error)})") from error
        return logits

    def close(self) -> None:
        del self._session
        self._thread.shutdown()

    def __enter__(self) -> "OnnxRuntimeEngine":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


class OnnxRuntimeGpuEngine(OnnxRuntimeEngine):
    """On a GPU windows and logits stay on it: ``infer_device`` is handed their addresses (see DeviceEngine)."""

    own_stream = any_window = True

    def __init__(self, model: Model, *, precision: Precision, device: str) -> None:
        super().__init__(model, precision=precision, device=device)
        manifest = model.manifest
        self._given = (len(manifest.channels), *manifest.window)
        self._found = (manifest.classes, *manifest.window)
        self._output = self._session.get_outputs()[0].name

    def infer_device(self, windows: int, logits: int, batch: int, stream: int) -> None:
        """See DeviceEngine. Raises DeviceMemoryError where memory is out, DeviceError where the GPU fails otherwise."""
        largest = self._largest_batch or batch
        for first in range(0, batch, largest):
            before, behind = _FLOAT * first * math.prod(self._given), _FLOAT * first * math.prod(self._found)
            self._run_on_device(windows + before, logits + behind, min(largest, batch - first))

    def _run_on_device(self, windows: int, logits: int, count: int) -> None:
        kind, _, index = self.device.partition(":")
        where = _MEMORY[kind], int(index or 0), np.float32
        binding = self._session.io_binding()
        binding.bind_input(self._input, *where, (count, *self._given), windows)
        binding.bind_output(self._output, *where, (count, *self._found), logits)
        try:
            self._thread.submit(self._session.run_with_iobinding, binding).result()
        except Exception as error:  # as above
            message = str(error)
            if any(word in message for word in _OUT_OF_MEMORY):
                raise DeviceMemoryError(f"ONNX Runtime {VERSION}: no memory for {count} window(s)") from error
            raise DeviceError(
                f"ONNX Runtime {VERSION} failed on {count} window(s) ({_last(error)}); check the GPU with nvidia-smi, "
                "or use --device cpu"
            ) from error


# Its own allocator's words, the CUDA runtime's, and those of the libraries that it calls.
_OUT_OF_MEMORY = ("Failed to allocate memory", "out of memory", "ALLOC_FAILED", "ALLOCATION_FAILED")


def _last(error: Exception) -> str:
    """The last line of a message, where ONNX Runtime says what is wrong."""
    return (str(error).strip().splitlines() or ["?"])[-1]


def _then_cpu(kind: str) -> list[str]:
    """Shape arithmetic of a GPU session runs on the CPU; its convolutions do not."""
    return [] if kind == "cpu" else [_PROVIDERS["cpu"]]

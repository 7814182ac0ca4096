"""ONNX Runtime: the fp32 referee anywhere, and NVIDIA GPUs where its GPU wheel is installed."""

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from dropgen_rt.engines.contract import Precision, in_batches
from dropgen_rt.engines.onnxruntime_means import sum_by_axes
from dropgen_rt.errors import ModelError, PrecisionError, ResourceError
from dropgen_rt.model import Model
from dropgen_rt.typed_graph import typed

VERSION = onnxruntime.__version__
_PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}


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
        # TensorFloat-32 has 10 bits of mantissa: not what fp32 says.
        settings: dict[str, Any] = {} if kind == "cpu" else {"device_id": index or "0", "use_tf32": "0"}
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
            reason = str(error).strip().splitlines()[-1]
            raise ModelError(f"{model.path}: ONNX Runtime {VERSION} cannot open it ({reason})") from error
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
            reason = (str(error).strip().splitlines() or ["?"])[-1]
            raise ModelError(f"ONNX Runtime {VERSION} failed on {len(windows)} window(s) ({reason})") from error
        return logits

    def close(self) -> None:
        del self._session
        self._thread.shutdown()

    def __enter__(self) -> "OnnxRuntimeEngine":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def _then_cpu(kind: str) -> list[str]:
    """Shape arithmetic of a GPU session runs on the CPU; its convolutions do not."""
    return [] if kind == "cpu" else [_PROVIDERS["cpu"]]

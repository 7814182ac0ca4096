"""OpenVINO on the CPU, in fp32: the embedded default."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import openvino
from numpy.typing import NDArray

from dropgen_rt.errors import ModelError
from dropgen_rt.model import Model


class OpenVinoEngine:
    """The network compiled for this CPU. OpenVINO would choose bf16 by itself where it can: we say fp32.

    OpenVINO flushes denormal numbers to zero, which keeps convolutions fast, by a switch of the thread that
    compiles or runs. That thread is the engine's own, so that its caller's arithmetic stays as it was.
    """

    name = "openvino"
    precision = "fp32"
    device = "cpu"

    def __init__(self, model: Model, cache: Path | None = None) -> None:
        self.version = openvino.__version__.split("-")[0]
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="openvino")
        try:
            self._request = self._thread.submit(_compile, model, cache).result()
        except RuntimeError as error:
            self._thread.shutdown()
            reason = str(error).strip().splitlines()[-1]
            raise ModelError(f"{model.path}: OpenVINO {self.version} cannot compile it ({reason})") from error

    def infer(self, windows: NDArray[np.float32]) -> NDArray[np.float32]:
        """(b, channels, z, y, x) float32 -> logits (b, classes, z, y, x) float32, valid until the next call."""
        self._thread.submit(self._request.infer, [windows], share_inputs=True).result()
        return self._request.get_output_tensor(0).data

    def close(self) -> None:
        del self._request
        self._thread.shutdown()

    def __enter__(self) -> "OpenVinoEngine":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def _compile(model: Model, cache: Path | None) -> openvino.InferRequest:
    core = openvino.Core()
    properties: dict[str, object] = {
        "INFERENCE_PRECISION_HINT": "f32",
        "PERFORMANCE_HINT": "LATENCY",
        "CPU_DENORMALS_OPTIMIZATION": True,
    }
    if cache is not None:
        properties["CACHE_DIR"] = str(cache)
    return core.compile_model(core.read_model(model.content), "CPU", properties).create_infer_request()

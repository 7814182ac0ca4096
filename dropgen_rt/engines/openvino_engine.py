"""OpenVINO on the CPU, in fp32: the embedded default."""

from pathlib import Path

import numpy as np
import openvino
from numpy.typing import NDArray

from dropgen_rt.errors import ModelError
from dropgen_rt.model import Model


class OpenVinoEngine:
    """The network compiled for this CPU. OpenVINO would choose bf16 by itself where it can: we say fp32."""

    name = "openvino"
    precision = "fp32"
    device = "cpu"

    def __init__(self, model: Model, cache: Path | None = None) -> None:
        self.version = openvino.__version__.split("-")[0]
        core = openvino.Core()
        properties: dict[str, object] = {
            "INFERENCE_PRECISION_HINT": "f32",
            "PERFORMANCE_HINT": "LATENCY",
            "CPU_DENORMALS_OPTIMIZATION": True,
        }
        if cache is not None:
            properties["CACHE_DIR"] = str(cache)
        try:
            network = core.read_model(model.content)
            self._compiled = core.compile_model(network, "CPU", properties)
        except RuntimeError as error:
            reason = str(error).strip().splitlines()[-1]
            raise ModelError(f"{model.path}: OpenVINO {self.version} cannot compile it ({reason})") from error
        self._request = self._compiled.create_infer_request()

    def infer(self, windows: NDArray[np.float32]) -> NDArray[np.float32]:
        """(b, channels, z, y, x) float32 -> logits (b, classes, z, y, x) float32, valid until the next call."""
        self._request.infer([windows], share_inputs=True)
        return self._request.get_output_tensor(0).data

    def close(self) -> None:
        del self._request, self._compiled

    def __enter__(self) -> "OpenVinoEngine":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

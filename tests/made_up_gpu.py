"""One GPU that is not there, and ONNX Runtime's CPU provider in the place of its CUDA provider.

A stand-in: it shows what is chosen, called and kept, not that CUDA computes. What has run on a GPU: docs/gpu.md.
"""

import pytest

from dropgen_rt.survey import Gpu, Survey

ENGINE = "dropgen_rt.engines.onnxruntime_engine"


def put_in_place(patch: pytest.MonkeyPatch, driver: str = "580.1") -> None:
    """The survey finds the GPU, with this version of its driver, and "cuda" computes on the CPU's memory."""
    found = Survey((Gpu(0, "Made-up GPU", "90", 2**36),), "13.0", "", driver)
    for module in ("survey", "build", "engines.choose"):
        patch.setattr(f"dropgen_rt.{module}.survey", lambda: found)
    patch.setattr("dropgen_rt.engines.choose.has_cuda_provider", lambda: True)
    patch.setattr(f"{ENGINE}._PROVIDERS", dict.fromkeys(("cpu", "cuda"), "CPUExecutionProvider"))
    patch.setattr(f"{ENGINE}._MEMORY", dict.fromkeys(("cpu", "cuda"), "cpu"))
    patch.setattr(f"{ENGINE}._then_cpu", lambda kind: [])

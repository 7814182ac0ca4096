"""ONNX Runtime's instance norm against its definition, where a window has many voxels."""

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper
from tolerances import INSTANCE_NORM

from dropgen_rt.engines.onnxruntime_means import sum_by_axes

EPS = 1e-5
SCALE, BIAS = np.array([0.5, 2], np.float32), np.array([-1, 0.25], np.float32)


def network(shape: list[int | str], opset: int = 20) -> bytes:
    """One norm of two channels."""
    node = helper.make_node("InstanceNormalization", ["image", "scale", "bias"], ["logits"], epsilon=EPS)
    image, logits = (helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in ("image", "logits"))
    tables = [numpy_helper.from_array(SCALE, "scale"), numpy_helper.from_array(BIAS, "bias")]
    graph = helper.make_graph([node], "norm", [image], [logits], tables)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString())


def run(content: bytes, image: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    return session.run(None, {"image": image})[0]


@pytest.mark.parametrize("shape", [[1, 2, 96, 96, 96], ["b", 2, "z", "y", "x"]], ids=["fixed", "dynamic"])
def test_instance_norm_of_a_large_window(shape):
    rng = np.random.default_rng(0)
    # Features after a rectifier: a mean of the size of the deviation, and a few large values.
    image = np.maximum(rng.standard_normal((1, 2, 96, 96, 96)) + 1, 0).astype(np.float32)
    wide = image.astype(np.float64)
    mean, variance = (function(wide, axis=(2, 3, 4), keepdims=True) for function in (np.mean, np.var))
    scale, bias = (table.astype(np.float64).reshape(1, 2, 1, 1, 1) for table in (SCALE, BIAS))
    expected = (wide - mean) / np.sqrt(variance + EPS) * scale + bias
    content = network(shape)
    # What the replacement is for. Should ONNX Runtime's own pass one day, onnxruntime_means.py can go.
    assert np.abs(run(content, image) - expected).max() > INSTANCE_NORM
    assert np.abs(run(sum_by_axes(content), image) - expected).max() < INSTANCE_NORM


@pytest.mark.parametrize("content", [network([1, 2, 30]), network([1, 2, 4, 4, 4], opset=17)], ids=["of groups", "old"])
def test_other_norms_are_left_alone(content):
    kinds = [node.op_type for node in onnx.load_model_from_string(sum_by_axes(content)).graph.node]
    assert kinds == ["InstanceNormalization"]

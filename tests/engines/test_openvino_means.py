"""OpenVINO's instance norm against its definition, where a window has many voxels."""

import numpy as np
import openvino
import pytest
from openvino import opset13 as ops
from tolerances import INSTANCE_NORM

from dropgen_rt.engines.openvino_means import sum_by_axes

EPS = 1e-5


def network(axes: tuple[int, ...], shape: list[int]) -> openvino.Model:
    image = ops.parameter(shape, np.float32)
    norm = ops.mvn(image, np.array(axes, np.int64), True, EPS, "inside_sqrt")
    return openvino.Model([norm], [image])


def run(model: openvino.Model, image: np.ndarray) -> np.ndarray:
    compiled = openvino.Core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return compiled([image])[compiled.output(0)]


@pytest.mark.parametrize("shape", [[1, 2, 96, 96, 96], [-1, 2, -1, -1, -1]], ids=["fixed", "dynamic"])
def test_instance_norm_of_a_large_window(shape):
    rng = np.random.default_rng(0)
    # Features after a rectifier: a mean of the size of the deviation, and a few large values.
    image = np.maximum(rng.standard_normal((1, 2, 96, 96, 96)) + 1, 0).astype(np.float32)
    wide = image.astype(np.float64)
    mean, variance = (function(wide, axis=(2, 3, 4), keepdims=True) for function in (np.mean, np.var))
    expected = (wide - mean) / np.sqrt(variance + EPS)
    # What the replacement is for. Should OpenVINO's own pass one day, openvino_means.py can go.
    assert np.abs(run(network((2, 3, 4), shape), image) - expected).max() > INSTANCE_NORM
    precise = network((2, 3, 4), shape)
    sum_by_axes(precise)
    assert np.abs(run(precise, image) - expected).max() < INSTANCE_NORM


def test_other_norms_are_left_alone():
    layer_norm = network((4,), [1, 2, 4, 4, 8])
    sum_by_axes(layer_norm)
    assert "MVN" in [node.get_type_name() for node in layer_norm.get_ops()]

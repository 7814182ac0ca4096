"""Eight bits: which tensors are kept in steps, how wide the steps are, and what that changes."""

import numpy as np
import openvino
import pytest
from openvino import opset13 as ops

from dropgen_rt.engines.openvino_int8 import quantise

ONES, EDGE = [1, 1, 1], 8
WINDOWS = np.random.default_rng(0).random((3, 1, EDGE, EDGE, EDGE), dtype=np.float32)


def convolved(image, inputs: int, outputs: int) -> openvino.Node:
    """The same kernel for the same numbers of channels."""
    kernel = np.random.default_rng(inputs).standard_normal((outputs, inputs, 3, 3, 3)) / np.sqrt(27 * inputs)
    return ops.convolution(image, kernel.astype(np.float32), ONES, ONES, ONES, ONES)


def small_network() -> openvino.Model:
    """Two levels: a pooled layer comes back to the first and is convolved with it, then with the image."""
    image = ops.parameter([-1, 1, EDGE, EDGE, EDGE], np.float32, name="image")
    first = ops.relu(convolved(image, 1, 4), name="first")
    pooled = ops.max_pool(first, [2] * 3, ONES, [0] * 3, [0] * 3, [2] * 3).output(0)
    second = ops.relu(convolved(pooled, 4, 4), name="second")
    fine = ops.interpolate(
        second, np.array([1, 1, 2, 2, 2], np.float32), "nearest", "scales",
        coordinate_transformation_mode="asymmetric", nearest_mode="floor",
    )  # fmt: skip
    third = convolved(ops.concat([first, fine], 1), 8, 4)
    joined = ops.concat([image, third], 1)
    joined.set_friendly_name("joined")
    return openvino.Model([convolved(joined, 5, 2)], [image])


def steps(network: openvino.Model) -> dict[str, tuple[float, float]]:
    """Per tensor kept in steps, the ends of its range; kernels are left out."""
    found = {}
    for node in network.get_ops():
        if node.get_type_name() == "FakeQuantize":
            source, low, high = (value.get_node() for value in node.input_values()[:3])
            if source.get_type_name() != "Constant":
                found[source.get_friendly_name()] = float(low.data), float(high.data)
    return found


def run(network: openvino.Model, *windows: np.ndarray) -> np.ndarray:
    compiled = openvino.Core().compile_model(network, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return np.concatenate([compiled([window[None]])[compiled.output(0)] for window in windows])


def values_of(name: str) -> np.ndarray:
    network = small_network()
    node = next(node for node in network.get_ops() if node.get_friendly_name() == name)
    return run(openvino.Model([node.output(0)], network.get_parameters()), *WINDOWS)


def test_tensors_between_convolutions_are_kept_in_steps_of_what_they_were():
    network = small_network()
    assert quantise(network, WINDOWS) == 3  # all but the image's own
    found = steps(network)
    assert set(found) == {"first", "second", "joined"}
    for name in ("first", "second"):
        assert found[name] == pytest.approx((0, values_of(name).max()), rel=1e-5)
    largest = np.abs(values_of("joined")).max()
    assert found["joined"] == pytest.approx((-largest * 128 / 127, largest), rel=1e-5)


def test_kernels_are_kept_in_steps_of_each_output_channel():
    network = small_network()
    plain = [node.input_value(1).get_node().data.copy() for node in network.get_ordered_ops() if _convolves(node)]
    quantise(network, WINDOWS)
    narrow = [node.input_value(1).get_node() for node in network.get_ordered_ops() if _convolves(node)]
    assert [node.get_type_name() for node in narrow] == ["Constant", *["FakeQuantize"] * 3]
    for kernel, node in zip(plain[1:], narrow[1:], strict=True):
        top = np.abs(kernel).max((1, 2, 3, 4), keepdims=True)
        whole = np.rint(kernel / top * 127) * top / 127
        kept = evaluated(node)
        assert np.abs(kept - whole).max() <= 1e-6 * top.max()
        assert np.abs(kept - kernel).max() <= 0.5001 * (top / 127).max()


def evaluated(node: openvino.Node) -> np.ndarray:
    """The value of a node that depends on no input."""
    zero = ops.parameter([1], np.float32)
    compiled = openvino.Core().compile_model(openvino.Model([ops.add(node.output(0), zero)], [zero]), "CPU")
    return compiled([np.zeros(1, np.float32)])[compiled.output(0)]


def _convolves(node: openvino.Node) -> bool:
    return node.get_type_name() == "Convolution"


def test_the_answers_change_by_little_and_do_change():
    plain, narrow = small_network(), small_network()
    quantise(narrow, WINDOWS)
    expected, found = run(plain, *WINDOWS), run(narrow, *WINDOWS)
    error = np.abs(found - expected).max() / np.ptp(expected)
    assert 1e-4 < error < 2e-2  # three layers of 256 steps each
    # What is larger than all that was seen is cut off.
    assert np.abs(run(narrow, 3 * WINDOWS[0])).max() < np.abs(run(plain, 3 * WINDOWS[0])).max()


def test_a_network_of_the_image_alone_stays_as_it_is():
    image = ops.parameter([-1, 2, EDGE, EDGE, EDGE], np.float32)
    network = openvino.Model([convolved(image, 2, 3)], [image])
    assert quantise(network, np.zeros((1, 2, EDGE, EDGE, EDGE), np.float32)) == 0
    assert steps(network) == {}


def test_a_layer_that_gave_nothing_but_zeros():
    image = ops.parameter([-1, 1, EDGE, EDGE, EDGE], np.float32)
    dead = ops.relu(ops.subtract(ops.relu(convolved(image, 1, 2)), np.float32(1e6)), name="dead")
    network = openvino.Model([convolved(dead, 2, 2)], [image])
    assert quantise(network, WINDOWS) == 1
    assert np.isfinite(run(network, *WINDOWS)).all()

"""Convolutions in eight bits, in OpenVINO, their steps chosen by what the golden windows make of each layer.

Between two convolutions values are kept in 256 steps: of what a rectifier gives from 0 to the largest value seen, of
what may be negative evenly about 0. Kernels are kept in 255 steps about 0, one step size for each output channel. Sums
are whole numbers, exact; biases, norms and the convolutions that see the image itself stay as they are. An upsampled
or pooled volume has the steps of the volume it was made of.
"""

import numpy as np
from numpy.typing import NDArray
from openvino import Core, Model, Node, Output, Type
from openvino import opset13 as ops

from dropgen_rt.engines.openvino_upsampling import constant

# Of OpenVINO's FakeQuantize: whole steps in a byte, and as many on either side of 0.
STEPS, EVEN_STEPS = 256, 255
# Axes of a kernel that share a step size: all but the output channels'.
KERNEL_AXES = {"Convolution": (1, 2, 3, 4), "ConvolutionBackpropData": (0, 2, 3, 4)}
# What moves or picks values and makes no new ones.
CARRIERS = ("MaxPool", "Interpolate", "Pad")
# The image, or a channel of it: few values in, cheap to convolve, and every error in them reaches all layers.
IMAGES = ("Parameter", "Split", "VariadicSplit")


def quantise(network: Model, windows: NDArray[np.float32]) -> int:
    """Have convolutions run in eight bits. Changes ``network``; returns how many it changed.

    ``windows`` (n, channels, z, y, x) float32 are run through the network in fp32, one by one, to see how large the
    values between its layers become. Larger ones are cut off later: that the answers are still right is the gate's to
    say.
    """
    chosen, tensors = [], {}
    for node in network.get_ordered_ops():
        kernel = constant(node.input_value(1)) if node.get_type_name() in KERNEL_AXES and _is_float(node) else None
        if kernel is not None:
            seen = _tensors(node)
            if not any(tensor.get_node().get_type_name() in IMAGES for tensor in seen):
                chosen.append((node, kernel))
                tensors.update({_name(tensor): tensor for tensor in seen})
    ranges = _ranges(network, list(tensors.values()), windows)
    for tensor, (low, high) in zip(tensors.values(), ranges, strict=True):
        readers = [reader for reader in tensor.get_target_inputs() if reader.get_node().get_type_name() != "ShapeOf"]
        stepped = _in_steps(tensor, low, high).output(0)
        for reader in readers:
            reader.replace_source_output(stepped)
    for node, kernel in chosen:
        node.input(1).replace_source_output(_kernel_in_steps(kernel, KERNEL_AXES[node.get_type_name()]))
    return len(chosen)


def _is_float(convolution: Node) -> bool:
    """Typed graphs' convolutions keep the type that their exporter gave them."""
    return bool(convolution.get_output_element_type(0) == Type.f32)


def _tensors(convolution: Node) -> list[Output]:
    """What must be kept in steps for a convolution to see nothing else."""
    source = _origin(convolution.input_value(0))
    if source.get_node().get_type_name() == "Concat":
        parts = [_origin(value) for value in source.get_node().input_values()]
        if all(part.get_node().get_type_name() == "Relu" for part in parts):
            return parts
    return [source]


def _origin(tensor: Output) -> Output:
    while tensor.get_node().get_type_name() in CARRIERS:
        tensor = tensor.get_node().input_value(0)
    return tensor


def _name(tensor: Output) -> tuple[str, int]:
    return tensor.get_node().get_friendly_name(), tensor.get_index()


def _ranges(network: Model, tensors: list[Output], windows: NDArray[np.float32]) -> NDArray[np.float32]:
    """(len(tensors), 2): the smallest and the largest value of each over all windows, in fp32."""
    if not tensors:
        return np.zeros((0, 2), np.float32)
    axes = np.arange(5)
    ends = [reduce(tensor, axes) for tensor in tensors for reduce in (ops.reduce_min, ops.reduce_max)]
    properties = {"INFERENCE_PRECISION_HINT": "f32"}
    compiled = Core().compile_model(Model(ends, network.get_parameters()), "CPU", properties)
    found = [[float(value) for value in compiled([window[None]]).values()] for window in windows]
    table = np.array(found, np.float32).reshape(len(windows), len(tensors), 2)
    return np.stack([table[..., 0].min(0), table[..., 1].max(0)], axis=1)


def _in_steps(tensor: Output, low: float, high: float) -> Node:
    if low >= 0:
        ends = 0.0, high or 1.0
    else:
        top = max(-low, high)
        ends = -top * 128 / 127, top
    first, last = (np.float32(end) for end in ends)
    return ops.fake_quantize(tensor, first, last, first, last, STEPS)


def _kernel_in_steps(kernel: NDArray[np.float32], axes: tuple[int, ...]) -> Output:
    top = np.abs(kernel).max(axes, keepdims=True)
    top[top == 0] = 1
    return ops.fake_quantize(ops.constant(kernel), -top, top, -top, top, EVEN_STEPS).output(0)

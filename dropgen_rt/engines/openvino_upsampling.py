"""Decoders that never compute on upsampled volumes, in OpenVINO.

A U-Net's decoder joins a skip with an upsampled coarse volume and convolves both. Nearest upsampling repeats each
coarse voxel eight times, so a kernel of 27 taps over it sees at most eight coarse voxels, and sums of its taps do: what
is left is a transposed convolution of stride two, with 8 products per voxel and channel instead of 27. Two thirds of
such a convolution's channels are upsampled ones: more than a fifth of the whole network's products fall away, and with
them the copies of upsampling and concatenation. The result is the same but for the order of its sums.
"""

import numpy as np
from numpy.typing import NDArray
from openvino import Model, Node, Output, Type
from openvino import opset13 as ops

SCALES = [1, 1, 2, 2, 2]
ZEROS, ONES, TWOS, THREES = [0, 0, 0], [1, 1, 1], [2, 2, 2], [3, 3, 3]
AROUND = [0, 0, 1, 1, 1]  # one voxel on each side of z, y and x
KERNEL = (3, 3, 3)


def convolve_before_upsampling(network: Model) -> int:
    """Replace every convolution over a skip and an upsampled volume. Changes ``network``; returns how many it replaced.

    Only kernels of three with zeros or a mirror around and nearest upsampling by two are, in float32: all that this
    project's own networks have, but for the body of a typed graph. Others stay as they are.
    """
    replaced = 0
    for node in network.get_ordered_ops():
        joined, mirrored = _convolved_volume(node)
        if joined is None or not _joins_two(joined):
            continue
        skip, upsampled = joined.input_value(0), joined.input_value(1).get_node()
        kernel = constant(node.input_value(1))
        if kernel is not None and _repeats(upsampled):
            split = skip.get_partial_shape()[1].get_length()
            fine = _over_skip(skip, kernel[:, :split].copy(), mirrored)
            coarse = _over_coarse(upsampled.input_value(0), joined_taps(kernel[:, split:]), mirrored)
            node.output(0).replace(ops.add(coarse, fine).output(0))
            replaced += 1
    return replaced


def _over_skip(skip: Output, kernel: NDArray[np.float32], mirrored: bool) -> Node:
    if not mirrored:
        return ops.convolution(skip, kernel, ONES, ONES, ONES, ONES)
    return ops.convolution(ops.pad(skip, AROUND, AROUND, "reflect"), kernel, ONES, ZEROS, ZEROS, ONES)


def _over_coarse(coarse: Output, kernel: NDArray[np.float32], mirrored: bool) -> Node:
    if not mirrored:
        return ops.convolution_backprop_data(coarse, kernel, TWOS, pads_begin=ONES, pads_end=ONES)
    # Fine voxel -1 mirrors voxel 1, which repeats voxel 0: mirroring the fine volume repeats the coarse one's edge.
    repeated = ops.pad(coarse, AROUND, AROUND, "edge")
    return ops.convolution_backprop_data(repeated, kernel, TWOS, pads_begin=THREES, pads_end=THREES)


def joined_taps(kernel: NDArray[np.float32]) -> NDArray[np.float32]:
    """The kernel (inputs, outputs, 4, 4, 4) of the transposed convolution, stride 2 and one voxel cut off all round.

    It does what nearest upsampling by two and then ``kernel`` (outputs, inputs, 3, 3, 3) do. Along an axis a coarse
    voxel i is the fine ones 2i and 2i + 1, so tap t of the kernel takes it to the outputs 2i + 1 - t and 2i + 2 - t.
    """
    for axis in (2, 3, 4):
        flipped = np.flip(kernel, axis)
        none = [(0, 0)] * kernel.ndim
        first, second = none.copy(), none.copy()
        first[axis], second[axis] = (0, 1), (1, 0)
        kernel = np.pad(flipped, first) + np.pad(flipped, second)
    return np.ascontiguousarray(kernel.swapaxes(0, 1))


def constant(output: Output) -> NDArray[np.float32] | None:
    """The value of a kernel as it is stored: plain, narrower with a conversion, or times a scale.

    None for what is no constant, or of a type that NumPy does not know, such as the bfloat16 of typed graphs.
    """
    node = output.get_node()
    kind = node.get_type_name()
    if kind == "Constant":
        known = output.get_element_type() in (Type.f32, Type.f16)
        return np.asarray(node.data, np.float32) if known else None
    if kind == "Convert":
        return constant(node.input_value(0))
    if kind == "Multiply":
        one, other = (constant(value) for value in node.input_values())
        return None if one is None or other is None else np.multiply(one, other)
    return None


def _convolved_volume(node: Node) -> tuple[Node | None, bool]:
    """What a convolution of kernel three and "same" output convolves, and whether it is mirrored at its border."""
    if node.get_type_name() != "Convolution" or node.get_output_element_type(0) != Type.f32:
        return None, False
    given, shape = node.get_attributes(), node.input_value(1).get_partial_shape()
    plain = given["strides"] == given["dilations"] == ONES and given["auto_pad"] == "explicit"
    if not plain or shape.is_dynamic or tuple(shape.to_shape())[2:] != KERNEL:
        return None, False
    volume = node.input_value(0).get_node()
    if given["pads_begin"] == given["pads_end"] == ONES:
        return volume, False
    if given["pads_begin"] == given["pads_end"] == ZEROS and _mirrors(volume):
        return volume.input_value(0).get_node(), True
    return None, False


def _mirrors(node: Node) -> bool:
    """Whether a node puts one mirrored voxel around z, y and x."""
    if node.get_type_name() != "Pad" or node.get_attributes()["pad_mode"] != "reflect":
        return False
    amounts = [node.input_value(place).get_node() for place in (1, 2)]
    return all(amount.get_type_name() == "Constant" and amount.data.tolist() == AROUND for amount in amounts)


def _joins_two(node: Node) -> bool:
    """Two volumes, one after the other along the channels, of which the first one's number is known."""
    return (
        node.get_type_name() == "Concat"
        and node.get_attributes()["axis"] == 1
        and node.get_input_size() == 2
        and node.input_value(0).get_partial_shape()[1].is_static
    )


def _repeats(node: Node) -> bool:
    """Whether a node gives every voxel twice along z, y and x."""
    if node.get_type_name() != "Interpolate":
        return False
    given, scales = node.get_attributes(), node.input_value(1).get_node()
    expected = {
        "mode": "nearest", "shape_calculation_mode": "scales", "coordinate_transformation_mode": "asymmetric",
        "nearest_mode": "floor",
    }  # fmt: skip
    return (
        all(given[name] == value for name, value in expected.items())
        and not any([*given["pads_begin"], *given["pads_end"]])
        and scales.get_type_name() == "Constant"
        and scales.data.tolist() == SCALES
    )

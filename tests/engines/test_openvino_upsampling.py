"""Convolutions over upsampled volumes: the transposed kernel against its definition, both graphs alike."""

import numpy as np
import openvino
import pytest
import torch
from openvino import opset13 as ops
from tolerances import UPSAMPLED_CONVOLUTION

from dropgen_rt import open_named
from dropgen_rt.engines.openvino_upsampling import constant, convolve_before_upsampling, joined_taps
from dropgen_rt.train import upsampling
from dropgen_rt.train.network import UNet, UNetConfig

ONES, RNG = [1, 1, 1], np.random.default_rng(0)


def upsampled_and_convolved(coarse: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    """The definition: (i, z, y, x) and (o, i, 3, 3, 3) -> (o, 2z, 2y, 2x), zeros around the upsampled volume."""
    fine = np.pad(coarse.repeat(2, 1).repeat(2, 2).repeat(2, 3), ((0, 0), (1, 1), (1, 1), (1, 1)))
    shape = [2 * edge for edge in coarse.shape[1:]]
    out = np.zeros((len(kernel), *shape))
    for z, y, x in np.ndindex(3, 3, 3):
        part = fine[:, z : z + shape[0], y : y + shape[1], x : x + shape[2]]
        out += np.einsum("oi,izyx->ozyx", kernel[:, :, z, y, x], part)
    return out


def transposed_convolution(coarse: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    """(i, z, y, x) and (i, o, 4, 4, 4) -> (o, 2z, 2y, 2x): voxels add their kernels, one voxel is cut off."""
    out = np.zeros((kernel.shape[1], *(2 * edge + 2 for edge in coarse.shape[1:])))
    for z, y, x in np.ndindex(*coarse.shape[1:]):
        block = np.einsum("i,iozyx->ozyx", coarse[:, z, y, x], kernel)
        out[:, 2 * z : 2 * z + 4, 2 * y : 2 * y + 4, 2 * x : 2 * x + 4] += block
    return out[:, 1:-1, 1:-1, 1:-1]


@pytest.mark.parametrize("shape", [(1, 1, 1), (2, 3, 4), (5, 1, 2)])
@pytest.mark.parametrize(("inputs", "outputs"), [(1, 1), (3, 2)])
def test_joined_taps(shape, inputs, outputs):
    coarse, kernel = RNG.standard_normal((inputs, *shape)), RNG.standard_normal((outputs, inputs, 3, 3, 3))
    found = transposed_convolution(coarse, joined_taps(kernel))
    assert np.allclose(found, upsampled_and_convolved(coarse, kernel), rtol=0, atol=1e-12)  # float64 throughout


def test_training_joins_the_same_taps():
    """There, even and odd voxels have kernels of their own, and taps are not turned as a transposed kernel's are."""
    kernel = RNG.standard_normal((2, 3, 3, 3, 3))
    parities = upsampling.joined_taps(torch.from_numpy(kernel)).numpy().reshape(8, *kernel.shape[:2], 2, 2, 2)
    transposed, taps = joined_taps(kernel).swapaxes(0, 1), ([3, 1], [2, 0])
    for found, (z, y, x) in zip(parities, upsampling.PARITIES, strict=True):
        assert np.array_equal(found, transposed[:, :, taps[z]][:, :, :, taps[y]][..., taps[x]])


def decoder(
    *, mode="nearest", scale=2, stride=1, pads=1, upsampled_first=False, spatial=(12, 6, 18), kernel=None, border=None
) -> openvino.Model:
    """conv(concat(skip, upsampled)): 3 and 5 channels to 4."""
    skip = ops.parameter([-1, 3, *spatial], np.float32)
    coarse = ops.parameter([-1, 5, *(edge // scale if edge > 0 else -1 for edge in spatial)], np.float32)
    upsampled = ops.interpolate(
        coarse, np.array([1, 1, scale, scale, scale], np.float32), mode, "scales",
        coordinate_transformation_mode="asymmetric", nearest_mode="floor",
    )  # fmt: skip
    parts = [upsampled, skip] if upsampled_first else [skip, upsampled]
    joined = ops.concat(parts, 1)
    if border is not None:
        around = [0, 0, *border[1]]
        joined, pads = ops.pad(joined, around, around, border[0]), 0
    weights = np.random.default_rng(1).standard_normal((4, 8, 3, 3, 3)).astype(np.float32)
    convolved = ops.convolution(
        joined, weights if kernel is None else kernel(weights), [stride] * 3, [pads] * 3, [pads] * 3, ONES
    )
    return openvino.Model([ops.relu(convolved)], [skip, coarse])


def run(model: openvino.Model, *images: np.ndarray) -> np.ndarray:
    compiled = openvino.Core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return compiled(list(images))[compiled.output(0)]


def half_and_scale(weights: np.ndarray) -> openvino.Node:
    """As a model with float16 kernels stores them."""
    narrow = ops.convert(ops.constant(weights.astype(np.float16)), "f32")
    return ops.multiply(narrow, np.full((4, 1, 1, 1, 1), 0.5, np.float32))


@pytest.mark.parametrize("spatial", [(12, 6, 18), (-1, -1, -1)], ids=["fixed", "dynamic"])
@pytest.mark.parametrize("kernel", [None, half_and_scale])
@pytest.mark.parametrize("border", [None, ("reflect", ONES)], ids=["zeros", "mirror"])
def test_the_replaced_graph_computes_the_same(spatial, kernel, border):
    skip = RNG.standard_normal((2, 3, 12, 6, 18)).astype(np.float32)
    coarse = RNG.standard_normal((2, 5, 6, 3, 9)).astype(np.float32)
    plain, replaced = (decoder(spatial=spatial, kernel=kernel, border=border) for _ in range(2))
    assert convolve_before_upsampling(replaced) == 1
    kinds = {node.get_type_name() for node in replaced.get_ops()}
    assert "ConvolutionBackpropData" in kinds and not {"Interpolate", "Concat"} & kinds
    expected = run(plain, skip, coarse)
    assert np.abs(run(replaced, skip, coarse) - expected).max() <= UPSAMPLED_CONVOLUTION * np.abs(expected).max()


@pytest.mark.parametrize(
    "other",
    [
        {"mode": "linear_onnx"},
        {"scale": 3},
        {"stride": 2},
        {"pads": 0},
        {"upsampled_first": True},
        {"border": ("edge", ONES)},
        {"border": ("reflect", [2, 1, 1])},
    ],
    ids=["linear", "by three", "stride", "no padding", "other order", "edge repeated", "two mirrored"],
)
def test_other_convolutions_are_left_alone(other):
    network = decoder(**other)
    before = sorted(node.get_type_name() for node in network.get_ops())
    assert convolve_before_upsampling(network) == 0
    assert sorted(node.get_type_name() for node in network.get_ops()) == before


def test_a_kernel_that_is_an_input_is_left_alone():
    network, given = decoder(), ops.parameter([4, 8, 3, 3, 3], np.float32)
    convolution = next(node for node in network.get_ops() if node.get_type_name() == "Convolution")
    convolution.input(1).replace_source_output(given.output(0))
    network.add_parameters([given])
    assert convolve_before_upsampling(network) == 0


def test_the_packaged_models_decoders_are_all_replaced():
    network = openvino.Core().read_model(open_named("brain9").content)
    resizes = [node for node in network.get_ops() if node.get_type_name() == "Interpolate"]
    assert convolve_before_upsampling(network) == len(resizes) == 7


@pytest.mark.parametrize("padding_mode", ["reflect", "zeros"])
def test_an_exported_u_nets_decoders_are_all_replaced(padding_mode):
    """The published encoder's borders are mirrored: what PyTorch's exporter makes of them is what is found here."""
    torch.manual_seed(0)
    network = UNet(UNetConfig(1, 3, 4, 2, padding_mode=padding_mode)).eval()
    image = torch.rand(1, 1, 16, 24, 32)
    program = torch.onnx.export(network, (image,), dynamo=True, verbose=False)
    plain, replaced = (openvino.Core().read_model(program.model_proto.SerializeToString()) for _ in range(2))
    assert convolve_before_upsampling(replaced) == 2
    expected = run(plain, image.numpy())
    assert np.abs(run(replaced, image.numpy()) - expected).max() <= UPSAMPLED_CONVOLUTION * np.abs(expected).max()


@pytest.mark.parametrize("kind", [openvino.Type.f16, openvino.Type.bf16], ids=["f16", "bf16"])
def test_the_body_of_a_typed_graph_is_left_alone(kind):
    narrow = [ops.parameter([1, channels, edge, edge, edge], kind) for channels, edge in ((3, 8), (5, 4))]
    upsampled = ops.interpolate(
        narrow[1], np.array([1, 1, 2, 2, 2], np.float32), "nearest", "scales",
        coordinate_transformation_mode="asymmetric", nearest_mode="floor",
    )  # fmt: skip
    kernel = ops.convert(ops.constant(np.ones((4, 8, 3, 3, 3), np.float32)), kind.to_string())
    convolved = ops.convolution(ops.concat([narrow[0], upsampled], 1), kernel, ONES, ONES, ONES, ONES)
    assert convolve_before_upsampling(openvino.Model([convolved], narrow)) == 0
    assert constant(openvino.op.Constant(openvino.Type.bf16, openvino.Shape([1]), [1.0]).output(0)) is None


def test_what_is_no_constant_has_no_value():
    assert constant(ops.parameter([2], np.float32).output(0)) is None
    assert constant(ops.multiply(ops.parameter([2], np.float32), np.ones(2, np.float32)).output(0)) is None

"""Our layers against PyTorch's plain ones."""

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tolerances import BATCH_NORM, BF16_GRADIENT, JOINED_TAPS
from torch import Tensor, nn

from dropgen_rt.train.layers import BatchNorm3d, Conv3d

CHANNELS_LAST = torch.channels_last_3d
EDGES = st.integers(1, 4)
MODES = ("zeros", "reflect")


def upsampled_first(layer: Conv3d, skip: Tensor, coarse: Tensor) -> Tensor:
    """The definition: what a decoder computes, its volumes made."""
    return layer(torch.cat([skip, nn.functional.interpolate(coarse, scale_factor=2, mode="nearest")], dim=1))


@settings(deadline=None, max_examples=40)
@given(
    shape=st.tuples(EDGES, EDGES, EDGES),
    channels=st.tuples(st.integers(1, 3), st.integers(1, 3), st.integers(1, 3)),
    batch=st.integers(1, 2),
    mode=st.sampled_from(MODES),
    bias=st.booleans(),
)
def test_over_upsampled_is_the_convolution_of_the_upsampled(
    shape: tuple[int, int, int], channels: tuple[int, int, int], batch: int, mode: str, bias: bool
) -> None:
    of_skip, of_coarse, outputs = channels
    torch.manual_seed(0)
    layer = Conv3d(of_skip + of_coarse, outputs, 3, padding="same", padding_mode=mode, bias=bias).double()
    skip = torch.randn(batch, of_skip, *(2 * edge for edge in shape), dtype=torch.float64)
    coarse = torch.randn(batch, of_coarse, *shape, dtype=torch.float64)
    expected = upsampled_first(layer, skip, coarse)
    assert torch.allclose(layer.over_upsampled(skip, coarse), expected, rtol=JOINED_TAPS, atol=JOINED_TAPS)


def gradients(layer: Conv3d, narrow: bool, compute: Callable[..., Tensor], *volumes: Tensor) -> list[Tensor]:
    """Of the kernel and the volumes, of the sum of squares of ``compute(*volumes)``."""
    layer.zero_grad()
    inputs = [volume.clone(memory_format=torch.preserve_format).requires_grad_() for volume in volumes]
    with torch.autocast("cpu", torch.bfloat16, enabled=narrow):
        output = compute(*inputs)
    output.float().square().sum().backward()
    return [parameter.grad.clone() for parameter in (layer.weight, *inputs) if parameter.grad is not None]


@pytest.mark.parametrize("depth", [1, 2, 3, 4])
@pytest.mark.parametrize("joined", [False, True])
def test_gradients_in_bf16_follow_fp32(depth: int, joined: bool) -> None:
    """PyTorch's own are garbage on a CPU where z is two."""
    torch.manual_seed(0)
    layer = Conv3d(64, 64, 3, padding="same", bias=False).to(memory_format=CHANNELS_LAST)
    if joined:
        skip, coarse = torch.randn(2, 24, 2 * depth, 4, 4), torch.randn(2, 40, depth, 2, 2)
        volumes = [volume.to(memory_format=CHANNELS_LAST) for volume in (skip, coarse)]
        wide = gradients(layer, False, lambda *both: upsampled_first(layer, *both), *volumes)
        narrow = gradients(layer, True, layer.over_upsampled, *volumes)
    else:
        volumes = [torch.randn(2, 64, depth, 4, 4).to(memory_format=CHANNELS_LAST)]
        wide, narrow = (gradients(layer, bf16, layer, *volumes) for bf16 in (False, True))
    assert len(wide) == len(volumes) + 1
    for expected, got in zip(wide, narrow, strict=True):
        assert torch.linalg.norm(got - expected) <= BF16_GRADIENT * torch.linalg.norm(expected)


def test_batch_norm_is_pytorchs() -> None:
    torch.manual_seed(0)
    ours, theirs = BatchNorm3d(3).double(), nn.BatchNorm3d(3).double()
    image = torch.randn(2, 3, 4, 5, 6, dtype=torch.float64)
    for mode in (True, False):
        ours.train(mode)
        theirs.train(mode)
        assert torch.allclose(ours(image), theirs(image), rtol=JOINED_TAPS, atol=JOINED_TAPS)
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    assert torch.allclose(ours.running_var, theirs.running_var, rtol=JOINED_TAPS)


def test_batch_norm_is_exact_in_fp32() -> None:
    """Channels last, as trainings have it, against float64."""
    torch.manual_seed(0)
    image, slope = torch.randn(2, 8, 32, 32, 32) + 0.7, torch.randn(2, 8, 32, 32, 32)
    found = []
    for layer, kind in ((nn.BatchNorm3d(8).double(), torch.float64), (BatchNorm3d(8), torch.float32)):
        x = image.to(kind, memory_format=CHANNELS_LAST, copy=True).requires_grad_()
        y = layer(x)
        y.backward(slope.to(kind, memory_format=CHANNELS_LAST))
        found.append([y, x.grad, *(p.grad for p in layer.parameters()), layer.running_mean, layer.running_var])
    for expected, got in zip(*found, strict=True):
        assert torch.linalg.norm(got - expected) <= BATCH_NORM * torch.linalg.norm(expected)

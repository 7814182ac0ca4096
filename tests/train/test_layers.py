"""Our layers against PyTorch's plain ones."""

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tolerances import BF16_GRADIENT, HALVES, JOINED_TAPS
from torch import Tensor, nn

from dropgen_rt.train.layers import (
    BatchNorm3d,
    Conv3d,
    InstanceNorm3d,
    MaxPool3d,
    Upsample,
    _as_planes,
    _as_volumes,
    replace_instance_norms,
)

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


@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("mode", MODES)
def test_one_volume_alone(mode: str, bf16: bool) -> None:
    """Small ones in fp32 are convolved as two halves; odd numbers of planes overlap."""
    torch.manual_seed(0)
    for planes in (2, 4, 5, 7):
        layer = Conv3d(6, 5, 3, padding="same", padding_mode=mode)
        layer.halves = True
        x = torch.randn(1, 6, planes, 6, 8).to(memory_format=CHANNELS_LAST)
        narrow = gradients(layer, bf16, layer, x)
        layer.double()
        wide = gradients(layer, False, layer, x.double())
        allowed = BF16_GRADIENT if bf16 else HALVES
        for expected, got in zip(wide, narrow, strict=True):
            assert torch.linalg.norm(got - expected) <= allowed * torch.linalg.norm(expected)


def test_small_volumes_are_halved(monkeypatch: pytest.MonkeyPatch) -> None:
    """One volume of few channels; not two, not large ones, and not where they hold less than they cost.

    PyTorch's convolution is wrapped in a count of the volumes that it is given; it computes as ever.
    """
    batches = []
    whole = nn.functional.conv3d

    def counted(x: Tensor, *rest: object, **named: object) -> Tensor:
        batches.append(len(x))
        return whole(x, *rest, **named)

    monkeypatch.setattr(nn.functional, "conv3d", counted)
    layer = Conv3d(4, 4, 3, padding="same", padding_mode="reflect", bias=False)
    layer(torch.zeros(1, 4, 8, 8, 8))
    layer.halves = True
    for shape in ((1, 4, 8, 8, 8), (2, 4, 8, 8, 8), (1, 4, 72, 72, 8), (1, 4, 2, 2, 2)):
        layer(torch.zeros(shape))
    assert batches == [1, 2, 2, 1, 1]


@pytest.mark.parametrize("pooling", [MaxPool3d(2), Upsample(scale_factor=2, mode="nearest")])
@pytest.mark.parametrize("batch", [1, 2])
def test_what_computes_nothing_keeps_the_type(pooling: nn.Module, batch: int) -> None:
    """Under autocast, on a CPU. PyTorch's own give fp32."""
    x = torch.randn(batch, 3, 4, 4, 4).bfloat16().to(memory_format=CHANNELS_LAST)
    with torch.autocast("cpu", torch.bfloat16):
        result = pooling(x)
        assert result.dtype == torch.bfloat16 and result.stride()[1] == 1
        parent = type(pooling).__base__
        assert torch.equal(result, parent.forward(pooling, x).bfloat16())


@pytest.mark.parametrize("affine", [False, True])
def test_instance_norm_is_pytorchs(affine: bool) -> None:
    torch.manual_seed(0)
    ours, theirs = (kind(3, affine=affine).double() for kind in (InstanceNorm3d, nn.InstanceNorm3d))
    image = torch.randn(2, 3, 4, 5, 6, dtype=torch.float64)
    assert torch.allclose(ours(image), theirs(image), rtol=JOINED_TAPS, atol=JOINED_TAPS)
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    with pytest.raises(ValueError, match="more than 1 spatial element"):
        ours(image[..., :1, :1, :1])


@pytest.mark.parametrize("batch", [1, 2])
def test_instance_norms_gradient_of_channels_last(batch: int) -> None:
    """PyTorch's own is wrong for one volume: the shift's gradient is not the sum of slopes."""
    torch.manual_seed(0)
    layer = InstanceNorm3d(5, affine=True)
    slope = torch.randn(batch, 5, 4, 4, 4).to(memory_format=CHANNELS_LAST)
    layer(torch.randn_like(slope)).backward(slope)
    assert torch.allclose(layer.bias.grad, slope.sum((0, 2, 3, 4)), rtol=1e-5, atol=1e-5)


def test_replace_instance_norms() -> None:
    network = nn.Sequential(nn.InstanceNorm3d(2, eps=0.5, affine=True), nn.ModuleList([nn.InstanceNorm3d(3)]))
    before = network.state_dict()
    replace_instance_norms(network)
    norms = [module for module in network.modules() if isinstance(module, nn.InstanceNorm3d)]
    assert [type(norm) for norm in norms] == [InstanceNorm3d] * 2
    assert [(norm.eps, norm.affine) for norm in norms] == [(0.5, True), (1e-5, False)]
    assert network.state_dict().keys() == before.keys()


@pytest.mark.parametrize("batch", [1, 2])
def test_batch_norm_in_bf16_keeps_the_layout(batch: int) -> None:
    x = torch.randn(batch, 3, 4, 4, 4).bfloat16().to(memory_format=CHANNELS_LAST)
    assert BatchNorm3d(3)(x).stride()[:2] == (x[0].numel(), 1)


@pytest.mark.parametrize("layout", [torch.contiguous_format, CHANNELS_LAST])
def test_planes_and_volumes(layout: torch.memory_format) -> None:
    """What a GPU's batch norm sees, and back."""
    x = torch.rand(2, 3, 4, 5, 6).to(memory_format=layout)
    assert torch.equal(_as_planes(x), x.flatten(2, 3))
    assert torch.equal(_as_volumes(_as_planes(x), 4), x)


def test_batch_norm_of_a_narrow_network() -> None:
    layer = BatchNorm3d(3).bfloat16()
    layer(torch.randn(2, 3, 4, 4, 4).bfloat16() + 5)
    assert layer.running_mean.dtype == torch.bfloat16 and (layer.running_mean > 0.4).all()


def test_instance_norms_that_are_not_ours() -> None:
    """Running statistics, volumes without a batch, other channels: as PyTorch's."""
    tracking = InstanceNorm3d(2, track_running_stats=True)
    tracking(torch.ones(2, 2, 4, 4, 4))
    assert (tracking.running_mean > 0).all()
    assert InstanceNorm3d(2)(torch.rand(2, 4, 4, 4)).shape == (2, 4, 4, 4)

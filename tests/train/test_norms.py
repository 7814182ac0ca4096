"""Normalisation against PyTorch's own, in float64."""

import math
from typing import Any

import pytest
import torch
from tolerances import JOINED_TAPS, NORMALISED
from torch import Tensor, nn

from dropgen_rt.train.norms import PART, Processes, normalise

CHANNELS_LAST = torch.channels_last_3d
EPS = 1e-5


def definition(x: Tensor, weight: Tensor | None, bias: Tensor | None, groups: int) -> Tensor:
    if groups == 1:
        return nn.functional.batch_norm(x, None, None, weight, bias, training=True, eps=EPS)
    return nn.functional.instance_norm(x, weight=weight, bias=bias, eps=EPS)


def with_gradients(compute: Any, x: Tensor, slope: Tensor, *learnt: Tensor) -> list[Tensor]:
    result = compute(x, *learnt)
    return [result, *torch.autograd.grad(result, (x, *learnt), slope)]


def of_kind(kind: torch.dtype, compute: Any, x: Tensor, slope: Tensor) -> list[Tensor]:
    """Values and gradients of volumes in channels last and of this type."""
    given = x.to(kind, memory_format=CHANNELS_LAST, copy=True).requires_grad_()
    learnt = [torch.full((x.shape[1],), value, dtype=kind, requires_grad=True) for value in (1.5, -0.5)]
    return with_gradients(compute, given, slope.to(kind), *learnt)


@pytest.mark.parametrize("layout", [torch.contiguous_format, CHANNELS_LAST])
@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize("shape", [(3, 2, 1, 1, 2), (3, 5, 4, 6, 3), (3, 1, 8, 8, 8), (3, 7, 32, 48, 32)])
def test_the_definition(shape: tuple[int, ...], groups: int, layout: torch.memory_format) -> None:
    """The last shape has rows of several voxels, in several parts."""
    torch.manual_seed(0)
    assert (math.prod(shape) > groups * PART) == (shape[-1] == 32)
    x = (torch.randn(shape, dtype=torch.float64) + 3).to(memory_format=layout).requires_grad_()
    weight, bias = (torch.randn(shape[1], dtype=torch.float64, requires_grad=True) for _ in range(2))
    slope = torch.randn_like(x)
    expected = with_gradients(lambda *given: definition(*given, groups), x, slope, weight, bias)
    found = with_gradients(lambda *given: normalise(*given, EPS, groups).volumes, x, slope, weight, bias)
    for one, other in zip(expected, found, strict=True):
        assert torch.allclose(one, other, rtol=JOINED_TAPS, atol=JOINED_TAPS)
    expected = with_gradients(lambda x: definition(x, None, None, groups), x, slope)
    found = with_gradients(lambda x: normalise(x, None, None, EPS, groups).volumes, x, slope)
    for one, other in zip(expected, found, strict=True):
        assert torch.allclose(one, other, rtol=JOINED_TAPS, atol=JOINED_TAPS)


def test_moments() -> None:
    x = torch.randn(2, 3, 4, 5, 6, dtype=torch.float64)
    for groups, axes, number in ((1, (0, 2, 3, 4), 240), (2, (2, 3, 4), 120)):
        found = normalise(x, None, None, EPS, groups)
        assert found.number == number
        assert torch.allclose(found.mean, x.mean(axes).view(groups, 3))
        assert torch.allclose(found.variance, x.var(axes, correction=0).view(groups, 3))


@pytest.mark.parametrize("far", [0.0, 100.0])
@pytest.mark.parametrize("groups", [1, 2])
def test_no_digits_are_lost_in_fp32(groups: int, far: float) -> None:
    """Many values, and a mean that is a hundred standard deviations away from 0."""
    torch.manual_seed(0)
    x, slope = torch.randn(2, 8, 32, 32, 32) + far, torch.randn(2, 8, 32, 32, 32)
    assert x.numel() > PART
    wide = of_kind(torch.float64, lambda *given: definition(*given, groups), x, slope)
    found = of_kind(torch.float32, lambda *given: normalise(*given, EPS, groups).volumes, x, slope)
    for expected, got in zip(wide, found, strict=True):
        # The values themselves have fewer digits, the further away they are.
        assert torch.linalg.norm(got - expected) <= NORMALISED * (1 + far) * torch.linalg.norm(expected)


@pytest.mark.parametrize("batch", [1, 2])
def test_type_and_layout_stay(batch: int) -> None:
    x = torch.randn(batch, 3, 4, 4, 4).bfloat16().to(memory_format=CHANNELS_LAST).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        volumes = normalise(x, None, None, EPS).volumes
    (slope,) = torch.autograd.grad(volumes, x, torch.ones_like(volumes))
    for volume in (volumes, slope):
        assert volume.dtype == torch.bfloat16 and volume.stride()[:2] == (volume[0].numel(), 1)


def test_moments_over_processes() -> None:
    """Another process that has the same volumes and slopes: all is as of the batch that holds them twice.

    A doubling stands in for that process; two real ones are in test_distributed.py.
    """
    torch.manual_seed(0)
    x, slope = (torch.randn(2, 3, 4, 4, 4, dtype=torch.float64) for _ in range(2))
    weight, bias = (torch.randn(3, dtype=torch.float64, requires_grad=True) for _ in range(2))
    own, both = x.clone().requires_grad_(), torch.cat([x, x]).requires_grad_()
    found = with_gradients(
        lambda *given: normalise(*given, EPS, processes=Processes(2, lambda own: 2 * own)).volumes,
        own,
        slope,
        weight,
        bias,
    )
    expected = with_gradients(lambda *given: definition(*given, 1), both, torch.cat([slope, slope]), weight, bias)
    halves = [value[:2] if value.ndim > 1 else value / 2 for value in expected]  # each process has its own share
    for one, other in zip(halves, found, strict=True):
        assert torch.allclose(one, other, rtol=JOINED_TAPS, atol=JOINED_TAPS)


def test_moments_over_processes_keep_their_digits() -> None:
    """In fp32, of two processes with other volumes, whose values lie far from 0.

    The other's moments, added, stand in for it; two real ones are in test_distributed.py.
    """
    torch.manual_seed(0)
    one, other = (torch.randn(2, 3, 8, 8, 8) + 100 + far for far in (0.0, 0.5))
    own = normalise(other, None, None, EPS)
    theirs = torch.stack([own.mean.double(), own.variance.double() + own.mean.double().square()])
    first = iter([theirs])
    found = normalise(one, None, None, EPS, processes=Processes(2, lambda moments: moments + next(first)))
    both = torch.cat([one, other]).double()
    assert torch.allclose(found.mean[0].double(), both.mean((0, 2, 3, 4)), rtol=1e-6)
    assert torch.allclose(found.variance[0].double(), both.var((0, 2, 3, 4), correction=0), rtol=1e-4)


def test_one_outlier_where_sums_start() -> None:
    """In a corner, three hundred standard deviations away."""
    torch.manual_seed(0)
    x = torch.randn(1, 2, 32, 32, 32)
    x[..., 0, 0, 0] = 300
    expected = definition(x.double(), None, None, 1)
    off = normalise(x, None, None, EPS).volumes - expected
    assert torch.linalg.norm(off) <= NORMALISED * 10 * torch.linalg.norm(expected)

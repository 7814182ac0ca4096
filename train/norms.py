"""Normalisation of channels-last volumes in two passes, one for the moments and one for the values.

Each pass goes through a volume in parts that a core's cache holds, and computes in fp32 where the volume's type is
narrower. PyTorch 2.13's own on a CPU take longer where there are few channels, lose digits by adding
fp32 values one after another (batch norms), or the layout (instance norms).
"""

import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

# Values of a part: 1 MiB in fp32.
PART = 1 << 18
# Voxels that are seen as one row, so that operations run over more than a few channels at a time.
ROW = 64


class Processes(NamedTuple):
    """Those that train together, each with as many volumes as the others."""

    number: int
    total: Callable[[Tensor], Tensor]  # of a tensor that each of them has


ALONE = Processes(1, lambda own: own)


class Normalised(NamedTuple):
    """Volumes of zero mean and unit variance, scaled and shifted; and what they were normalised by."""

    volumes: Tensor  # (b, c, z, y, x), of the input's type
    mean: Tensor  # (groups, c), at least fp32
    variance: Tensor  # (groups, c), of the values as they are: the sum is divided by their number
    number: int  # values of a channel that were normalised together


def normalise(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    groups: int = 1,
    processes: Processes = ALONE,
) -> Normalised:
    """``(x - mean) / sqrt(variance + eps) * weight + bias``, channel by channel.

    x (b, c, z, y, x), of any floating type; weight and bias (c), at least fp32, or both None for 1 and 0. ``groups`` is
    1 for moments over the batch (batch norm; Ioffe and Szegedy, arXiv 1502.03167), b for those of each volume (instance
    norm; Ulyanov et al., arXiv 1607.08022). Moments are those over the volumes of all ``processes``.
    """
    assert (weight is None) == (bias is None)
    volumes, mean, variance = _Normalise.apply(x, weight, bias, eps, groups, processes)
    return Normalised(volumes, mean, variance, _values(x, groups, processes))


class _Normalise(torch.autograd.Function):
    @staticmethod
    def forward(
        context: Any,
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        eps: float,
        groups: int,
        processes: Processes,
    ) -> tuple[Tensor, Tensor, Tensor]:
        rows = _rows(x, groups)
        mean, variance = _moments(rows, x.shape[1])
        if processes.number > 1:
            mean, variance = _over_processes(mean, variance, processes)
        inverse = torch.rsqrt(variance + eps)
        scale = inverse if weight is None else inverse * weight
        shift = -mean * scale if bias is None else bias - mean * scale
        result = torch.empty_like(x, memory_format=torch.channels_last_3d)
        _write(_rows(result, groups), shift, (rows, scale))
        context.save_for_backward(x, weight, mean, inverse)
        context.groups, context.processes = groups, processes
        context.mark_non_differentiable(mean, variance)
        return result, mean, variance

    @staticmethod
    @once_differentiable
    def backward(context: Any, gradient: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, mean, inverse = context.saved_tensors
        rows, slopes = _rows(x, context.groups), _rows(gradient, context.groups)
        of_shift, of_scale = _slope_sums(rows, slopes, mean, x.shape[1])
        of_scale = of_scale * inverse
        own = of_scale.sum(0), of_shift.sum(0)
        of_shift, of_scale = context.processes.total(torch.stack([of_shift, of_scale]))
        count = _values(x, context.groups, context.processes)
        # d/dx of the definition: a slope less its mean, and less what moves the variance.
        scale = inverse if weight is None else inverse * weight
        by_value = -scale * inverse * of_scale / count
        constant = -scale * of_shift / count - by_value * mean
        result = torch.empty_like(x, memory_format=torch.channels_last_3d)
        _write(_rows(result, context.groups), constant, (rows, by_value), (slopes, scale))
        of_weight, of_bias = own if weight is not None else (None, None)
        return result, of_weight, of_bias, None, None, None


def _moments(rows: Tensor, channels: int) -> tuple[Tensor, Tensor]:
    """Mean and variance (groups, channels), at least fp32.

    Sums are of values less the mean of the first row's voxels: far from 0 squares would lose their digits.
    """
    means, variances = [], []
    for values in rows:
        first = _wide(values[0]).view(-1, channels).mean(0)
        origin = first.repeat(values.shape[1] // channels)
        sums = _wide(values.new_zeros(2, values.shape[1]))
        for part in _parts(values):
            off = _wide(part) - origin
            sums[0] += off.sum(0)
            sums[1] += off.square_().sum(0)
        mean_off, squares = sums.view(2, -1, channels).sum(1) / (values.numel() // channels)
        means.append(first + mean_off)
        variances.append((squares - mean_off.square()).clamp_min(0))
    return torch.stack(means), torch.stack(variances)


def _over_processes(mean: Tensor, variance: Tensor, processes: Processes) -> tuple[Tensor, Tensor]:
    """Moments of all processes' values together, in float64: squares of means would lose fp32's digits."""
    own = mean.double(), variance.double()
    common, squares = processes.total(torch.stack([own[0], own[1] + own[0].square()])) / processes.number
    return common.to(mean.dtype), (squares - common.square()).clamp_min(0).to(mean.dtype)


def _write(result: Tensor, constant: Tensor, *terms: tuple[Tensor, Tensor]) -> None:
    """``result = constant + sum(rows * factor)``, factors and constant (groups or 1, c), part by part."""
    starts, factors = _over(result, constant), [_over(result, factor) for _, factor in terms]
    for group, out in enumerate(result):
        for written, *parts in zip(_parts(out), *(_parts(rows[group]) for rows, _ in terms), strict=True):
            value = starts[group]
            for part, factor in zip(parts, factors, strict=True):
                value = torch.addcmul(value, _wide(part), factor[group])
            written.copy_(value)


def _slope_sums(rows: Tensor, slopes: Tensor, mean: Tensor, channels: int) -> tuple[Tensor, Tensor]:
    """Sums (groups, channels), at least fp32, of ``slopes``, and of their products with values less the mean."""
    found = []
    for values, slope, middle in zip(rows, slopes, _over(rows, mean), strict=True):
        sums = _wide(values.new_zeros(2, values.shape[1]))
        for part, of_part in zip(_parts(values), _parts(slope), strict=True):
            wide = _wide(of_part)
            sums[0] += wide.sum(0)
            sums[1] += (_wide(part) - middle).mul_(wide).sum(0)
        found.append(sums.view(2, -1, channels).sum(1))
    of_shift, of_scale = torch.stack(found, dim=1)
    return of_shift, of_scale


def _values(x: Tensor, groups: int, processes: Processes) -> int:
    """How many of one channel are normalised together."""
    return x.numel() // x.shape[1] // groups * processes.number


def _rows(x: Tensor, groups: int) -> Tensor:
    """(b, c, z, y, x) -> (groups, n, voxels * c): a view, where ``x`` is channels last."""
    channels = x.shape[1]
    voxels = x.numel() // channels // groups
    return x.movedim(1, -1).reshape(groups, -1, math.gcd(voxels, ROW) * channels)


def _over(rows: Tensor, per_channel: Tensor) -> Tensor:
    """(groups or 1, c) -> (groups, voxels * c), as each row has its channels."""
    return per_channel.repeat(1, rows.shape[2] // per_channel.shape[1]).expand(len(rows), -1)


def _wide(values: Tensor) -> Tensor:
    return values.to(torch.promote_types(values.dtype, torch.float32))


def _parts(values: Tensor) -> Iterator[Tensor]:
    """Rows by rows; on a GPU all at once."""
    rows = max(1, PART // values.shape[1]) if values.device.type == "cpu" else len(values)
    yield from values.split(rows)

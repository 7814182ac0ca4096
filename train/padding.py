"""One voxel beyond each border, in the type and the layout of the volume."""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

Border = Literal["constant", "reflect", "replicate"]
# How far within a padded volume that voxel is which is repeated beyond its border.
WITHIN = {"reflect": 2, "replicate": 1}


def as_narrow(x: Tensor) -> AbstractContextManager:
    """Where padding, pooling and upsampling stay in the type of ``x``, for they compute nothing new.

    Autocast on a CPU has them in fp32: volumes twice as large, and two conversions.
    """
    kind = x.device.type
    return torch.autocast(kind, enabled=False) if torch.is_autocast_enabled(kind) else nullcontext()


def padded(x: Tensor, border: Border, axes: int = 3) -> Tensor:
    """(b, c, z, y, x) with one more voxel on either side of the first ``axes`` of z, y and x; constant borders are 0.

    PyTorch 2.13's own on a CPU takes longer where channels are last, and widens to fp32 under autocast.
    """
    channels_last = x.is_contiguous(memory_format=torch.channels_last_3d) and not x.is_contiguous()
    slow = channels_last and x.device.type == "cpu" and not torch.compiler.is_compiling()
    if slow and border != "constant" and axes == 3 and min(x.shape[2:]) >= WITHIN[border]:
        result: Tensor = _Mirrored.apply(x, WITHIN[border])
        return result
    with as_narrow(x):
        return nn.functional.pad(x, (0, 0) * (3 - axes) + (1, 1) * axes, border)


def new_volume(like: Tensor, shape: Sequence[int]) -> Tensor:
    """(b, c, z, y, x) of undefined values, channels last, of the type of ``like`` and where that is."""
    return torch.empty(shape, dtype=like.dtype, device=like.device, memory_format=torch.channels_last_3d)


class _Mirrored(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, x: Tensor, within: int) -> Tensor:
        batch, channels, *edges = x.shape
        around = new_volume(x, (batch, channels, *(edge + 2 for edge in edges)))
        _inner(around).copy_(x)
        for axis in (2, 3, 4):  # along later axes, borders of earlier ones are repeated, too
            for border, source in _pairs(around.shape[axis], within):
                around.select(axis, border).copy_(around.select(axis, source))
        context.within = within
        return around

    @staticmethod
    @once_differentiable
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor, None]:
        around = gradient.clone(memory_format=torch.channels_last_3d)
        for axis in (4, 3, 2):
            for border, source in _pairs(around.shape[axis], context.within):
                around.select(axis, source).add_(around.select(axis, border))
        return _inner(around).contiguous(memory_format=torch.channels_last_3d), None


def _inner(around: Tensor) -> Tensor:
    return around[:, :, 1:-1, 1:-1, 1:-1]


def _pairs(edge: int, within: int) -> tuple[tuple[int, int], tuple[int, int]]:
    """(voxel beyond the border, voxel that it repeats), at either end of a padded axis."""
    return (0, within), (edge - 1, edge - 1 - within)

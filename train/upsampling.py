"""A convolution after nearest upsampling, computed before it: a sub-pixel convolution (Shi et al., arXiv 1609.05158).

Nearest upsampling repeats each voxel, so a kernel of three meets each coarse voxel once or twice: a fine voxel sees two
coarse ones along each axis, the nearer by two taps joined. Fine voxels of one parity see them alike: all eight parities
are channels of one coarse convolution of kernel two, and then take their places between each other. That is eight
products per voxel and channel instead of 27, and eight times the channels, which the kernels of a CPU need to be fast.
"""

from collections.abc import Iterator
from itertools import product
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from dropgen_rt.train.padding import new_volume

PARITIES = tuple(product((0, 1), repeat=3))


def joined_taps(kernel: Tensor) -> Tensor:
    """(out, in, 3, 3, 3) of a convolution after nearest upsampling -> (8 * out, in, 2, 2, 2) of the coarse one.

    Along each axis an even voxel meets taps (0, 1 + 2) of its two coarse neighbours, an odd one (0 + 1, 2).
    """
    of_parities = kernel.unsqueeze(0)
    for axis in (3, 4, 5):
        first, middle, last = of_parities.unbind(axis)
        even, odd = torch.stack([first, middle + last], axis), torch.stack([first + middle, last], axis)
        of_parities = torch.stack([even, odd], dim=1).flatten(0, 1)
    return of_parities.flatten(0, 1)


def interleave(coarse: Tensor) -> Tensor:
    """(b, 8 * c, z + 1, y + 1, x + 1) -> (b, c, 2z, 2y, 2x), channels last: each parity to its fine voxels.

    ``coarse`` is a convolution of kernel two over a volume with one more voxel beyond each border: between neighbours.
    An even voxel lies after what precedes it, an odd one before what follows, one further along.
    """
    fine: Tensor = _Interleave.apply(coarse)
    return fine


class _Interleave(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, coarse: Tensor) -> Tensor:
        batch, channels, *edges = coarse.shape
        fine = new_volume(coarse, (batch, channels // 8, *(2 * (edge - 1) for edge in edges)))
        context.shape = coarse.shape
        for of_coarse, of_fine in _places(coarse, fine):
            of_fine.copy_(of_coarse)
        return fine

    @staticmethod
    @once_differentiable
    def backward(context: Any, gradient: Tensor) -> Tensor:
        coarse = new_volume(gradient, context.shape)
        for axis in (2, 3, 4):  # one parity or the other has no voxel at a border
            coarse.select(axis, 0).zero_()
            coarse.select(axis, -1).zero_()
        for of_coarse, of_fine in _places(coarse, gradient):
            of_coarse.copy_(of_fine)
        return coarse


def _places(coarse: Tensor, fine: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Of (b, 8 * c, z + 1, y + 1, x + 1) and (b, c, 2z, 2y, 2x) what belongs together, parity by parity."""
    for of_coarse, parity in zip(coarse.chunk(len(PARITIES), dim=1), PARITIES, strict=True):
        of_fine = fine
        for axis, odd in enumerate(parity, start=2):
            of_coarse = of_coarse.narrow(axis, odd, coarse.shape[axis] - 1)
            of_fine = of_fine.unflatten(axis, (-1, 2)).select(axis + 1, odd)
        yield of_coarse, of_fine

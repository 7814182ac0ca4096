"""Ensembles of labelled shapes, of which an encoder learns what stays when the contrast changes.

After anatomix (Dey et al., arXiv 2411.02372): twenty to forty templates, each under a random affine transform
and a smooth displacement, pasted over one another; two times in three inside a foreground, half of these with a
thin rim of its own label. Templates here are the structures of label maps; noise fields give the rest.
"""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from dropgen_rt.train.synthesis import SUBSAMPLES, RandomSource

TEMPLATE_EDGE = 48
# Structures of fewer voxels than this are dots once resampled.
SMALLEST_TEMPLATE = 300


def cut_templates(label_map: Tensor) -> Tensor:
    """(structures, 48, 48, 48) uint8 masks: each label of a (z, y, x) map cut out and stretched to one size."""
    masks = []
    for value in label_map.unique()[1:]:
        mask = label_map == value
        if int(mask.sum()) < SMALLEST_TEMPLATE:
            continue
        for axis in range(3):
            kept = torch.where(mask.any(dim=tuple(other for other in range(3) if other != axis)))[0]
            mask = mask.narrow(axis, int(kept[0]), int(kept[-1] - kept[0]) + 1)
        masks.append(F.interpolate(mask[None, None].float(), size=(TEMPLATE_EDGE,) * 3, mode="area")[0, 0] > 0.5)
    if not masks:
        return torch.zeros((0, *[TEMPLATE_EDGE] * 3), dtype=torch.uint8, device=label_map.device)
    return torch.stack(masks).to(torch.uint8)


def shape_ensemble(edge: int, templates: Tensor, source: RandomSource) -> Tensor:
    """A fine (2n, 2n, 2n) uint8 crop of labelled shapes on background 0.

    ``templates`` is (count, e, e, e) uint8 on the source's device; without any, or half the time, regions of
    noise fields stand in for them.
    """
    from_noise = len(templates) == 0 or source.numbers.random() < 0.5
    labels = _noise_regions(edge, source) if from_noise else _pasted(edge, templates, source)
    if source.numbers.random() < 2 / 3:
        labels = _masked(labels, source)
    fine = (edge * SUBSAMPLES,) * 3
    return F.interpolate(labels[None, None].to(torch.uint8), size=fine, mode="nearest")[0, 0]


def _noise_regions(edge: int, source: RandomSource) -> Tensor:
    regions, knots = int(source.numbers.integers(6, 25)), int(source.numbers.integers(4, 13))
    return source.smooth(knots, edge, channels=regions)[0].argmax(0)


def _pasted(edge: int, templates: Tensor, source: RandomSource) -> Tensor:
    """(n, n, n) int64: later shapes cover earlier ones."""
    rng, count = source.numbers, int(source.numbers.integers(20, 41))
    chosen = source.place(rng.integers(len(templates), size=count))
    masks = templates[chosen][:, None].float()
    matrices = source.place(np.stack([_placement(rng) for _ in range(count)]))
    grid = F.affine_grid(matrices, [count, 1, edge, edge, edge], align_corners=False)
    bend = source.smooth(int(rng.integers(4, 9)), edge, channels=3) * rng.uniform(0, 0.1)
    pasted = F.grid_sample(masks, grid + bend.movedim(1, -1), align_corners=False) > 0.5
    order = torch.arange(1, count + 1, device=templates.device).view(-1, 1, 1, 1)
    return (pasted[:, 0] * order).amax(0)


def _placement(rng: np.random.Generator) -> np.ndarray:
    """(3, 4) float32, from the crop's [-1, 1] cube to the template's: rotation, scale and place."""
    turn, triangle = np.linalg.qr(rng.standard_normal((3, 3)))
    turn *= np.sign(np.diag(triangle))
    # A template fills from a tenth to two thirds of the crop's edge, each axis by itself.
    scale = 1 / np.exp(rng.uniform(np.log(0.1), np.log(0.65)) + rng.normal(0, 0.25, 3))
    matrix = np.diag(scale) @ turn
    return np.concatenate([matrix, -matrix @ rng.uniform(-0.9, 0.9, (3, 1))], axis=1).astype(np.float32)


def _masked(labels: Tensor, source: RandomSource) -> Tensor:
    """Background beyond a deformed ball; half the time with a rim of two to four voxels."""
    rng, edge = source.numbers, labels.shape[0]
    line = torch.linspace(-1, 1, edge, device=labels.device)
    centre, radius = rng.uniform(-0.3, 0.3, 3), rng.uniform(0.5, 1.1)
    square = sum(
        (axis - float(middle)) ** 2
        for axis, middle in zip((line.view(-1, 1, 1), line.view(1, -1, 1), line.view(1, 1, -1)), centre, strict=True)
    )
    distance = square**0.5 + source.smooth(5, edge)[0, 0] * 0.12
    inside = labels + 1  # so that what was background inside the ball is a tissue now
    masked = torch.where(distance < radius, inside, torch.zeros_like(inside))
    if rng.random() < 0.5:
        rim = (distance >= radius) & (distance < radius + rng.uniform(2, 4) * 2 / edge)
        masked = torch.where(rim, inside.amax() + 1, masked)
    return masked

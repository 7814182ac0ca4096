"""Surface distances by hand and against MONAI's metrics, which are written otherwise."""

import math

import numpy as np
import pytest
import torch
from monai.metrics import compute_hausdorff_distance, compute_surface_dice
from tolerances import SURFACE_MM

from dropgen_rt.surface import hd95_and_surface_dice, surface

SPACING_MM = (0.8, 1.5, 3.0)  # x, y, z


def ball(centre, radius, shape=(14, 20, 22)):
    z, y, x = np.indices(shape)
    return ((z - centre[0]) * 2) ** 2 + (y - centre[1]) ** 2 + (x - centre[2]) ** 2 < radius**2


def test_a_cubes_surface_is_its_shell():
    cube = np.zeros((7, 7, 7), bool)
    cube[1:6, 1:6, 1:6] = True
    assert surface(cube).sum() == 5**3 - 3**3
    assert surface(np.ones((3, 3, 3), bool)).sum() == 26  # beyond the array is outside


def test_two_planes_by_hand():
    first, second = np.zeros((8, 3, 3), bool), np.zeros((8, 3, 3), bool)
    first[2], second[4] = True, True
    assert hd95_and_surface_dice(first, second, SPACING_MM, 6.0) == (pytest.approx(6.0), 1.0)
    assert hd95_and_surface_dice(first, second, SPACING_MM, 5.9)[1] == 0.0


@pytest.mark.parametrize("edge_mm", [0.1, 0.3, 0.7, 0.9, 1.1, 1.2, 1.4, 2.6])
def test_a_surface_as_far_as_the_tolerance_is_within_it(edge_mm):
    """Whatever the rounding of float32 makes of it; MONAI computes in float64."""
    first, second = np.zeros((8, 3, 3), bool), np.zeros((8, 3, 3), bool)
    first[2], second[3] = True, True
    spacing = (edge_mm,) * 3
    one_hot = [torch.from_numpy(np.stack([~mask, mask])[None].astype(np.float32)) for mask in (first, second)]
    assert compute_surface_dice(*one_hot, class_thresholds=[edge_mm], spacing=spacing).item() == 1.0
    assert hd95_and_surface_dice(first, second, spacing, edge_mm)[1] == 1.0
    assert hd95_and_surface_dice(first, second, spacing, 0.999 * edge_mm)[1] == 0.0


def test_labels_that_are_absent():
    some, none = ball((7, 10, 11), 5), np.zeros((14, 20, 22), bool)
    assert all(math.isnan(value) for value in hd95_and_surface_dice(none, none, SPACING_MM, 1.0))
    assert hd95_and_surface_dice(some, none, SPACING_MM, 1.0) == (math.inf, 0.0)
    assert hd95_and_surface_dice(none, some, SPACING_MM, 1.0) == (math.inf, 0.0)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("tolerance_mm", [0.5, 2.0])
def test_monai_measures_the_same(seed, tolerance_mm):
    rng = np.random.default_rng(seed)
    masks = [ball(rng.uniform((4, 5, 5), (10, 15, 17)), rng.uniform(3, 9)) for _ in range(2)]
    masks[0] |= rng.random(masks[0].shape) < 0.002 * seed  # specks, also on the border
    hd95, dice = hd95_and_surface_dice(*masks, SPACING_MM, tolerance_mm)
    one_hot = [torch.from_numpy(np.stack([~mask, mask])[None].astype(np.float32)) for mask in masks]
    spacing = SPACING_MM[::-1]
    theirs = compute_hausdorff_distance(*one_hot, percentile=95, spacing=spacing).item()
    assert hd95 == pytest.approx(theirs, abs=SURFACE_MM)
    theirs = compute_surface_dice(*one_hot, class_thresholds=[tolerance_mm], spacing=spacing).item()
    assert dice == pytest.approx(theirs, abs=1e-6)

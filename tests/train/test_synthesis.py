"""Synthesised images: aligned with their labels, drawn from the contrast that was asked for."""

from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.ndimage import correlate1d
from tolerances import BLUR

from dropgen_rt.train.shapes import cut_templates, shape_ensemble
from dropgen_rt.train.synthesis import (
    MEAN,
    RandomSource,
    SynthesisConfig,
    averaged,
    averaged_labels,
    blur,
    corrupt,
    deformed_coordinates,
    draw_intensities,
    index_labels,
    look_up,
    paint,
    truncate_spectrum,
)

BRAIN9 = Path(__file__).parents[2] / "examples" / "brain9" / "synthesis.toml"


def test_indices_give_back_the_values() -> None:
    raw = np.array([[[0, 41], [11100, 0]]], np.int32)
    index, values = index_labels(raw)
    assert values.tolist() == [0, 41, 11100]
    assert np.array_equal(values[index.numpy()], raw)


def test_look_up_is_nearest_and_zero_outside() -> None:
    labels = torch.arange(8, dtype=torch.uint8).reshape(2, 2, 2)
    places = torch.tensor([[0.4, 0.6, 1.0, 5.0], [0.0, 1.2, 1.0, 0.0], [0.0, 0.0, 1.4, 0.0]])
    assert look_up(labels, places).tolist() == [0, 6, 7, 0]


def test_a_tissue_of_mean_zero_is_not_taken_for_a_stripped_one() -> None:
    config = SynthesisConfig(tissues={"dark": (1,)}, contrasts={"t1": 1.0}, means={"t1": {"dark": 0.0}})
    tables = [draw_intensities(config, np.array([0, 1]), np.random.default_rng(seed)) for seed in range(50)]
    assert all(0 < table[MEAN, 1] < 0.3 for table in tables)


def test_coordinates_are_centred_on_the_request() -> None:
    source = RandomSource.seeded(0)
    middles = [deformed_coordinates((10.0, 20.0, 30.0), 8, 1.0, source).mean((1, 2, 3)) for _ in range(30)]
    assert torch.stack(middles).mean(0).numpy() == pytest.approx([10, 20, 30], abs=1.5)


@pytest.mark.parametrize("seed", range(5))
def test_named_contrasts_order_the_tissues(seed: int) -> None:
    config = SynthesisConfig.read(BRAIN9)
    values = np.array([0, 2, 3, 4])  # background, white matter, cortex, ventricle
    t1 = SynthesisConfig(config.tissues, config.means, {"t1": 1.0}, mean_jitter=0.01)
    mean = draw_intensities(t1, values, np.random.default_rng(seed))[0]
    assert mean[1] > mean[2] > mean[3]
    t2 = SynthesisConfig(config.tissues, config.means, {"t2": 1.0}, mean_jitter=0.01)
    mean = draw_intensities(t2, values, np.random.default_rng(seed))[0]
    assert mean[1] < mean[2] < mean[3]


def test_stripped_heads_have_no_head() -> None:
    config = SynthesisConfig.read(BRAIN9)
    bare = SynthesisConfig(config.tissues, config.means, config.contrasts, config.outside, config.fluid, strip=1.0)
    table = draw_intensities(bare, np.array([0, 2, 507]), np.random.default_rng(0))
    assert table[0, 0] == table[0, 2] == 0
    assert table[0, 1] > 0


def test_painted_borders_lie_where_the_labels_change() -> None:
    labels = torch.zeros(16, 16, 16, dtype=torch.uint8)
    labels[:, :, 8:] = 1
    image = paint(labels, np.array([[0.1, 0.9], [0.0, 0.0], [0.0, 0.0]], np.float32), RandomSource.seeded(3))
    assert image.shape == (1, 8, 8, 8)
    left, right = image[0, :, :, :3].mean(), image[0, :, :, 5:].mean()
    assert right > 2 * left


@pytest.mark.parametrize("seed", range(20))
def test_corruption_stays_finite_and_in_range(seed: int) -> None:
    image = corrupt(torch.rand(1, 1, 16, 16, 16), RandomSource.seeded(seed))
    assert image.shape == (1, 1, 16, 16, 16)
    assert torch.isfinite(image).all()
    assert image.min() >= 0
    assert image.max() <= 1


def test_the_same_seed_paints_the_same_image() -> None:
    labels = torch.zeros(16, 16, 16, dtype=torch.uint8)
    table = np.array([[0.5], [0.1], [0.1]], np.float32)
    first, again, other = (paint(labels, table, RandomSource.seeded(*seed)) for seed in ((1, 2), (1, 2), (1, 3)))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_a_truncated_spectrum_rings_beside_an_edge_and_keeps_the_mean() -> None:
    image = torch.zeros(1, 1, 16, 16, 16)
    image[..., 8:] = 1
    ringing = truncate_spectrum(image, 0.6)
    assert float(ringing.mean()) == pytest.approx(0.5, abs=1e-5)
    assert float(ringing.max()) > 1.02


def test_templates_are_the_structures_of_a_map() -> None:
    labels = torch.zeros(40, 40, 40, dtype=torch.uint8)
    labels[5:25, 10:20, 10:20] = 1
    labels[0, 0, 0] = 2  # a dot: too small to be a shape
    templates = cut_templates(labels)
    assert templates.shape == (1, 48, 48, 48)
    assert bool((templates == 1).all())


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("count", [0, 5])
def test_shape_ensembles_have_several_regions(seed: int, count: int) -> None:
    templates = torch.ones((count, 48, 48, 48), dtype=torch.uint8)
    shapes = shape_ensemble(16, templates, RandomSource.seeded(seed))
    assert shapes.shape == (32, 32, 32)
    assert shapes.dtype == torch.uint8
    assert len(shapes.unique()) >= 4


@pytest.mark.parametrize("sigma", [0.2, 1.0])
def test_blur_is_a_gaussian_of_three_taps(sigma: float) -> None:
    images = np.random.default_rng(0).random((2, 1, 5, 1, 7), dtype=np.float32)
    taps = np.exp(-0.5 * (np.arange(-1, 2) / sigma) ** 2)
    expected = images.astype(np.float64)
    for axis in (2, 3, 4):
        expected = correlate1d(expected, taps / taps.sum(), axis, mode="nearest")
    assert np.abs(blur(torch.from_numpy(images), sigma).numpy() - expected).max() <= BLUR


def test_an_average_of_heads_keeps_borders_and_loses_what_is_thin() -> None:
    labels = torch.zeros(16, 16, 16, dtype=torch.uint8)
    labels[:, 8:] = 3
    labels[2:14, 2:6, 5] = 1  # a sheet of one voxel
    averaged = averaged_labels(labels, 4, 4)
    assert averaged.dtype == torch.uint8
    assert torch.equal(averaged[:, 8:], labels[:, 8:]) and not averaged[:, :8].any()
    assert torch.equal(averaged_labels(labels, 4, 0), labels)


def test_an_average_of_what_is_even_is_even_to_the_rim() -> None:
    even = torch.full((1, 1, 8, 8, 8), 0.7)
    assert (averaged(even, 8) - even).abs().max() <= BLUR


def test_an_average_of_heads_is_painted_soft() -> None:
    labels = torch.zeros(32, 32, 32, dtype=torch.uint8)
    labels[:, :, 16:] = 1
    table = np.array([[0.2, 0.8], [0, 0], [0, 0]], np.float32)
    sharp, soft = (paint(labels, table, RandomSource.seeded(0), 0.0, passes)[0, 8, 8] for passes in (0, 6))
    assert np.diff(soft.numpy()).max() < 0.6 * np.diff(sharp.numpy()).max()

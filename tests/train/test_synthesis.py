"""Synthesised images: aligned with their labels, drawn from the contrast that was asked for."""

from pathlib import Path

import numpy as np
import pytest
import torch

from dropgen_rt.train.synthesis import (
    SynthesisConfig,
    corrupt,
    deformed_coordinates,
    draw_intensities,
    index_labels,
    look_up,
    paint,
    shape_ensemble,
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


def test_coordinates_are_centred_on_the_request() -> None:
    rng = np.random.default_rng(0)
    middles = [deformed_coordinates(np.array([10.0, 20.0, 30.0]), 8, 1.0, rng).mean((1, 2, 3)) for _ in range(30)]
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
    image = paint(labels, np.array([[0.1, 0.9], [0.0, 0.0]], np.float32), np.random.default_rng(3))
    assert image.shape == (1, 8, 8, 8)
    left, right = image[0, :, :, :3].mean(), image[0, :, :, 5:].mean()
    assert right > 2 * left


@pytest.mark.parametrize("seed", range(20))
def test_corruption_stays_finite_and_in_range(seed: int) -> None:
    rng = np.random.default_rng(seed)
    image = corrupt(torch.rand(1, 1, 16, 16, 16), rng)
    assert image.shape == (1, 1, 16, 16, 16)
    assert torch.isfinite(image).all()
    assert image.min() >= 0
    assert image.max() <= 1


def test_shape_ensembles_have_several_regions() -> None:
    shapes = shape_ensemble(16, np.random.default_rng(0))
    assert shapes.shape == (32, 32, 32)
    assert len(shapes.unique()) >= 5

"""What makes a scan's labels doubtful."""

import numpy as np
import pytest

from dropgen_rt.geometry import Geometry
from dropgen_rt.segment import segment
from dropgen_rt.suitability import LABEL_MAP_VALUES, SAMPLED_VOXELS, doubts
from dropgen_rt.volume import Volume

IDENTITY = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0)
LIKE_LABELS = "it has few values, all whole, as label maps do: check that the right file was given"
NOISE = np.random.default_rng(0)


def volume(values: np.ndarray) -> Volume:
    z, y, x = values.shape
    return Volume(values[None].astype(np.float32), Geometry((x, y, z), (1.0, 1.0, 1.0), (0.0, 0.0, 0.0), IDENTITY))


def test_one_that_is_thin_beside_a_window_is_doubted(model):
    warnings = segment(volume(NOISE.uniform(0, 100, (5, 20, 8))), model).record.warnings
    assert warnings == (
        "along z it covers less than half of a window that the model was trained on "
        "((5, 20, 8) of (16, 16, 16) voxels, z, y, x): labels may be far off",
    )


@pytest.mark.parametrize("count", [2, 53, LABEL_MAP_VALUES])
@pytest.mark.parametrize("shape", [(16, 16, 16), (32, 128, 512)])
def test_one_that_looks_like_a_label_map_is_doubted(model, count, shape):
    labels = NOISE.permutation(np.arange(np.prod(shape)) % count).reshape(shape) * 20
    assert doubts(volume(labels), model.manifest) == (LIKE_LABELS,)


def test_the_doubt_is_told_also_of_one_channel(model):
    labels = volume(NOISE.integers(0, 3, (16, 16, 16))).array
    image = volume(NOISE.uniform(0, 1, (16, 16, 16)))
    both = Volume(np.concatenate([image.array, labels]), image.geometry)
    assert doubts(both, model.manifest) == (LIKE_LABELS,)
    assert segment(Volume(labels, image.geometry), model).record.warnings == (LIKE_LABELS,)


@pytest.mark.parametrize(
    "values",
    [
        NOISE.integers(0, LABEL_MAP_VALUES + 1, (16, 16, 16)),
        NOISE.integers(0, 9, (16, 16, 16)) / 2,
        NOISE.integers(-1, 9, (16, 16, 16)),
        NOISE.integers(0, 9, (15, 16, 16)),
    ],
    ids=["one value too many", "not whole", "negative", "so small that it may have few"],
)
def test_one_that_does_not_is_not(model, values):
    assert doubts(volume(values), model.manifest) == ()


@pytest.mark.parametrize("columns", [128, 150])
def test_a_sample_of_a_large_scan_meets_all_columns(model, columns):
    """Noise in one column of each row alone; every sixth voxel would pass it by."""
    values = np.zeros((79, 15000 // columns, columns))
    values[:, :, 5] = NOISE.permutation(values[:, :, 5].size).reshape(values.shape[:2])
    assert values.size // SAMPLED_VOXELS + 1 == 6
    assert doubts(volume(values), model.manifest) == ()

import numpy as np
import pytest
from gpu_cases import normal, size
from host_threads import using_threads
from hypothesis import given, settings
from hypothesis import strategies as st
from tolerances import LEVEL

from dropgen_rt.kernels import statistics
from dropgen_rt.kernels.statistics import Levels, empty_table, moments, statistics_definition


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from([np.uint8, np.uint16]))
def test_equals_definition_in_two_pieces(seed, dtype):
    rng = np.random.default_rng(seed)
    shape = size(rng, 14)
    labels = np.repeat(rng.integers(0, 7, shape), 2, axis=2)[..., : shape[2]].astype(dtype)
    intensities, levels = normal(rng, shape, 100), Levels.over(-150, 200)
    expected, found = empty_table(9), empty_table(9)
    statistics_definition(labels, intensities, levels, 0, expected)
    half = shape[0] // 2
    with using_threads(int(rng.integers(1, 4))):
        for part, first in ((slice(0, half), 0), (slice(half, None), half)):
            statistics(
                np.ascontiguousarray(labels[part]), np.ascontiguousarray(intensities[part]), levels, found, first
            )
    np.testing.assert_array_equal(found, expected)


def test_rows_of_several_turns(threads):
    """A thread takes 256 rows at a time; the last turn is not full, and rows are fetched ahead up to the last."""
    rng = np.random.default_rng(threads)
    labels, intensities = rng.integers(0, 5, (7, 99, 13)).astype(np.uint8), normal(rng, (7, 99, 13), 1)
    levels, expected, found = Levels.over(-2, 3), empty_table(5), empty_table(5)
    statistics_definition(labels, intensities, levels, 10, expected)
    statistics(labels, intensities, levels, found, 10)
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("length", [255, 256, 257, 1000])
def test_long_runs_of_the_highest_level_sum_exactly(length):
    """The host keeps both sums of a run in one word, which the highest level fills most."""
    labels, top = np.ones((1, 1, length), np.uint8), np.ones((1, 1, length), np.float32)
    table = empty_table(2)
    statistics(labels, top, Levels.over(0, 1), table)
    assert table[1].tolist() == [length, length * 65535, length * 65535**2, 0, 0, 0, 0, 0, length - 1]


def test_moments_are_those_of_the_intensities():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, (5, 6, 7)).astype(np.uint8)
    intensities = rng.uniform(-20, 50, labels.shape).astype(np.float32)
    levels, table = Levels.over(-20, 50), empty_table(4)
    statistics(labels, intensities, levels, table)
    found = moments(table, levels)
    for label in range(3):
        own = intensities[labels == label]
        np.testing.assert_allclose(found[label], (own.mean(), own.std()), atol=70 * LEVEL)
    assert np.isnan(found[3]).all()
    assert table[:, 0].sum() == labels.size


def test_a_scan_without_contrast_has_one_level():
    table = empty_table(2)
    statistics(np.ones((1, 1, 2), np.uint8), np.full((1, 1, 2), 5, np.float32), Levels.over(5, 5), table)
    assert moments(table, Levels.over(5, 5))[1].tolist() == [5, 0]
    assert table[1, 3:].tolist() == [0, 0, 0, 0, 0, 1]


def test_refusals():
    floats = np.zeros((1, 1, 2), np.float32)
    with pytest.raises(TypeError, match="labels must be uint8 or uint16, not int32"):
        statistics(np.zeros((1, 1, 2), np.int32), floats, Levels.over(0, 1), empty_table(2))
    with pytest.raises(ValueError, match="label 4 has no row in a table of 2"):
        statistics(np.full((1, 1, 2), 4, np.uint8), floats, Levels.over(0, 1), empty_table(2))

from itertools import product

import numpy as np
import pytest
from gpu_cases import normal, size, starts_for
from host_threads import using_threads
from hypothesis import given, settings
from hypothesis import strategies as st
from tolerances import PERCENTILE

from dropgen_rt.kernels import extremes, histogram, percentiles
from dropgen_rt.kernels.reduce import extremes_definition, histogram_definition, keys_of, value_of

SEEDS = st.integers(0, 2**32 - 1)


@settings(max_examples=50, deadline=None)
@given(SEEDS)
def test_extremes_equal_the_definition(seed):
    rng = np.random.default_rng(seed)
    volume, window = normal(rng, (int(rng.integers(1, 3)), *size(rng, 20))), size(rng, 20)
    starts = starts_for(rng, int(rng.integers(0, 6)), volume.shape[1:], window)
    np.testing.assert_array_equal(extremes(volume, starts, window), extremes_definition(volume, starts, window))


def test_extremes_of_overlapping_windows(threads):
    """As a plan lays them, and beyond the edges: windows of one column share what a plane holds."""
    volume, window = normal(np.random.default_rng(threads), (2, 23, 19, 150)), (8, 7, 70)
    places = (range(-4, 27, 4), range(-3, 24, 5), range(-35, 155, 35))
    starts = np.array(list(product(*places)), np.int32)[::-1].copy()
    np.testing.assert_array_equal(extremes(volume, starts, window), extremes_definition(volume, starts, window))


@settings(max_examples=40, deadline=None)
@given(SEEDS, st.sampled_from([(21, 11), (10, 11), (0, 10)]))
def test_histogram_equals_the_definition(seed, digit):
    rng = np.random.default_rng(seed)
    values = np.round(normal(rng, (int(rng.integers(1, 3000)),), 20))
    prefix = int(keys_of(values[:1])[0]) >> sum(digit)
    with using_threads(int(rng.integers(1, 4))):
        found = histogram(values, *digit, prefix)
    np.testing.assert_array_equal(found, histogram_definition(values, *digit, prefix))


@pytest.mark.parametrize("digit", [(21, 11), (10, 11)])
def test_histogram_of_several_turns(threads, digit):
    """A thread takes 65536 values at a time; the last turn and its last piece are not full."""
    values = normal(np.random.default_rng(threads), (3 * 65536 + 1041,), 1)
    prefix = int(keys_of(values[:1])[0]) >> sum(digit)
    found = histogram(values, *digit, prefix)
    np.testing.assert_array_equal(found, histogram_definition(values, *digit, prefix))


@settings(max_examples=60, deadline=None)
@given(SEEDS)
def test_percentiles_are_those_of_numpy(seed):
    rng = np.random.default_rng(seed)
    values = normal(rng, (int(rng.integers(1, 2000)),), float(rng.choice([1e-40, 1, 1e30])))
    values[rng.random(values.shape) < 0.3] = rng.choice(np.array([0, -0.0, 3], np.float32))
    percents = [0.0, 100.0, *rng.uniform(0, 100, 3)]
    expected = np.percentile(values.astype(np.float64), percents)
    np.testing.assert_allclose(percentiles(values, percents), expected, rtol=PERCENTILE, atol=1e-60)


@given(st.floats(width=32, allow_nan=False), st.floats(width=32, allow_nan=False))
def test_keys_rise_with_the_value(a, b):
    first, second = keys_of(np.array([a, b], np.float32)).tolist()
    assert (first < second) == (np.float32(a) < np.float32(b) or (a == b == 0 and np.signbit(a) > np.signbit(b)))
    assert value_of(first).tobytes() == np.float32(a).tobytes()


def test_a_window_outside_has_no_extremes():
    found = extremes(np.ones((1, 2, 2, 2), np.float32), np.array([[5, 0, 0]], np.int32), (2, 2, 2))
    assert found.tolist() == [[[np.inf, -np.inf]]]


def test_refusals():
    with pytest.raises(TypeError, match="volume must be"):
        extremes(np.ones((1, 2, 2, 2)), np.zeros((1, 3), np.int32), (1, 1, 1))
    with pytest.raises(TypeError, match="values must be"):
        histogram(np.ones(3), 21, 11, 0)

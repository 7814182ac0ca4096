import numpy as np
import pytest
from gpu_cases import normal, random_taps, size, turned
from host_threads import assert_same_bits
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tolerances import CONSTANT_FIELD

from dropgen_rt.kernels import Normalisation, Taps, resample
from dropgen_rt.kernels.resample import VOXEL_TYPES, resample_definition

SEEDS = st.integers(0, 2**32 - 1)


@settings(max_examples=60, deadline=None)
@given(SEEDS, st.sampled_from(VOXEL_TYPES))
def test_equals_definition_in_every_bit(seed, voxel_type):
    rng = np.random.default_rng(seed)
    volume = turned(rng, (rng.standard_normal((int(rng.integers(1, 3)), *size(rng, 14))) * 1000).astype(voxel_type))
    taps = [random_taps(rng, n, m) for n, m in zip(volume.shape[1:], size(rng, 14), strict=True)]
    normalisation = Normalisation(
        (-500.0,) * len(volume), (900.0,) * len(volume), (3.0,) * len(volume), (0.01,) * len(volume)
    )
    assert resample(volume, taps, normalisation).tobytes() == resample_definition(volume, taps, normalisation).tobytes()


@settings(max_examples=40, deadline=None)
@given(SEEDS, st.sampled_from(VOXEL_TYPES))
def test_one_source_row_for_an_output_row(seed, voxel_type):
    """The way without intermediate planes: x as it is, one tap along y, one or several along z, an output given."""
    rng = np.random.default_rng(seed)
    volume = (rng.standard_normal((2, *size(rng, 14))) * 1000).astype(voxel_type)
    volume[volume == 1] = -0.0
    depth, height, width = volume.shape[1:]
    rows = int(rng.integers(1, 14))
    y = Taps(
        rng.integers(0, height, rows).astype(np.int32), np.ones(rows, np.int32),
        rng.standard_normal((rows, 1)).astype(np.float32),
    )  # fmt: skip
    x = Taps(np.arange(width, dtype=np.int32), np.ones(width, np.int32), normal(rng, (width, 1)))
    taps = [random_taps(rng, depth, 7) if rng.random() < 0.5 else Taps.identity(depth), y, x]
    normalisation = Normalisation((-500.0,) * 2, (900.0,) * 2, (3.0,) * 2, (0.01,) * 2)
    out = np.full((2, len(taps[0]), rows, width), np.nan, np.float32)
    assert resample(volume, taps, normalisation, out) is out
    assert out.tobytes() == resample_definition(volume, taps, normalisation).tobytes()


def triangle(extent: int, count: int) -> Taps:
    places = np.clip((np.arange(count) + 0.5) * extent / count - 0.5, 0, extent - 1)[:, None]
    weights = np.maximum(0, 1 - np.abs(np.arange(extent) - places) / max(extent / count, 1))
    return Taps.of_matrix(weights / weights.sum(axis=1, keepdims=True))


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(SEEDS, st.integers(1, 90), st.sampled_from([0.4, 0.7, 1.0, 1.3, 1.5, 1.7, 2.0, 3.0]))
def test_rows_in_lanes_equal_definition(most_lanes, seed, extent, ratio):
    rng = np.random.default_rng(seed)
    volume = (rng.standard_normal((1, 5, 6, extent)) * 1000).astype(np.int16)
    taps = [triangle(5, 4), triangle(6, 9), triangle(extent, max(round(extent / ratio), 1))]
    assert resample(volume, taps).tobytes() == resample_definition(volume, taps, Normalisation.identity()).tobytes()


@pytest.mark.usefixtures("small_cache")
def test_a_result_past_the_caches():
    """Rows begin anywhere in a cache line."""
    volume = np.random.default_rng(0).integers(-1000, 1000, (1, 61, 31, 251)).astype(np.int16)
    taps = [Taps.identity(n) for n in volume.shape[1:]]
    found = resample(volume, taps)
    np.testing.assert_array_equal(found, volume)


def test_same_bits_with_one_and_two_threads():
    rng = np.random.default_rng(0)
    volume, taps = normal(rng, (2, 9, 10, 11)), [random_taps(rng, n, 20) for n in (9, 10, 11)]
    assert_same_bits(lambda: resample(volume, taps).tobytes())


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_each_axis_has_its_own_taps(axis):
    line = np.array([10, 20, 40], np.float32).reshape([1, *(3 if a == axis else 1 for a in range(3))])
    taps = [Taps.identity(1)] * 3
    taps[axis] = Taps.of_matrix(np.array([[0, 0, 1], [0.5, 0.5, 0], [0.25, 0.5, 0.25]]))
    assert resample(line, taps).ravel().tolist() == [40, 15, 22.5]


def test_a_constant_field_stays_constant():
    rng = np.random.default_rng(0)
    matrix = np.tril(np.triu(rng.random((30, 20)), -12), 3) + 1e-3 * np.eye(30, 20)
    taps = Taps.of_matrix(matrix / matrix.sum(axis=1, keepdims=True))
    found = resample(np.full((1, 20, 20, 20), 7, np.float32), [taps] * 3)
    np.testing.assert_allclose(found, 7, rtol=CONSTANT_FIELD)


def test_a_matrix_comes_back():
    matrix = np.array([[0, 0.5, 0.5, 0], [1, 0, 0, 0], [0, 0, 0.25, 0.75], [0, 0, 0, 1]])
    taps = Taps.of_matrix(matrix)
    assert taps.first.tolist() == [1, 0, 2, 3] and taps.count.tolist() == [2, 1, 2, 1]
    found = resample(np.arange(4, dtype=np.float32).reshape(1, 1, 1, 4), [Taps.identity(1)] * 2 + [taps])
    np.testing.assert_array_equal(found.ravel(), matrix @ np.arange(4))


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 30), st.integers(1, 40), st.data())
def test_what_a_part_of_the_input_touches(extent, count, data):
    start = data.draw(st.integers(0, extent - 1))
    stop = data.draw(st.integers(start + 1, extent))
    line = np.zeros((1, 1, 1, extent), np.float32)
    line[..., start:stop] = 1
    taps, one = triangle(extent, count), [Taps.identity(1)] * 2
    outputs, inputs, near = taps.touching(start, stop)
    whole, part = resample(line, [*one, taps]), resample(line[..., inputs], [*one, near])
    assert part.tobytes() == whole[..., outputs].tobytes()
    assert (np.flatnonzero(whole) >= outputs.start).all() and (np.flatnonzero(whole) < outputs.stop).all()


VOLUME = np.zeros((1, 2, 3, 4), np.float32)
IDENTITY = [Taps.identity(n) for n in (2, 3, 4)]


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((VOLUME.astype(np.float64), IDENTITY), TypeError, "volume must be .*, not .* float64"),
        ((VOLUME[0], IDENTITY), TypeError, r"volume must be \(C, Z, Y, X\)"),
        ((VOLUME, IDENTITY[:2]), ValueError, "taps must hold three values"),
        ((VOLUME, IDENTITY[::-1]), ValueError, "the taps of z must point into 0 to 1"),
        ((VOLUME, IDENTITY, Normalisation.identity(2)), ValueError, "normalisation is for 2 channels"),
    ],
    ids=["type", "dimensions", "two axes", "outside", "channels"],
)
def test_refusals(arguments, error, message):
    with pytest.raises(error, match=message):
        resample(*arguments)


def test_taps_without_a_voxel_are_refused():
    with pytest.raises(ValueError, match="count must lie in 1 to 1"):
        Taps(np.zeros(2, np.int32), np.array([1, 0], np.int32), np.ones((2, 1), np.float32))

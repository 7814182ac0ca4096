import numpy as np
import pytest
from host_threads import assert_same_bits
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tolerances import INTERPOLATION, PROBABILITY

from dropgen_rt.kernels import AxisMap, finalise
from dropgen_rt.kernels.finalise import finalise_definition, margin_definition


def axis_map(lower, upper, fraction) -> AxisMap:
    return AxisMap(np.array(lower, np.int32), np.array(upper, np.int32), np.array(fraction, np.float32))


def random_map(rng: np.random.Generator, extent: int, count: int) -> AxisMap:
    """Any neighbours in any order, so also flips and repeats; a third of the fractions are exactly 0 or 1."""
    fraction = rng.random(count, dtype=np.float32)
    fraction[rng.random(count) < 0.3] = rng.integers(0, 2)
    ends = rng.integers(0, extent, (2, count)).astype(np.int32)
    return AxisMap(ends[0], ends[1], fraction)


@st.composite
def problems(draw: st.DrawFn) -> tuple[np.ndarray, list[np.ndarray], list[AxisMap]]:
    classes = draw(st.sampled_from([1, 2, 3, 7, 128]))
    size = draw(st.tuples(*[st.integers(1, 9)] * 3))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    # half the time few values, so that ties are met
    scale = draw(st.sampled_from([1, 3]))
    sums = rng.normal(size=(classes, *size)) * scale
    sums = (np.round(sums) if draw(st.booleans()) else sums).astype(np.float32)
    unit = np.float32(draw(st.sampled_from([1, 0.3])))
    totals = [rng.integers(1, 4, n).astype(np.float32) * unit for n in size]
    maps = [(AxisMap.identity(n), random_map(rng, n, draw(st.integers(0, 12)))) for n in size]
    axes = [pair[draw(st.integers(0, 1))] for pair in maps]
    return sums, totals, axes


@settings(max_examples=60, deadline=None)
@given(problems())
def test_equals_definition(problem):
    labels, probability, margin = finalise(*problem, probability=True, margin=True)
    expected, expected_probability, logits = finalise_definition(*problem)
    np.testing.assert_array_equal(margin, margin_definition(logits))
    # labels are equal even at ties: both sides round alike
    np.testing.assert_array_equal(labels, expected)
    np.testing.assert_allclose(probability, expected_probability, atol=PROBABILITY, rtol=0)
    without, *none = finalise(*problem)
    assert none == [None, None]
    assert without.tobytes() == labels.tobytes()


def finer_map(extent: int, count: int) -> AxisMap:
    """Voxel centres of a grid of ``count`` voxels over the same length as ``extent``."""
    places = np.clip((np.arange(count) + 0.5) * extent / count - 0.5, 0, extent - 1)
    lower = np.floor(places).astype(np.int32)
    return axis_map(lower, np.minimum(lower + 1, extent - 1), places - lower)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    seed=st.integers(0, 2**32 - 1),
    classes=st.sampled_from([1, 2, 3, 4, 6, 7, 8, 14, 15]),
    extent=st.integers(1, 70),
    ratio=st.sampled_from([0.5, 0.9, 1.0, 1.2, 4 / 3, 1.5, 2.0, 3.7]),
    same=st.tuples(st.booleans(), st.booleans()),
)
def test_rows_in_lanes_equal_definition(most_lanes, seed, classes, extent, ratio, same):
    rng = np.random.default_rng(seed)
    size = (3, 5, extent)
    sums = np.round(rng.normal(size=(classes, *size)) * 3).astype(np.float32)
    totals = [rng.integers(1, 4, n).astype(np.float32) for n in size]
    maps = [AxisMap.identity(n) if keep else finer_map(n, 7) for n, keep in zip(size, same, strict=False)]
    maps.append(finer_map(extent, max(round(extent * ratio), 1)))
    labels, *_ = finalise(sums, totals, maps)
    np.testing.assert_array_equal(labels, finalise_definition(sums, totals, maps)[0])


@settings(max_examples=30, deadline=None)
@given(problems())
def test_definition_interpolates_the_normalised_logits(problem):
    sums, totals, axes = problem
    total = totals[0][:, None, None].astype(np.float64) * totals[1][:, None] * totals[2]
    values = sums / total
    for axis, along in enumerate(axes, start=1):
        fraction = along.fraction.astype(np.float64).reshape([-1 if a == axis else 1 for a in range(4)])
        values = (1 - fraction) * values.take(along.lower, axis) + fraction * values.take(along.upper, axis)
    largest = np.abs(sums / total).max()
    np.testing.assert_allclose(finalise_definition(*problem)[2], values, atol=INTERPOLATION * largest, rtol=0)


def test_line_between_two_voxels():
    # class 0: 4, 0; class 1: 0, 8 under total weight 1, 2: logits 4, 0 and 0, 4
    sums = np.array([[4, 0], [0, 8]], dtype=np.float32).reshape(2, 1, 1, 2)
    totals = [np.ones(1, np.float32), np.ones(1, np.float32), np.array([1, 2], np.float32)]
    x = axis_map([0, 0, 0, 0, 0], [1, 1, 1, 1, 1], [0, 0.25, 0.5, 0.75, 1])
    labels, probability, _ = finalise(sums, totals, [AxisMap.identity(1)] * 2 + [x], probability=True)
    assert labels.tolist() == [[[0, 0, 0, 1, 1]]]  # the tie in the middle goes to the first
    odds = np.exp(np.array([4, 2, 0, 2, 4]))
    np.testing.assert_allclose(probability.ravel(), odds / (odds + 1), atol=PROBABILITY)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_each_axis_is_mapped_by_its_own_map(axis):
    # voxel i of four is class i; the map reverses and repeats
    sums = np.eye(4, dtype=np.float32).reshape(4, *[4 if a == axis else 1 for a in range(3)])
    axes = [AxisMap.identity(1)] * 3
    axes[axis] = axis_map([3, 2, 2, 0], [3, 3, 2, 1], [0, 0.25, 0.5, 0.75])
    labels, _, _ = finalise(sums, [np.ones(n, np.float32) for n in sums.shape[1:]], axes)
    assert labels.ravel().tolist() == [3, 2, 2, 1]


@pytest.mark.parametrize(("classes", "dtype"), [(256, np.uint8), (257, np.uint16)])
def test_label_type_follows_the_number_of_classes(classes, dtype):
    sums = np.zeros((classes, 1, 2, 3), dtype=np.float32)
    sums[-1, 0, 1, 2] = 1
    totals = [np.ones(n, np.float32) for n in (1, 2, 3)]
    labels, _, _ = finalise(sums, totals, [AxisMap.identity(n) for n in (1, 2, 3)])
    assert labels.dtype == dtype
    assert labels.tolist() == [[[0, 0, 0], [0, 0, classes - 1]]]


def test_identity_maps_give_the_bits_of_general_maps_with_fraction_zero():
    rng = np.random.default_rng(0)
    sums = rng.normal(size=(5, 6, 7, 8)).astype(np.float32)
    totals = [rng.random(n, dtype=np.float32) + np.float32(0.1) for n in (6, 7, 8)]
    fast = finalise(sums, totals, [AxisMap.identity(n) for n in (6, 7, 8)], probability=True)
    # one output voxel more along x: no longer the identity
    x = axis_map([*range(8), 0], [*range(1, 8), 7, 3], [0] * 9)
    general = finalise(sums, totals, [AxisMap.identity(6), AxisMap.identity(7), x], probability=True)
    assert fast[0].tobytes() == general[0][..., :8].tobytes()
    assert fast[1].tobytes() == general[1][..., :8].tobytes()


def test_same_bits_with_one_and_two_threads():
    # more output rows than one strip holds
    rng = np.random.default_rng(0)
    sums = rng.normal(size=(3, 20, 21, 22)).astype(np.float32)
    totals = [np.ones(n, np.float32) for n in (20, 21, 22)]
    axes = [random_map(rng, n, 40) for n in (20, 21, 22)]
    assert_same_bits(
        lambda: b"".join(found.tobytes() for found in finalise(sums, totals, axes, probability=True, margin=True))
    )
    np.testing.assert_array_equal(finalise(sums, totals, axes)[0], finalise_definition(sums, totals, axes)[0])


def test_extreme_logits_have_a_probability():
    sums = np.array([-3e38, 3e38, 0], dtype=np.float32).reshape(3, 1, 1, 1)
    one = [np.ones(1, np.float32)] * 3
    labels, probability, _ = finalise(sums, one, [AxisMap.identity(1)] * 3, probability=True)
    assert (labels.item(), probability.item()) == (1, 1.0)


def test_empty_output():
    sums = np.zeros((2, 3, 3, 3), dtype=np.float32)
    axes = [axis_map([], [], []), AxisMap.identity(3), AxisMap.identity(3)]
    labels, probability, _ = finalise(sums, [np.ones(3, np.float32)] * 3, axes, probability=True)
    assert labels.shape == probability.shape == (0, 3, 3)


SUMS = np.zeros((2, 3, 3, 3), dtype=np.float32)
ONES = [np.ones(3, np.float32)] * 3
AXES = [AxisMap.identity(3)] * 3


def with_total(*total: float) -> list[np.ndarray]:
    return [*ONES[:2], np.array(total, np.float32)]


def with_map(lower: int, upper: int, fraction: float) -> list[AxisMap]:
    return [*AXES[:2], axis_map([lower], [upper], [fraction])]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((SUMS.astype(np.float64), ONES, AXES), "sums must be .*float32, not .*float64"),
        ((SUMS, [*ONES[:2], np.ones(3)], AXES), r"totals of x must be \(3,\) float32, not \(3,\) float64"),
    ],
)
def test_refuses_the_wrong_type(arguments, message):
    with pytest.raises(TypeError, match=message):
        finalise(*arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((SUMS[0], ONES, AXES), r"sums must be \(K, Z, Y, X\) float32, not \(3, 3, 3\)"),
        ((SUMS[:, ::2], ONES, AXES), "sums .* must be C-contiguous"),
        ((SUMS[:0], ONES, AXES), "sums must hold 1 to 65536 classes, not 0"),
        ((SUMS, ONES[:2], AXES), "totals must hold three values"),
        ((SUMS, ONES, AXES[:1]), "axes must hold three values, for z, y and x, not 1"),
        ((SUMS, with_total(1, 1, 1, 1), AXES), r"totals of x must be \(3,\) float32, not \(4,\)"),
        ((SUMS, with_total(1, 0, 1), AXES), "totals must be positive"),
        ((SUMS, with_total(1, np.nan, 1), AXES), "totals must be positive"),
        ((SUMS, [np.full(3, 1e-20, np.float32)] * 3, AXES), "totals must be positive, with a product in"),
        ((SUMS, ONES, with_map(-1, 0, 0)), "map of x must point into 0 to 2, not -1 to 0"),
        ((SUMS, ONES, with_map(0, 3, 0)), "map of x must point into 0 to 2, not 0 to 3"),
        ((SUMS, ONES, with_map(0, 1, 1.5)), "fractions of x must lie in 0 to 1"),
        ((SUMS, ONES, with_map(0, 1, np.nan)), "fractions of x must lie in 0 to 1"),
    ],
)
def test_refuses_the_wrong_value(arguments, message):
    with pytest.raises(ValueError, match=message):
        finalise(*arguments)


def test_axis_map_refuses():
    index, fraction = np.zeros(2, np.int32), np.zeros(2, np.float32)
    with pytest.raises(TypeError, match=r"lower must be \(n,\) int32, not \(2,\) int64"):
        AxisMap(index.astype(np.int64), index, fraction)
    with pytest.raises(ValueError, match=r"upper must be \(2,\) int32, not \(1,\)"):
        AxisMap(index, index[:1], fraction)
    with pytest.raises(TypeError, match=r"fraction must be \(2,\) float32"):
        AxisMap(index, index, fraction.astype(np.float64))

import numpy as np
import pytest
from host_threads import assert_same_bits
from hypothesis import given, settings
from hypothesis import strategies as st

from dropgen_rt.kernels import Normalisation, gather
from dropgen_rt.kernels.gather import gather_definition


def starts_of(*rows: tuple[int, int, int]) -> np.ndarray:
    return np.array(rows, dtype=np.int32).reshape(-1, 3)


@st.composite
def problems(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, tuple[int, ...], Normalisation]:
    channels = draw(st.integers(1, 4))
    size = draw(st.tuples(*[st.integers(1, 9)] * 3))
    window = draw(st.tuples(*[st.integers(1, 12)] * 3))
    batch = draw(st.integers(0, 4))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    volume = rng.normal(size=(channels, *size)).astype(np.float32)
    # from wholly before the volume to wholly beyond it
    starts = rng.integers([-n - 2 for n in window], [n + 3 for n in size], (batch, 3)).astype(np.int32)
    lower, offset = rng.normal(-1, 1, channels), rng.normal(size=channels)
    upper, scale = lower + rng.random(channels), rng.normal(size=channels)
    return volume, starts, window, Normalisation(tuple(lower), tuple(upper), tuple(offset), tuple(scale))


@settings(max_examples=50, deadline=None)
@given(problems())
def test_equals_definition_in_every_bit(problem):
    assert gather(*problem).tobytes() == gather_definition(*problem).tobytes()


@pytest.mark.parametrize(
    ("start", "expected"),
    [
        (0, [0, 1, 2]),
        (2, [2, 3, 0]),  # one voxel beyond the end
        (-2, [0, 0, 0]),  # the last one is voxel 0, whose value is 0
        (-1, [0, 0, 1]),
        (-3, [0, 0, 0]),
        (4, [0, 0, 0]),
        (2**31 - 1, [0, 0, 0]),
        (-(2**31), [0, 0, 0]),
    ],
)
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_line_of_four_voxels(axis, start, expected):
    shape, window, begin = [1, 1, 1], [1, 1, 1], [0, 0, 0]
    shape[axis], window[axis], begin[axis] = 4, 3, start
    volume = np.arange(4, dtype=np.float32).reshape(1, *shape)
    assert gather(volume, starts_of(begin), window, Normalisation.identity()).ravel().tolist() == expected


def test_normalisation_table():
    # clip to 0..10, minus 5, times 2; the padding is 0 and not (0 - 5) * 2
    volume = np.array([-3, 0, 4, 12], dtype=np.float32).reshape(1, 1, 1, 4)
    windows = gather(volume, starts_of((0, 0, -1)), (1, 1, 6), Normalisation((0,), (10,), (5,), (2,)))
    assert windows.ravel().tolist() == [0, -10, -10, -2, 10, 0]


def test_each_channel_has_its_own_normalisation():
    volume = np.ones((2, 1, 1, 1), dtype=np.float32)
    windows = gather(volume, starts_of((0, 0, 0)), (1, 1, 1), Normalisation((0, 0), (9, 9), (0, 3), (4, 5)))
    assert windows.ravel().tolist() == [4, -10]


def test_not_a_number_stays_visible():
    volume = np.full((1, 1, 1, 1), np.nan, dtype=np.float32)
    windows = gather(volume, starts_of((0, 0, 0)), (1, 1, 1), Normalisation((0,), (1,), (0,), (1,)))
    assert np.isnan(windows).all()


def test_identity_keeps_every_bit():
    volume = np.array([0.0, -0.0, 1e-45, np.inf, -np.inf, 3.3], dtype=np.float32).reshape(1, 1, 1, 6)
    windows = gather(volume, starts_of((0, 0, 0)), (1, 1, 6), Normalisation.identity())
    assert windows.tobytes() == volume.tobytes()


def test_same_bits_with_one_and_two_threads():
    volume = np.random.default_rng(0).normal(size=(2, 17, 19, 23)).astype(np.float32)
    normalisation = Normalisation((-1, -2), (1, 2), (0.1, 0), (3, 4))
    problem = volume, starts_of((-3, 0, 5), (9, 8, 7)), (11, 12, 13), normalisation
    assert_same_bits(lambda: gather(*problem).tobytes())


def test_writes_into_the_buffer_given():
    volume = np.ones((1, 2, 2, 2), dtype=np.float32)
    out = np.full((1, 1, 3, 3, 3), 7, dtype=np.float32)
    assert gather(volume, starts_of((0, 0, 0)), (3, 3, 3), Normalisation.identity(), out=out) is out
    assert out.sum() == 8


def test_empty_batch():
    volume = np.ones((3, 2, 2, 2), dtype=np.float32)
    assert gather(volume, starts_of(), (4, 5, 6), Normalisation.identity(3)).shape == (0, 3, 4, 5, 6)


VOLUME = np.ones((1, 4, 4, 4), dtype=np.float32)
START = starts_of((0, 0, 0))
IDENTITY = Normalisation.identity()
WINDOW = (2, 2, 2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([1.0], START, WINDOW, IDENTITY), "volume must be a NumPy array .* float32, not list"),
        ((VOLUME.astype(np.float64), START, WINDOW, IDENTITY), r"volume must be .*float32, not .*float64"),
        ((VOLUME, START.astype(np.int64), WINDOW, IDENTITY), r"starts must be \(B, 3\) int32, not .*int64"),
        ((VOLUME, START, (2, 2.5, 2), IDENTITY), "float"),
    ],
)
def test_refuses_the_wrong_type(arguments, message):
    with pytest.raises(TypeError, match=message):
        gather(*arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((VOLUME[0], START, WINDOW, IDENTITY), r"volume must be \(C, Z, Y, X\) float32, not \(4, 4, 4\)"),
        ((VOLUME[..., ::2], START, WINDOW, IDENTITY), r"C-contiguous; its strides are"),
        ((VOLUME, START[:, :2].copy(), WINDOW, IDENTITY), r"starts must be \(B, 3\) int32, not \(1, 2\)"),
        ((VOLUME, START, (2, 2), IDENTITY), "window must hold three values, for z, y and x, not 2"),
        ((VOLUME, START, (2, 0, 2), IDENTITY), r"at least one voxel along each axis, not \(2, 0, 2\)"),
        ((VOLUME, START, WINDOW, Normalisation.identity(2)), "for 2 channels, the volume has 1"),
        ((VOLUME, START, WINDOW, IDENTITY, VOLUME[None]), r"out must be \(1, 1, 2, 2, 2\) float32"),
        ((VOLUME, START, (4, 4, 4), IDENTITY, VOLUME[None]), "out must not share memory with volume"),
    ],
)
def test_refuses_the_wrong_value(arguments, message):
    with pytest.raises(ValueError, match=message):
        gather(*arguments)


def test_refuses_a_read_only_buffer():
    out = np.empty((1, 1, 2, 2, 2), dtype=np.float32)
    out.flags.writeable = False
    with pytest.raises(ValueError, match="written to, but it is read-only"):
        gather(VOLUME, START, WINDOW, IDENTITY, out)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (((0,), (1,), (0, 0), (1,)), r"one value per channel, not \[1, 2\]"),
        (((), (), (), ()), "one value per channel"),
        (((2,), (1,), (0,), (1,)), "lower must not exceed upper"),
        (((np.nan,), (1,), (0,), (1,)), "lower must not exceed upper"),
        (((0,), (1,), (np.inf,), (1,)), "offset and scale must be finite"),
        (((0,), (1,), (0,), (1e39,)), "offset and scale must be finite"),
    ],
)
def test_normalisation_refuses(fields, message):
    with pytest.raises(ValueError, match=message):
        Normalisation(*fields)

import numpy as np
import pytest
from gpu_cases import half_logits
from host_threads import assert_same_bits
from hypothesis import given, settings
from hypothesis import strategies as st
from tolerances import CONSTANT_FIELD

from dropgen_rt.kernels import AxisMap, accumulate, finalise
from dropgen_rt.kernels.accumulate import accumulate_definition, bounding_box
from dropgen_rt.kernels.finalise import finalise_definition


def starts_of(*rows: tuple[int, int, int]) -> np.ndarray:
    return np.array(rows, dtype=np.int32).reshape(-1, 3)


@st.composite
def problems(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[np.ndarray]]:
    classes = draw(st.sampled_from([1, 2, 3, 7, 128]))
    size = draw(st.tuples(*[st.integers(1, 9)] * 3))
    window = draw(st.tuples(*[st.integers(1, 12)] * 3))
    batch = draw(st.integers(0, 4))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    sums = rng.normal(size=(classes, *size)).astype(np.float32)
    logits = rng.normal(size=(batch, classes, *window)).astype(np.float32)
    starts = rng.integers([-n - 2 for n in window], [n + 3 for n in size], (batch, 3)).astype(np.int32)
    return sums, logits, starts, [rng.random(n, dtype=np.float32) for n in window]


@settings(max_examples=50, deadline=None)
@given(problems())
def test_equals_definition_in_every_bit(problem):
    sums, *rest = problem
    expected = sums.copy()
    accumulate_definition(expected, *rest)
    accumulate(sums, *rest)
    assert sums.tobytes() == expected.tobytes()


@pytest.mark.parametrize(
    ("starts", "expected"),
    [
        ([0], [10, 40, 90, 0]),
        ([-1], [40, 90, 0, 0]),
        ([3], [0, 0, 0, 10]),
        ([-3], [0, 0, 0, 0]),
        ([4], [0, 0, 0, 0]),
        ([0, 1], [10, 50, 130, 90]),
        ([-(2**31), 2**31 - 1], [0, 0, 0, 0]),
    ],
)
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_line_of_four_voxels(axis, starts, expected):
    # logits 10, 20, 30 under weights 1, 2, 3
    shape, window = [1, 1, 1], [1, 1, 1]
    shape[axis], window[axis] = 4, 3
    weights = [np.ones(1, dtype=np.float32)] * 3
    weights[axis] = np.array([1, 2, 3], dtype=np.float32)
    sums = np.zeros((1, *shape), dtype=np.float32)
    line = np.array([10, 20, 30], dtype=np.float32).reshape(1, 1, *window)
    logits = np.repeat(line, len(starts), axis=0)
    begin = starts_of(*[tuple(start if a == axis else 0 for a in range(3)) for start in starts])
    accumulate(sums, logits, begin, weights)
    assert sums.ravel().tolist() == expected


def test_windows_are_added_in_the_order_given():
    # (1e8 + 1) - 1e8 is 0 in float32, (1e8 - 1e8) + 1 is 1
    logits = np.array([1e8, 1, -1e8], dtype=np.float32).reshape(3, 1, 1, 1, 1)
    weights = [np.ones(1, dtype=np.float32)] * 3
    for order, expected in (([0, 1, 2], 0), ([0, 2, 1], 1)):
        sums = np.zeros((1, 1, 1, 1), dtype=np.float32)
        accumulate(sums, logits[order], starts_of(*[(0, 0, 0)] * 3), weights)
        assert sums.item() == expected


def test_same_bits_with_one_and_two_threads():
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(5, 3, 11, 12, 13)).astype(np.float32)
    starts = rng.integers(-5, 12, (5, 3)).astype(np.int32)
    weights = [rng.random(n, dtype=np.float32) for n in logits.shape[2:]]

    def summed() -> bytes:
        sums = np.zeros((3, 17, 19, 23), dtype=np.float32)
        accumulate(sums, logits, starts, weights)
        return sums.tobytes()

    assert_same_bits(summed)


def test_constant_field_stays_constant():
    # 2 x 2 x 2 windows of 6 on a volume of 9, overlapping by 3, under a peaked weight
    tables = [np.array([0.1, 0.5, 1, 1, 0.5, 0.1], dtype=np.float32)] * 3
    starts = starts_of(*np.ndindex(2, 2, 2)) * np.int32(3)
    fields = np.array([-3.0, 0.7, 11.0], dtype=np.float32)
    sums = np.zeros((3, 9, 9, 9), dtype=np.float32)
    logits = np.broadcast_to(fields[:, None, None, None], (8, 3, 6, 6, 6)).copy()
    accumulate(sums, logits, starts, tables)
    total = np.zeros(9, dtype=np.float32)
    for first in (0, 3):
        total[first : first + 6] += tables[0]
    axes = [AxisMap.identity(9)] * 3
    labels, _, _ = finalise(sums, [total] * 3, axes)
    assert (labels == 2).all()
    _, _, values = finalise_definition(sums, [total] * 3, axes)
    np.testing.assert_allclose(values, fields[:, None, None, None] + 0 * values, rtol=CONSTANT_FIELD)


@pytest.mark.parametrize(
    ("starts", "box"),
    [
        ([(0, 0, 0)], ((0, 0, 0), (4, 4, 4))),
        ([(-1, 2, 8)], ((0, 2, 8), (3, 4, 2))),
        ([(0, 0, 0), (5, 1, 2)], ((0, 0, 0), (9, 5, 6))),
        ([(0, 0, 0), (50, 1, 2)], ((0, 0, 0), (4, 4, 4))),  # the second misses the volume
        ([(-4, 0, 0), (0, 10, 0)], ((0, 0, 0), (0, 0, 0))),
    ],
)
def test_bounding_box(starts, box):
    assert bounding_box(starts_of(*starts), (4, 4, 4), (10, 10, 10)) == box


SUMS = np.zeros((2, 4, 4, 4), dtype=np.float32)
LOGITS = np.zeros((1, 2, 2, 2, 2), dtype=np.float32)
START = starts_of((0, 0, 0))
TABLES = [np.ones(2, dtype=np.float32)] * 3
LONG = np.ones(4, dtype=np.float32)
FROZEN = SUMS.copy()
FROZEN.flags.writeable = False


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((SUMS.astype(np.float16), LOGITS, START, TABLES), "sums must be .*float32, not .*float16"),
        ((SUMS, LOGITS, START.astype(np.float32), TABLES), r"starts must be \(B, 3\) int32"),
    ],
)
def test_refuses_the_wrong_type(arguments, message):
    with pytest.raises(TypeError, match=message):
        accumulate(*arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((SUMS[0], LOGITS, START, TABLES), r"sums must be \(K, Z, Y, X\) float32, not \(4, 4, 4\)"),
        ((SUMS.transpose(0, 3, 2, 1), LOGITS, START, TABLES), "sums .* must be C-contiguous"),
        ((FROZEN, LOGITS, START, TABLES), "sums .* is written to, but it is read-only"),
        ((SUMS, LOGITS[:, :1].copy(), START, TABLES), r"logits must be \(1, 2, wz, wy, wx\)"),
        ((SUMS, LOGITS, np.repeat(START, 2, 0), TABLES), r"logits must be \(2, 2, wz, wy, wx\)"),
        ((SUMS, LOGITS, START, TABLES[:2]), "weights must hold three values"),
        ((SUMS, LOGITS, START, [*TABLES[:2], LONG]), r"weights for x must be \(2,\)"),
        ((SUMS, SUMS[None, :, :2, :2, :2], START, TABLES), "logits .* must be C-contiguous"),
        ((SUMS, SUMS[None], START, [LONG] * 3), "sums must not share memory with logits"),
    ],
)
def test_refuses_the_wrong_value(arguments, message):
    with pytest.raises(ValueError, match=message):
        accumulate(*arguments)


@pytest.mark.parametrize("logit_type", ["f16", "bf16"])
def test_short_logits_are_widened_exactly(logit_type):
    rng = np.random.default_rng(0)
    sums, weights = (
        rng.normal(size=(3, 7, 8, 40)).astype(np.float32),
        [rng.random(n, dtype=np.float32) for n in (4, 5, 37)],
    )
    stored, wide = half_logits(rng, (2, 3, 4, 5, 37), logit_type)
    stored = stored.view(np.float16) if logit_type == "f16" else stored
    starts, expected = starts_of((0, 1, 2), (3, -2, 9)), sums.copy()
    with np.errstate(invalid="ignore"):
        accumulate_definition(expected, wide, starts, weights)
    accumulate(sums, stored, starts, weights)
    np.testing.assert_array_equal(sums, expected)


def test_every_half_is_its_float():
    every = np.arange(2**16, dtype=np.uint16).view(np.float16).reshape(1, 1, 1, 256, 256)
    sums = np.zeros((1, 1, 256, 256), np.float32)
    one = [np.ones(n, np.float32) for n in (1, 256, 256)]
    accumulate(sums, every, starts_of((0, 0, 0)), one)
    np.testing.assert_array_equal(sums[0], every[0, 0].astype(np.float32))

"""One random case per kernel, run on a device and held to the NumPy definition.

The same cases run on the CPU (tests/kernels/test_cuda_mapping.py) and on a GPU (benchmarks/gpu_road.py).
"""

import numpy as np
from tolerances import PERCENTILE, PROBABILITY

from dropgen_rt.gpu.buffers import Buffers
from dropgen_rt.gpu.device import address_of
from dropgen_rt.kernels import AxisMap, Normalisation, Taps
from dropgen_rt.kernels.accumulate import accumulate_definition, bounding_box
from dropgen_rt.kernels.finalise import finalise_definition, margin_definition
from dropgen_rt.kernels.gather import gather_definition
from dropgen_rt.kernels.launch import (
    HISTOGRAM_COPIES,
    accumulate_launch,
    extremes_launch,
    finalise_launch,
    gather_launch,
    histogram_launch,
    resample_launch,
    statistics_launch,
)
from dropgen_rt.kernels.reduce import (
    extremes_definition,
    extremes_of_keys,
    histogram_definition,
    keys_of,
    no_extremes,
    percentiles_of,
)
from dropgen_rt.kernels.resample import resample_definition
from dropgen_rt.kernels.statistics import Levels, empty_table, statistics_definition

CLASSES = (1, 2, 3, 7, 8, 9, 14, 104, 128)


def normal(rng, shape, scale=1.0):
    return (rng.standard_normal(shape) * scale).astype(np.float32)


def size(rng, most=40):
    """(z, y, x): now and then one voxel along an axis, rows shorter and longer than a warp's reach."""
    edges = [1, *rng.integers(2, 12, 2), *rng.integers(12, most, 2), rng.integers(most, 5 * most)]
    return int(rng.choice(edges[:4])), int(rng.choice(edges[:5])), int(rng.choice(edges))


def starts_for(rng, batch, extent, window):
    """(batch, 3) int32: inside, across every border, and now and then far outside."""
    low, high = -np.array(window), np.array(extent)
    starts = rng.integers(low, high + 1, (batch, 3))
    starts[rng.random(batch) < 0.1] += 100_000
    return starts.astype(np.int32)


def random_axis(rng, extent, count):
    """Any neighbours in any order, so also flips and repeats; some fractions exactly 0 or 1."""
    if rng.random() < 0.3:
        return AxisMap.identity(extent)
    fraction = rng.random(count, dtype=np.float32)
    if rng.random() < 0.5:
        fraction[rng.random(count) < 0.5] = rng.integers(0, 2)
    ends = rng.integers(0, extent, (2, count)).astype(np.int32)
    return AxisMap(ends[0], ends[1], fraction)


def gather_case(device, rng, threads):
    channels, batch = int(rng.integers(1, 4)), int(rng.integers(1, 5))
    extent, window = size(rng), size(rng)
    volume = normal(rng, (channels, *extent), 100)
    starts = starts_for(rng, batch, extent, window)
    limits = np.sort(normal(rng, (2, channels), 100), axis=0)
    normalisation = Normalisation(*map(tuple, limits.tolist()), *map(tuple, normal(rng, (2, channels)).tolist()))
    expected = gather_definition(volume, starts, window, normalisation)
    with Buffers(device) as held:
        out = held.room(expected.shape, np.float32)
        table = held.put(normalisation.table())
        launch = gather_launch(
            held.put(volume), volume.shape, held.put(starts), batch, window, table, out, threads=threads
        )
        device.launch(launch)
        assert held.get(out, expected.shape, np.float32).tobytes() == expected.tobytes()


def half_logits(rng, shape, logit_type):
    """Logits as a kernel takes them, and what they are in float32; now and then subnormal, infinite or -0."""
    if logit_type == "f32":
        values = normal(rng, shape)
        return values, values
    if logit_type == "bf16":
        bits = (normal(rng, shape).view(np.uint32) >> 16).astype(np.uint16)
        return bits, (bits.astype(np.uint32) << 16).view(np.float32)
    values = normal(rng, shape, float(rng.choice([1, 1e-6]))).astype(np.float16)
    values[rng.random(shape) < 0.01] = rng.choice(np.array([np.inf, -np.inf, -0.0, 6e-8, 65504], np.float16))
    return values.view(np.uint16), values.astype(np.float32)


def accumulate_case(device, rng, threads, logit_type):
    classes, batch = int(rng.choice(CLASSES)), int(rng.integers(1, 5))
    extent, window = size(rng, 20), size(rng, 20)
    if rng.random() < 0.3:  # more windows than a warp has lanes, rows longer than it walks at once
        classes, batch = int(rng.choice(CLASSES[:4])), int(rng.integers(1, 71))
        extent, window = (
            (int(rng.integers(1, 4)), int(rng.integers(1, 8)), int(rng.integers(120, 300))) for _ in range(2)
        )
    accumulate_of(device, rng, threads, classes, extent, window, starts_for(rng, batch, extent, window), logit_type)


def accumulate_of(device, rng, threads, classes, extent, window, starts, logit_type):
    sums = normal(rng, (classes, *extent))
    stored, logits = half_logits(rng, (len(starts), classes, *window), logit_type)
    weights = [rng.random(n, dtype=np.float32) for n in window]
    expected = sums.copy()
    with np.errstate(invalid="ignore"):
        accumulate_definition(expected, logits, starts, weights)
    box = bounding_box(starts, window, extent)
    if not box[1][0]:
        return
    with Buffers(device) as held:
        to, tables = held.put(sums), [held.put(table) for table in weights]
        launch = accumulate_launch(
            to, sums.shape, box, held.put(stored), logits.shape, held.put(starts), tables, logit_type, threads
        )
        device.launch(launch)
        np.testing.assert_array_equal(held.get(to, sums.shape, np.float32), expected)


def finalise_case(device, rng, threads, classes=None):
    classes = int(rng.choice(CLASSES)) if classes is None else classes
    extent = size(rng, 16)
    sums = normal(rng, (classes, *extent), 3)
    sums = np.round(sums) if rng.random() < 0.5 else sums  # half the time few values, so that ties are met
    totals = [rng.random(n, dtype=np.float32) + np.float32(0.1) for n in extent]
    axes = [random_axis(rng, n, m) for n, m in zip(extent, size(rng, 16), strict=True)]
    expected, probability, logits = finalise_definition(sums, totals, axes)
    dtype = np.uint8 if classes <= 256 else np.uint16
    extras = rng.random() < 0.5
    with Buffers(device) as held:
        tables = [held.put_axis(axis) for axis in axes]
        labels = held.room(expected.shape, dtype)
        more = [held.room(expected.shape, np.float32) for _ in range(2)] if extras else [None, None]
        launch = finalise_launch(
            held.put(sums), sums.shape, [held.put(table) for table in totals], tables, axes[2].is_identity(extent[2]),
            labels, *more, threads,
        )  # fmt: skip
        device.launch(launch)
        np.testing.assert_array_equal(held.get(labels, expected.shape, dtype), expected)
        if extras:
            found = held.get(more[0], expected.shape, np.float32)
            np.testing.assert_allclose(found, probability, atol=PROBABILITY, rtol=0)
            np.testing.assert_array_equal(held.get(more[1], expected.shape, np.float32), margin_definition(logits))


def random_taps(rng, extent, count, most=6):
    """Runs of one to ``most`` voxels anywhere, or the identity."""
    if rng.random() < 0.3:
        return Taps.identity(extent)
    most = int(rng.integers(1, most + 1))
    counts = rng.integers(1, min(most, extent) + 1, count)
    first = rng.integers(0, extent - counts + 1)
    weight = np.where(np.arange(most) < counts[:, None], normal(rng, (count, most)), np.float32(np.nan))
    return Taps(first.astype(np.int32), counts.astype(np.int32), np.ascontiguousarray(weight, np.float32))


def turned(rng, array):
    """The array with axes z, y, x permuted and flipped, as a view: steps of any order and sign."""
    order = 1 + rng.permutation(3)
    return array.transpose(0, *order)[(slice(None), *(slice(None, None, int(rng.choice([1, -1]))) for _ in range(3)))]


def resample_case(device, rng, threads, voxel_type, most=6):
    stored = (rng.standard_normal((int(rng.integers(1, 3)), *size(rng, 16))) * 1000).astype(voxel_type)
    volume = turned(rng, stored)
    counts = size(rng, 16)
    if rng.random() < 0.2:  # rows longer than a warp walks at once
        counts = 2, int(rng.integers(1, 12)), int(rng.integers(200, 700))
    taps = [random_taps(rng, extent, n, most) for extent, n in zip(volume.shape[1:], counts, strict=True)]
    channels = len(volume)
    normalisation = Normalisation((-500.0,) * channels, (900.0,) * channels, (3.0,) * channels, (0.01,) * channels)
    expected = resample_definition(volume, taps, normalisation)
    steps = [step // volume.itemsize for step in volume.strides]
    offset = address_of(volume) - address_of(stored)
    with Buffers(device) as held:
        out, tables = held.room(expected.shape, np.float32), [held.put_taps(along) for along in taps]
        bounds = held.put(normalisation.table())
        at = held.put(stored) + offset
        device.launch(resample_launch(at, volume.dtype.name, steps, volume.shape, tables, bounds, out, threads))
        assert held.get(out, expected.shape, np.float32).tobytes() == expected.tobytes()


def extremes_case(device, rng, threads):
    volume = normal(rng, (int(rng.integers(1, 3)), *size(rng)), 10)
    window = size(rng)
    starts = starts_for(rng, int(rng.integers(1, 6)), volume.shape[1:], window)
    expected = extremes_definition(volume, starts, window)
    with Buffers(device) as held:
        out = held.put(no_extremes(len(starts) * len(volume)))
        launch = extremes_launch(held.put(volume), volume.shape, held.put(starts), len(starts), window, out, threads)
        device.launch(launch)
        found = extremes_of_keys(held.get(out, (len(starts) * len(volume), 2), np.uint32))
        np.testing.assert_array_equal(found.reshape(expected.shape), expected)


def histogram_case(device, rng, threads):
    values = normal(rng, (int(rng.integers(1, 20_000)),), float(rng.choice([1, 1e-30, 1e30])))
    values[rng.random(values.shape) < 0.4] = rng.choice(np.array([0.0, -0.0, 7.0], np.float32))
    count = device_counts(device, values, blocks=5, threads=threads)
    for percents in ([0, 100], list(rng.uniform(0, 100, 3))):
        found = percentiles_of(values.size, percents, count)
        np.testing.assert_allclose(found, np.percentile(values.astype(np.float64), percents), rtol=PERCENTILE)
    shift, bits, prefix = 10, 11, int(keys_of(values[:1])[0]) >> 21
    np.testing.assert_array_equal(count(shift, bits, prefix), histogram_definition(values, shift, bits, prefix))


def device_counts(device, values, blocks, threads):
    def count(shift, bits, prefix):
        with Buffers(device) as held:
            counts = held.put(np.zeros((HISTOGRAM_COPIES, 1 << bits), np.uint32))
            digit = shift, bits, prefix
            launch = histogram_launch(held.put(values), values.size, digit, counts, most_blocks=blocks, threads=threads)
            device.launch(launch)
            return held.get(counts, (HISTOGRAM_COPIES, 1 << bits), np.uint32).sum(axis=0, dtype=np.int64)

    return count


def statistics_case(device, rng, threads, dtype):
    shape = size(rng)
    if rng.random() < 0.3:  # columns of several pieces, more of them than a block takes
        shape = 2, int(rng.integers(100, 300)), int(rng.integers(1, 90))
    labels = rng.integers(0, 300 if dtype == np.uint16 else 9, shape)
    axis = int(rng.integers(3))  # stretches of one label lie along it
    labels = np.take(np.repeat(labels, 3, axis), range(shape[axis]), axis)
    labels = np.ascontiguousarray(labels, dtype)
    intensities, levels = normal(rng, shape, 100), Levels.over(-150.0, 200.0)
    table = empty_table(300)
    expected, first_z = table.copy(), int(rng.integers(0, 50))
    statistics_definition(labels, intensities, levels, first_z, expected)
    with Buffers(device) as held:
        to = held.put(table)
        at = held.put(labels), held.put(intensities)
        pair = float(levels.offset), float(levels.scale)
        device.launch(statistics_launch(*at, shape, labels.itemsize, pair, first_z, len(table), to, 3, threads))
        np.testing.assert_array_equal(held.get(to, table.shape, np.int64), expected)


#: name -> case(device, rng, threads); each draws its own shapes
CASES = {
    "gather": gather_case,
    "accumulate_f32": lambda device, rng, threads: accumulate_case(device, rng, threads, "f32"),
    "accumulate_f16": lambda device, rng, threads: accumulate_case(device, rng, threads, "f16"),
    "accumulate_bf16": lambda device, rng, threads: accumulate_case(device, rng, threads, "bf16"),
    "finalise_u8": finalise_case,
    "finalise_u16": lambda device, rng, threads: finalise_case(device, rng, threads, classes=300),
    "resample_f32": lambda device, rng, threads: resample_case(device, rng, threads, np.float32),
    "resample_one_tap_f32": lambda device, rng, threads: resample_case(device, rng, threads, np.float32, most=1),
    "resample_i16": lambda device, rng, threads: resample_case(device, rng, threads, np.int16),
    "resample_one_tap_i16": lambda device, rng, threads: resample_case(device, rng, threads, np.int16, most=1),
    "resample_u16": lambda device, rng, threads: resample_case(device, rng, threads, np.uint16),
    "resample_one_tap_u16": lambda device, rng, threads: resample_case(device, rng, threads, np.uint16, most=1),
    "resample_u8": lambda device, rng, threads: resample_case(device, rng, threads, np.uint8),
    "resample_one_tap_u8": lambda device, rng, threads: resample_case(device, rng, threads, np.uint8, most=1),
    "extremes": extremes_case,
    "histogram": histogram_case,
    "statistics_u8": lambda device, rng, threads: statistics_case(device, rng, threads, np.uint8),
    "statistics_u16": lambda device, rng, threads: statistics_case(device, rng, threads, np.uint16),
}

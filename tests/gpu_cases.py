"""One random case per kernel, run on a device and held to the NumPy definition.

The same cases run on the CPU (tests/kernels/test_cuda_mapping.py) and on a GPU (benchmarks/gpu_road.py).
"""

import numpy as np
from tolerances import PROBABILITY

from dropgen_rt.gpu.buffers import Buffers
from dropgen_rt.kernels import AxisMap, Normalisation
from dropgen_rt.kernels.accumulate import accumulate_definition, bounding_box
from dropgen_rt.kernels.finalise import finalise_definition, margin_definition
from dropgen_rt.kernels.gather import gather_definition
from dropgen_rt.kernels.launch import accumulate_launch, finalise_launch, gather_launch

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
    starts = starts_for(rng, batch, extent, window)
    sums = normal(rng, (classes, *extent))
    stored, logits = half_logits(rng, (batch, classes, *window), logit_type)
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


#: name -> case(device, rng, threads); each draws its own shapes
CASES = {
    "gather": gather_case,
    "accumulate_f32": lambda device, rng, threads: accumulate_case(device, rng, threads, "f32"),
    "accumulate_f16": lambda device, rng, threads: accumulate_case(device, rng, threads, "f16"),
    "accumulate_bf16": lambda device, rng, threads: accumulate_case(device, rng, threads, "bf16"),
    "finalise_u8": finalise_case,
    "finalise_u16": lambda device, rng, threads: finalise_case(device, rng, threads, classes=300),
}

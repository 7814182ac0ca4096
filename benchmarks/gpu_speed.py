"""How fast each kernel moves bytes on this GPU, as a share of the rate of the driver's own device-to-device copy.

Bytes are what the operation must move: every input once, every output once. Sizes are many times the L2 cache.
Times are medians over events on the device.
"""

import statistics
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dropgen_rt.gpu import Device
from dropgen_rt.gpu.buffers import Buffers
from dropgen_rt.kernels import AxisMap, Normalisation, Taps
from dropgen_rt.kernels.accumulate import bounding_box
from dropgen_rt.kernels.launch import (
    HISTOGRAM_COPIES,
    LOGIT_TYPES,
    accumulate_launch,
    extremes_launch,
    finalise_launch,
    gather_launch,
    histogram_launch,
    resample_launch,
    statistics_launch,
)
from dropgen_rt.kernels.reduce import no_extremes
from dropgen_rt.kernels.statistics import empty_table

RUNS, WARM_UP = 15, 3
TARGET = 0.8
Row = dict[str, Any]


def median_ms(device: Device, work: Callable[[], None]) -> tuple[float, float]:
    """Median and spread (interquartile) of the work's time on the device, in ms."""
    first, last = device.event(), device.event()
    times = []
    for run in range(WARM_UP + RUNS):
        device.record(first)
        work()
        device.record(last)
        elapsed = device.elapsed_ms(first, last)
        if run >= WARM_UP:
            times.append(elapsed)
    quarters = statistics.quantiles(times, n=4)
    return statistics.median(times), quarters[2] - quarters[0]


def noise(device: Device, address: int, count: int) -> None:
    """Fill with random float32 in 0 to 1: times on zeros can flatter."""
    block = np.random.default_rng(0).random(min(count, 2**24), dtype=np.float32)
    for first in range(0, count, len(block)):
        device.upload(address + 4 * first, block[: count - first])
    device.synchronise()


def half_noise(device: Device, address: int, count: int) -> None:
    """Random halves or bfloat16 in about 0 to 2, by their bits."""
    block = np.random.default_rng(0).integers(0x3000, 0x3C00, min(count, 2**24), dtype=np.uint16)
    for first in range(0, count, len(block)):
        device.upload(address + 2 * first, block[: count - first])
    device.synchronise()


def copy_rate(device: Device, size: int = 2**30) -> float:
    """Bytes read and written per second by the driver's copy of ``size`` bytes."""
    with Buffers(device) as held:
        source, to = held.room((size,), np.uint8), held.room((size,), np.uint8)
        noise(device, source, size // 4)
        return 2 * size / median_ms(device, lambda: device.copy(to, source, size))[0] * 1e3


def gather_row(device: Device) -> Row:
    # Rows of 515: no row begins where a wide access could.
    shape, window = (1, 512, 512, 515), (128, 128, 128)
    starts = np.array([(z, y, x) for z in range(0, 512, 128) for y in range(0, 512, 128) for x in range(1, 512, 128)])
    with Buffers(device) as held:
        volume, out = held.room(shape, np.float32), held.room((len(starts), 1, *window), np.float32)
        noise(device, volume, int(np.prod(shape)))
        table = held.put(Normalisation((0.1,), (0.9,), (0.1,), (1.25,)).table())
        places = held.put(starts.astype(np.int32))
        launch = gather_launch(volume, shape, places, len(starts), window, table, out)
        ms = median_ms(device, lambda: device.launch(launch))
    moved = 8 * len(starts) * int(np.prod(window))
    return {"kernel": "gather", "what": "64 windows of 128^3", "bytes": moved, "ms": ms}


def accumulate_row(device: Device, logit_type: str) -> Row:
    classes, edge, window = 14, 256, (128, 128, 128)
    starts = np.array([(z, y, x) for z in (0, 128) for y in (0, 128) for x in (0, 128)], np.int32)
    shape, logits_shape = (classes, edge, edge, edge), (len(starts), classes, *window)
    size = 4 if logit_type == "f32" else 2
    count = int(np.prod(logits_shape))
    with Buffers(device) as held:
        sums, logits = held.room(shape, np.float32), held.room((count * size,), np.uint8)
        noise(device, sums, int(np.prod(shape)))
        (noise if size == 4 else half_noise)(device, logits, count)
        weights = [held.put(np.linspace(0.1, 1, n, dtype=np.float32)) for n in window]
        box = bounding_box(starts, window, shape[1:])
        launch = accumulate_launch(sums, shape, box, logits, logits_shape, held.put(starts), weights, logit_type)
        ms = median_ms(device, lambda: device.launch(launch))
    what, moved = "14 classes, 8 windows of 128^3", count * (8 + size)
    return {"kernel": f"accumulate_{logit_type}", "what": what, "bytes": moved, "ms": ms}


def stretch(extent: int, count: int) -> AxisMap:
    """A linear map of ``count`` output voxels over ``extent`` input voxels, centres aligned."""
    positions = np.clip((np.arange(count) + 0.5) * extent / count - 0.5, 0, extent - 1)
    lower = np.floor(positions).astype(np.int32)
    return AxisMap(lower, np.minimum(lower + 1, extent - 1).astype(np.int32), (positions - lower).astype(np.float32))


def finalise_row(device: Device, classes: int, edge: int, native: int, extras: bool = False) -> Row:
    shape = (classes, edge, edge, edge)
    axes = [AxisMap.identity(edge) if native == edge else stretch(edge, native)] * 3
    with Buffers(device) as held:
        sums, labels = held.room(shape, np.float32), held.room((native,) * 3, np.uint8)
        noise(device, sums, int(np.prod(shape)))
        more = [held.room((native,) * 3, np.float32) for _ in range(2)] if extras else [None, None]
        totals = [held.put(np.linspace(0.5, 1, edge, dtype=np.float32)) for _ in range(3)]
        tables = [held.put_axis(axis) for axis in axes]
        launch = finalise_launch(sums, shape, totals, tables, native == edge, labels, *more)
        ms = median_ms(device, lambda: device.launch(launch))
    moved = 4 * int(np.prod(shape)) + native**3 * (9 if extras else 1)
    grid = "identity grid" if native == edge else f"native {native}^3"
    what = f"{classes} classes, {edge}^3, {grid}" + (", probability and margin" if extras else "")
    return {"kernel": "finalise_u8", "what": what, "bytes": moved, "ms": ms}


def resample_row(device: Device, spacing: float) -> Row:
    """int16 of 512 x 512 x 1024 onto a grid whose voxels are ``spacing`` times as wide."""
    shape = (1, 1024, 512, 512)
    extents = [round(n / spacing) for n in shape[1:]]
    with Buffers(device) as held:
        volume, out = held.room(shape, np.int16), held.room((1, *extents), np.float32)
        half_noise(device, volume, int(np.prod(shape)))
        taps = [held.put_taps(Taps.of_matrix(triangle(n, m))) for n, m in zip(shape[1:], extents, strict=True)]
        steps = [int(np.prod(shape[axis + 1 :])) for axis in range(4)]
        table = held.put(Normalisation((0.0,), (15000.0,), (0.0,), (1e-4,)).table())
        launch = resample_launch(volume, "int16", steps, shape, taps, table, out)
        ms = median_ms(device, lambda: device.launch(launch))
    moved = 2 * int(np.prod(shape)) + 4 * int(np.prod(extents))
    return {"kernel": "resample_i16", "what": f"512 x 512 x 1024, spacing x {spacing:g}", "bytes": moved, "ms": ms}


def triangle(extent: int, count: int) -> NDArray[np.float64]:
    """(count, extent): linear interpolation, widened to the output's spacing where that is coarser."""
    places = np.clip((np.arange(count) + 0.5) * extent / count - 0.5, 0, extent - 1)[:, None]
    weights = np.maximum(0, 1 - np.abs(np.arange(extent) - places) / max(extent / count, 1))
    return np.asarray(weights / weights.sum(axis=1, keepdims=True))


def extremes_row(device: Device) -> Row:
    shape, window = (1, 512, 512, 1024), (128, 128, 128)
    starts = np.array([(z, y, x) for z in range(0, 512, 128) for y in range(0, 512, 128) for x in range(0, 1024, 128)])
    with Buffers(device) as held:
        volume, out = held.room(shape, np.float32), held.put(no_extremes(len(starts)))
        noise(device, volume, int(np.prod(shape)))
        launch = extremes_launch(volume, shape, held.put(starts.astype(np.int32)), len(starts), window, out)
        ms = median_ms(device, lambda: device.launch(launch))
    return {"kernel": "extremes", "what": "128 windows of 128^3", "bytes": 4 * int(np.prod(shape)), "ms": ms}


def histogram_row(device: Device) -> Row:
    count = 2**28
    with Buffers(device) as held:
        values = held.room((count,), np.float32)
        noise(device, values, count)
        counts = held.put(np.zeros((HISTOGRAM_COPIES, 2**11), np.uint32))
        launch = histogram_launch(values, count, (21, 11, 0), counts)
        ms = median_ms(device, lambda: device.launch(launch))
    return {"kernel": "histogram", "what": "2^28 values, 11 bits", "bytes": 4 * count, "ms": ms}


def statistics_row(device: Device) -> Row:
    shape = (512, 512, 1024)
    # Blocks of 16 x 16 x 16 voxels of one label: about what anatomy gives.
    labels = np.random.default_rng(0).integers(0, 14, (32, 32, 64), np.uint8)
    for axis in range(3):
        labels = np.repeat(labels, 16, axis=axis)
    with Buffers(device) as held:
        at, intensities = held.put(labels), held.room(shape, np.float32)
        noise(device, intensities, int(np.prod(shape)))
        table = held.put(empty_table(14))
        launch = statistics_launch(at, intensities, shape, 1, (0.0, 65535.0), 0, 14, table)
        ms = median_ms(device, lambda: device.launch(launch))
    return {"kernel": "statistics_u8", "what": "512 x 512 x 1024, 14 labels", "bytes": 5 * labels.size, "ms": ms}


def kernel_rows() -> list[tuple[Callable[[Device], Row], bool]]:
    """What is timed, and whether it is bound by memory: interpolating to a finer grid is not."""
    return [
        (gather_row, True),
        *[(lambda device, kind=kind: accumulate_row(device, kind), True) for kind in LOGIT_TYPES],
        (lambda device: finalise_row(device, 14, 320, 320), True),
        (lambda device: finalise_row(device, 104, 160, 160), True),
        (lambda device: finalise_row(device, 14, 320, 320, extras=True), True),
        (lambda device: resample_row(device, 1.0), True),
        (extremes_row, True),
        (histogram_row, True),
        (statistics_row, True),
        (lambda device: resample_row(device, 1.5), False),
        (lambda device: resample_row(device, 0.75), False),
        (lambda device: finalise_row(device, 14, 320, 240), False),
        (lambda device: finalise_row(device, 14, 256, 384), False),
        (lambda device: finalise_row(device, 104, 128, 256), False),
    ]


def kernel_speed(device: Device) -> dict[str, Any]:
    """Every kernel's rate over the copy's; the copy is measured before and after."""
    before = copy_rate(device)
    rows = []
    for make, bound_by_memory in kernel_rows():
        row = make(device)
        row["ms"], row["spread_ms"] = (round(value, 4) for value in row["ms"])
        row["bound_by_memory"] = bound_by_memory
        rows.append(row)
    rate = (before + copy_rate(device)) / 2
    print(f"  device-to-device copy: {rate / 1e9:.0f} GB/s, reads and writes counted")
    for row in rows:
        row["share_of_copy_rate"] = round(row["bytes"] / row["ms"] * 1e3 / rate, 3)
        verdict = "" if not row["bound_by_memory"] else "ok" if row["share_of_copy_rate"] >= TARGET else "BELOW 0.80"
        print(f"  {row['kernel']:16} {row['what']:52} {row['bytes'] / 1e9:6.2f} GB {row['ms']:8.3f} ms "
              f"{row['share_of_copy_rate']:6.2f} {verdict}")  # fmt: skip
    return {"copy_GB_per_s": round(rate / 1e9, 1), "runs": RUNS, "rows": rows}

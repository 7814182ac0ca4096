"""How each CUDA kernel is launched: its grid and its arguments, in the order of the .cu file.

Nothing here knows a driver. A pointer is an address on the device, an int; ``arguments`` holds NumPy scalars, so
that each says its own size: uint64 for pointers, int32, int64 or float32 for numbers.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

import numpy as np

from dropgen_rt.kernels.architectures import THREADS_PER_BLOCK

LANES = 32
#: Values that a thread loads before it uses the first, as warp.h has it.
IN_FLIGHT = 4
#: Rows that a warp of gather and of resample_one_tap writes, as warp.h has it.
ROWS_PER_WARP = 4
#: Rows that a warp of accumulate takes, as accumulate.cu has it.
ACCUMULATE_ROWS = 4

#: finalise takes fewer sums per class than this: it counts them in 32 bits.
MOST_SUMS = 2**32

#: Entry points of accumulate by the type of the logits.
LOGIT_TYPES = ("f32", "f16", "bf16")


@dataclass(frozen=True)
class Launch:
    """One kernel call: ``grid`` counts blocks along x, y and z, each of ``threads`` threads along x."""

    entry: str
    grid: tuple[int, int, int]
    arguments: tuple[np.generic, ...]
    threads: int = THREADS_PER_BLOCK


@dataclass(frozen=True)
class AxisTables:
    """Addresses of one AxisMap on the device, and the number of its output voxels."""

    lower: int
    upper: int
    fraction: int
    length: int


def numbers(*values: int) -> tuple[np.generic, ...]:
    """Arguments of type int. Raises OverflowError beyond 32 bits."""
    return tuple(np.int32(value) for value in values)


def pointers(*addresses: int | None) -> tuple[np.generic, ...]:
    """Arguments of type pointer; None is null."""
    return tuple(np.uint64(address or 0) for address in addresses)


def blocks_for_rows(rows: int, threads: int) -> int:
    """Blocks of ``threads`` threads that give each of ``rows`` rows a warp."""
    return -(-rows * LANES // threads)


def gather_launch(
    volume: int, shape: Sequence[int], starts: int, batch: int, window: Sequence[int], normalisation: int, out: int,
    threads: int = THREADS_PER_BLOCK,
) -> Launch:  # fmt: skip
    """``gather.cu``: ``shape`` is the volume's (C, Z, Y, X), ``window`` (wz, wy, wx)."""
    arguments = (
        *pointers(volume), *numbers(*shape), *pointers(starts), *numbers(*window), *pointers(normalisation, out),
    )  # fmt: skip
    grid = (blocks_for_rows(-(-window[1] // ROWS_PER_WARP), threads), window[0], batch * shape[0])
    return Launch("gather", grid, arguments, threads)


def accumulate_launch(
    sums: int, shape: Sequence[int], box: Sequence[Sequence[int]], logits: int, logits_shape: Sequence[int],
    starts: int, weights: Sequence[int], logit_type: str = "f32", threads: int = THREADS_PER_BLOCK,
) -> Launch:  # fmt: skip
    """``accumulate.cu``: ``shape`` is (K, Z, Y, X), ``logits_shape`` (B, K, wz, wy, wx).

    ``box`` is what ``bounding_box`` gives, ``weights`` the addresses of three tables, ``logit_type`` of LOGIT_TYPES.
    """
    first, size = box
    arguments = (
        *pointers(sums), *numbers(*shape[1:], *first, *size[1:]), *pointers(logits), *numbers(*logits_shape),
        *pointers(starts, *weights),
    )  # fmt: skip
    grid = (blocks_for_rows(-(-size[1] // ACCUMULATE_ROWS), threads), size[0], shape[0])
    return Launch(f"accumulate_{logit_type}", grid, arguments, threads)


def finalise_launch(
    sums: int, shape: Sequence[int], totals: Sequence[int], axes: Sequence[AxisTables], x_is_identity: bool,
    labels: int, probability: int | None = None, margin: int | None = None, threads: int = THREADS_PER_BLOCK,
) -> Launch:  # fmt: skip
    """``finalise.cu``: ``shape`` is (K, Z, Y, X); ``labels`` takes uint8 up to 256 classes and uint16 above.

    Raises OverflowError from MOST_SUMS sums per class on.
    """
    if prod(shape[1:]) >= MOST_SUMS:
        raise OverflowError(f"sums of {tuple(shape[1:])}: finalise on a GPU takes fewer than 2^32 per class")
    tables = [address for axis in axes for address in (axis.lower, axis.upper, axis.fraction)]
    depth, height, width = (axis.length for axis in axes)
    arguments = (
        *pointers(sums), *numbers(*shape), *pointers(*totals, *tables), *numbers(x_is_identity, height, width),
        *pointers(labels, probability, margin),
    )  # fmt: skip
    entry = "finalise_u8" if shape[0] <= 256 else "finalise_u16"
    return Launch(entry, (blocks_for_rows(height, threads), depth, 1), arguments, threads)


@dataclass(frozen=True)
class TapTables:
    """Addresses of one axis' Taps on the device, its greatest number of taps, and the number of output voxels."""

    first: int
    count: int
    weight: int
    most: int
    length: int


#: The scan's voxel types as resample's entry points name them.
VOXEL_ENTRIES = {"float32": "f32", "int16": "i16", "uint16": "u16", "uint8": "u8"}

#: Eight for each multiprocessor of an H100, all at once: their tables take 128 of its 228 KiB of shared memory.
HISTOGRAM_BLOCKS = 1056
HISTOGRAM_COPIES = 64

#: Five for each multiprocessor of an H100, all at once.
STATISTICS_BLOCKS = 660
#: Rows of a piece that a block of statistics takes, as statistics.cu has it.
STATISTICS_ROWS = 128


def resample_launch(
    volume: int, voxel_type: str, steps: Sequence[int], shape: Sequence[int], taps: Sequence[TapTables],
    normalisation: int, out: int, threads: int = THREADS_PER_BLOCK,
) -> Launch:  # fmt: skip
    """``resample.cu``: ``shape`` is the volume's (C, Z, Y, X), ``steps`` in elements along it, ``taps`` of z, y and x.

    Where no axis has more than one tap, as where a scan is only turned, a kernel of its own does it.
    """
    tables: list[np.generic] = []
    for axis in taps:
        tables += [*pointers(axis.first, axis.count, axis.weight), *numbers(axis.most)]
    depth, height, width = (axis.length for axis in taps)
    arguments = (
        *pointers(volume), *map(np.int64, steps), *tables, *numbers(height, width, shape[0]),
        *pointers(normalisation, out),
    )  # fmt: skip
    reach = (shape[3] - 1) * abs(steps[3])
    one_tap = all(axis.most == 1 for axis in taps) and reach < 2**31  # it counts along x in 32 bits
    rows = -(-height // ROWS_PER_WARP) if one_tap else height
    entry = f"resample{'_one_tap' if one_tap else ''}_{VOXEL_ENTRIES[voxel_type]}"
    return Launch(entry, (blocks_for_rows(rows, threads), depth, shape[0]), arguments, threads)


def extremes_launch(
    volume: int, shape: Sequence[int], starts: int, count: int, window: Sequence[int], out: int,
    threads: int = THREADS_PER_BLOCK,
) -> Launch:  # fmt: skip
    """``reduce.cu``: ``shape`` is (C, Z, Y, X), ``count`` the number of windows, ``out`` (N, C, 2) keys, filled."""
    arguments = (*pointers(volume), *numbers(*shape), *pointers(starts), *numbers(*window), *pointers(out))
    return Launch("extremes", (blocks_for_rows(window[1], threads), 1, count * shape[0]), arguments, threads)


def histogram_launch(
    values: int, count: int, digit: tuple[int, int, int], counts: int, copies: int = HISTOGRAM_COPIES,
    most_blocks: int = HISTOGRAM_BLOCKS, threads: int = THREADS_PER_BLOCK,
) -> Launch:  # fmt: skip
    """``reduce.cu``: ``digit`` is (shift, bits, prefix), bits up to 11; ``counts`` (copies, 2**bits) uint32, zeroed."""
    shift, bits, prefix = digit
    blocks = min(most_blocks, -(-count // (threads * IN_FLIGHT)))
    arguments = (
        *pointers(values), np.int64(count), *numbers(shift, bits), np.uint32(prefix), *numbers(copies),
        *pointers(counts),
    )  # fmt: skip
    return Launch("histogram", (blocks, 1, 1), arguments, threads)


def statistics_launch(
    labels: int, intensities: int, shape: Sequence[int], label_bytes: int, levels: tuple[float, float], first_z: int,
    known: int, table: int, most_blocks: int = STATISTICS_BLOCKS, threads: int = THREADS_PER_BLOCK,
) -> Launch:  # fmt: skip
    """``statistics.cu``: ``shape`` is (nz, ny, nx), ``levels`` the offset and the scale of the intensities.

    ``table`` has rows for labels below ``known``, which none of the labels may reach.
    """
    arguments = (
        *pointers(labels, intensities), *numbers(*shape), *map(np.float32, levels), *numbers(first_z, known),
        *pointers(table),
    )  # fmt: skip
    entry = "statistics_u8" if label_bytes == 1 else "statistics_u16"
    pieces = -(-shape[2] // threads) * -(-shape[1] // STATISTICS_ROWS) * shape[0]
    return Launch(entry, (min(most_blocks, pieces), 1, 1), arguments, threads)

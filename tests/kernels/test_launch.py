"""How kernels are launched; that launches do what they should, test_cuda_mapping.py shows."""

import pytest

from dropgen_rt.kernels.launch import (
    AxisTables,
    TapTables,
    accumulate_launch,
    finalise_launch,
    resample_launch,
    statistics_launch,
)


def taps(most, length=10):
    return TapTables(1, 2, 3, most, length)


@pytest.mark.parametrize(
    ("most", "shape", "step_x", "entry", "grid"),
    [
        ((1, 1, 1), (2, 9, 9, 9), 1, "resample_one_tap_i16", (1, 10, 2)),  # 10 rows: 3 warps of 8
        ((1, 2, 1), (2, 9, 9, 9), 1, "resample_i16", (2, 10, 2)),
        ((1, 1, 1), (1, 9, 9, 2049), -(2**20), "resample_i16", (2, 10, 1)),
        ((1, 1, 1), (1, 9, 9, 2048), -(2**20), "resample_one_tap_i16", (1, 10, 1)),
    ],
)
def test_resample_by_taps_and_reach(most, shape, step_x, entry, grid):
    launch = resample_launch(0, "int16", (1, 1, 1, step_x), shape, [taps(n) for n in most], 0, 0)
    assert (launch.entry, launch.grid) == (entry, grid)


def test_finalise_counts_sums_in_32_bits():
    axes = [AxisTables(0, 0, 0, 4)] * 3
    finalise_launch(0, (3, 4095, 1024, 1024), (0, 0, 0), axes, False, 0)
    with pytest.raises(OverflowError, match=r"\(4096, 1024, 1024\): finalise on a GPU takes fewer than 2\^32"):
        finalise_launch(0, (3, 4096, 1024, 1024), (0, 0, 0), axes, False, 0)


@pytest.mark.parametrize(
    ("shape", "blocks"), [((1, 1, 1), 1), ((2, 128, 256), 2), ((2, 129, 257), 8), ((512, 512, 1024), 660)]
)
def test_statistics_has_no_more_blocks_than_pieces(shape, blocks):
    """Pieces are of 128 rows and as many columns as a block has threads, 256."""
    assert statistics_launch(0, 0, shape, 1, (0.0, 1.0), 0, 14, 0).grid == (blocks, 1, 1)


@pytest.mark.parametrize(("height", "blocks"), [(1, 1), (32, 1), (33, 2)])
def test_accumulate_gives_a_warp_four_rows(height, blocks):
    launch = accumulate_launch(0, (3, 9, 50, 50), ((0, 0, 0), (7, height, 50)), 0, (1, 3, 7, 40, 50), 0, (0, 0, 0))
    assert launch.grid == (blocks, 7, 3)

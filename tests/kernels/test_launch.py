"""How kernels are launched; that launches do what they should, test_cuda_mapping.py shows."""

import pytest

from dropgen_rt.kernels.launch import AxisTables, TapTables, finalise_launch, resample_launch, statistics_launch


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


def test_statistics_sums_a_column_in_32_bits():
    assert 65536 * 65535 < 2**32
    statistics_launch(0, 0, (2, 65536, 5), 1, (0.0, 1.0), 0, 0)
    with pytest.raises(OverflowError, match="65537 rows: statistics on a GPU takes up to 65536"):
        statistics_launch(0, 0, (2, 65537, 5), 1, (0.0, 1.0), 0, 0)

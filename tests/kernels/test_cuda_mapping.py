"""The CUDA files, run thread by thread on the CPU against the NumPy definitions: mapping and arithmetic."""

import ctypes
import importlib.resources
import itertools
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from tolerances import PROBABILITY

from dropgen_rt.kernels import AxisMap, Normalisation
from dropgen_rt.kernels.accumulate import accumulate_definition, bounding_box
from dropgen_rt.kernels.architectures import ENTRY_POINTS
from dropgen_rt.kernels.finalise import finalise_definition
from dropgen_rt.kernels.gather import gather_definition

CXX = shutil.which("g++")
SOURCES = Path(str(importlib.resources.files("dropgen_rt.kernels")))
BLOCK = 8  # small, so that planes need several blocks and the last one has idle threads

pytestmark = pytest.mark.skipif(CXX is None, reason="no g++ to run the CUDA files on the CPU")

Launch = Callable[..., None]


@pytest.fixture(scope="module")
def launch(tmp_path_factory: pytest.TempPathFactory) -> Launch:
    """launch(entry, grid, *arguments): every thread of the grid in turn; arrays are passed as pointers."""
    folder = tmp_path_factory.mktemp("cuda_on_host")
    shim = Path(__file__).with_name("cuda_on_host.h")
    entries = {}
    for stem, names in ENTRY_POINTS.items():
        library = folder / f"{stem}.so"
        flags = ["-std=c++17", "-O1", "-ffp-contract=off", "-fPIC", "-shared", "-include", shim]
        subprocess.run([CXX, *flags, "-x", "c++", SOURCES / f"{stem}.cu", "-o", library], check=True)
        loaded = ctypes.CDLL(str(library))
        entries.update({name: (loaded[name], loaded["place_thread"]) for name in names})

    def run(entry: str, grid: tuple[int, int, int], *arguments: object) -> None:
        kernel, place_thread = entries[entry]
        passed = [
            ctypes.c_void_p(a.ctypes.data if isinstance(a, np.ndarray) else None)
            if a is None or isinstance(a, np.ndarray)
            else ctypes.c_int(a)
            for a in arguments
        ]
        for z, y, x, thread in itertools.product(*map(range, reversed(grid)), range(BLOCK)):
            place_thread(x, y, z, BLOCK, thread)
            kernel(*passed)

    return run


def blocks(voxels: int) -> int:
    return -(-voxels // BLOCK)


def test_gather(launch):
    rng = np.random.default_rng(1)
    volume = rng.normal(size=(2, 5, 6, 7)).astype(np.float32)
    starts = np.array([[-2, 1, 3], [3, -4, -1], [9, 0, 0]], dtype=np.int32)
    window = (4, 5, 3)
    normalisation = Normalisation((-1, -0.5), (0.5, 1), (0.1, 0.2), (3, -2))
    out = np.full((3, 2, *window), np.nan, dtype=np.float32)
    grid = (blocks(5 * 3), 4, 3 * 2)
    launch("gather", grid, volume, *volume.shape, starts, *window, normalisation.table(), out)
    assert out.tobytes() == gather_definition(volume, starts, window, normalisation).tobytes()


def test_accumulate(launch):
    rng = np.random.default_rng(2)
    sums = rng.normal(size=(3, 7, 8, 9)).astype(np.float32)
    starts = np.array([[70, 0, 0], [-2, 1, 3], [2, 3, 2], [1, 2, 4]], dtype=np.int32)
    logits = rng.normal(size=(4, 3, 4, 5, 3)).astype(np.float32)
    weights = [rng.random(n, dtype=np.float32) for n in (4, 5, 3)]
    expected = sums.copy()
    accumulate_definition(expected, logits, starts, weights)
    first, (size_z, size_y, size_x) = bounding_box(starts, (4, 5, 3), (7, 8, 9))
    grid = (blocks(size_y * size_x), size_z, 3)
    box = (*first, size_y, size_x)
    launch("accumulate", grid, sums, *sums.shape[1:], *box, logits, *logits.shape, starts, *weights)
    assert sums.tobytes() == expected.tobytes()


@pytest.mark.parametrize("entry", ["finalise_u8", "finalise_u16"])
@pytest.mark.parametrize("asks_probability", [True, False])
def test_finalise(launch, entry, asks_probability):
    rng = np.random.default_rng(3)
    sums = np.round(rng.normal(size=(5, 4, 5, 6)) * 2).astype(np.float32)
    totals = [rng.random(n, dtype=np.float32) + np.float32(0.1) for n in (4, 5, 6)]
    axes = []
    for extent, count in zip((4, 5, 6), (5, 3, 7), strict=True):
        lower = rng.integers(0, extent, count).astype(np.int32)
        upper = (lower + rng.integers(1, extent, count, dtype=np.int32)) % np.int32(extent)  # never lower
        axes.append(AxisMap(lower, upper, rng.random(count, dtype=np.float32)))
    labels = np.zeros((5, 3, 7), dtype=np.uint8 if entry.endswith("u8") else np.uint16)
    probability = np.zeros((5, 3, 7), dtype=np.float32) if asks_probability else None
    tables = [table for axis in axes for table in (axis.lower, axis.upper, axis.fraction)]
    launch(entry, (blocks(3 * 7), 5, 1), sums, *sums.shape, *totals, *tables, 3, 7, labels, probability)
    expected, expected_probability, _ = finalise_definition(sums, totals, axes)
    np.testing.assert_array_equal(labels, expected)
    if probability is not None:
        np.testing.assert_allclose(probability, expected_probability, atol=PROBABILITY, rtol=0)

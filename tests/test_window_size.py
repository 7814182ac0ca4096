import json
import sys

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from dropgen_rt.cli import main
from dropgen_rt.engines import open_engine
from dropgen_rt.errors import UsageError
from dropgen_rt.geometry import Geometry
from dropgen_rt.manifest import METADATA_KEY
from dropgen_rt.model import model_of
from dropgen_rt.segment import segment
from dropgen_rt.settings import Settings
from dropgen_rt.volume import Volume, write_labels
from dropgen_rt.window_size import cheapest_window, parse_window, require_possible
from dropgen_rt.windows import WindowPlan

IDENTITY = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0)


@pytest.fixture
def dynamic(tiny, tmp_path):
    """The tiny model with a graph that takes any window of multiples of 4."""
    manifest = tiny.manifest(dynamic_window=True, stride=4)
    path = tmp_path / "dynamic.onnx"
    path.write_bytes(tiny.onnx({METADATA_KEY: manifest.to_json()}, window=("nz", "ny", "nx")))
    return model_of(path, path.read_bytes())


@pytest.fixture
def scan():
    """Intensities 0 to 100 on 40 x 21 x 30 voxels of 1 mm, (1, z, y, x)."""
    values = np.random.default_rng(0).random((1, 40, 21, 30), dtype=np.float32) * 100
    return Volume(values, Geometry((30, 21, 40), (1.0, 1.0, 1.0), (0.0, 0.0, 0.0), IDENTITY))


@pytest.mark.parametrize(
    ("text", "expected"), [("auto", "auto"), ("128", (128, 128, 128)), ("96,128,160", (96, 128, 160))]
)
def test_words(text, expected):
    assert parse_window(text) == expected


@pytest.mark.parametrize("text", ["", "0", "-32", "96,96", "large", "96,96,"])
def test_words_that_are_no_window(text):
    with pytest.raises(UsageError, match=r"accepted are auto, one edge such as 128, or three \(z,y,x\) with commas"):
        parse_window(text)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from([0.0, 0.25, 0.5]))
def test_no_other_window_computes_less(seed, overlap):
    """Against every multiple of the stride in a range that holds the answer."""
    from conftest import tiny_manifest

    rng = np.random.default_rng(seed)
    shape = tuple(map(int, rng.integers(1, 70, 3)))
    manifest = tiny_manifest(stride=8, dynamic_window=True)

    def voxels(window):
        return len(WindowPlan.cover(shape, window, overlap)) * int(np.prod(window))

    most = int(np.quantile([16**3, 72**3], rng.random()))
    found = cheapest_window(shape, manifest, overlap, lambda plan: np.prod(plan.window) <= most)
    edges = range(16, 80, 8)
    best = min(voxels((z, y, x)) for z in edges for y in edges for x in edges if z * y * x <= most)
    assert voxels(found) == best and np.prod(found) <= most


def test_what_does_not_fit_is_not_taken(tiny):
    manifest = tiny.manifest(stride=8, dynamic_window=True)
    assert cheapest_window((64, 30, 16), manifest, 0.5, lambda plan: True) == (64, 32, 16)
    assert cheapest_window((64, 30, 16), manifest, 0.5, lambda plan: False) == (16, 16, 16)


def test_auto_gives_the_labels_of_small_windows(dynamic, scan):
    """The tiny network sees single voxels, so its labels do not depend on the window; rounding moves those at a tie."""
    with open_engine(dynamic, "cpu") as engine:
        small = segment(scan, dynamic, engine=engine)
        whole = segment(scan, dynamic, Settings(window="auto"), engine=engine)
        named = segment(scan, dynamic, Settings(window=(32, 16, 20)), engine=engine)
    assert (small.record.model["window"], small.record.windows) == ((16, 16, 16), 4 * 2 * 3)
    assert (whole.record.model["window"], whole.record.windows) == ((40, 24, 32), 1)
    assert (named.record.model["window"], named.record.windows) == ((32, 16, 20), 2 * 2 * 2)
    for other in (whole, named):
        assert (other.labels.array == small.labels.array).mean() > 0.9999


def test_auto_keeps_to_the_memory_given(dynamic, monkeypatch):
    """What the road itself holds for the whole scan at once is beyond this limit, the trained window is not.

    What the process holds is given, because other tests' memory comes and goes by more than these few megabytes.
    """
    monkeypatch.setattr(sys.modules["dropgen_rt.segment"], "resident_bytes", lambda: 2**28)
    values = np.random.default_rng(0).random((1, 96, 96, 96), dtype=np.float32) * 100
    scan = Volume(values, Geometry((96, 96, 96), (1.0, 1.0, 1.0), (0.0, 0.0, 0.0), IDENTITY))
    with open_engine(dynamic, "cpu") as engine:
        whole = segment(scan, dynamic, Settings(window="auto"), engine=engine).record
        limit = 2**28 + 2**24  # 7 MB are needed with small windows, 30 MB with one
        found = segment(scan, dynamic, Settings(window="auto", memory_bytes=limit), engine=engine).record
    assert whole.windows == 1 < found.windows
    assert found.predicted_peak_bytes <= limit


def test_refusals(model, dynamic, scan):
    with pytest.raises(UsageError, match=r"window auto: the graph of 'tiny' takes 16 x 16 x 16 only; leave --window"):
        segment(scan, model, Settings(window="auto"))
    with pytest.raises(UsageError, match=r"window 18 x 16 x 16: edges of 'tiny' are multiples of 4"):
        segment(scan, dynamic, Settings(window=(18, 16, 16)))
    with pytest.raises(UsageError, match="reference mode keeps the trained window; leave --window out"):
        Settings(reference=True, window="auto")
    require_possible((16, 16, 16), model.manifest)


def test_the_command(dynamic, scan, tmp_path, monkeypatch):
    monkeypatch.setenv("DROPGEN_RT_HOME", str(tmp_path / "home"))
    file = tmp_path / "scan.nii.gz"
    write_labels(scan.array[0].astype(np.uint8), scan.geometry, file)
    named = ["infer", str(file), "--model", str(dynamic.path), "--quiet"]
    result = CliRunner().invoke(main, [*named, "--window", "auto"])
    assert result.exit_code == 0, result.output
    assert json.loads((tmp_path / "scan_seg.json").read_text())["model"]["window"] == [40, 24, 32]
    result = CliRunner().invoke(main, [*named, "--window", "17"])
    expected = "error: window 17 x 17 x 17: edges of 'tiny' are multiples of 4\n"
    assert (result.exit_code, result.stderr) == (2, expected)

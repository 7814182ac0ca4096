"""Several scans in one run: what is read ahead and written behind changes neither bytes nor order nor refusals."""

import gzip
import json
import subprocess
import sys
import threading

import numpy as np
import pytest
from conftest import write_tiny

from dropgen_rt import infer, picture
from dropgen_rt.errors import DropgenError, OutputError
from dropgen_rt.infer import infer_files
from dropgen_rt.memory import MemoryPlan
from dropgen_rt.settings import Settings


@pytest.fixture
def scans(make, tmp_path):
    """Three scans of noise, of different sizes."""
    paths = []
    for index, shape in enumerate(((30, 20, 22), (18, 20, 22), (20, 26, 17))):
        values = np.random.default_rng(index).integers(0, 100, shape, np.int16)
        rows = [[-1, 0, 0, 5], [0, -1, 0, 6], [0, 0, 1, 7]]
        data = make.nifti("i2", dim=(3, *shape[::-1]), pixdim=(1, 1, 1, 1), data=values.tobytes(), rows=rows)
        paths.append(tmp_path / f"s{index}.nii.gz")
        paths[-1].write_bytes(gzip.compress(data))
    return paths


def run(paths, out, model, capsys, **settings):
    """Files but for the records' timings, lines told, and refusals of one run."""
    out.mkdir()
    failures = infer_files(paths, out, str(model), Settings(**settings), "cpu", quiet=False)
    files = {path.name: path.read_bytes() for path in out.iterdir() if path.suffix != ".json"}
    records = {path.name: json.loads(path.read_text())["labels"] for path in out.glob("*.json")}
    told = [line for line in capsys.readouterr().out.splitlines() if line.startswith("wrote ")]
    return files, records, [line.removeprefix(f"wrote {out}/") for line in told], [str(error) for error in failures]


def test_together_as_one_by_one(scans, tmp_path, model_file, capsys, monkeypatch):
    """A limit of memory makes one wait for the other; without it they overlap."""
    together = run(scans, tmp_path / "a", model_file, capsys)
    in_turn = run(scans, tmp_path / "b", model_file, capsys, memory_bytes=2**40)
    assert together == in_turn
    assert len(together[0]) == 6 and together[2] == [f"s{index}_seg.nii.gz" for index in range(3)]


def test_a_refusal_in_the_middle(scans, tmp_path, model_file, capsys):
    whole = scans[1].read_bytes()
    scans[1].write_bytes(whole[:-20])
    files, _, told, refused = run(scans, tmp_path / "a", model_file, capsys)
    assert told == ["s0_seg.nii.gz", "s2_seg.nii.gz"] and len(files) == 4
    assert len(refused) == 1 and refused[0].startswith(f"{scans[1]}: truncated gzip data")


def test_an_output_that_fails_does_not_stop_the_others(scans, tmp_path, model_file, capsys, monkeypatch):
    """The writer's thread refuses; the refusal comes in the order of the scans, and nothing of that scan is left."""
    real = picture.draw

    def draw(volume, *arguments):
        if volume.geometry.size[2] == 18:
            raise OutputError("the disk is full")
        return real(volume, *arguments)

    monkeypatch.setattr(infer.picture, "draw", draw)
    files, _, told, refused = run(scans, tmp_path / "a", model_file, capsys)
    assert told == ["s0_seg.nii.gz", "s2_seg.nii.gz"] and refused == ["the disk is full"]
    assert sorted(files) == ["s0_seg.nii.gz", "s0_seg.png", "s2_seg.nii.gz", "s2_seg.png"]


def test_the_next_scan_is_read_while_one_is_computed(scans, tmp_path, model_file, capsys, monkeypatch):
    """Reading the second waits until the first has announced its plan, and is done before the first is written."""
    order, real = [], infer.read_scan

    def read(path):
        order.append(("read", path.name, threading.current_thread() is threading.main_thread()))
        return real(path)

    planned = MemoryPlan.line
    monkeypatch.setattr(infer, "read_scan", read)
    monkeypatch.setattr(MemoryPlan, "line", lambda plan: order.append(("planned",)) or planned(plan))
    run(scans, tmp_path / "a", model_file, capsys)
    assert [step[0] for step in order] == ["read", "planned", "read", "planned", "read", "planned"]
    assert not any(step[2] for step in order if step[0] == "read")


INFER = """
import sys
from pathlib import Path
from dropgen_rt.infer import infer_files
from dropgen_rt.memory import peak_resident_bytes
from dropgen_rt.settings import Settings

model, out, *scans = sys.argv[1:]
infer_files([Path(scan) for scan in scans], Path(out), model, Settings(), "cpu", quiet=True)
print(peak_resident_bytes())
"""


def test_the_prediction_holds_with_the_next_scan_in_memory(make, tmp_path):
    """Two scans of 2.6 million voxels: reading the second while the first is computed is in the prediction.

    In a process of its own, as of test_memory.py.
    """
    values = np.random.default_rng(0).integers(0, 100, (160, 128, 128), np.int16)
    rows = [[-1, 0, 0, 5], [0, -1, 0, 6], [0, 0, 1, 7]]
    data = make.nifti("i2", dim=(3, 128, 128, 160), pixdim=(1, 1, 1, 1), data=values.tobytes(), rows=rows)
    paths = [tmp_path / f"large{index}.nii" for index in range(2)]
    for path in paths:
        path.write_bytes(data)
    model = write_tiny(tmp_path / "m.onnx", window=(64, 64, 64))
    (tmp_path / "out").mkdir()
    arguments = map(str, (model, tmp_path / "out", *paths))
    done = subprocess.run([sys.executable, "-c", INFER, *arguments], capture_output=True, text=True, check=True)
    peak = int(done.stdout)
    predicted = [json.loads(path.read_text())["predicted_peak_bytes"] for path in (tmp_path / "out").glob("*.json")]
    assert max(predicted) == pytest.approx(peak, rel=0.15)


def test_one_scan_alone_is_refused_by_raising(scans, tmp_path, model_file):
    scans[0].write_bytes(b"")
    with pytest.raises(DropgenError, match="an empty file"):
        infer_files(scans[:1], tmp_path, str(model_file), Settings(), "cpu", quiet=True)

"""A thousand damaged files of each format: refused in one line or read as the referee reads them, and nothing else.

mutations.py holds the damage and the referees; here its processes are started, each with little memory and time.
"""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
from mutations import ORIGINALS, mutated

MUTATIONS, SEED = 1000, 20261123

#: Wall seconds for a thousand files: some fifty times what they take, for busy machines.
PATIENCE_S = 240

#: Shares below which the damage would be too coarse, or too fine, to test anything.
LEAST_SHARE = 0.1

#: Most files, as a share, that only we read: MetaImages whose needless fourth axis the referee refuses.
MOST_ALONE = 0.05


@pytest.mark.parametrize("kind", ORIGINALS)
def test_damaged_files_are_refused_or_read_rightly(kind: str, tmp_path: Path) -> None:
    command = [sys.executable, Path(__file__).with_name("mutations.py"), kind, str(MUTATIONS), str(SEED), tmp_path]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["wrong"] == []
    assert found["refused"] + found["read"] + found["read alone"] == MUTATIONS
    assert min(found["refused"], found["read"]) > LEAST_SHARE * MUTATIONS
    assert found["read alone"] < MOST_ALONE * MUTATIONS


@pytest.mark.parametrize("kind", ORIGINALS)
def test_damaged_files_leave_whole_results_or_none(kind: str, tiny, tmp_path: Path) -> None:
    """Through the command line: per file one line of refusal, or three results of the file's own size."""
    # so coarse that the largest spacing a damaged header may claim still makes few windows
    model = tiny.write(tmp_path / "coarse.onnx", spacing_mm=(50.0, 50.0, 50.0), labels=tiny.manifest().labels)
    scans, out = tmp_path / "scans", tmp_path / "out"
    scans.mkdir()
    out.mkdir()
    rng = np.random.default_rng(SEED)
    for number in range(60):
        (scans / f"{number:02}{ORIGINALS[kind][0]}").write_bytes(mutated(kind, rng))
    program = Path(sys.executable).with_name("dropgen-rt")
    done = subprocess.run([program, "infer", scans, "-o", out, "--model", model], capture_output=True, text=True,
                          timeout=PATIENCE_S, env={"DROPGEN_RT_HOME": str(tmp_path)}, check=False)  # fmt: skip
    assert done.returncode == 3
    refused = {line.split(": ")[1] for line in done.stderr.splitlines()}
    assert all(line.startswith(f"error: {scans}/") for line in done.stderr.splitlines())
    read = sorted(path for path in scans.iterdir() if str(path) not in refused)
    assert len(read) + len(done.stderr.splitlines()) == 60 and len(read) >= 6
    stems = [path.name.split(".")[0] for path in read]
    assert {path.name for path in out.iterdir()} == {
        stem + ending for stem in stems for ending in ("_seg.nii.gz", "_seg.json", "_seg.png")
    }
    for stem in stems:
        labels = sitk.GetArrayFromImage(sitk.ReadImage(str(out / f"{stem}_seg.nii.gz")))
        assert labels.shape == tuple(json.loads((out / f"{stem}_seg.json").read_text())["input"]["size"][::-1])

"""A thousand damaged files of each format: refused in one line or read as the referee reads them, and nothing else.

mutations.py holds the damage and the referees; here its processes are started, each with little memory and time.
"""

import json
import subprocess
import sys
from pathlib import Path

import dicom_mutations
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
from dicom_series import CANARIES
from mutations import ORIGINALS, mutated

from dropgen_rt.dicom.files import is_dicom

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


def test_damaged_series_are_refused_or_read_rightly(tmp_path: Path) -> None:
    """Each goes through the guarded children as a user's does; all of them within one process's limits."""
    program = Path(__file__).with_name("dicom_mutations.py")
    command = [sys.executable, "-W", "ignore", program, str(MUTATIONS), str(SEED), tmp_path]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["wrong"] == []
    assert found["refused"] + found["read"] == MUTATIONS
    assert min(found["refused"], found["read"]) > LEAST_SHARE * MUTATIONS


def test_damaged_series_leave_whole_results_or_none(tiny, tmp_path: Path) -> None:
    """Through the command line, each series in a folder of its own, where its results go."""
    model = tiny.write(tmp_path / "coarse.onnx", spacing_mm=(50.0, 50.0, 50.0), labels=tiny.manifest().labels)
    rng = np.random.default_rng(SEED)
    given = [dicom_mutations.write(dicom_mutations.mutated(rng), tmp_path / f"{number:02}") for number in range(40)]
    given = [path for path in given if is_dicom(path)]  # a folder without DICOM ends the command before it begins
    assert len(given) > 30
    program = Path(sys.executable).with_name("dropgen-rt")
    command = [program, "infer", *given, "--format", "nifti", "--model", model]
    home = {"DROPGEN_RT_HOME": str(tmp_path)}
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S, env=home, check=False)
    assert done.returncode == 3
    lines = done.stderr.splitlines()
    refused = {line.split(": ")[1] for line in lines}
    read = [path for path in given if str(path) not in refused]
    assert len(refused) == len(lines) and refused <= set(map(str, given)) and 6 <= len(read) < len(given)
    assert all(line.startswith("error: ") and not any(word in line for word in CANARIES) for line in lines)
    for path in given:
        results = [entry for entry in path.parent.iterdir() if entry != path]
        assert len(results) == (3 if path in read else 0)
        for record in (entry for entry in results if entry.suffix == ".json"):
            labels = sitk.GetArrayFromImage(sitk.ReadImage(str(record.with_suffix(".nii.gz"))))
            assert labels.shape == tuple(json.loads(record.read_text())["input"]["size"][::-1])


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

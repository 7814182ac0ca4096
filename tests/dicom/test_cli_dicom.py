"""The commands on DICOM: exit codes, last lines, what is written, and a patient who must not sing."""

import json
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk  # noqa: N813  the name its users know
from click.testing import CliRunner, Result
from dicom_series import CANARIES, one, positions, save, uid, voxels, write

from dropgen_rt.cli import main
from dropgen_rt.manifest import SourceRule

pytestmark = pytest.mark.usefixtures("home")

COMMAND = Path(sys.executable).with_name("dropgen-rt")
NAME = r"dicom-[0-9a-f]{12}"


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def box(count: int = 20) -> np.ndarray:
    """60 in a box of 100 on noise about 0."""
    array = np.random.default_rng(0).integers(0, 10, (count, 24, 22)).astype(np.int16)
    array[4:12, 4:18, 5:17] = 60
    array[6:9, 8:14, 8:14] = 100
    return array


@pytest.fixture
def series(tmp_path: Path) -> Path:
    return write(tmp_path / "in" / "series", box(), modality="MR", spacing_mm=(1.0, 1.0, 3.0))


@pytest.fixture
def out(tmp_path: Path) -> Path:
    folder = tmp_path / "out"
    folder.mkdir()
    return folder


def endings(folder: Path) -> list[str]:
    names = sorted(path.name for path in folder.iterdir())
    assert all(re.fullmatch(NAME + r"_.*", name) for name in names)
    return sorted(re.sub(NAME, "", name) for name in names)


def test_a_folder(series: Path, out: Path, model_file: Path) -> None:
    result = run("infer", series, "-o", out, "--model", model_file)
    assert (result.exit_code, result.stderr) == (0, "")
    assert re.fullmatch(rf"wrote {out}/{NAME}_seg\.dcm", result.stdout.splitlines()[-1])
    assert endings(out) == ["_seg.dcm", "_seg.json", "_seg.png"]
    seg = pydicom.dcmread(next(out.glob("*_seg.dcm")))
    record = json.loads(next(out.glob("*.json")).read_text())
    per_label = [0, 0]
    for group, frame in zip(seg.PerFrameFunctionalGroupsSequence, seg.pixel_array, strict=True):
        number = group.SegmentIdentificationSequence[0].ReferencedSegmentNumber
        per_label[number - 1] += int(frame.sum())
    assert [row["voxels"] for row in record["labels"]] == per_label and all(per_label)


def test_by_default_results_lie_beside_the_folder(series: Path, model_file: Path) -> None:
    assert run("infer", series, "--model", model_file).exit_code == 0
    assert [path.name for path in series.parent.iterdir() if path.is_dir()] == ["series"]
    assert len(list(series.parent.glob("dicom-*_seg.dcm"))) == 1


def test_every_format_at_once(series: Path, out: Path, model_file: Path) -> None:
    formats = "nifti,nrrd,mha,dicom-seg,dicom-labelmap,dicom-sr,dicom-sc"
    result = run("infer", series, "-o", out, "--model", model_file, "--format", formats)
    assert result.exit_code == 0, result.output
    assert endings(out) == sorted(["_seg.nii.gz", "_seg.nrrd", "_seg.mha", "_seg.dcm", "_labelmap.dcm", "_sr.dcm",
                                   "_sc.dcm", "_seg.json", "_seg.png"])  # fmt: skip
    maps = [sitk.ReadImage(next(out.glob(f"*_seg.{ending}"))) for ending in ("nii.gz", "nrrd", "mha")]
    arrays = [sitk.GetArrayFromImage(image) for image in maps]
    assert all(np.array_equal(array, arrays[0]) for array in arrays) and set(np.unique(arrays[0])) == {0, 1, 2}
    stored = pydicom.dcmread(next(out.glob("*_labelmap.dcm")))
    depths = [
        group.PlanePositionSequence[0].ImagePositionPatient[2] for group in stored.PerFrameFunctionalGroupsSequence
    ]
    assert np.array_equal(stored.pixel_array[np.argsort(depths)], arrays[0])


def test_compressed_slices_are_decoded_while_the_engine_is_open(series: Path, out: Path, model_file: Path) -> None:
    """Their children are forked from a process with the engine's threads."""
    plain = run("infer", series, "-o", out, "--model", model_file, "--format", "nifti")
    assert plain.exit_code == 0, plain.output
    first = next(out.glob("*.nii.gz")).read_bytes()
    for path in series.iterdir():
        dataset = pydicom.dcmread(path)
        dataset.compress(pydicom.uid.RLELossless, generate_instance_uid=False)
        dataset.save_as(path)
    again = run("infer", series, "-o", out, "--model", model_file, "--format", "nifti")
    assert again.exit_code == 0, again.output
    assert next(out.glob("*.nii.gz")).read_bytes() == first


def test_a_report_brings_its_segmentation(series: Path, out: Path, model_file: Path) -> None:
    assert run("infer", series, "-o", out, "--model", model_file, "--format", "dicom-sr").exit_code == 0
    assert endings(out) == ["_seg.dcm", "_seg.json", "_seg.png", "_sr.dcm"]


def test_a_zip_archive_and_a_multiframe_file(series: Path, out: Path, model_file: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "study.zip", "w") as archive:
        for path in series.iterdir():
            archive.write(path, f"CANARY/{path.name}")
    assert run("infer", tmp_path / "study.zip", "-o", out, "--model", model_file).exit_code == 0
    assert endings(out) == ["_seg.dcm", "_seg.json", "_seg.png"]


def test_other_formats_of_other_scans(out: Path, model_file: Path, tmp_path: Path) -> None:
    image = sitk.GetImageFromArray(box().astype(np.float32))
    sitk.WriteImage(image, str(tmp_path / "scan.nrrd"))
    result = run(
        "infer", tmp_path / "scan.nrrd", "-o", out, "--model", model_file, "--format", "mha", "--format", "nifti"
    )
    assert result.exit_code == 0, result.output
    assert sorted(path.name for path in out.iterdir()) == [
        "scan_seg.json", "scan_seg.mha", "scan_seg.nii.gz", "scan_seg.png"
    ]  # fmt: skip
    assert result.stdout.splitlines()[-2:] == [f"wrote {out}/scan_seg.mha", f"wrote {out}/scan_seg.nii.gz"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--format", "dicom-seg"], "dicom-seg needs a DICOM series to refer to; use nifti, nrrd, mha"),
        (["--format", "jpeg"], "format 'jpeg': accepted are nifti, nrrd, mha, dicom-seg"),
        (["--series", "1.2.3"], "--series names a series of a DICOM folder"),
    ],
)
def test_options_that_need_dicom(out: Path, model_file: Path, tmp_path: Path, options: list, words: str) -> None:
    sitk.WriteImage(sitk.GetImageFromArray(box().astype(np.float32)), str(tmp_path / "scan.nrrd"))
    result = run("infer", tmp_path / "scan.nrrd", "-o", out, "--model", model_file, *options)
    assert result.exit_code == 2 and words in result.stderr and result.stderr.count("\n") == 1
    assert list(out.iterdir()) == []


def test_two_series(series: Path, out: Path, model_file: Path, tiny: object, tmp_path: Path) -> None:
    write(series.parent / "other", box(30), series="other", modality="CT", spacing_mm=(1.0, 1.0, 3.0))
    result = run("infer", series.parent, "-o", out, "--model", model_file)
    assert result.exit_code == 3 and result.stderr.count("\n") == 1
    assert f"2 possible stacks: {uid('other')} (CT HEAD 22 x 24 x 30), {uid('series')}" in result.stderr
    assert list(out.iterdir()) == []
    assert run("infer", series.parent, "-o", out, "--model", model_file, "--series", uid("other")).exit_code == 0
    ruled = tiny.write(tmp_path / "ruled.onnx", source=SourceRule(modality=("MR",)))  # type: ignore[attr-defined]
    assert "the model is for" not in run("infer", series.parent, "-o", out, "--model", ruled).stderr
    named = run("infer", series.parent, "-o", out, "--model", ruled, "--series", uid("other"))
    assert named.exit_code == 0
    assert "the model is for MR, this series is CT HEAD: labels may be meaningless" in named.output
    assert len(list(out.glob("*_seg.dcm"))) == 2


def test_a_series_without_identifiers(out: Path, model_file: Path, tmp_path: Path) -> None:
    def edit(dataset: pydicom.Dataset, number: int) -> None:
        dataset.SeriesInstanceUID = dataset.StudyInstanceUID = ""

    folder = write(tmp_path / "in", box(), edit=edit)
    result = run("infer", folder, "-o", out, "--model", model_file)
    assert result.exit_code == 3
    assert "a series without Study Instance UID and Series Instance UID" in result.stderr
    assert run("infer", folder, "-o", out, "--model", model_file, "--format", "nifti").exit_code == 0


def test_scans_and_dicom_in_one_folder(series: Path, model_file: Path) -> None:
    sitk.WriteImage(sitk.GetImageFromArray(box().astype(np.float32)), str(series / "scan.nrrd"))
    result = run("infer", series, "--model", model_file)
    assert result.exit_code == 3 and "a folder with both scans and DICOM files" in result.stderr


def test_inspect(series: Path, model_file: Path) -> None:
    write(series.parent / "other", box(30), series="other", modality="CT", spacing_mm=(1.0, 1.0, 3.0))
    (series.parent / "notes.txt").write_text("x")
    localiser = one(voxels()[0], 99, positions(1)[0], series="third")
    save(localiser, series.parent / "localiser")
    result = run("inspect", series.parent, "--model", model_file)
    assert result.exit_code == 3 and result.stderr.startswith(f"error: {series.parent}: 2 possible stacks")
    lines = result.stdout.splitlines()
    assert lines[0].split() == ["kind", "size", "spacing", "mm", "verdict"]
    assert sum("possible" in line for line in lines) == 2
    assert any("not usable: a single image" in line for line in lines)
    assert lines[-1] == "left out: 1 x not a DICOM file"
    chosen = run("inspect", series.parent, "--model", model_file, "--series", uid("other"))
    assert chosen.exit_code == 0
    assert [line.split()[0] for line in chosen.stdout.splitlines() if "used:" in line] == ["*"]


def test_inspect_other_scans(make: object, tmp_path: Path, model_file: Path) -> None:
    (tmp_path / "good.nii").write_bytes(make.nifti())  # type: ignore[attr-defined]
    result = run("inspect", tmp_path / "good.nii", "--model", model_file)
    assert result.exit_code == 0 and "4 x 5 x 6" in result.stdout and "1.5 x 2 x 3" in result.stdout
    (tmp_path / "good.nii").write_bytes(make.nifti()[:-50])  # type: ignore[attr-defined]
    result = run("inspect", tmp_path / "good.nii", "--model", model_file)
    assert result.exit_code == 3 and result.stderr.count("\n") == 1


def test_inspect_a_folder_of_other_scans(make: object, tmp_path: Path, model_file: Path) -> None:
    folder = tmp_path / "scans"
    (folder / "sub").mkdir(parents=True)
    for name in ("good.nii", "good_seg.nii", "other_label.nii"):
        (folder / name).write_bytes(make.nifti())  # type: ignore[attr-defined]
    (folder / "notes.txt").write_text("x")
    result = run("inspect", folder, "--model", model_file)
    assert result.exit_code == 0
    assert result.stdout.splitlines()[-3:] == [
        "left out: 1 x a folder, which is not searched for scans",
        "left out: 2 x a label map, by its name",
        "left out: 1 x not a scan",
    ]


def test_a_folder_with_an_archive_alone(series: Path, tmp_path: Path, model_file: Path) -> None:
    (tmp_path / "folder").mkdir()
    with zipfile.ZipFile(tmp_path / "folder" / "a.zip", "w") as archive:
        for path in series.iterdir():
            archive.write(path, path.name)
    for command in ("infer", "inspect"):
        result = run(command, tmp_path / "folder", "--model", model_file)
        assert result.exit_code == 3 and result.stderr.endswith("; name the ZIP archive in it\n")
    assert run("inspect", tmp_path / "folder" / "a.zip", "--model", model_file).exit_code == 0


@pytest.mark.parametrize("damage", ["none", "truncated", "two patients", "junk header"])
def test_no_canary_sings(series: Path, out: Path, model_file: Path, damage: str) -> None:
    """The real program: output, errors, record, picture and names, whether it succeeds or refuses."""
    victim = sorted(series.iterdir())[3]
    if damage == "truncated":
        victim.write_bytes(victim.read_bytes()[:-100])
    elif damage == "two patients":
        dataset = pydicom.dcmread(victim)
        dataset.PatientName = "CANARY^SECOND"
        dataset.save_as(victim)
    elif damage == "junk header":
        victim.write_bytes(victim.read_bytes().replace(b"CANARY^BIRD", b"CANARY\xff\xffIRD")[:-300])
    formats = "nifti,dicom-seg,dicom-labelmap,dicom-sr,dicom-sc"
    for line in (["infer", series, "-o", out, "--model", model_file, "--format", formats, "--report"],
                 ["inspect", series, "--model", model_file]):  # fmt: skip
        done = subprocess.run([COMMAND, *map(str, line)], capture_output=True, text=True, check=False)
        assert done.returncode == (0 if damage == "none" else 3), done.stderr
        assert done.stderr.count("\n") == (0 if damage == "none" else 1)
        assert not [canary for canary in CANARIES if canary in done.stdout + done.stderr]
    assert bool(list(out.iterdir())) == (damage == "none")
    for path in out.iterdir():
        assert not [canary for canary in CANARIES if canary in path.name]
        if path.suffix != ".dcm":
            content = path.read_bytes()
            assert not [canary for canary in CANARIES if canary.encode() in content], path.name

"""The whole way through real peers: a PACS (Orthanc), DCMTK, dicom3tools' validator and dcmqi as second reader.

They are Debian packages (and dcmqi's wheel), so a developer's machine may lack them: then these tests skip, saying
which. CI sets DROPGEN_RT_PEERS, and with it a missing peer is a failure; a test below holds CI to that.
"""

import json
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk  # noqa: N813  the name its users know
from dicom_series import uid, write
from machine import REQUIRED

from dropgen_rt.dicom.read import read_dicom

PROGRAMS = ("Orthanc", "storescu", "getscu", "findscu", "dcmsend", "dciodvfy", "dcentvfy", "dcmcjpeg", "dcmcjpls",
            "dcmcrle", "dcmconv", "dcmmkdir")  # fmt: skip
BESIDE_PYTHON = ("segimage2itkimage", "tid1500reader", "dropgen-rt")
ROOT = Path(__file__).parents[2]


def program(name: str) -> str | None:
    beside = Path(sys.executable).with_name(name)
    return str(beside) if beside.exists() else shutil.which(name)


MISSING = [name for name in (*PROGRAMS, *BESIDE_PYTHON) if program(name) is None]
peers = pytest.mark.skipif(bool(MISSING) and not REQUIRED, reason=f"peers not installed: {', '.join(MISSING)}")


def call(name: str, *arguments: object) -> str:
    """Run a peer; its output. A missing one, or a failure, fails the test."""
    path = program(name)
    assert path is not None, f"{name} is not installed; .ci/run says from which package"
    done = subprocess.run([path, *map(str, arguments)], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="module")
def pacs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SimpleNamespace]:
    """An Orthanc of this test's own on loopback, empty, ended with the module."""
    folder = tmp_path_factory.mktemp("orthanc")
    dicom, http = free_port(), free_port()
    configuration = {
        "Name": "test", "StorageDirectory": str(folder / "db"), "IndexDirectory": str(folder / "db"),
        "DicomAet": "ORTHANC", "DicomPort": dicom, "HttpPort": http, "RemoteAccessAllowed": False,
        "AuthenticationEnabled": False, "UnknownSopClassAccepted": True, "Plugins": [], "DicomAlwaysAllowGet": True,
        "DicomAlwaysAllowFind": True, "DicomAlwaysAllowStore": True,
    }  # fmt: skip
    (folder / "orthanc.json").write_text(json.dumps(configuration))
    path = program("Orthanc")
    assert path is not None, "Orthanc is not installed; .ci/run says from which package"
    process = subprocess.Popen(
        [path, str(folder / "orthanc.json")], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        url = f"http://127.0.0.1:{http}"
        for _ in range(100):
            try:
                urllib.request.urlopen(f"{url}/system", timeout=1).read()  # noqa: S310
                break
            except OSError:
                assert process.poll() is None, "Orthanc ended by itself"
                time.sleep(0.1)
        yield SimpleNamespace(port=dicom, url=url)
    finally:
        process.terminate()
        process.wait(timeout=30)


def heads(count: int = 16) -> np.ndarray:
    """Two boxes, neither symmetric, on noise."""
    array = np.random.default_rng(0).integers(0, 10, (count, 40, 36)).astype(np.int16)
    array[4:12, 4:18, 5:17] = 60
    array[6:9, 8:14, 20:31] = 100
    return array


@pytest.fixture(scope="module")
def loop(pacs: SimpleNamespace, tmp_path_factory: pytest.TempPathFactory, tiny: SimpleNamespace) -> SimpleNamespace:
    """A series stored, retrieved, segmented; the objects stored back. Folders and files of every step."""
    work = tmp_path_factory.mktemp("loop")
    series = write(work / "scanner", heads(), modality="CT", spacing_mm=(1.0, 1.25, 2.0))
    call("storescu", "-aec", "ORTHANC", "127.0.0.1", pacs.port, "+sd", series)
    retrieved, results = work / "retrieved", work / "results"
    retrieved.mkdir()
    results.mkdir()
    call("getscu", "-S", "-aec", "ORTHANC", "127.0.0.1", pacs.port, "-od", retrieved, "-k",
         "QueryRetrieveLevel=SERIES", "-k", f"StudyInstanceUID={uid('study')}", "-k",
         f"SeriesInstanceUID={uid('series')}")  # fmt: skip
    model = tiny.write(work / "tiny.onnx")
    call("dropgen-rt", "infer", retrieved, "-o", results, "--model", model, "--format",
         "dicom-seg,dicom-labelmap,dicom-sr,dicom-sc,nifti")  # fmt: skip
    files = {kind: next(results.glob(f"*_{kind}.dcm")) for kind in ("seg", "labelmap", "sr", "sc")}
    call("dcmsend", "-aec", "ORTHANC", "127.0.0.1", pacs.port, files["seg"], files["sr"], files["sc"])
    labels = next(results.glob("*_seg.nii.gz"))
    return SimpleNamespace(work=work, retrieved=retrieved, files=files, labels=labels, model=model)


@peers
@pytest.mark.slow
def test_the_pacs_finds_what_was_stored_back(pacs: SimpleNamespace, loop: SimpleNamespace) -> None:
    assert len(list(loop.retrieved.iterdir())) == 16
    for modality, kind in (("SEG", "seg"), ("SR", "sr"), ("OT", "sc")):
        found = call("findscu", "-S", "-aec", "ORTHANC", "127.0.0.1", pacs.port, "-k", "QueryRetrieveLevel=SERIES",
                     "-k", f"StudyInstanceUID={uid('study')}", "-k", f"Modality={modality}", "-k",
                     "SeriesInstanceUID")  # fmt: skip
        assert pydicom.dcmread(loop.files[kind]).SeriesInstanceUID in found


@peers
@pytest.mark.slow
@pytest.mark.parametrize("kind", ["seg", "sr", "sc"])
def test_the_validator_finds_no_errors(loop: SimpleNamespace, kind: str) -> None:
    report = subprocess.run([program("dciodvfy") or "", loop.files[kind]], capture_output=True, text=True, check=False)
    lines = (report.stdout + report.stderr).splitlines()
    assert lines and not [line for line in lines if line.startswith("Error")]


@peers
@pytest.mark.slow
def test_the_validator_finds_no_errors_in_objects_of_mr_without_a_body_part(loop: SimpleNamespace) -> None:
    def edit(dataset: pydicom.Dataset, number: int) -> None:
        del dataset.BodyPartExamined, dataset.Laterality

    folder = loop.work / "mr"
    write(folder / "in", heads(), modality="MR", spacing_mm=(1.0, 1.25, 2.0), edit=edit)
    call("dropgen-rt", "infer", folder / "in", "--model", loop.model, "--format", "dicom-seg,dicom-sr,dicom-sc")
    for path in folder.glob("*.dcm"):
        report = subprocess.run([program("dciodvfy") or "", path], capture_output=True, text=True, check=False)
        assert not [line for line in (report.stdout + report.stderr).splitlines() if line.startswith("Error")], path


@peers
@pytest.mark.slow
def test_the_objects_belong_to_the_study(loop: SimpleNamespace) -> None:
    """Attributes of patient, study and frame of reference are the same in source and objects."""
    objects = [loop.files[kind] for kind in ("seg", "sr", "sc")]
    report = subprocess.run(
        [program("dcentvfy") or "", *loop.retrieved.iterdir(), *objects], capture_output=True, text=True, check=False
    )
    assert not [line for line in (report.stdout + report.stderr).splitlines() if line.startswith("Error")]


@peers
@pytest.mark.slow
def test_a_second_reader_sees_the_same_labels(loop: SimpleNamespace) -> None:
    out = loop.work / "dcmqi"
    out.mkdir()
    call("segimage2itkimage", "--inputDICOM", loop.files["seg"], "--outputDirectory", out, "--mergeSegments")
    image, reference = sitk.ReadImage(next(out.glob("*.nrrd"))), sitk.ReadImage(loop.labels)
    # dcmqi writes the smallest box around the segments: their place on the source's grid is the origin's
    onto = sitk.Resample(image, reference, sitk.Transform(), sitk.sitkNearestNeighbor, 0)
    theirs, ours = sitk.GetArrayFromImage(onto), sitk.GetArrayFromImage(reference)
    for label in (1, 2):
        mine, their = ours == label, theirs == label
        assert mine.any()
        assert 2 * (mine & their).sum() / (mine.sum() + their.sum()) == 1.0


@peers
@pytest.mark.slow
def test_a_second_reader_sees_the_same_volumes(loop: SimpleNamespace) -> None:
    call("tid1500reader", "--inputDICOM", loop.files["sr"], "--outputMetadata", loop.work / "report.json")
    read = json.loads((loop.work / "report.json").read_text())["Measurements"]
    record = json.loads(Path(str(loop.labels).replace(".nii.gz", ".json")).read_text())
    assert [group["ReferencedSegment"] for group in read] == [1, 2]
    for group, row in zip(read, record["labels"], strict=True):
        assert float(group["measurementItems"][0]["value"]) == pytest.approx(row["volume_ml"], rel=1e-6)


@peers
@pytest.mark.slow
def test_the_pacs_archive_is_read_as_it_comes(pacs: SimpleNamespace, loop: SimpleNamespace) -> None:
    """A study as ZIP, the objects of the first run in it: the images are found, the rest is left out."""
    with urllib.request.urlopen(f"{pacs.url}/studies", timeout=10) as answer:  # noqa: S310
        study = json.load(answer)[0]
    with urllib.request.urlopen(f"{pacs.url}/studies/{study}/archive", timeout=30) as answer:  # noqa: S310
        (loop.work / "study.zip").write_bytes(answer.read())
    shown = call("dropgen-rt", "inspect", loop.work / "study.zip", "--model", loop.model)
    assert "left out: 1 x Segmentation Storage" in shown and "36 x 40 x 16" in shown
    again = loop.work / "again"
    again.mkdir()
    call("dropgen-rt", "infer", loop.work / "study.zip", "-o", again, "--model", loop.model)
    assert next(again.glob("*_seg.dcm")).read_bytes() == loop.files["seg"].read_bytes()


@peers
@pytest.mark.parametrize(
    "packer",
    ["dcmcjpeg +e1", "dcmcjpeg +el +sv 6", "dcmcjpls +el", "dcmcrle", "dcmconv +td", "dcmconv +tb", "dcmconv +ti"],
)
def test_what_dcmtk_packs_is_read_exactly(tmp_path: Path, packer: str) -> None:
    """Twelve signed bits, with an overlay's in the other four where the packer keeps them."""
    array = np.random.default_rng(3).integers(-2048, 2048, (6, 40, 36)).astype(np.int16)

    def edit(dataset: pydicom.Dataset, number: int) -> None:
        dataset.BitsStored, dataset.HighBit = 12, 11
        dataset.PixelData = ((array[number].view(np.uint16) & 0xFFF) | 0x5000).tobytes()

    name, *options = packer.split()
    (tmp_path / "packed").mkdir()
    for path in write(tmp_path / "in", array, edit=edit, modality="MR").iterdir():
        call(name, *options, path, tmp_path / "packed" / path.name)
    assert np.array_equal(read_dicom(tmp_path / "packed").volume.array[0], array)


@peers
def test_a_disk_with_an_index_by_dcmtk(tmp_path: Path) -> None:
    disk = tmp_path / "DISK"
    for number, path in enumerate(sorted(write(disk / "IMAGES", heads(6), modality="MR").iterdir())):
        path.rename(path.with_name(f"IM{number}"))
    call("dcmmkdir", "+r", "-Pgp", "+D", disk / "DICOMDIR", "+id", disk, "IMAGES")
    assert np.array_equal(read_dicom(disk).volume.array[0], heads(6))
    shown = call("dropgen-rt", "inspect", disk)
    assert "left out: 1 x an index (DICOMDIR)" in shown


def test_ci_requires_the_peers() -> None:
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    assert "export DROPGEN_RT_PEERS=1" in script and "orthanc dcmtk dicom3tools" in script

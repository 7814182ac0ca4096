"""Segmentations, reports and captures of DICOM series: every voxel back on its slice, the same bytes each time."""

import itertools
import math
from collections.abc import Iterator
from pathlib import Path

import highdicom as hd
import numpy as np
import pydicom
import pytest
from dicom_series import enhanced, positions, save, uid, write
from pydicom.sr.codedict import codes
from shared_data import DATA, needs

from dropgen_rt.dicom.codes import PRIVATE_SCHEME, property_category, property_type
from dropgen_rt.dicom.job import WritingJob, read_sources
from dropgen_rt.dicom.read import DicomScan, read_dicom
from dropgen_rt.dicom.segmentation import check
from dropgen_rt.dicom.write import write_objects
from dropgen_rt.engines import Engine, open_engine
from dropgen_rt.errors import VerificationError
from dropgen_rt.manifest import Label, Manifest
from dropgen_rt.model import Model, read_model
from dropgen_rt.record import Record, label_volumes
from dropgen_rt.segment import Segmentation, Settings, segment
from dropgen_rt.volume import Volume

COUNT, ROWS, COLUMNS = 6, 14, 17
NAMES = (
    Label(1, "left kidney", (10, 200, 30)), Label(2, "Liver", (200, 20, 30)), Label(3, "a made-up thing", (1, 2, 3)),
    Label(4, "coded", (9, 9, 9), ("49755003", "SCT", "Morphologically Abnormal Structure"), ("1", "99X", "Test")),
)  # fmt: skip


def blobs(seed: int = 0) -> np.ndarray:
    """(slices, rows, columns) uint8 labels 0 to 4 without any symmetry; label 4 is absent, one slice empty."""
    labels = np.random.default_rng(seed).integers(0, 4, (COUNT, ROWS, COLUMNS)).astype(np.uint8)
    labels[2] = 0
    return labels


def model() -> Model:
    manifest = Manifest("tiny", NAMES, (1.0, 1.0, 1.0), (16, 16, 16), 1)
    return Model(Path("tiny.onnx"), b"", "ab" * 32, manifest)


def result_of(scan: DicomScan, labels: np.ndarray) -> Segmentation:
    """What segment() would give if the network found these labels on the volume's grid."""
    geometry = scan.volume.geometry
    record = Record(
        input={}, model={"name": "tiny", "sha256": "ab" * 32}, settings={}, windows=1, timings_s={},
        engine={"name": "e", "version": "1", "precision": "fp32", "device": "cpu"},
        labels=label_volumes(labels, geometry, NAMES), versions={"dropgen-rt": "1.2"},
    )  # fmt: skip
    return Segmentation(Volume(labels[None], geometry), record)


def on_grid(scan: DicomScan, labels: np.ndarray) -> np.ndarray:
    """Labels of the source slices placed on the volume's grid."""
    if scan.grid.shift_px is None:
        return labels
    grid = np.zeros(scan.volume.geometry.shape, np.uint8)
    for plane, (x, y), target in zip(labels, np.floor(scan.grid.shift_px + 0.5).astype(int), grid, strict=True):
        target[y : y + ROWS, x : x + COLUMNS] = plane
    return grid


def source(folder: Path, **how: object) -> DicomScan:
    array = np.random.default_rng(1).integers(0, 900, (COUNT, ROWS, COLUMNS)).astype(np.int16)
    return read_dicom(write(folder, array, **how))


def written(scan: DicomScan, labels: np.ndarray, folder: Path, *kinds: str) -> dict[str, Path]:
    folder.mkdir(exist_ok=True)
    files = {kind: folder / f"{kind}.dcm" for kind in kinds}
    write_objects(scan, result_of(scan, on_grid(scan, labels)), model(), files)
    return files


def orientations() -> list[tuple[tuple[float, ...], tuple[float, float]]]:
    """(rows and columns, sideways step): the 24 of the body axes, oblique ones, tilted ones."""
    axes = [sign * np.eye(3)[axis] for axis in range(3) for sign in (1, -1)]
    straight = [np.concatenate(pair) for pair in itertools.permutations(axes, 2) if not pair[0] @ pair[1]]
    c, s = math.cos(0.3), math.sin(0.3)
    turn = np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]]) @ np.array([[1, 0, 0], [0, c, -s], [0, s, c]])
    oblique = [np.concatenate([turn @ pair[:3], turn @ pair[3:]]) for pair in straight[::6]]
    cases = [(tuple(pair.tolist()), (0.0, 0.0)) for pair in [*straight, *oblique]]
    return cases + [
        (tuple(pair.tolist()), tilt) for pair in (*straight[::8], *oblique[:1]) for tilt in ((0.0, 1.1), (0.7, -0.4))
    ]


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize(("orientation", "tilt"), orientations())
def test_masks_come_back_on_the_source_instances(
    tmp_path: Path, orientation: tuple[float, ...], tilt: tuple[float, float], reverse: bool
) -> None:
    """48 orientations, oblique and tilted: read with nothing but pydicom and the references in the object."""
    places = positions(COUNT, orientation, sideways_mm=tilt)[:: -1 if reverse else 1]
    scan = source(tmp_path / "in", places=places, orientation=orientation)
    labels = blobs()
    files = written(scan, labels, tmp_path / "out", "dicom-seg")
    truth = {plane.header.sop: labels[k] for k, plane in enumerate(scan.slices)}
    seg = pydicom.dcmread(files["dicom-seg"])
    frames = seg.pixel_array
    found = {sop: np.zeros_like(labels[0]) for sop in truth}
    for group, frame in zip(seg.PerFrameFunctionalGroupsSequence, frames, strict=True):
        sop = group.DerivationImageSequence[0].SourceImageSequence[0].ReferencedSOPInstanceUID
        number = group.SegmentIdentificationSequence[0].ReferencedSegmentNumber
        found[sop][frame > 0] = number
        index = next(int(path.stem.rsplit("_")[-1]) for path in (tmp_path / "in").iterdir()
                     if pydicom.dcmread(path, stop_before_pixels=True).SOPInstanceUID == sop)  # fmt: skip
        assert np.allclose(group.PlanePositionSequence[0].ImagePositionPatient, places[index], atol=1e-4)
    assert all(np.array_equal(found[sop], truth[sop]) for sop in truth)


@pytest.fixture(scope="module")
def opened(tiny, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Model, Engine]]:
    """The network that marks what exceeds 30 and 70, on a grid of 1 mm."""
    network = read_model(tiny.write(tmp_path_factory.mktemp("model") / "tiny.onnx"))
    with open_engine(network, "cpu") as engine:
        yield network, engine


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize(("orientation", "tilt"), orientations())
def test_what_a_network_finds_lies_on_the_source_instances(
    tmp_path: Path, opened: tuple[Model, Engine], orientation: tuple[float, ...], tilt: tuple[float, float],
    reverse: bool,
) -> None:  # fmt: skip
    """Read, segmented, written, read back: on each slice the pixels that exceed the network's thresholds there."""
    network, engine = opened
    array = np.random.default_rng(2).integers(0, 10, (9, ROWS, COLUMNS)).astype(np.int16)
    array[2:7, 3:10, 4:15], array[3:5, 5:8, 9:13] = 60, 100
    sideways = (tilt[0] / 3, tilt[1] / 3)  # they are of slices 3 mm apart
    places = positions(9, orientation, step_mm=1.0, sideways_mm=sideways)[:: -1 if reverse else 1]
    write(tmp_path, array, places=places, orientation=orientation, spacing_mm=(1.0, 1.0, 1.0), modality="MR")
    scan = read_dicom(tmp_path)
    result = segment(scan, network, Settings(), engine=engine)
    write_objects(scan, result, network, {"dicom-seg": tmp_path / "seg.dcm"})
    found = on_instances(pydicom.dcmread(tmp_path / "seg.dcm"), scan)
    stored = np.stack([pydicom.dcmread(scan.files.files[plane.header.file]).pixel_array for plane in scan.slices])
    expected = (stored > 30).astype(np.uint8) + (stored > 70)
    assert np.array_equal(found, scan.on_source(result.labels.array[0]))
    if not any(tilt):
        assert np.array_equal(found, expected)
    else:  # interpolated within slices on the way in, so that edges move by up to half a pixel
        inside = 2 * np.count_nonzero((found == expected) & (found > 0)) / np.count_nonzero([found, expected])
        assert inside > 0.8


def on_instances(seg: pydicom.Dataset, scan: DicomScan) -> np.ndarray:
    """(slices, rows, columns) by nothing but the references in the object."""
    found = np.zeros((len(scan.slices), ROWS, COLUMNS), np.uint8)
    places = {plane.header.sop: k for k, plane in enumerate(scan.slices)}
    for group, frame in zip(seg.PerFrameFunctionalGroupsSequence, seg.pixel_array, strict=True):
        sop = group.DerivationImageSequence[0].SourceImageSequence[0].ReferencedSOPInstanceUID
        found[places[sop]][frame > 0] = group.SegmentIdentificationSequence[0].ReferencedSegmentNumber
    return found


@pytest.mark.parametrize("kind", ["dicom-seg", "dicom-labelmap"])
def test_enhanced_sources_keep_their_frame_numbers(tmp_path: Path, kind: str) -> None:
    order = [3, 0, 5, 1, 4, 2]
    array = np.random.default_rng(1).integers(0, 900, (COUNT, ROWS, COLUMNS)).astype(np.int16)
    save(enhanced(array, order=order), tmp_path / "e.dcm")
    scan = read_dicom(tmp_path / "e.dcm")
    labels = blobs()
    path = written(scan, labels, tmp_path / "out", kind)[kind]
    frames = [order.index(k) + 1 for k in range(COUNT)]
    read = hd.seg.segread(path).get_pixels_by_source_frame(
        uid("enhanced", 0), frames, combine_segments=True, ignore_spatial_locations=True,
        assert_missing_frames_are_empty=True, segment_numbers=[1, 2, 3, 4],
    )  # fmt: skip
    assert np.array_equal(read, labels)


@pytest.mark.parametrize("kinds", [("dicom-seg", "dicom-sr", "dicom-sc"), ("dicom-labelmap",)])
@pytest.mark.parametrize("per_file", [1, 2])
def test_enhanced_sources_in_several_files(tmp_path: Path, kinds: tuple[str, ...], per_file: int) -> None:
    """As some archives cut them up: each frame is referred to in its own file, and all files are listed."""
    array = np.random.default_rng(1).integers(0, 900, (COUNT, ROWS, COLUMNS)).astype(np.int16)
    for first in range(0, COUNT, per_file):
        dataset = enhanced(array[first : first + per_file])
        dataset.SOPInstanceUID = uid("cut", first)
        for group, place in zip(dataset.PerFrameFunctionalGroupsSequence, positions(COUNT)[first:], strict=False):
            group.PlanePositionSequence[0].ImagePositionPatient = place.tolist()
        save(dataset, tmp_path / "in" / f"{first * 5 % 7}")
    scan = read_dicom(tmp_path / "in")
    assert np.array_equal(scan.volume.array[0], array)
    labels = blobs()
    files = written(scan, labels, tmp_path / "out", *kinds)
    seg = pydicom.dcmread(files[kinds[0]])
    for group, frame in zip(seg.PerFrameFunctionalGroupsSequence, seg.pixel_array, strict=True):
        source = group.DerivationImageSequence[0].SourceImageSequence[0]
        first = next(first for first in range(COUNT) if uid("cut", first) == source.ReferencedSOPInstanceUID)
        truth = labels[first + source.ReferencedFrameNumber - 1]
        if kinds[0] == "dicom-seg":
            assert np.array_equal(frame > 0, truth == group.SegmentIdentificationSequence[0].ReferencedSegmentNumber)
        else:
            assert np.array_equal(frame, truth)
    everything = {uid("cut", first) for first in range(0, COUNT, per_file)}
    listed = [item.ReferencedSOPInstanceUID for item in seg.ReferencedSeriesSequence[0].ReferencedInstanceSequence]
    assert len(listed) == len(everything) and set(listed) == everything
    if "dicom-sr" in files:
        evidence = pydicom.dcmread(files["dicom-sr"]).CurrentRequestedProcedureEvidenceSequence[0]
        named = {item.ReferencedSOPInstanceUID for series in evidence.ReferencedSeriesSequence
                 for item in series.ReferencedSOPSequence}  # fmt: skip
        assert everything <= named


def test_a_label_map(tmp_path: Path) -> None:
    scan = source(tmp_path / "in")
    path = written(scan, blobs(), tmp_path / "out", "dicom-labelmap")["dicom-labelmap"]
    frames = pydicom.dcmread(path)
    assert frames.SOPClassUID == "1.2.840.10008.5.1.4.1.1.66.7"
    truth = {plane.header.sop: blobs()[k] for k, plane in enumerate(scan.slices)}
    for group, frame in zip(frames.PerFrameFunctionalGroupsSequence, frames.pixel_array, strict=True):
        sop = group.DerivationImageSequence[0].SourceImageSequence[0].ReferencedSOPInstanceUID
        assert np.array_equal(frame, truth.pop(sop))
    assert not truth


def test_what_the_segments_say(tmp_path: Path) -> None:
    scan = source(tmp_path / "in")
    seg = pydicom.dcmread(written(scan, blobs(), tmp_path / "out", "dicom-seg")["dicom-seg"])
    assert [segment.SegmentLabel for segment in seg.SegmentSequence] == [label.name for label in NAMES]
    types = [segment.SegmentedPropertyTypeCodeSequence[0] for segment in seg.SegmentSequence]
    assert (types[0].CodeValue, types[0].CodingSchemeDesignator) == ("64033007", "SCT")
    assert types[0].SegmentedPropertyTypeModifierCodeSequence[0].CodeValue == codes.SCT.Left.value
    assert types[1].CodeValue == "10200004" and types[2].CodingSchemeDesignator == PRIVATE_SCHEME
    assert types[3].CodeValue == "49755003"
    algorithm = seg.SegmentSequence[0].SegmentationAlgorithmIdentificationSequence[0]
    assert algorithm.AlgorithmName == "tiny" and "ab" * 32 in algorithm.AlgorithmParameters
    assert algorithm.AlgorithmVersion == "1.2"
    colour = hd.color.CIELabColor(*_lab(seg.SegmentSequence[0].RecommendedDisplayCIELabValue))
    assert np.abs(np.subtract(colour.to_rgb(), NAMES[0].colour)).max() <= 2
    assert seg.ReferencedSeriesSequence[0].SeriesInstanceUID == uid("series")
    assert len(seg.ReferencedSeriesSequence[0].ReferencedInstanceSequence) == COUNT
    assert seg.StudyInstanceUID == uid("study") and seg.PatientID == "4711007"
    assert "research use only" in seg.SeriesDescription


def _lab(stored: list[int]) -> tuple[float, float, float]:
    """PS3.3 C.10.7.1.1."""
    return stored[0] * 100 / 65535, stored[1] * 255 / 65535 - 128, stored[2] * 255 / 65535 - 128


ALL = ("dicom-seg", "dicom-labelmap", "dicom-sr", "dicom-sc")


def test_the_same_job_gives_the_same_bytes(tmp_path: Path) -> None:
    first = written(source(tmp_path / "a"), blobs(), tmp_path / "one", *ALL)
    second = written(source(tmp_path / "b", prefix="else"), blobs(), tmp_path / "two", *ALL)
    other = written(source(tmp_path / "a"), blobs(5), tmp_path / "three", *ALL)
    for kind in ALL:
        assert first[kind].read_bytes() == second[kind].read_bytes()
        uids = [pydicom.dcmread(files[kind]).SOPInstanceUID for files in (first, other)]
        assert uids[0] != uids[1]
    uids = [pydicom.dcmread(path).SOPInstanceUID for path in first.values()]
    assert len(set(uids)) == len(ALL) and all(uid.startswith("2.25.") and len(uid) <= 64 for uid in uids)


def test_the_report_measures_and_refers(tmp_path: Path) -> None:
    scan = source(tmp_path / "in")
    files = written(scan, blobs(), tmp_path / "out", "dicom-seg", "dicom-sr")
    report = hd.sr.srread(files["dicom-sr"])
    groups = report.content.get_volumetric_roi_measurement_groups()
    counts = np.bincount(blobs().ravel(), minlength=5)[1:]
    for group, count, label in zip(groups, counts, NAMES, strict=True):
        volume = group.get_measurements(name=codes.SCT.Volume)[0]
        assert volume.value == pytest.approx(count * 9e-3, rel=1e-6) and volume.unit.value == "mL"
        assert (
            group.referenced_segment.referenced_sop_instance_uid == pydicom.dcmread(files["dicom-seg"]).SOPInstanceUID
        )
        assert int(group.referenced_segment.referenced_segment_numbers[0]) == label.value
    assert report.get("ContentTemplateSequence")[0].TemplateIdentifier == "1500"


def test_the_capture_is_marked(tmp_path: Path) -> None:
    from PIL import Image, ImageDraw, ImageFont

    from dropgen_rt.picture import INK, MARGIN_PX, PAPER

    path = written(source(tmp_path / "in"), blobs(), tmp_path / "out", "dicom-sc")["dicom-sc"]
    capture = pydicom.dcmread(path)
    strip = Image.new("RGB", (capture.Columns, 40), PAPER)
    ImageDraw.Draw(strip).text(
        (MARGIN_PX, MARGIN_PX // 2), "RESEARCH USE ONLY - NOT FOR DIAGNOSIS", INK, ImageFont.load_default(size=14)
    )
    width = 250  # the words of the mark themselves
    assert np.array_equal(capture.pixel_array[:30, :width], np.asarray(strip)[:30, :width])
    assert capture.BurnedInAnnotation == "NO" and capture.Modality == "OT"
    assert "research use only" in capture.SeriesDescription


@pytest.mark.parametrize(
    ("orientation", "shown"),
    [((1, 0, 0, 0, 1, 0), ["L", "P"]), ((1, 0, 0, 0, 0, -1), ["L", "F"]), ((0, 1, 0, 0, 0, -1), ["P", "F"])],
)
def test_the_capture_shows_the_scans_own_slices(tmp_path: Path, orientation: tuple, shown: list) -> None:
    """The labelled corner of each tile lies where that part of the patient is shown: right below is left behind."""
    scan = source(tmp_path / "in", orientation=orientation)
    labels = np.zeros_like(blobs())
    labels[:, ROWS // 2 :, COLUMNS // 2 :] = 2  # the end of rows and of columns, which lies to the right and below
    capture = pydicom.dcmread(written(scan, labels, tmp_path / "out", "dicom-sc")["dicom-sc"])
    assert list(capture.PatientOrientation) == shown
    tile = capture.pixel_array[46:246, :200].astype(int)
    red = (tile[..., 0] - tile[..., 1] > 40) & (tile[..., 0] > 90)
    rows, columns = np.nonzero(red)
    assert red.any() and rows.mean() > 90 and columns.mean() > 100


def test_no_labels_at_all(tmp_path: Path) -> None:
    scan = source(tmp_path / "in")
    files = written(scan, np.zeros_like(blobs()), tmp_path / "out", *ALL)
    assert not pydicom.dcmread(files["dicom-seg"]).pixel_array.any()


def test_a_wrong_object_is_found_before_it_is_renamed(tmp_path: Path) -> None:
    scan = source(tmp_path / "in")
    path = written(scan, blobs(), tmp_path / "out", "dicom-seg")["dicom-seg"]
    result = result_of(scan, blobs(1))
    job = WritingJob(scan, blobs(1), NAMES, result.record, read_sources(scan))
    with pytest.raises(VerificationError, match="voxels differ"):
        check(path, job)


def test_anonymised_sources(tmp_path: Path) -> None:
    """Attributes that an anonymiser removes are not needed, but for the identifiers."""

    def edit(dataset: pydicom.Dataset, number: int) -> None:
        for keyword in ("PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyDate", "StudyTime",
                        "StudyID", "AccessionNumber", "ReferringPhysicianName", "SliceThickness", "SeriesDate",
                        "FrameOfReferenceUID", "SpecificCharacterSet", "Laterality"):  # fmt: skip
            delattr(dataset, keyword)

    scan = source(tmp_path / "in", edit=edit)
    written(scan, blobs(), tmp_path / "out", *ALL)


@pytest.mark.parametrize("label", NAMES)
def test_every_label_has_a_code(label: Label) -> None:
    code, _ = property_type(label)
    assert code.value and code.scheme_designator and code.meaning and len(code.value) <= 16
    assert property_category(label).value


@pytest.mark.parametrize(
    ("name", "value", "side"),
    [("thalamus", "42695009", None), ("Spleen", "78961009", None), ("right kidney", "64033007", "24028007"),
     ("kidneys", "64033007", None), ("Brain stem", "119238007", None), ("cerebral cortex", "40146001", None)],
)  # fmt: skip
def test_names_are_looked_up_in_snomed(name: str, value: str, side: str | None) -> None:
    code, found = property_type(Label(1, name, (0, 0, 0)))
    assert (code.value, found.value if found else None) == (value, side)


@needs("data/dicom")
@pytest.mark.parametrize("series", ["siemens/anatomical/001", "philips_enhanced/anatomical/001",
                                    "siemens_multiframe/anatomical/001", "failing/gantrytilting/001"])  # fmt: skip
def test_real_series_take_a_segmentation(tmp_path: Path, series: str) -> None:
    scan = read_dicom(DATA / "dicom" / series)
    labels = (scan.volume.array[0] > np.percentile(scan.volume.array[0], 60)).astype(np.uint8)
    labels += scan.volume.array[0] > np.percentile(scan.volume.array[0], 90)
    files = {kind: tmp_path / f"{kind}.dcm" for kind in ALL}
    write_objects(scan, result_of(scan, labels), model(), files)  # reads everything back
    assert all(path.stat().st_size > 1000 for path in files.values())

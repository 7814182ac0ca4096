"""Segmentations, reports and captures of DICOM series: what they hold, the same bytes each time."""

import warnings
from dataclasses import replace
from pathlib import Path

import highdicom as hd
import numpy as np
import pydicom
import pytest
from dicom_objects import ALL, COLUMNS, COUNT, NAMES, ROWS, blobs, model, result_of, source, written
from dicom_series import enhanced, positions, save, uid
from pydicom.sr.codedict import codes
from shared_data import DATA, needs

from dropgen_rt.dicom.catalogue import IMAGE_CLASSES
from dropgen_rt.dicom.codes import PRIVATE_SCHEME, property_category, property_type
from dropgen_rt.dicom.job import WritingJob
from dropgen_rt.dicom.read import read_dicom
from dropgen_rt.dicom.segmentation import check
from dropgen_rt.dicom.sources import read_sources
from dropgen_rt.dicom.write import write_objects
from dropgen_rt.errors import VerificationError
from dropgen_rt.manifest import Label


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


@pytest.mark.parametrize("sop_class", [uid for uid, name in IMAGE_CLASSES.items() if name not in ("CT", "MR", "PET")])
def test_every_kind_of_multi_frame_image_takes_all_objects(tmp_path: Path, sop_class: str) -> None:
    array = np.random.default_rng(1).integers(0, 900, (COUNT, ROWS, COLUMNS)).astype(np.int16)
    dataset = enhanced(array)
    dataset.SOPClassUID, dataset.Modality = sop_class, "CT" if "CT" in IMAGE_CLASSES[sop_class] else "MR"
    files = written(read_dicom(save(dataset, tmp_path / "e.dcm")), blobs(), tmp_path / "out", *ALL)
    for path in files.values():
        assert pydicom.dcmread(path).StudyInstanceUID == dataset.StudyInstanceUID


def test_a_pet_series_takes_all_objects(tmp_path: Path) -> None:
    def edit(dataset: pydicom.Dataset, number: int) -> None:
        dataset.SOPClassUID, dataset.Modality = "1.2.840.10008.5.1.4.1.1.128", "PT"
        dataset.RescaleSlope, dataset.RescaleIntercept = f"{0.5 + number / 8}", "0"

    written(source(tmp_path / "in", modality="MR", edit=edit), blobs(), tmp_path / "out", *ALL)


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


@pytest.mark.parametrize(
    ("character_set", "name"),
    [(None, "CANARY^BIRD"), ("ISO_IR 100", "Müller^Jörg"), ("GB18030", "Wang^XiaoDong=王^小东"),
     (["", "ISO 2022 IR 87"], "Yamada^Tarou=山田^太郎=やまだ^たろう"),
     (["", "ISO 2022 IR 149"], "Hong^Gildong=洪^吉洞=홍^길동"),
     ("ISO_IR 13", "ﾔﾏﾀﾞ^ﾀﾛｳ"), ("ISO_IR 192", "Люксембург"), ("nonsense", "CANARY^BIRD")],
)  # fmt: skip
def test_names_keep_their_letters(tmp_path: Path, character_set: str | list[str] | None, name: str) -> None:
    """The patient's in any character set, and a label's beside it."""

    def edit(dataset: pydicom.Dataset, number: int) -> None:
        dataset.SpecificCharacterSet, dataset.PatientName = character_set, name

    def named(path: Path) -> str:
        return str(pydicom.dcmread(path).PatientName)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pydicom does not know nonsense
        scan = source(tmp_path / "in", edit=edit)
    labels = (replace(NAMES[0], name="Schläfenlappen 顳葉"), *NAMES[1:])
    files = written(scan, blobs(), tmp_path / "out", *ALL, names=labels)
    assert {named(path) for path in files.values()} == {name}
    assert pydicom.dcmread(files["dicom-seg"]).SegmentSequence[0].SegmentLabel == labels[0].name
    group = hd.sr.srread(files["dicom-sr"]).content.get_volumetric_roi_measurement_groups()[0]
    assert labels[0].name in group.tracking_identifier


@pytest.mark.parametrize(
    ("keyword", "value"),
    [("PatientSex", "Male"), ("PatientSex", "W"), ("PatientBirthDate", "unknown"), ("StudyDate", "20.01.2020"),
     ("StudyTime", "noon")],
)  # fmt: skip
def test_what_the_standard_does_not_allow_is_left_empty(tmp_path: Path, keyword: str, value: str) -> None:
    def edit(dataset: pydicom.Dataset, number: int) -> None:
        element = dataset[keyword]
        element.validation_mode = pydicom.config.IGNORE
        element.value = value

    files = written(source(tmp_path / "in", edit=edit), blobs(), tmp_path / "out", *ALL)
    for path in files.values():
        made = pydicom.dcmread(path)
        assert not made[keyword].value
        assert made.PatientID == "4711007"


def test_elements_that_cannot_be_parsed_stand_in_no_objects_way(tmp_path: Path) -> None:
    """Private ones, say: bytes that are no sequence. The guarded child that reads headers leaves them as they are."""

    def edit(dataset: pydicom.Dataset, number: int) -> None:
        dataset.add_new(0x00091010, "OB", b"\1\2junk")

    source(tmp_path / "in", edit=edit)
    for path in (tmp_path / "in").iterdir():
        path.write_bytes(path.read_bytes().replace(b"\x09\0\x10\x10OB", b"\x09\0\x10\x10SQ"))
        with pytest.raises(OSError, match="No tag to read"):
            pydicom.dcmread(path).decode()
    files = written(read_dicom(tmp_path / "in"), blobs(), tmp_path / "out", *ALL)
    assert {str(pydicom.dcmread(path).PatientID) for path in files.values()} == {"4711007"}


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

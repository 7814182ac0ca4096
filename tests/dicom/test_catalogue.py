"""Series and stacks told apart, chosen, and refused with the reason; nothing of the patient in any of it."""

import shutil
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pydicom
import pytest
from dicom_series import CANARIES, enhanced, one, positions, save, uid, voxels, write
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate

from dropgen_rt.dicom.catalogue import catalogue
from dropgen_rt.dicom.read import read_dicom
from dropgen_rt.errors import InputError, UnreadableInputError, UnsuitableInputError
from dropgen_rt.manifest import SourceRule


def refused(path: Path, **how: object) -> str:
    """The one line of the refusal, with no canary in it but in the path that was given."""
    with pytest.raises(InputError) as error:
        read_dicom(path, **how)
    text = str(error.value)
    assert "\n" not in text and text.startswith(f"{path}: ") and "; accepted: " in text
    assert not any(canary in text.removeprefix(str(path)) for canary in CANARIES)
    return text


def setting(**values: object) -> Callable[[Dataset, int], None]:
    """An edit that sets attributes in slice 2 only."""

    def edit(dataset: Dataset, number: int) -> None:
        if number == 2:
            for name, value in values.items():
                setattr(dataset, name, value)

    return edit


def everywhere(**values: object) -> Callable[[Dataset, int], None]:
    def edit(dataset: Dataset, number: int) -> None:
        for name, value in values.items():
            setattr(dataset, name, value)

    return edit


MIXED = {
    "patient number": (setting(PatientID="4711008"), "one series with 2 patients"),
    "patient name": (setting(PatientName="CANARY^OTHER"), "one series with 2 patients"),
    "study": (setting(StudyInstanceUID=uid("other")), "one series with 2 studies"),
    "frame of reference": (setting(FrameOfReferenceUID=uid("other")), "one stack with 2 frames of reference"),
    "rescale slope in some": (setting(RescaleSlope=None), "a rescale slope in 5 of 6 slices"),
    "another matrix": (setting(PixelSpacing=[1, 1]), "a gap of 6 mm after slice 2"),
    "another orientation": (setting(ImageOrientationPatient=[0, 1, 0, 0, 0, -1]), "a gap of 6 mm after slice 2"),
    "no position": (setting(ImagePositionPatient=None), "1 of 6 slices without a valid image position"),
    "a position of text": (setting(ImagePositionPatient=["1", "2"]), "1 of 6 slices without a valid image position"),
    "no orientation": (setting(ImageOrientationPatient=None), "a gap of 6 mm after slice 2"),
    "zero spacing": (everywhere(PixelSpacing=[0, 0]), "pixel spacing 0 x 0 mm"),
    "palette colour": (everywhere(PhotometricInterpretation="PALETTE COLOR"), "PALETTE COLOR images"),
    "colour": (everywhere(SamplesPerPixel=3, PhotometricInterpretation="RGB"), "RGB images"),
    "burned in": (everywhere(BurnedInAnnotation="YES"), "images with burned-in text"),
    "mosaic": (everywhere(ImageType=["ORIGINAL", "PRIMARY", "M", "MOSAIC"]), "mosaic images"),
    "frames without groups": (everywhere(NumberOfFrames=3), "multi-frame image without functional groups"),
    "high bit": (everywhere(BitsStored=12, HighBit=15), "12 bits stored in 16, high bit 15"),
    "traversal in the UID": (everywhere(SeriesInstanceUID="../../../etc/x"), "a unique identifier (UID) that is none"),
    "an endless UID": (everywhere(SeriesInstanceUID="1." + "2" * 70), "a unique identifier (UID) that is none"),
    "traversal in one": (setting(SOPInstanceUID="..\\..\\x"), "a unique identifier (UID) that is none"),
    "no image": (everywhere(SOPClassUID="1.2.840.10008.5.1.4.1.1.7"), "Secondary Capture Image Storage"),
    "unknown class": (everywhere(SOPClassUID="1.2.3.CANARY"), "an unknown object, which is not read"),
    "constant": (lambda d, k: setattr(d, "PixelData", bytes(240)), "every voxel is 0"),
}  # fmt: skip


@pytest.mark.parametrize("case", MIXED)
def test_a_series_that_is_not_one(tmp_path: Path, case: str) -> None:
    edit, words = MIXED[case]
    assert words in refused(write(tmp_path, edit=edit))


def test_truncated_pixels(tmp_path: Path) -> None:
    folder = write(tmp_path)
    victim = sorted(folder.iterdir())[3]
    victim.write_bytes(victim.read_bytes()[:-100])
    assert "file 4 of 6 in name order: truncated: 140 of 240 bytes of pixels" in refused(folder)


@pytest.mark.parametrize(
    ("cut", "words"),
    [(400, "truncated: its compressed pixels are not complete"), (None, "its pixels cannot be decoded (RLE Lossless)")],
)
def test_compressed_pixels_that_cannot_be_decoded(tmp_path: Path, cut: int | None, words: str) -> None:
    for number, place in enumerate(positions(6)):
        dataset = one(voxels((6, 40, 40))[number], number, place)
        dataset = pydicom.dcmread(save(dataset, tmp_path / str(number)))
        dataset.compress(pydicom.uid.RLELossless, generate_instance_uid=False)
        dataset.save_as(tmp_path / str(number))
    damaged = tmp_path / "3"
    content = damaged.read_bytes()
    start = content.index(b"\x02\x00\x00\x00\x40\x00\x00\x00")  # two segments, the first at 64
    damaged.write_bytes(content[:-cut] if cut else content[: start + 64] + bytes(400) + content[start + 464 :])
    assert f"file 4 of 6 in name order: {words}" in refused(tmp_path)


def test_a_fragment_longer_than_what_is_there(tmp_path: Path) -> None:
    """What stands behind it, and the delimiter, would be unpacked as pixels: other ones, but as many."""
    for number, place in enumerate(positions(6)):
        dataset = pydicom.dcmread(save(one(voxels()[number], number, place), tmp_path / str(number)))
        dataset.compress(pydicom.uid.RLELossless, generate_instance_uid=False)
        dataset.save_as(tmp_path / str(number))
    content = (tmp_path / "3").read_bytes()
    (tmp_path / "3").write_bytes(content[:-60] + content[-8:])
    assert "file 4 of 6 in name order: truncated: its compressed pixels are not complete" in refused(tmp_path)
    given_length = content.replace(b"OB\0\0\xff\xff\xff\xff", b"OB\0\0\xff\xff\x3e\xff")
    (tmp_path / "3").write_bytes(given_length)
    assert "truncated: its compressed pixels are not complete" in refused(tmp_path)
    (tmp_path / "3").write_bytes(content[:-8])  # only the delimiter is missing
    assert np.array_equal(read_dicom(tmp_path).volume.array[0], voxels())


def test_a_transfer_syntax_without_decoder(tmp_path: Path) -> None:
    def edit(dataset: Dataset, number: int) -> None:
        dataset.PixelData = encapsulate([dataset.PixelData])
        dataset["PixelData"].is_undefined_length = True

    write(tmp_path, syntax="1.2.840.10008.1.2.4.100", edit=edit)
    assert "pixels stored as MPEG2 Main Profile" in refused(tmp_path)


def test_a_damaged_header_stops_the_series(tmp_path: Path) -> None:
    """Its series cannot be known, so it may be a slice of this one, at an end where no gap would show."""
    folder = write(tmp_path)
    damaged = folder / "zz.dcm"
    damaged.write_bytes(bytes(128) + b"DICM" + b"\x02\x00\x00\x00UL\x04\x00" + b"\xff" * 300)
    assert "1 damaged DICOM files (file 7 of 7 in name order)" in refused(folder)


def test_junk_is_left_out_and_counted(tmp_path: Path) -> None:
    folder = write(tmp_path)
    (folder / "notes.txt").write_text("CANARY")
    (folder / "empty.dcm").touch()
    (folder / "sub").mkdir()
    (folder / "sub" / "image.png").write_bytes(b"\x89PNG" * 99)
    assert dict(catalogue(folder).left_out) == {"not a DICOM file": 3}
    assert np.array_equal(read_dicom(folder).volume.array[0], voxels())


def test_the_same_file_twice_is_one(tmp_path: Path) -> None:
    folder = write(tmp_path)
    shutil.copy(sorted(folder.iterdir())[2], folder / "copy.dcm")
    assert dict(catalogue(folder).left_out) == {"a second copy of a slice": 1}
    assert read_dicom(folder).volume.array.shape[1] == 6


def test_one_identifier_for_two_files(tmp_path: Path) -> None:
    folder = write(tmp_path)
    dataset = pydicom.dcmread(sorted(folder.iterdir())[2])
    dataset.PixelData = bytes(240)
    dataset.save_as(folder / "other.dcm")
    assert "two different files with one SOP Instance UID" in refused(folder)


def test_the_same_slice_under_two_identifiers(tmp_path: Path) -> None:
    folder = write(tmp_path)
    dataset = pydicom.dcmread(sorted(folder.iterdir())[2])
    dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = uid("again")
    dataset.save_as(folder / "again.dcm")
    scan = read_dicom(folder)
    assert scan.volume.array.shape[1] == 6
    assert "1 repeated slices with the same pixels are ignored" in scan.warnings


def test_another_slice_in_the_same_place(tmp_path: Path) -> None:
    folder = write(tmp_path)
    dataset = pydicom.dcmread(sorted(folder.iterdir())[2])
    dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = uid("again")
    dataset.PixelData = bytes(240)
    dataset.save_as(folder / "again.dcm")
    assert "1 places with 2 slices" in refused(folder)


def four_d(folder: Path, **keys: list[object]) -> Path:
    """Three volumes in one series, told apart by attributes."""
    for time in range(3):
        for number, place in enumerate(positions(6)):
            dataset = one(voxels()[number] + time, number, place, modality="MR")
            dataset.SOPInstanceUID = uid("4d", time, number)
            dataset.InstanceNumber = time * 6 + number + 1
            for name, values in keys.items():
                setattr(dataset, name, values[time])
            save(dataset, folder / f"{time}_{number}")
    return folder


@pytest.mark.parametrize(
    ("keys", "shown"),
    [
        ({"TemporalPositionIdentifier": [1, 2, 3]}, "time point 2"),
        ({"EchoTime": [3, 6, 9]}, "echo time 6"),
        ({"DiffusionBValue": [0.0, 500.0, 1000.0]}, "b-value 500"),
        ({"ImageType": [["ORIGINAL", "PRIMARY", kind] for kind in ("M", "P", "R")]}, "image type ORIGINAL\\PRIMARY\\P"),
        ({"AcquisitionNumber": [1, 2, 3]}, "acquisition 2"),
        ({"AcquisitionTime": ["101010", "101020", "101030"]}, "part 2 of 3"),
        ({"EchoNumbers": [1, 1, 2], "TriggerTime": [0, 50, 0]}, "echo number 1, trigger delay 50"),
    ],
)
def test_volumes_of_one_series_are_listed_and_can_be_named(tmp_path: Path, keys: dict, shown: str) -> None:
    folder = four_d(tmp_path, **keys)
    text = refused(folder)
    assert "3 possible stacks: " in text and shown in text and "--series UID" in text
    second = read_dicom(folder, f"{uid('series')}:2")
    assert np.array_equal(second.volume.array[0], voxels() + 1)
    assert "3 stacks" in refused(folder, series=uid("series"))


def test_volumes_that_nothing_tells_apart(tmp_path: Path) -> None:
    assert "12 places with 2 slices" in refused(four_d(tmp_path))


def test_a_localiser_in_the_series_is_left_out(tmp_path: Path) -> None:
    folder = write(tmp_path)
    dataset = one(voxels((1, 40, 40))[0], 77, positions(1)[0], orientation=(1, 0, 0, 0, 0, -1))
    dataset.ImageType = ["ORIGINAL", "PRIMARY", "LOCALIZER"]
    save(dataset, folder / "localiser")
    found = catalogue(folder)
    assert [item.planning for item in found.candidates].count(True) == 1
    assert np.array_equal(read_dicom(folder).volume.array[0], voxels())


def two_series(folder: Path) -> Path:
    write(folder / "one", series="one", modality="MR", edit=everywhere(BodyPartExamined="HEAD"))
    write(folder / "two", voxels((9, 10, 12)), series="two", edit=everywhere(BodyPartExamined="ABDOMEN"))
    return folder


def test_several_series_are_listed_and_can_be_named(tmp_path: Path) -> None:
    folder = two_series(tmp_path)
    text = refused(folder)
    assert f"{uid('one')} (MR HEAD 12 x 10 x 6)" in text and f"{uid('two')} (CT ABDOMEN 12 x 10 x 9)" in text
    assert read_dicom(folder, uid("one")).slices[0].header.modality == "MR"
    assert f"no series '{uid('none')}'" in refused(folder, series=uid("none"))


@pytest.mark.parametrize(
    ("rule", "slices"),
    [
        (SourceRule(modality=("MR",)), 6),
        (SourceRule(modality=("CT", "PT")), 9),
        (SourceRule(body_part=("abdomen",)), 9),
        (SourceRule(pick="thickest"), 9),
    ],
)
def test_the_models_rule_chooses(tmp_path: Path, rule: SourceRule, slices: int) -> None:
    assert len(read_dicom(two_series(tmp_path), rule=rule).slices) == slices


@pytest.mark.parametrize("rule", [SourceRule(modality=("PT",)), SourceRule(image_type=("!PRIMARY",))])
def test_a_rule_that_nothing_fits(tmp_path: Path, rule: SourceRule) -> None:
    assert "no series that the model takes" in refused(two_series(tmp_path), rule=rule)


def test_where_no_stack_can_be_used_the_reason_is_told(tmp_path: Path) -> None:
    """To name a series would not help."""
    folder = write(tmp_path / "gap", voxels())
    sorted(folder.iterdir())[2].unlink()
    assert "no series that the model takes" not in refused(folder, rule=SourceRule(modality=("PT",)))


def test_the_thickest_stack_is_not_passed_over_for_a_gap(tmp_path: Path) -> None:
    folder = two_series(tmp_path)
    next(path for path in (folder / "two").iterdir() if path.name.endswith("_4.dcm")).unlink()
    assert "a gap of 6 mm" in refused(folder, rule=SourceRule(pick="thickest"))


def test_missing_instance_numbers_are_warned_of(tmp_path: Path) -> None:
    numbers = [1, 2, 3, 4, 5, 9]
    scan = read_dicom(write(tmp_path, edit=lambda d, k: setattr(d, "InstanceNumber", numbers[k])))
    assert scan.warnings[0] == "instance numbers 1 to 9 for 6 slices: some may be missing at an end"


def test_enhanced_time_points(tmp_path: Path) -> None:
    dataset = enhanced(np.concatenate([voxels(), voxels() + 5]))
    for frame, group in enumerate(dataset.PerFrameFunctionalGroupsSequence):
        place = positions(6)[frame % 6].tolist()
        group.PlanePositionSequence[0].ImagePositionPatient = place
        group.FrameContentSequence[0].TemporalPositionIndex = 1 + frame // 6
    path = save(dataset, tmp_path / "e.dcm")
    assert "2 possible stacks" in refused(path)
    assert np.array_equal(read_dicom(path, f"{uid('enhanced')}:2").volume.array[0], voxels() + 5)


def test_an_enhanced_image_with_too_few_groups(tmp_path: Path) -> None:
    dataset = enhanced(voxels())
    dataset.NumberOfFrames = 2**31 - 1
    assert "1 x a damaged DICOM file" in refused(save(dataset, tmp_path / "e.dcm"))


def with_element(path: Path, element: bytes) -> bytes:
    """The bytes of a file with an element put in before those of the patient."""
    content = path.read_bytes()
    place = content.index(b"\x10\x00\x10\x00PN")
    return content[:place] + element + content[place:]


def test_a_deflated_bomb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A few hundred kilobytes that inflate to many times that as soon as the header is read."""
    monkeypatch.setattr("dropgen_rt.dicom.catalogue.HEADER_MEMORY_BYTES", 2**26)
    plain = save(one(voxels()[0], 50, positions(1)[0]), tmp_path / "plain").read_bytes()
    meta = plain[: plain.index(b"\x08\x00\x05\x00CS")]
    place = meta.index(b"\x02\x00\x10\x00UI")
    syntax = b"1.2.840.10008.1.2.1.99"
    meta = meta[:place] + b"\x02\x00\x10\x00UI" + struct.pack("<H", len(syntax)) + syntax + meta[place + 8 + 20 :]
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    element = struct.pack("<HH2sHI", 0x0009, 0x1010, b"OB", 0, 2**28)
    packed = [packer.compress(element), packer.compress(bytes(2**28)), packer.flush()]
    folder = write(tmp_path / "series")
    (folder / "zz").write_bytes(meta + b"".join(packed))
    text = refused(folder)
    assert "the header of file 7 of 7 in name order cannot be parsed: it needs more than 0.062" in text


@pytest.mark.parametrize("levels", [20, 20000])
def test_deeply_nested_sequences(tmp_path: Path, levels: int) -> None:
    """Read or refused: never a crash, and in no time."""
    open_item = struct.pack("<HH2sHI", 0x0009, 0x1140, b"SQ", 0, 0xFFFFFFFF) + struct.pack(
        "<HHI", 0xFFFE, 0xE000, 0xFFFFFFFF
    )
    close_item = struct.pack("<HHI", 0xFFFE, 0xE00D, 0) + struct.pack("<HHI", 0xFFFE, 0xE0DD, 0)
    folder = write(tmp_path)
    victim = sorted(folder.iterdir())[0]
    victim.write_bytes(with_element(victim, open_item * levels + close_item * levels))
    if levels < 1000:
        assert np.array_equal(read_dicom(folder).volume.array[0], voxels())
    else:
        assert "file 1 of 6 in name order" in refused(folder)


def test_nothing_to_read(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("x")
    assert "no DICOM files (1 others)" in refused(tmp_path)
    (tmp_path / "a.dcm").write_text("x" * 500)
    with pytest.raises(UnreadableInputError, match="not a DICOM file"):
        read_dicom(tmp_path / "a.dcm")


def test_one_file_of_a_series(tmp_path: Path) -> None:
    folder = write(tmp_path)
    with pytest.raises(UnsuitableInputError, match="a single image"):
        read_dicom(next(folder.iterdir()))


def test_a_name_written_two_ways_is_one_patient(tmp_path: Path) -> None:
    assert len(read_dicom(write(tmp_path, edit=setting(PatientName="Canary^Bird^^"))).slices) == 6

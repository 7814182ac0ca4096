"""Rows of bad_scans.py for DICOM: series, single files and archives that are refused. Build functions take nothing.

The patient in all of them is the canary of dicom_series.py; test_refusals.py listens for it.
"""

import io
import struct
import zipfile
from collections.abc import Callable

import numpy as np
from dicom_series import enhanced, one, positions, uid, voxels
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import ExplicitVRLittleEndian

Files = dict[str, bytes]
Edit = Callable[[Dataset, int], None]
Rows = list[tuple[str, Callable[[], bytes | Files], str]]


def content(dataset: Dataset, syntax: str = ExplicitVRLittleEndian) -> bytes:
    """The bytes of a DICOM file, whose meta header is its own."""
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = dataset.SOPClassUID
    meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    meta.TransferSyntaxUID = syntax
    dataset.file_meta = meta
    buffer = io.BytesIO()
    dataset.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def series(
    folder: str, edit: Edit | None = None, places: np.ndarray | None = None, syntax: str = ExplicitVRLittleEndian,
    modality: str = "CT",
) -> Files:  # fmt: skip
    """One file per slice, in the order of their places."""
    places = positions(6) if places is None else places
    found = {}
    for number, place in enumerate(places):
        dataset = one(voxels((len(places), 10, 12))[number], number, place, modality=modality)
        if edit is not None:
            edit(dataset, number)
        found[f"{folder}/{number}.dcm"] = content(dataset, syntax)
    return found


def setting(only: int | None = None, **values: object) -> Edit:
    """An edit that sets attributes, in all slices or in one."""

    def edit(dataset: Dataset, number: int) -> None:
        if only in (None, number):
            for name, value in values.items():
                setattr(dataset, name, value)

    return edit


def element_of_type(tag: int, vr: str) -> Edit:
    """An edit that gives an element another type, and two numbers of it."""

    def edit(dataset: Dataset, number: int) -> None:
        del dataset[tag]
        dataset.add_new(tag, vr, [2, 3])

    return edit


def without(name: str) -> Edit:
    return lambda dataset, number: delattr(dataset, name)


def changed(folder: str, change: Callable[[bytes], bytes]) -> Files:
    """A good series, of which the bytes of the first slice are changed: without it no gap would show."""
    files = series(folder)
    files[f"{folder}/0.dcm"] = change(files[f"{folder}/0.dcm"])
    return files


def fourth_moved(by_mm: tuple[float, float, float]) -> np.ndarray:
    places = positions(6)
    places[3] += by_mm
    return places


def nested(data: bytes, levels: int = 20_000) -> bytes:
    """Sequences within sequences, of undefined length, before the patient's name."""
    start = struct.pack("<HH2sHIHHI", 0x0009, 0x1140, b"SQ", 0, 0xFFFFFFFF, 0xFFFE, 0xE000, 0xFFFFFFFF)
    end = struct.pack("<HHIHHI", 0xFFFE, 0xE00D, 0, 0xFFFE, 0xE0DD, 0)
    place = data.index(b"\x10\x00\x10\x00PN")
    return data[:place] + start * levels + end * levels + data[place:]


def archive(files: Files, rename: Callable[[str], str] = str) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as packed:
        for name, data in files.items():
            packed.writestr(rename(name), data)
    return buffer.getvalue()


def sizes_declared(data: bytes, size: int) -> bytes:
    """An archive whose directory says that each member unpacks to ``size`` bytes."""
    patched, place = bytearray(data), data.find(b"PK\x01\x02")
    while place >= 0:
        patched[place + 24 : place + 28] = size.to_bytes(4, "little")
        place = data.find(b"PK\x01\x02", place + 4)
    return bytes(patched)


def gapped(folder: str) -> Files:
    files = series(folder)
    del files[f"{folder}/3.dcm"]
    return files


def twice(folder: str, **values: object) -> Files:
    """A series with another slice in the place of slice 2."""
    again = one(voxels()[5], 2, positions(6)[2])
    again.SOPInstanceUID = uid("again")
    setting(**values)(again, 0)
    return {**series(folder), f"{folder}/again.dcm": content(again)}


def two_series(folder: str) -> Files:
    return {**series(f"{folder}/a"), **series(f"{folder}/b", lambda d, k: rename_series(d, k))}


def rename_series(dataset: Dataset, number: int, name: str = "") -> None:
    dataset.SeriesInstanceUID = name or uid("other series")
    dataset.SOPInstanceUID = uid("other series", number)


def two_images(folder: str) -> Files:
    """A localiser and another, at right angles."""
    files = {}
    for number, orientation in enumerate([(1, 0, 0, 0, 0, -1), (0, 1, 0, 0, 0, -1)]):
        dataset = one(voxels()[number], number, positions(1)[0], orientation=orientation)
        dataset.ImageType = ["ORIGINAL", "PRIMARY", "LOCALIZER"]
        files[f"{folder}/{number}.dcm"] = content(dataset)
    return files


def lookup_table(dataset: Dataset, number: int) -> None:
    del dataset.RescaleSlope, dataset.RescaleIntercept
    table = Dataset()
    table.LUTDescriptor, table.ModalityLUTType, table.LUTData = [256, 0, 16], "US", bytes(512)
    dataset.ModalityLUTSequence = [table]


def as_mpeg(dataset: Dataset, number: int) -> None:
    dataset.PixelData = encapsulate([dataset.PixelData])
    dataset["PixelData"].is_undefined_length = True


def rle_of_nothing(dataset: Dataset, number: int) -> None:
    dataset.PixelData = encapsulate([bytes(64) + b"\x80" * 6])
    dataset["PixelData"].is_undefined_length = True


def without_mark(data: bytes) -> bytes:
    return data.replace(b"DICM", b"DICX", 1)


MPEG2, RLE = "1.2.840.10008.1.2.4.100", "1.2.840.10008.1.2.5"
MEMBERS = {f"m{number}": b"" for number in range(3)}

# What SimpleITK's or pydicom's readers make of the row stands above it, where they do not refuse it.
UNREADABLE: Rows = [
    ("empty.dcm", lambda: b"", "an empty file"),
    ("text.dcm", lambda: b"hello\n" * 200, "not a DICOM file"),
    ("markless.dcm", lambda: without_mark(series("x")["x/0.dcm"]), "not a DICOM file"),
    # a volume of one slice less
    ("meta", lambda: changed("meta", lambda d: d[:200]), "a file of this series without pixels"),
    ("cut", lambda: changed("cut", lambda d: d[:-100]), "file 1 of 6 in name order: truncated: 140 of 240 bytes"),
    # read to the end of the file, whatever the length says
    ("long_pixels", lambda: changed("long_pixels", lambda d: d.replace(b"OW\0\0\xf0\0\0\0", b"OW\0\0\0\0\0\xf0")),
     "file 1 of 6 in name order: truncated: 240 of"),
    # 0 in its place
    ("intercept", lambda: changed("intercept", lambda d: d.replace(b"\x52\x10DS\2\0000 ", b"\x52\x10DS\2\000a ")),
     "damaged DICOM files"),
    # pydicom has no value for it, others take it as text
    ("place_type", lambda: changed("place_type", lambda d: d.replace(b"\x20\0\x32\0DS", b"\x20\0\x32\0XX")),
     "damaged DICOM files"),
    ("rows_type", lambda: changed("rows_type", lambda d: d.replace(b"\x28\0\x10\0US", b"\x28\0\x10\0UI")),
     "damaged DICOM files"),
    ("cut_header", lambda: changed("cut_header", lambda d: d[:600]), "a file of this series without pixels"),
    ("giant", lambda: series("giant", setting(Rows=65535, Columns=65535)), "truncated: 240 of 8589672450 bytes"),
    ("marked_junk", lambda: {**series("marked_junk"), "marked_junk/z": bytes(128) + b"DICM" + b"\xff" * 300},
     "1 damaged DICOM files (file 7 of 7 in name order)"),
    ("nested", lambda: changed("nested", nested), "file 1 of 6 in name order"),
    ("rle", lambda: series("rle", rle_of_nothing, syntax=RLE), "its pixels cannot be decoded (RLE Lossless)"),
    ("nothing.zip", lambda: b"PK\x03\x04" + bytes(50), "ZIP archive"),
    ("text.zip", lambda: b"hello\n" * 200, "ZIP archive"),
    ("cut.zip", lambda: archive(series("x"))[:-30], "ZIP archive"),
    ("no_dicom.zip", lambda: archive({"a.txt": b"hello"}), "not a DICOM file"),
    # members that are larger than they say
    ("bomb.zip", lambda: sizes_declared(archive({"a": bytes(2**22)}), 10), "damaged or unusual ZIP archive"),
    # leads out of the folder, and would be written there
    ("traversal.zip", lambda: archive({"../../a.dcm": b"x" * 400, "/etc/b.dcm": b"x" * 400}), "not a DICOM file"),
]  # fmt: skip

NO_SERIES: Rows = [
    ("meta.dcm", lambda: series("x")["x/0.dcm"][:200], "1 x an image without pixels"),
    ("single", lambda: {"single/a.dcm": series("x")["x/0.dcm"]}, "a single image"),
    ("single.dcm", lambda: series("x")["x/0.dcm"], "a single image"),
    ("localisers", lambda: two_images("localisers"), "no volume, only single images or localisers"),
    ("two", lambda: two_series("two"), "2 possible stacks"),
    # one volume of two patients
    ("patients", lambda: series("patients", setting(2, PatientID="4711008")), "one series with 2 patients"),
    ("names", lambda: series("names", setting(2, PatientName="CANARY^OTHER")), "one series with 2 patients"),
    ("studies", lambda: series("studies", setting(2, StudyInstanceUID=uid("else"))), "one series with 2 studies"),
    ("same_uid", lambda: twice("same_uid", SOPInstanceUID=uid("series", 2)), "two different files with one SOP"),
    ("uid_path", lambda: series("uid_path", setting(SeriesInstanceUID="../../../etc/x")), "(UID) that is none"),
    ("uid_long", lambda: series("uid_long", setting(SeriesInstanceUID="1." + "2" * 70)), "(UID) that is none"),
    # a name in the place of a UID, which a list of the series would repeat
    ("uid_name", lambda: {**series("uid_name/a", setting(SeriesInstanceUID="CANARY^BIRD")),
                          **series("uid_name/b", lambda d, k: rename_series(d, k, "CANARY\x10"))},
     "a unique identifier (UID) that is none"),
    ("uid_beside", lambda: {**series("uid_beside/a"),
                            **series("uid_beside/b", lambda d, k: rename_series(d, k, "CANARY\x10"))},
     "invalid (CT HEAD 12 x 10 x 6)"),
    # a volume of one of the colours, or of vectors
    ("rgb", lambda: series("rgb", setting(SamplesPerPixel=3, PhotometricInterpretation="RGB")), "RGB images"),
    ("palette", lambda: series("palette", setting(PhotometricInterpretation="PALETTE COLOR")), "PALETTE COLOR images"),
    ("burned_in", lambda: series("burned_in", setting(BurnedInAnnotation="YES")), "images with burned-in text"),
    ("mosaic", lambda: series("mosaic", setting(ImageType=["ORIGINAL", "PRIMARY", "M", "MOSAIC"])), "mosaic images"),
    ("frames", lambda: series("frames", setting(NumberOfFrames=3)), "multi-frame image without functional groups"),
    ("capture", lambda: series("capture", setting(SOPClassUID="1.2.840.10008.5.1.4.1.1.7")), "Secondary Capture"),
    ("no_pixels", lambda: series("no_pixels", without("PixelData")), "6 x an image without pixels"),
    # four spacings of shorts, the text's bytes
    ("spacing_type", lambda: series("spacing_type", element_of_type(0x00280030, "US")), "6 x a damaged DICOM file"),
    ("bits", lambda: series("bits", setting(BitsAllocated=12)), "16 bits stored in 12"),
    ("stored", lambda: series("stored", setting(BitsStored=0)), "0 bits stored in 16, high bit 15"),
    ("many_bits", lambda: series("many_bits", setting(BitsStored=40, HighBit=39)), "40 bits stored in 16"),
    # stored values, as if there were no table
    ("table", lambda: series("table", lookup_table), "values behind a modality lookup table"),
    ("high_bit", lambda: series("high_bit", setting(BitsStored=12, HighBit=15)), "12 bits stored in 16, high bit 15"),
    # taken as unsigned
    ("no_sign", lambda: series("no_sign", without("PixelRepresentation")), "no pixel representation"),
    ("odd_sign", lambda: series("odd_sign", setting(PixelRepresentation=3)), "pixel representation 3"),
    ("no_rows", lambda: series("no_rows", setting(Rows=0)), "images without a size"),
    ("mpeg", lambda: series("mpeg", as_mpeg, syntax=MPEG2), "pixels stored as MPEG2 Main Profile"),
    # its text is printed
    ("syntax", lambda: {name: data.replace(b"1.2.840.10008.1.2.1\0", b"CANARY.10008.1.2.1 \0")
                        for name, data in series("syntax").items()}, "pixels stored as an unknown transfer syntax"),
    ("constant", lambda: series("constant", setting(PixelData=bytes(240))), "every voxel is 0"),
    # the slices without one are not rescaled
    ("some_scaled", lambda: series("some_scaled", setting(2, RescaleSlope=None)), "a rescale slope in 5 of 6 slices"),
    # 9 GiB from a few hundred bytes
    ("vast.zip", lambda: sizes_declared(archive(MEMBERS), 3 * 2**30), "3 files of 9.0 GiB in all"),
]  # fmt: skip

NO_GRID: Rows = [
    # all of the next are read as evenly spaced
    ("gap", lambda: gapped("gap"), "a gap of 6 mm after slice 3, where slices lie 3 mm apart: 1 missing"),
    ("uneven", lambda: series("uneven", places=fourth_moved((0, 0, 0.5))), "slices 2.5 to 3.5 mm apart"),
    ("sideways", lambda: series("sideways", places=fourth_moved((0, 0.8, 0))), "shifted sideways by up to 0.8 mm"),
    ("duplicate", lambda: twice("duplicate"), "1 places with 2 slices"),
    ("one_place", lambda: series("one_place", places=np.repeat(positions(1), 6, 0)), "6 different slices in one place"),
    ("turned", lambda: series("turned", setting(2, ImageOrientationPatient=[0, 1, 0, 0, 0, -1])), "a gap of 6 mm"),
    ("frames_of", lambda: series("frames_of", setting(2, FrameOfReferenceUID=uid("else"))), "2 frames of reference"),
    # 1 mm taken
    ("no_spacing", lambda: series("no_spacing", without("PixelSpacing")), "6 of 6 slices without a valid pixel"),
    ("zero", lambda: series("zero", setting(PixelSpacing=[0, 0])), "pixel spacing 0 x 0 mm"),
    ("minus", lambda: series("minus", setting(PixelSpacing=[-1, 1])), "pixel spacing -1 x 1 mm"),
    ("far_apart", lambda: series("far_apart", places=positions(6, step_mm=300)), "slices 300 mm apart"),
    ("no_place", lambda: series("no_place", without("ImagePositionPatient")), "6 of 6 slices without a valid image"),
    ("nan_place", lambda: changed("nan_place", lambda d: d.replace(b"-10\\-20\\-30 ", b"-10\\-20\\NaN ")),
     "1 of 6 slices without a valid image position"),
    ("no_axes", lambda: series("no_axes", without("ImageOrientationPatient")), "without a valid image orientation"),
    ("oblique", lambda: series("oblique", setting(ImageOrientationPatient=[1, 0, 0, 0.7, 0.7, 0])),
     "not two perpendicular unit vectors"),
    ("beside", lambda: series("beside", places=positions(6, sideways_mm=(60, 0))), "slices displaced at 87.1 degrees"),
    ("moved_far", lambda: series("moved_far", places=positions(6, origin_mm=(0, 9e7, 0))), "image position 9e+07 mm"),
    ("enhanced.dcm", lambda: content(enhanced(voxels(), order=[0, 1, 2, 4, 5])), "a gap of 6 mm after slice 3"),
]  # fmt: skip

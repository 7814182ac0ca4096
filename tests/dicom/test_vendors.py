"""Series as the makers of scanners write them, made here: several volumes in one series, files without a preamble,
multi-frame images of every kind. Read voxel by voxel, or refused with what to name."""

import io
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pydicom
import pytest
from dicom_series import SPACING_MM, enhanced, one, positions, save, uid, voxels, write
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian

from dropgen_rt.dicom.catalogue import catalogue
from dropgen_rt.dicom.files import is_dicom
from dropgen_rt.dicom.read import read_dicom
from dropgen_rt.errors import InputError

Edit = Callable[[Dataset, int], None]


def refused(path: Path, series: str | None = None) -> str:
    with pytest.raises(InputError) as error:
        read_dicom(path, series)
    assert "\n" not in str(error.value)
    return str(error.value)


def private(dataset: Dataset, group: int, creator: str, element: int, vr: str, value: object) -> None:
    dataset.private_block(group, creator, create=True).add_new(element, vr, value)


def setting(**values: list[object]) -> Edit:
    """An edit that gives volume ``t`` the value number ``t``."""

    def edit(dataset: Dataset, time: int) -> None:
        for name, choices in values.items():
            setattr(dataset, name, choices[time])

    return edit


def element(tag: int, vr: str, values: list[object]) -> Edit:
    return lambda dataset, time: dataset.add_new(tag, vr, values[time])


def hidden(group: int, creator: str, number: int, vr: str, values: list[object]) -> Edit:
    return lambda dataset, time: private(dataset, group, creator, number, vr, values[time])


def volumes(folder: Path, edit: Edit, syntax: str = ExplicitVRLittleEndian) -> Path:
    """Two volumes of one series with the same acquisition and times, told apart by what ``edit`` says of each."""
    for time in range(2):
        for number, place in enumerate(positions(6)):
            dataset = one(voxels()[number] + time, number, place, modality="MR")
            dataset.SOPInstanceUID, dataset.InstanceNumber = uid("two", time, number), time * 6 + number + 1
            edit(dataset, time)
            save(dataset, folder / f"IM{time}{number}", syntax)
    return folder


TOLD_APART = {
    "Siemens, inversions of MP2RAGE": (setting(InversionTime=["700", "2500"]), "inversion time 2500"),
    "flip angles": (setting(FlipAngle=["3", "15"]), "flip angle 15"),
    "Siemens, b-values before XA": (hidden(0x19, "SIEMENS MR HEADER", 0x0C, "IS", ["0", "800"]), "b-value 800"),
    "GE, b-values": (hidden(0x43, "GEMS_PARM_01", 0x39, "IS", [["0", "8", "0", "0"], ["1000000800", "8", "0", "0"]]),
                     "b-value 800"),
    "Philips, b-values": (hidden(0x2001, "Philips Imaging DD 001", 0x03, "FL", [0.0, 800.0]), "b-value 800"),
    "GE, real and imaginary": (hidden(0x43, "GEMS_PARM_01", 0x2F, "SS", [2, 3]), "part 2 of 2"),
    "Siemens, Dixon": (setting(ImageType=[["DERIVED", "PRIMARY", "M", "DIXON", kind] for kind in ("WATER", "FAT")]),
                       "image type DERIVED\\PRIMARY\\M\\DIXON\\FAT"),
    "echoes": (setting(EchoNumbers=[1, 2], EchoTime=["5", "10"]), "echo number 2"),
    "dual energy": (setting(KVP=["80", "140"]), "tube voltage 140"),
    "GE, energies": (hidden(0x53, "GEHC_CT_ADVAPP_001", 0x75, "DS", ["40", "70"]), "energy 70"),
    "two kernels": (setting(ConvolutionKernel=["B30f", "B70f"]), "kernel B70f"),
    "cardiac phases": (element(0x00209241, "FL", [35.0, 75.0]), "cardiac phase 75"),
    "dynamic PET": (setting(FrameReferenceTime=["0", "1500"]), "frame reference time 1500"),
    "the clock alone": (setting(ContentTime=["101010", "101020"]), "part 2 of 2"),
}  # fmt: skip


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian])
@pytest.mark.parametrize("case", TOLD_APART)
def test_what_tells_volumes_apart(tmp_path: Path, case: str, syntax: str) -> None:
    edit, shown = TOLD_APART[case]
    folder = volumes(tmp_path, edit, syntax)
    text = refused(folder)
    assert "2 possible stacks: " in text and shown in text
    for time in range(2):
        assert np.array_equal(read_dicom(folder, f"{uid('series')}:{time + 1}").volume.array[0], voxels() + time)


FRAMES = {
    "flip angle": ("MRTimingAndRelatedParametersSequence", "FlipAngle", [3.0, 15.0], "flip angle 15.0"),
    "kernel": ("CTReconstructionSequence", "ConvolutionKernel", ["B30f", "B70f"], "kernel B70f"),
    "converted": ("UnassignedPerFrameConvertedAttributesSequence", "EchoTime", ["2", "5"], "echo time 5"),
    "acquisition": ("FrameContentSequence", "FrameAcquisitionNumber", [1, 2], "acquisition 2"),
    "dimension": ("FrameContentSequence", "DimensionIndexValues", None, "dimension 2 2"),
}  # fmt: skip


@pytest.mark.parametrize("case", FRAMES)
def test_what_tells_frames_apart(tmp_path: Path, case: str) -> None:
    group_name, keyword, values, shown = FRAMES[case]
    dataset = enhanced(np.concatenate([voxels(), voxels() + 5]))
    for frame, group in enumerate(dataset.PerFrameFunctionalGroupsSequence):
        group.PlanePositionSequence[0].ImagePositionPatient = positions(6)[frame % 6].tolist()
        item = group.get(group_name, Sequence([Dataset()]))[0]
        setattr(item, keyword, values[frame // 6] if values else [frame % 6 + 1, frame // 6 + 1])
        setattr(group, group_name, Sequence([item]))
    path = save(dataset, tmp_path / "e")
    text = refused(path)
    assert "2 possible stacks: " in text and shown in text
    assert np.array_equal(read_dicom(path, f"{uid('enhanced')}:2").volume.array[0], voxels() + 5)


MULTIFRAME = {
    "enhanced CT": "1.2.840.10008.5.1.4.1.1.2.1", "converted CT": "1.2.840.10008.5.1.4.1.1.2.2",
    "enhanced MR": "1.2.840.10008.5.1.4.1.1.4.1", "converted MR": "1.2.840.10008.5.1.4.1.1.4.4",
    "enhanced PET": "1.2.840.10008.5.1.4.1.1.130", "converted PET": "1.2.840.10008.5.1.4.1.1.128.1",
    "angiography in 3D": "1.2.840.10008.5.1.4.1.1.13.1.1", "dental cone beam": "1.2.840.10008.5.1.4.1.1.13.1.2",
}  # fmt: skip


@pytest.mark.parametrize("kind", MULTIFRAME)
def test_multi_frame_images_with_functional_groups(tmp_path: Path, kind: str) -> None:
    slopes = [1.0, 2.0, 1.5, 3.0, 1.0, 0.5]
    dataset = enhanced(voxels(), slopes=slopes)
    dataset.SOPClassUID = MULTIFRAME[kind]
    scan = read_dicom(save(dataset, tmp_path / "e"))
    assert np.array_equal(scan.volume.array[0], voxels() * np.float32(slopes)[:, None, None])
    assert scan.volume.geometry.spacing_mm == pytest.approx(SPACING_MM)


NOT_READ = {
    "Enhanced MR Color Image Storage": "1.2.840.10008.5.1.4.1.1.4.3",
    "Nuclear Medicine Image Storage": "1.2.840.10008.5.1.4.1.1.20",
    "X-Ray Angiographic Image Storage": "1.2.840.10008.5.1.4.1.1.12.1",
    "Ultrasound Multi-frame Image Storage": "1.2.840.10008.5.1.4.1.1.3.1",
    "RT Dose Storage": "1.2.840.10008.5.1.4.1.1.481.2",
}


@pytest.mark.parametrize("name", NOT_READ)
def test_images_of_other_kinds_are_named_and_left_out(tmp_path: Path, name: str) -> None:
    dataset = enhanced(voxels())
    dataset.SOPClassUID = NOT_READ[name]
    assert f"no image series (1 x {name}, which is not read)" in refused(save(dataset, tmp_path / "e"))


def test_a_rescaling_stated_once_for_all_frames(tmp_path: Path) -> None:
    dataset = enhanced(voxels())
    for group in dataset.PerFrameFunctionalGroupsSequence:
        del group.PixelValueTransformationSequence
    dataset.RescaleSlope, dataset.RescaleIntercept = "2", "-3"
    assert np.array_equal(read_dicom(save(dataset, tmp_path / "e")).volume.array[0], voxels() * 2 - 3)


def test_private_elements_icons_and_overlays_change_nothing(tmp_path: Path) -> None:
    def edit(dataset: Dataset, number: int) -> None:
        private(dataset, 0x0029, "SIEMENS CSA HEADER", 0x10, "OB", b"SV10" + bytes(9000))
        private(dataset, 0x0029, "SIEMENS CSA HEADER", 0x20, "SQ", Sequence([Dataset()]))
        icon = Dataset()
        icon.Rows = icon.Columns = 4
        icon.SamplesPerPixel, icon.PhotometricInterpretation = 1, "MONOCHROME2"
        icon.BitsAllocated = icon.BitsStored = 8
        icon.HighBit, icon.PixelRepresentation, icon.PixelData = 7, 0, bytes(16)
        icon["PixelData"].VR = "OB"
        dataset.IconImageSequence = Sequence([icon])
        dataset.add_new(0x60003000, "OW", bytes(16))
        dataset.DataSetTrailingPadding = bytes(100)

    assert np.array_equal(read_dicom(write(tmp_path, edit=edit)).volume.array[0], voxels())


@pytest.mark.parametrize(
    "values",
    [{"SliceThickness": None}, {"SliceThickness": "5", "SpacingBetweenSlices": "2.5"}, {"InstanceNumber": None},
     {"InstanceNumber": 1}, {"SpecificCharacterSet": "ISO 2022 IR 999"}, {"PatientWeight": ""}],
    ids=str,
)  # fmt: skip
def test_the_grid_comes_from_positions_alone(tmp_path: Path, values: dict) -> None:
    def edit(dataset: Dataset, number: int) -> None:
        for name, value in values.items():
            setattr(dataset, name, value)

    scan = read_dicom(write(tmp_path, edit=edit))
    assert np.array_equal(scan.volume.array[0], voxels())
    assert scan.volume.geometry.spacing_mm == pytest.approx(SPACING_MM)


def without_preamble(path: Path) -> None:
    path.write_bytes(path.read_bytes()[132:])


def data_set_only(path: Path) -> None:
    buffer = io.BytesIO()
    dataset = pydicom.dcmread(path)
    implicit = dataset.original_encoding[0]
    bare = Dataset({element.tag: element for element in dataset})
    pydicom.dcmwrite(buffer, bare, implicit_vr=implicit, little_endian=True)
    path.write_bytes(buffer.getvalue())


def mark_without_meta(path: Path) -> None:
    data_set_only(path)
    path.write_bytes(bytes(128) + b"DICM" + path.read_bytes())


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian])
@pytest.mark.parametrize("change", [without_preamble, data_set_only, mark_without_meta])
def test_files_without_a_preamble_or_ending(tmp_path: Path, change: Callable[[Path], None], syntax: str) -> None:
    """Old archives hand out bare data sets."""
    for number, path in enumerate(sorted(write(tmp_path, syntax=syntax).iterdir())):
        change(path)
        path.rename(path.with_name(f"I{number}"))
    assert is_dicom(tmp_path) and is_dicom(tmp_path / "I0")
    scan = read_dicom(tmp_path)
    assert np.array_equal(scan.volume.array[0], voxels()) and len(scan.slices) == 6


@pytest.mark.parametrize("change", [without_preamble, data_set_only])
def test_bare_files_take_a_segmentation(tmp_path: Path, change: Callable[[Path], None], model_file: Path) -> None:
    folder, out = tmp_path / "in", tmp_path / "out"
    array = np.random.default_rng(0).integers(0, 10, (20, 24, 22)).astype(np.int16)
    array[4:12, 4:18, 5:17] = 60
    for path in write(folder, array, modality="MR").iterdir():
        change(path)
    out.mkdir()
    program = Path(sys.executable).with_name("dropgen-rt")
    formats = "dicom-seg,dicom-labelmap,dicom-sr,dicom-sc"
    command = [program, "infer", folder, "-o", out, "--model", model_file, "--format", formats]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert len(list(out.glob("*.dcm"))) == 4


@pytest.mark.parametrize(
    "content",
    [
        b"\x08\x00\x05\x00CS",
        bytes(200),
        b"\x08\x00" * 100,
        b"\x02\x00\x00\x00UL\x04\x00",
        np.array([2, 4, 2, 8, 2, 2], "<i4").tobytes(),
    ],
)
def test_other_files_are_not_taken_for_bare_ones(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a").write_bytes(content)
    assert not is_dicom(tmp_path / "a")


def test_the_index_of_a_disk(tmp_path: Path) -> None:
    folder = write(tmp_path / "disk")
    index = pydicom.dcmread(next(folder.iterdir()))
    for keyword in ("PixelData", "SOPClassUID", "SOPInstanceUID", "SeriesInstanceUID"):
        delattr(index, keyword)
    index.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.1.3.10"
    index.save_as(folder / "DICOMDIR")
    assert np.array_equal(read_dicom(folder).volume.array[0], voxels())
    assert dict(catalogue(folder).left_out) == {"an index (DICOMDIR)": 1}
    assert refused(folder / "DICOMDIR").endswith("name the folder that the DICOMDIR lies in")


def test_a_series_over_several_folders(tmp_path: Path) -> None:
    folder = write(tmp_path)
    for number, path in enumerate(sorted(folder.iterdir())):
        (tmp_path / f"DISK{number % 3}").mkdir(exist_ok=True)
        path.rename(tmp_path / f"DISK{number % 3}" / path.name)
    assert np.array_equal(read_dicom(tmp_path).volume.array[0], voxels())


@pytest.mark.parametrize("within", ["folder", "archive"])
def test_archives_within_are_told_of(tmp_path: Path, within: str) -> None:
    series, outer = write(tmp_path / "series"), tmp_path / "outer"
    outer.mkdir()
    with zipfile.ZipFile(outer / "inner.zip", "w") as archive:
        for path in series.iterdir():
            archive.write(path, path.name)
    assert np.array_equal(read_dicom(outer / "inner.zip").volume.array[0], voxels())
    if within == "archive":
        outer = Path(shutil.make_archive(str(tmp_path / "outer"), "zip", outer))
    assert "no DICOM files but ZIP archives within (1)" in refused(outer) and refused(outer).endswith("unpack them")

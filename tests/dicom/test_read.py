"""Series read to volumes: real ones against their ground truth, synthetic ones voxel by voxel."""

from pathlib import Path

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk  # noqa: N813  the referee
from dicom_series import ORIGIN_MM, SPACING_MM, enhanced, positions, save, voxels, write
from shared_data import DATA, needs
from tolerances import DICOM_GROUND_TRUTH_MM, DICOM_RESCALED

from dropgen_rt.dicom.read import DicomScan, read_dicom
from dropgen_rt.errors import InputError
from dropgen_rt.geometry import Geometry
from dropgen_rt.volume import read_scan

GOOD = (
    "ge/anatomical/001", "generic/anatomical/001", "generic/anatomical/001_implicit",
    "generic/anatomical/002_non_isotropic", "generic/compressed/001", "generic/compressed_j2k/001",
    "generic/compressed_jpeg/001", "generic/compressed_jpegls/001", "generic/compressed_rle/001",
    "philips_enhanced/anatomical/001", "philips_enhanced/anatomical/001_implicit", "siemens/anatomical/001",
    "siemens_multiframe/anatomical/001", "failing/slicecount/001",
)  # fmt: skip

FAILING = {
    "failing/sliceincrement/001": "a gap of 10 mm after slice 3, where slices lie 5 mm apart: 1 missing",
    "failing/sliceincrement/002": "a gap of 1.499 mm after slice 3, where slices lie 0.7497 mm apart: 1 missing",
    "failing/sliceorientation/001": "2 possible stacks: ",
    "failing/notavolume/001": "no volume, only single images or localisers: ",
    "generic/rgb/001": "4 x Secondary Capture Image Storage, which is not read",
    # its ground truth is 1 mm thick, which nothing in the file says
    "ge/anatomical/001_single_slice": "a single image; accepted: a stack of at least 2 slices",
}


def ground_truth(path: Path) -> tuple[np.ndarray, Geometry]:
    image = sitk.ReadImage(path)
    array = sitk.GetArrayFromImage(image)
    direction = np.reshape(image.GetDirection(), (image.GetDimension(),) * 2)[:3, :3]
    size, spacing, origin = image.GetSize()[:3], image.GetSpacing()[:3], image.GetOrigin()[:3]
    return array.reshape(array.shape[-3:]), Geometry(size, spacing, origin, tuple(direction.ravel().tolist()))


@needs("data/dicom")
@pytest.mark.parametrize("series", GOOD)
def test_real_series_are_their_ground_truth(series: str) -> None:
    scan = read_scan(DATA / "dicom" / series)
    truth, geometry = ground_truth(DATA / "dicom" / f"{series}_ground_truth.nii.gz")
    assert truth.size == scan.volume.array.size
    indices = np.stack(np.meshgrid(*map(np.arange, geometry.size), indexing="ij"), -1).reshape(-1, 3)
    world = geometry.to_world(indices)
    mine = np.rint(scan.volume.geometry.to_voxel(world)).astype(int)
    assert np.abs(scan.volume.geometry.to_world(mine) - world).max() < DICOM_GROUND_TRUTH_MM
    values = scan.volume.array[0][mine[:, 2], mine[:, 1], mine[:, 0]]
    expected = truth[indices[:, 2], indices[:, 1], indices[:, 0]]
    assert np.abs(values - expected).max() <= DICOM_RESCALED * max(float(np.abs(expected).max()), 1.0)


@needs("data/dicom")
@pytest.mark.parametrize("series", FAILING)
def test_real_series_that_are_refused(series: str) -> None:
    with pytest.raises(InputError) as refused:
        read_scan(DATA / "dicom" / series)
    assert FAILING[series] in str(refused.value) and "\n" not in str(refused.value)


@needs("data/dicom")
def test_a_real_ct_lies_on_its_label_maps_grid() -> None:
    scan = read_scan(DATA / "dicom" / "ct_with_labels" / "example_ct_dicom")
    labels, geometry = ground_truth(DATA / "dicom" / "ct_with_labels" / "example_seg_dicom.nii.gz")
    corners = np.array(list(np.ndindex(2, 2, 2))) * (np.array(geometry.size) - 1)
    back = scan.volume.geometry.to_voxel(geometry.to_world(corners))
    assert np.abs(back - np.rint(back)).max() < 1e-4 and sorted(np.rint(back).max(axis=0)) == [19, 511, 511]
    mine = np.rint(scan.volume.geometry.to_voxel(geometry.to_world(np.argwhere(labels == 5)[:, ::-1]))).astype(int)
    liver = scan.volume.array[0][mine[:, 2], mine[:, 1], mine[:, 0]]
    assert 20 < np.median(liver) < 180  # HU of soft tissue, enhanced or not


@needs("data/dicom")
def test_a_real_tilted_gantry() -> None:
    path = DATA / "dicom" / "failing" / "gantrytilting" / "001"
    scan = read_dicom(path)
    assert scan.warnings[0].startswith("gantry tilt of 14.0 degrees")
    source = pydicom.dcmread(sorted(path.iterdir())[2])
    k = next(k for k, plane in enumerate(scan.slices) if plane.header.sop == source.SOPInstanceUID)
    lateral = np.array(source.ImagePositionPatient) + 100 * source.PixelSpacing[0] * np.array([1.0, 0, 0])
    assert scan.volume.geometry.to_voxel(lateral)[2] == pytest.approx(k, abs=1e-6)
    column = scan.volume.array[0, k, :, 100]  # a tilt about x: columns are displaced by a part of a pixel
    start = float(scan.volume.geometry.to_voxel(lateral)[1])
    stored = source.pixel_array[:, 100] - 1024.0
    rows = np.arange(1, 500)
    expected = np.interp(rows + np.ceil(start) - start, np.arange(512), stored)
    assert column[rows + int(np.ceil(start))] == pytest.approx(expected, abs=0.01)


def test_voxels_and_grid(tmp_path: Path) -> None:
    scan = read_scan(write(tmp_path / "a"))
    assert isinstance(scan, DicomScan)
    assert np.array_equal(scan.volume.array[0], voxels()) and scan.volume.array.dtype == np.float32
    assert scan.volume.geometry.spacing_mm == pytest.approx(SPACING_MM)
    assert scan.volume.geometry.origin_mm == pytest.approx(ORIGIN_MM)
    assert scan.voxel_type == "int16" and scan.path.name.startswith("dicom-")
    assert [plane.header.instance for plane in scan.slices] == [1, 2, 3, 4, 5, 6]


def test_each_slice_has_its_own_slope(tmp_path: Path) -> None:
    def edit(dataset: pydicom.Dataset, number: int) -> None:
        dataset.RescaleSlope, dataset.RescaleIntercept = f"{0.001 * (number + 1):.6f}", str(number)

    scan = read_scan(write(tmp_path, edit=edit, modality="MR"))
    expected = voxels() * (0.001 * np.arange(1, 7)[:, None, None]) + np.arange(6)[:, None, None]
    assert np.array_equal(scan.volume.array[0], expected.astype(np.float32))


def test_monochrome1_is_not_inverted(tmp_path: Path) -> None:
    scan = read_scan(write(tmp_path, edit=lambda d, k: setattr(d, "PhotometricInterpretation", "MONOCHROME1")))
    assert np.array_equal(scan.volume.array[0], voxels())
    assert "MONOCHROME1: measured values are used, not their inverse" in scan.warnings


def test_bits_beyond_those_stored_are_dropped(tmp_path: Path) -> None:
    """Twelve signed bits, with an overlay's in the other four."""
    values = voxels() % 1000 - 500

    def edit(dataset: pydicom.Dataset, number: int) -> None:
        dataset.BitsStored, dataset.HighBit = 12, 11
        dataset.PixelData = ((values[number].astype(np.uint16) & 0xFFF) | 0x5000).tobytes()

    assert np.array_equal(read_scan(write(tmp_path, edit=edit)).volume.array[0], values)


def test_padding_becomes_air(tmp_path: Path) -> None:
    array = voxels()
    array[2, :3] = -2000

    def edit(dataset: pydicom.Dataset, number: int) -> None:
        dataset.add_new(0x00280120, "SS", -2000)

    scan = read_scan(write(tmp_path, array, edit=edit))
    assert np.array_equal(scan.volume.array[0], np.where(array == -2000, -1000, array))
    assert "36 voxels of padding are set to -1000 HU (air)" in scan.warnings


def test_padding_above_all_tissue_becomes_air(tmp_path: Path) -> None:
    """As GE's -2000 looks where the pixels are unsigned."""
    array = voxels() + 1000
    array[2, :3] = -2000

    def edit(dataset: pydicom.Dataset, number: int) -> None:
        dataset.PixelRepresentation, dataset.RescaleIntercept = 0, "-1000"
        dataset.add_new(0x00280120, "US", 2**16 - 2000)

    scan = read_scan(write(tmp_path, array, edit=edit))
    assert np.array_equal(scan.volume.array[0], np.where(array == -2000, -1000, array - 1000))
    assert "36 voxels of padding are set to -1000 HU (air)" in scan.warnings


def test_ct_without_rescaling_is_warned_of(tmp_path: Path) -> None:
    def edit(dataset: pydicom.Dataset, number: int) -> None:
        del dataset.RescaleSlope, dataset.RescaleIntercept

    scan = read_scan(write(tmp_path, edit=edit))
    assert any(warning.startswith("CT without rescale slope") for warning in scan.warnings)


def test_pixels_that_are_not_square(tmp_path: Path) -> None:
    """PixelSpacing is between rows, then between columns."""
    scan = read_scan(write(tmp_path, spacing_mm=(0.5, 4.0, 3.0)))
    assert scan.volume.geometry.spacing_mm == pytest.approx((0.5, 4.0, 3.0))


def test_enhanced_frames_in_any_order(tmp_path: Path) -> None:
    order = [3, 0, 5, 1, 4, 2]
    save(enhanced(voxels(), slopes=[2.5] * 6, order=order), tmp_path / "e.dcm")
    scan = read_dicom(tmp_path / "e.dcm")
    assert np.array_equal(scan.volume.array[0], voxels() * np.float32(2.5))
    assert [plane.frame for plane in scan.slices] == np.argsort(order).tolist()
    assert scan.volume.geometry.origin_mm == pytest.approx(ORIGIN_MM)


def test_the_digest_is_of_the_files(tmp_path: Path) -> None:
    first = read_scan(write(tmp_path / "a")).sha256
    assert read_scan(write(tmp_path / "b", prefix="other")).sha256 == first
    changed = voxels()
    changed[0, 0, 0] += 1
    assert read_scan(write(tmp_path / "c", changed)).sha256 != first


def test_a_tilted_stack_and_back(tmp_path: Path) -> None:
    """Values that are linear in the world stay linear; labels come back on the slices that they came from."""
    count, sideways = 6, 1.3
    places = positions(count, sideways_mm=(0.7, sideways))
    rows, columns = np.meshgrid(np.arange(30), np.arange(30), indexing="ij")
    world = places[:, None, None, :] + rows[..., None] * [0, 2.0, 0] + columns[..., None] * [1.5, 0, 0]
    values = np.rint(world @ [10.0, 20.0, 5.0]).astype(np.int16)
    scan = read_scan(write(tmp_path, values, places=places))
    assert isinstance(scan, DicomScan)
    geometry = scan.volume.geometry
    index = np.stack(np.meshgrid(*map(np.arange, geometry.size), indexing="ij"), -1)
    expected = np.transpose(geometry.to_world(index) @ [10.0, 20.0, 5.0], (2, 1, 0))
    inside = np.ones((count, 28, 28), np.uint8)
    marked = np.zeros(geometry.shape, np.uint8)
    for k, (x, y) in enumerate(np.ceil(scan.grid.shift_px).astype(int)):
        marked[k, y + 1 : y + 29, x + 1 : x + 29] = inside[k]
    off = np.abs(scan.volume.array[0] - expected)[marked.astype(bool)]
    assert off.max() <= 1.0  # the stored values were rounded to whole numbers
    number = (np.arange(30 * 30).reshape(30, 30) % 251).astype(np.uint8)
    spread = np.zeros(geometry.shape, np.uint8)
    for k, (x, y) in enumerate(np.floor(scan.grid.shift_px + 0.5).astype(int)):
        spread[k, y : y + 30, x : x + 30] = number
    assert np.array_equal(scan.on_source(spread), np.repeat(number[None], count, 0))


def test_orientation_names(tmp_path: Path) -> None:
    scan = read_scan(write(tmp_path, orientation=(0.0, 1.0, 0.0, 0.0, 0.0, -1.0), modality="MR"))
    assert scan.volume.geometry.orientation == "PIR"

"""Scans that are read, as every format, type and byte order stores them, and labels written back."""

import gzip
import hashlib
import math
import zlib
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813  the name its users know

from dropgen_rt.errors import GeometryError, InputError, MissingInputError, OutputError, UnsuitableInputError
from dropgen_rt.geometry import Geometry
from dropgen_rt.volume import (
    SCAN_SUFFIXES,
    Volume,
    find_scans,
    read_label_map,
    read_scan,
    read_volume,
    stem,
    write_labels,
)

Build = Callable[[SimpleNamespace], bytes]
IDENTITY = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0)

# float32 headers hold a spacing to 6e-8 of itself, an origin of some 100 mm to 1e-5 mm.
FLOAT32_HEADER_MM = 1e-4


def linear(slope: int, intercept: int, code: str) -> bytes:
    return (np.arange(120) * slope + intercept).astype(code).tobytes()


GOOD: list[tuple[str, Build, str]] = [
    *[(f"{code}.nii", lambda m, code=code: m.nifti(code), np.dtype(code).name)
      for code in ("u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8", "f4", "f8")],
    *[(f"big_{code}.nii", lambda m, code=code: m.nifti(code, ">"), np.dtype(code).name)
      for code in ("i2", "f4", "f8")],
    ("two.nii", lambda m: m.nifti("i2", version=2), "int16"),
    ("two_big.nii", lambda m: m.nifti("f4", ">", version=2), "float32"),
    ("two_scaled.nii.gz", lambda m: gzip.compress(m.nifti("i2", ">", version=2, slope=0.5, inter=-7,
                                                          data=linear(2, 14, ">i2"))), "int16"),
    ("two_qform.nii", lambda m: m.nifti(version=2, q=1, s=0), "float32"),
    ("a.nii.gz", lambda m: gzip.compress(m.nifti("i2")), "int16"),
    ("CAPITAL.NII.GZ", lambda m: gzip.compress(m.nifti("i2")), "int16"),
    ("members.nii.gz", lambda m: gzip.compress(m.nifti()[:400]) + gzip.compress(m.nifti()[400:]), "float32"),
    ("padded.nii.gz", lambda m: gzip.compress(m.nifti()) + bytes(900), "float32"),
    ("extension.nii", lambda m: m.nifti(offset=384, data=bytes(32) + m.voxels()), "float32"),
    ("trailing.nii", lambda m: m.nifti(dim=(4, 4, 5, 6, 1)), "float32"),
    ("trailing2.nii", lambda m: m.nifti(dim=(6, 4, 5, 6, 1, 1, 1), pixdim=(1, 1.5, 2, 3, 2)), "float32"),
    ("scaled.nii", lambda m: m.nifti("i2", slope=0.5, inter=-7, data=linear(2, 14, "<i2")),
     "int16"),
    ("shifted.nii", lambda m: m.nifti("i2", slope=1, inter=-9, data=linear(1, 9, "<i2")),
     "int16"),
    ("unscaled.nii", lambda m: m.nifti("i2", slope=0), "int16"),
    ("slope_nan.nii", lambda m: m.nifti("i2", slope=math.nan, inter=math.nan), "int16"),
    ("qform.nii", lambda m: m.nifti(q=1, s=0), "float32"),
    ("both.nii", lambda m: m.nifti(q=1, s=1), "float32"),
    ("a.nrrd", lambda m: m.nrrd(), "float32"),
    ("big.nrrd", lambda m: m.nrrd(m.voxels("i2", ">"), type="short", endian="big"), "int16"),
    ("gzip.nrrd", lambda m: m.nrrd(gzip.compress(m.voxels()), encoding="gzip"), "float32"),
    ("ras.nrrd", lambda m: m.nrrd(space="RAS", space_directions="(-1.5,0,0) (0,-2,0) (0,0,3)",
                                        space_origin="(10,20,-30)"), "float32"),
    ("letters.nrrd", lambda m: m.nrrd().replace(b"\n", "\n# Gerät Ånd\nname:=Wąs\n".encode(), 1), "float32"),
    ("trailing.nrrd", lambda m: m.nrrd(dimension="4", sizes="4 5 6 1", kinds="domain domain domain list",
                                             space_directions="(1.5,0,0) (0,2,0) (0,0,3) none"), "float32"),
    ("leading.nrrd", lambda m: m.nrrd(dimension="4", sizes="1 4 5 6", kinds="list domain domain domain",
                                            space_directions="none (1.5,0,0) (0,2,0) (0,0,3)"), "float32"),
    ("skip.nrrd", lambda m: m.nrrd(b"1234" + m.voxels(), byte_skip="-1"), "float32"),
    ("a.mha", lambda m: m.mha(), "float32"),
    ("big.mha", lambda m: m.mha(m.voxels("i2", ">"), ElementType="MET_SHORT", BinaryDataByteOrderMSB=True),
     "int16"),
    ("zlib.mha", lambda m: m.mha(zlib.compress(m.voxels()), CompressedData=True,
                                       CompressedDataSize=len(zlib.compress(m.voxels()))), "float32"),
    ("trailing.mha", lambda m: m.mha(NDims=4, DimSize="4 5 6 1", ElementSpacing="1.5 2 3 1",
                                        Offset="-10 -20 -30 0",
                                           TransformMatrix="1 0 0 0 0 1 0 0 0 0 1 0 0 0 0 1"), "float32"),
]  # fmt: skip


def assert_known(volume: Volume, make: SimpleNamespace) -> None:
    geometry = volume.geometry
    assert geometry.size == make.size
    np.testing.assert_allclose(geometry.spacing_mm, make.spacing_mm, rtol=0, atol=FLOAT32_HEADER_MM)
    np.testing.assert_allclose(geometry.origin_mm, make.origin_mm, rtol=0, atol=FLOAT32_HEADER_MM)
    np.testing.assert_allclose(geometry.direction, IDENTITY, rtol=0, atol=1e-6)
    assert volume.array.dtype == np.float32
    np.testing.assert_array_equal(volume.array, np.arange(make.count).reshape(1, 6, 5, 4))


@pytest.mark.parametrize(
    ("name", "build", "voxel_type"), GOOD, ids=lambda value: value if isinstance(value, str) else ""
)
def test_good_scans(
    name: str,
    build: Build,
    voxel_type: str,
    make: SimpleNamespace,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    path = tmp_path / name
    path.write_bytes(build(make))
    scan = read_scan(path)
    assert_known(scan.volume, make)
    assert scan.voxel_type == voxel_type
    assert scan.warnings == ()
    assert scan.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert capfd.readouterr() == ("", "")


def test_detached_scans(make: SimpleNamespace, tmp_path: Path) -> None:
    (tmp_path / "a.raw").write_bytes(make.voxels())
    (tmp_path / "a.zraw").write_bytes(zlib.compress(make.voxels()))
    (tmp_path / "a.raw.gz").write_bytes(gzip.compress(make.voxels()))
    headers = {
        "raw.nhdr": make.nrrd(b"", data_file="a.raw"),
        "gz.nhdr": make.nrrd(b"", data_file="a.raw.gz", encoding="gzip"),
        "raw.mhd": make.mha(b"", ElementDataFile="a.raw"),
        "last.mhd": make.mha(b"", ElementDataFile="a.raw", HeaderSize=-1),
        "zraw.mhd": make.mha(b"", ElementDataFile="a.zraw", CompressedData=True),
    }
    for name, header in headers.items():
        (tmp_path / name).write_bytes(header)
        assert_known(read_volume(tmp_path / name), make)
    whole = headers["raw.mhd"] + make.voxels()
    assert read_scan(tmp_path / "raw.mhd").sha256 == hashlib.sha256(whole).hexdigest()


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("suffix", [".nhdr", ".mhd"])
def test_detached_scans_as_simpleitk_writes_them(
    make: SimpleNamespace, tmp_path: Path, suffix: str, compressed: bool
) -> None:
    """Its NRRD headers end without a blank line."""
    (tmp_path / "a.nii").write_bytes(make.nifti())
    sitk.WriteImage(sitk.ReadImage(tmp_path / "a.nii"), tmp_path / f"b{suffix}", compressed)
    assert_known(read_volume(tmp_path / f"b{suffix}"), make)


@pytest.mark.parametrize(("suffix", "coding"), [(".mhd", "utf-8"), (".nhdr", "utf-8"), (".mhd", "latin-1")])
def test_data_files_keep_their_letters(make: SimpleNamespace, tmp_path: Path, suffix: str, coding: str) -> None:
    """SimpleITK, which is asked where a scan lies, opens the data file of a NRRD header by the header's bytes."""
    (tmp_path / "größe.raw").write_bytes(make.voxels())
    header = make.mha(b"", ElementDataFile="NAME") if suffix == ".mhd" else make.nrrd(b"", data_file="NAME")
    (tmp_path / f"größe{suffix}").write_bytes(header.replace(b"NAME", "größe.raw".encode(coding)))
    assert_known(read_volume(tmp_path / f"größe{suffix}"), make)


MOVED = (0, 0, 1, 10, 23, -30)  # the qform of the grid, 3 mm to the front
WARNED: list[tuple[str, Build, str]] = [
    ("none.nii", lambda m: m.nifti(q=0, s=0), "neither sform nor qform"),
    ("unit0.nii", lambda m: m.nifti(units=0), "names no unit of length: taken as mm"),
    ("unit7.nii", lambda m: m.nifti(units=7), "unknown code 7"),
    ("moved.nii", lambda m: m.nifti(q=1, s=1, quaternion=MOVED), " 3 mm apart: the sform is used"),
    ("qform.nii", lambda m: m.nifti(q=1, s=2, quaternion=MOVED), " 3 mm apart: the qform is used"),
    ("sheared.nii", lambda m: m.nifti(q=1, s=2, rows=[[-1.5, 1, 0, 10], [0, -2, 0, 20], [0, 0, 3, -30]]),
     "4 mm apart: the qform is used"),
    ("more.nii", lambda m: m.nifti() + b"x" * 99, "99 bytes after the voxels are ignored"),
    ("no_space.nrrd", lambda m: m.nrrd(space=None, space_directions=None, space_origin=None,
                                               spacings="1.5 2 3"), "names no space"),
    ("scanner.nrrd", lambda m: m.nrrd(space="scanner-xyz"), "'scanner-xyz' is not anatomical: read as LPS"),
    ("no_offset.mha", lambda m: m.mha(Offset=None), "no Offset: the position is not known"),
    ("no_matrix.mha", lambda m: m.mha(TransformMatrix=None), "no TransformMatrix"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "build", "fragment"), WARNED, ids=lambda value: value if isinstance(value, str) else ""
)
def test_doubtful_scans_are_read_with_a_warning(
    name: str, build: Build, fragment: str, make: SimpleNamespace, tmp_path: Path
) -> None:
    (tmp_path / name).write_bytes(build(make))
    scan = read_scan(tmp_path / name)
    assert scan.volume.geometry.size == make.size
    (warning,) = scan.warnings
    assert fragment in warning


def test_an_sform_that_drifts_from_pixdim_is_told(make: SimpleNamespace, tmp_path: Path) -> None:
    """Both are accepted as roundings of one length; over a long scan they are not."""
    rows = [[-1.5, 0, 0, 10], [0, -2, 0, 20], [0, 0, 3.02, -30]]
    data = np.arange(240).astype("<f4").tobytes()
    (tmp_path / "a.nii").write_bytes(make.nifti(dim=(3, 2, 2, 60), rows=rows, data=data))
    scan = read_scan(tmp_path / "a.nii")
    assert scan.warnings == ("sform and pixdim place corners up to 1.18 mm apart: the voxels are those of pixdim",)
    assert scan.volume.geometry.spacing_mm == (1.5, 2.0, 3.0)


@pytest.mark.parametrize(("units", "factor"), [(1, 0.001), (3, 1000.0)])
def test_metres_and_micrometres_become_millimetres(
    units: int, factor: float, make: SimpleNamespace, tmp_path: Path
) -> None:
    content = make.nifti(
        units=units, pixdim=(1, *np.multiply(make.spacing_mm, factor)), rows=np.multiply(make.rows, factor)
    )
    (tmp_path / "a.nii").write_bytes(content)
    scan = read_scan(tmp_path / "a.nii")
    assert_known(scan.volume, make)
    assert len(scan.warnings) == 1 and "converted to mm" in scan.warnings[0]


def test_the_libraries_below_print_nothing(
    make: SimpleNamespace, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """A denormal number in the sform makes VNL print its matrices, though the file is read rightly."""
    rows = [[-1.5, 1e-40, 0, 10], [0, -2, 0, 20], [0, 0, 3, -30]]
    (tmp_path / "a.nii").write_bytes(make.nifti(rows=rows))
    assert_known(read_volume(tmp_path / "a.nii"), make)
    assert capfd.readouterr() == ("", "")


def oblique() -> Geometry:
    a, b = math.cos(0.3), math.sin(0.3)
    return Geometry((4, 5, 6), (0.7, 1.1, 2.3), (-101.25, 33.5, 7.125), (a, -b, 0, b, a, 0, 0, 0, -1))


@pytest.mark.parametrize("suffix", [".nii.gz", ".nii", ".nrrd", ".mha"])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.uint32])
def test_labels_come_back_as_written(suffix: str, dtype: type, tmp_path: Path) -> None:
    labels: np.ndarray = (np.arange(120).reshape(6, 5, 4) % 7).astype(dtype)
    path = tmp_path / f"a_seg{suffix}"
    write_labels(labels, oblique(), path)
    again, geometry = read_label_map(path)
    np.testing.assert_array_equal(again, labels)
    corners = np.array(list(np.ndindex(2, 2, 2))) * (np.array(geometry.size) - 1)
    np.testing.assert_allclose(geometry.to_world(corners), oblique().to_world(corners), rtol=0, atol=FLOAT32_HEADER_MM)
    assert read_scan(path).voxel_type == np.dtype(dtype).name
    first = path.read_bytes()
    write_labels(labels, oblique(), path)
    assert path.read_bytes() == first, "the same labels give the same bytes"


def test_every_orientation_survives_a_file(tmp_path: Path) -> None:
    for code in ("LPS", "RAS", "PIR", "SAL", "ILA", "ASR"):
        geometry, change = oblique().reoriented(code)
        labels = np.arange(120, dtype=np.uint8).reshape(6, 5, 4)
        write_labels(change.apply(labels), geometry, tmp_path / "a.nii.gz")
        again, read = read_label_map(tmp_path / "a.nii.gz")
        assert read.orientation == code
        np.testing.assert_array_equal(change.undo(again), labels)


def test_labels_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(GeometryError, match="labels of shape"):
        write_labels(np.zeros((4, 5, 6), np.uint8), oblique(), tmp_path / "a.nii.gz")
    with pytest.raises(TypeError, match="accepted: unsigned integers"):
        write_labels(np.zeros((6, 5, 4), np.int16), oblique(), tmp_path / "a.nii.gz")
    with pytest.raises(OutputError, match=r"accepted: \.nii\.gz"):
        write_labels(np.zeros((6, 5, 4), np.uint8), oblique(), tmp_path / "a.mhd")
    assert list(tmp_path.iterdir()) == []


def test_label_maps(make: SimpleNamespace, tmp_path: Path) -> None:
    (tmp_path / "flat.nii").write_bytes(make.nifti("u1", data=bytes(120)))
    assert not read_label_map(tmp_path / "flat.nii")[0].any()
    (tmp_path / "float.nii").write_bytes(make.nifti("f4"))
    assert read_label_map(tmp_path / "float.nii")[0].dtype.kind in "iu"
    for name, values, given in (
        ("half.nii", np.arange(120) / 2, "not whole numbers"),
        ("minus.nii", np.arange(120) - 1, "not whole numbers from 0"),
        ("far.nii", np.full(120, 1e20), r"values up to 1\S*e\+20; accepted: labels up to 65535"),
    ):
        (tmp_path / name).write_bytes(make.nifti(data=values.astype("<f4").tobytes()))
        with pytest.raises(UnsuitableInputError, match=given):
            read_label_map(tmp_path / name)


def test_find_scans(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = [
        "b.nii.gz",
        "a.mha",
        "a_seg.nii.gz",
        "c_label.nrrd",
        ".hidden.nii",
        "notes.txt",
        "d.raw",
        "A.NRRD",
    ]
    for name in names:
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "e.nii").write_bytes(b"")
    monkeypatch.chdir(tmp_path)
    assert [path.name for path in find_scans([tmp_path])] == ["A.NRRD", "a.mha", "b.nii.gz"]
    assert find_scans(["a_seg.nii.gz", "b.nii.gz", "b.nii.gz"]) == [Path("a_seg.nii.gz"), Path("b.nii.gz")]
    with pytest.raises(MissingInputError, match="no such path"):
        find_scans([tmp_path, tmp_path / "no.nii"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(MissingInputError, match="a folder without scans"):
        find_scans(["empty"])


def test_stem() -> None:
    assert [stem(f"/x/scan.v2{suffix}") for suffix in SCAN_SUFFIXES] == ["scan.v2"] * len(SCAN_SUFFIXES)
    assert stem("a.NII.GZ") == "a"


def test_volumes_that_do_not_match_their_grid() -> None:
    for shape in ((1, 4, 5, 6), (6, 5, 4), (0, 6, 5, 4)):
        with pytest.raises(GeometryError, match="accepted: "):
            Volume(np.zeros(shape, np.float32), oblique())


def test_a_repair_unknown_to_the_raw_checks_is_caught(make: SimpleNamespace, tmp_path: Path) -> None:
    """A CenterOfRotation of 3 numbers in a 4D header makes SimpleITK drop the spacing that follows."""
    content = make.mha(
        NDims=4, DimSize="4 5 6 1", Offset="0 0 0 0", TransformMatrix="1 0 0 0 0 1 0 0 0 0 1 0 0 0 0 1",
        CenterOfRotation="0 0 0", ElementSpacing=None, ElementType=None,
    )  # fmt: skip
    content = content.replace(
        b"ElementDataFile", b"ElementSpacing = 1.5 2 3 1\nElementType = MET_FLOAT\nElementDataFile"
    )
    (tmp_path / "a.mha").write_bytes(content)
    with pytest.raises(InputError, match="SimpleITK"):
        read_scan(tmp_path / "a.mha")


def test_a_compressed_scan_is_unpacked_once(
    make: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beside the header, which is read first; SimpleITK is asked for the header only."""
    (tmp_path / "a.nii.gz").write_bytes(gzip.compress(make.nifti()))
    unpacked = []
    real = zlib.decompressobj

    class Counting:
        def __init__(self, *arguments: int) -> None:
            self._decoder = real(*arguments)

        def decompress(self, *arguments: bytes) -> bytes:
            block = self._decoder.decompress(*arguments)
            unpacked.append(len(block))
            return block

        def __getattr__(self, name: str) -> object:
            return getattr(self._decoder, name)

    monkeypatch.setattr("dropgen_rt.scan_payload.zlib.decompressobj", Counting)
    monkeypatch.setattr("dropgen_rt.volume.sitk.ReadImage", None)
    assert_known(read_volume(tmp_path / "a.nii.gz"), make)
    size = len(make.nifti())
    assert sum(unpacked) == 2 * size  # so small a file is all header to the first look


def test_scaled_floats_are_scaled_in_double_precision(make: SimpleNamespace, tmp_path: Path) -> None:
    values = np.arange(120) + 1e6
    (tmp_path / "a.nii").write_bytes(make.nifti("f4", data=values.astype("<f4").tobytes(), slope=1, inter=-1e6))
    np.testing.assert_array_equal(read_volume(tmp_path / "a.nii").array.ravel(), np.arange(120))


@pytest.mark.usefixtures("nobody")
def test_folders_without_permission(make: SimpleNamespace, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """The temporary folder itself is root's, or closed here."""
    for ask in (read_scan, read_label_map, lambda path: find_scans([path]), lambda path: find_scans([path.parent])):
        with pytest.raises(InputError, match=r"Permission denied; accepted: .*; check its permissions"):
            ask(tmp_path / "closed" / "a.nii")
    assert capfd.readouterr() == ("", "")

"""Every input that is refused: how it is made, the class of the refusal, its exit code, and what its one line says.

The comment of a row says what SimpleITK 2.5.7 alone makes of the file, where it does not refuse it. Further
formats append lists of their own to TABLE.
"""

import bz2
import gzip
import math
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import bad_series
import numpy as np

from dropgen_rt.errors import GeometryError, InputError, UnreadableInputError, UnsuitableInputError

NAN, INF = math.nan, math.inf
Build = Callable[[SimpleNamespace], bytes | dict[str, bytes]]
Row = tuple[str, Build, str]


@dataclass(frozen=True)
class BadInput:
    """``name`` is what a program is given; ``build`` makes that file's bytes, or those of several files by their names.

    Names may lie in a folder, which may be the input itself.
    """

    name: str
    build: Build
    error: type[InputError]
    message: str
    exit_code: int = 3

    def write(self, folder: Path, make: SimpleNamespace) -> Path:
        built = self.build(make)
        for name, content in (built if isinstance(built, dict) else {self.name: built}).items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(content)
        return folder / self.name


def zipped(make: SimpleNamespace) -> bytes:
    return gzip.compress(make.nifti(), 1)


def flipped(data: bytes, position: int) -> bytes:
    damaged = bytearray(data)
    damaged[position] ^= 0x55
    return bytes(damaged)


def rows_with(row: int, column: int, value: float) -> list[list[float]]:
    changed = [[-1.5, 0.0, 0.0, 10.0], [0.0, -2.0, 0.0, 20.0], [0.0, 0.0, 3.0, -30.0]]
    changed[row][column] = value
    return changed


def one_voxel(value: float, code: str = "f4") -> bytes:
    values = np.arange(120).astype(code)
    values[77] = value
    return values.tobytes()


NO_SPACE = {"space_directions": None, "space": None, "space_origin": None}

BROKEN: list[Row] = [
    ("empty.nii.gz", lambda m: b"", "an empty file"),
    ("random.nii.gz", lambda m: bytes(range(1, 251)) * 9, "not gzip data"),
    ("text.nii", lambda m: b"hello\n" * 200, "not a NIfTI header"),
    ("short.nii", lambda m: m.nifti()[:200], "not a NIfTI header"),
    ("nothing.nii.gz", lambda m: gzip.compress(b""), "not a NIfTI header"),
    # read as it stands
    ("plain.nii.gz", lambda m: m.nifti(), "not gzip data"),
    ("zipped.nii", zipped, "gzip data under the name of a plain file"),
    # the missing voxels become 0
    ("truncated.nii", lambda m: m.nifti()[:-50], "truncated: 782 of 832"),
    ("header.nii", lambda m: m.nifti()[:352], "truncated: 352 of 832"),
    ("cut.nii.gz", lambda m: zipped(m)[:-12], "truncated gzip data"),
    ("short.nii.gz", lambda m: gzip.compress(m.nifti()[:-50]), "truncated: 782"),
    # read without complaint: the checksum is missing
    ("unsigned.nii.gz", lambda m: zipped(m)[:-8], "truncated gzip data"),
    ("crc.nii.gz", lambda m: flipped(zipped(m), -6), "damaged gzip data"),
    ("flip.nii.gz", lambda m: flipped(zipped(m), 200), "damaged gzip data"),
    # read without complaint
    ("tail.nii.gz", lambda m: zipped(m) + b"garbage", "other bytes after the gzip"),
    ("bomb.nii.gz", lambda m: gzip.compress(m.nifti() + bytes(2**22)), "unpacks to more"),
    ("bomb2.nii.gz", lambda m: zipped(m) + gzip.compress(bytes(2**22)), "unpacks to more"),
    # read as ANALYZE, the position dropped
    ("analyze.nii", lambda m: m.nifti(magic=b"\0\0\0\0"), "without the NIfTI signature"),
    ("pair.nii", lambda m: m.nifti(magic=b"ni1\0"), "a .hdr/.img pair"),
    ("dim0.nii", lambda m: m.nifti(dim=(0, 4, 5, 6)), "a header of 0 dimensions"),
    ("dim9.nii", lambda m: m.nifti(dim=(9, 4, 5, 6)), "a header of 9 dimensions"),
    # read from the wrong byte, or as zeros
    ("offset0.nii", lambda m: m.nifti(offset=0), "voxels from byte 0"),
    ("offset348.nii", lambda m: m.nifti(offset=348), "voxels from byte 348"),
    ("offset_nan.nii", lambda m: m.nifti(offset=NAN), "voxels from byte nan"),
    ("offset_far.nii", lambda m: m.nifti(offset=1e12), "voxels from byte 1e"),
    ("offset1000.nii", lambda m: m.nifti(offset=1000), "truncated: 832 of 1480"),
    # read by the type
    ("bits.nii", lambda m: m.nifti(bits=8), "8 bits per float32 voxel"),
    ("no.nrrd", lambda m: b"NRRD0004\nnonsense\n\n", "NRRD header line"),
    ("random.nrrd", lambda m: b"\x17" * 400, "no NRRD signature"),
    ("endless.nrrd", lambda m: m.nrrd().split(b"\n\n")[0], "without an end"),
    ("sizes.nrrd", lambda m: m.nrrd(sizes="4 5"), "dimension and sizes disagree"),
    ("words.nrrd", lambda m: m.nrrd(sizes="a b c"), "not whole numbers"),
    ("truncated.nrrd", lambda m: m.nrrd(m.voxels()[:-20]), "truncated: "),
    ("cut.nrrd", lambda m: m.nrrd(gzip.compress(m.voxels())[:-9], encoding="gzip"),
     "truncated gzip"),
    ("crc.nrrd", lambda m: m.nrrd(flipped(gzip.compress(m.voxels()), -6), encoding="gzip"),
     "damaged gzip"),
    ("gzip_short.nrrd", lambda m: m.nrrd(gzip.compress(m.voxels()[:-40]), encoding="gzip"),
     "truncated: 440 of 480"),
    ("lost.nhdr", lambda m: m.nrrd(b"", data_file="lost.raw"), "'lost.raw' is missing"),
    ("random.mha", lambda m: b"\x17" * 400, "not a MetaImage header"),
    ("no_data.mha", lambda m: b"NDims = 3\n", "without ElementDataFile"),
    ("dims.mha", lambda m: m.mha(NDims=2), "NDims and DimSize disagree"),
    ("truncated.mha", lambda m: m.mha(m.voxels()[:-20]), "truncated: "),
    # voxels are whatever lies in memory: the header has no compressed size
    ("unsized.mha", lambda m: m.mha(zlib.compress(m.voxels()), CompressedData=True),
     "without CompressedDataSize"),
    ("cut.mha", lambda m: m.mha(zlib.compress(m.voxels())[:-20], CompressedData=True, CompressedDataSize=150),
     "truncated zlib"),
    ("adler.mha", lambda m: m.mha(flipped(zlib.compress(m.voxels()), -1), CompressedData=True,
                                        CompressedDataSize=len(zlib.compress(m.voxels()))),
     "damaged zlib"),
    # the missing voxels are whatever lies in memory
    ("zlib_short.mha", lambda m: m.mha(zlib.compress(m.voxels()[:-40]), CompressedData=True,
                                             CompressedDataSize=len(zlib.compress(m.voxels()[:-40]))),
     "truncated: 440 of 480"),
    ("lost.mhd", lambda m: m.mha(b"", ElementDataFile="lost.raw"), "'lost.raw' is missing"),
]  # fmt: skip

UNSUITABLE: list[Row] = [
    ("flat.nii", lambda m: m.nifti(dim=(2, 20, 6)), "2D image of size 20 x 6"),
    ("time.nii", lambda m: m.nifti(dim=(4, 4, 5, 3, 2)), "4D image of size 4 x 5 x 3 x 2"),
    ("vector.nii", lambda m: m.nifti(dim=(5, 4, 5, 3, 1, 2)), "5D image"),
    ("complex.nii", lambda m: m.nifti("c8"), "voxels of type complex"),
    ("rgb.nii", lambda m: m.nifti(datatype=128, bits=24), "voxels of type RGB"),
    ("bits.nii", lambda m: m.nifti(datatype=1, bits=1), "voxels of type 1-bit"),
    ("long.nii", lambda m: m.nifti(datatype=1536, bits=128), "type code 1536"),
    # 0 in their place
    ("nan.nii", lambda m: m.nifti(data=one_voxel(NAN)), "1 voxels are NaN or infinite"),
    ("nan.nii.gz", lambda m: gzip.compress(m.nifti("f8", data=one_voxel(NAN, "f8"))),
     "1 voxels are NaN"),
    ("inf.nii", lambda m: m.nifti(data=one_voxel(-INF)), "1 voxels are NaN"),
    ("nan.mha", lambda m: m.mha(one_voxel(NAN)), "1 voxels are NaN"),
    ("huge.nii", lambda m: m.nifti("f8", data=one_voxel(1e300, "f8")), "beyond float32"),
    ("constant.nii", lambda m: m.nifti(data=bytes(480)), "every voxel is 0"),
    # the intercept is added though nothing is scaled by the standard
    ("slope0.nii", lambda m: m.nifti(slope=0, inter=-10), "slope 0 and intercept -10"),
    ("slope_inf.nii", lambda m: m.nifti(slope=INF), "slope inf"),
    ("inter_inf.nii", lambda m: m.nifti(inter=INF), "intercept inf"),
    ("flat.nrrd", lambda m: m.nrrd(dimension="2", sizes="20 6", kinds=None, space=None, space_directions=None,
                                         space_origin=None, spacings="1 1"), "2D image"),
    ("time.nrrd", lambda m: m.nrrd(dimension="4", sizes="4 5 3 2", kinds="domain domain domain list",
                                         space_directions="(1.5,0,0) (0,2,0) (0,0,3) none"),
     "voxels of type vector of 2"),
    ("complex.nrrd", lambda m: m.nrrd(dimension="4", sizes="2 4 5 3", kinds="complex domain domain domain",
                                            space_directions="none (1.5,0,0) (0,2,0) (0,0,3)"),
     "vector of 2"),
    ("block.nrrd", lambda m: m.nrrd(type="block"), "voxels of type 'block'"),
    ("bzip2.nrrd", lambda m: m.nrrd(bz2.compress(m.voxels()), encoding="bzip2"),
     "NRRD encoding 'bzip2'"),
    ("hex.nrrd", lambda m: m.nrrd(m.voxels().hex().encode(), encoding="hex"),
     "NRRD encoding 'hex'"),
    ("skip.nrrd", lambda m: m.nrrd(line_skip="2"), "NRRD line skip"),
    ("list.nhdr", lambda m: m.nrrd(b"", data_file="LIST"), "voxels in several files"),
    ("flat.mha", lambda m: m.mha(NDims=2, DimSize="20 6"), "2D image"),
    ("time.mha", lambda m: m.mha(NDims=4, DimSize="4 5 3 2"), "4D image"),
    ("rgb.mha", lambda m: m.mha(ElementNumberOfChannels=3, DimSize="4 5 2"),
     "with 3 channels"),
    ("array.mha", lambda m: m.mha(ElementType="MET_FLOAT_ARRAY"), "'MET_FLOAT_ARRAY'"),
    ("text.mha", lambda m: m.mha(b"1 2 3", BinaryData=False), "voxels as text"),
    ("pattern.mhd", lambda m: m.mha(b"", ElementDataFile="x%02d.raw 1 6 1"),
     "voxels in several files"),
]  # fmt: skip

SHEARED = rows_with(0, 1, 0.5)
CRISSCROSS = [[1.5, 1.5, 0, 0], [1.5, 1.5, 0, 0], [0, 0, 3, 0]]

GEOMETRY: list[Row] = [
    # 1 mm in their place
    ("zero.nii", lambda m: m.nifti(pixdim=(1, 0, 2, 3)), "spacing 0 x 2 x 3 mm"),
    ("nan.nii", lambda m: m.nifti(pixdim=(1, NAN, 2, 3)), "spacing nan x 2 x 3 mm"),
    ("inf.nii", lambda m: m.nifti(pixdim=(1, 1.5, INF, 3)), "spacing 1.5 x inf x 3 mm"),
    # the axis is flipped
    ("negative.nii", lambda m: m.nifti(pixdim=(1, -1.5, 2, 3)), "spacing -1.5 x 2 x 3 mm"),
    # read as it stands
    ("metres.nii", lambda m: m.nifti(units=1), "spacing 1500 x 2000 x 3000 mm"),
    ("sheared.nii", lambda m: m.nifti(rows=SHEARED), "sform sheared or scaled"),
    ("slightly.nii", lambda m: m.nifti(rows=rows_with(0, 1, 0.01)), "sform sheared"),
    ("singular.nii", lambda m: m.nifti(rows=CRISSCROSS), "sform singular"),
    ("zeros.nii", lambda m: m.nifti(rows=np.zeros((3, 4))), "singular sform"),
    # NaN in every coordinate
    ("sform_nan.nii", lambda m: m.nifti(rows=rows_with(0, 0, NAN)), "sform with NaN"),
    ("sform_inf.nii", lambda m: m.nifti(rows=rows_with(1, 3, INF)), "sform with NaN"),
    # pixdim taken, the sform's lengths dropped
    ("two_sizes.nii", lambda m: m.nifti(rows=rows_with(2, 2, 2)), "1.5 x 2 x 2 where pixdim says"),
    # renormalised, or NaN replaced
    ("quaternion.nii", lambda m: m.nifti(q=1, s=0, quaternion=(0.9, 0.9, 0.9, 0, 0, 0)),
     "qform quaternion 0.9, 0.9, 0.9"),
    ("qform_nan.nii", lambda m: m.nifti(q=1, s=0, quaternion=(NAN, 0, 1, 0, 0, 0)), "quaternion nan"),
    ("minus.nii", lambda m: m.nifti(dim=(3, -4, 5, 6)), "size -4 x 5 x 6"),
    ("none.nii", lambda m: m.nifti(dim=(3, 0, 5, 6)), "size 0 x 5 x 6"),
    ("long.nii", lambda m: m.nifti(dim=(3, 20000, 1, 1)), "size 20000 x 1 x 1"),
    ("large.nii.gz", lambda m: gzip.compress(m.nifti(dim=(3, 2000, 2000, 2000))), "size 2000"),
    ("vast.nii", lambda m: m.nifti(version=2, dim=(3, 2**40, 2**40, 2**40)), "size 1099511627776"),
    ("zero.nrrd", lambda m: m.nrrd(space_directions="(0,0,0) (0,2,0) (0,0,3)"), "spacing 0 x 2 x 3"),
    ("nan.nrrd", lambda m: m.nrrd(space_directions="(nan,0,0) (0,2,0) (0,0,3)"), "spacing nan"),
    ("sheared.nrrd", lambda m: m.nrrd(space_directions="(1.5,0.5,0) (0,2,0) (0,0,3)"),
     "space directions sheared"),
    ("singular.nrrd", lambda m: m.nrrd(space_directions="(1,1,0) (1,1,0) (0,0,3)"),
     "space directions singular"),
    # 1 mm taken
    ("none.nrrd", lambda m: m.nrrd(**NO_SPACE), "no spacing"),
    ("axis.nrrd", lambda m: m.nrrd(space_directions="none (0,2,0) (0,0,3)"), "axis without direction"),
    # flipped, and 1 mm taken
    ("negative.nrrd", lambda m: m.nrrd(**NO_SPACE, spacings="-2 2 3"),
     "spacing -2 x 2 x 3"),
    ("nan2.nrrd", lambda m: m.nrrd(**NO_SPACE, spacings="nan 2 3"),
     "spacing nan x 2 x 3"),
    # taken as mm
    ("micrometres.nrrd", lambda m: m.nrrd(space_units='"um" "um" "um"'), "lengths in um"),
    ("large.nrrd", lambda m: m.nrrd(sizes="2000 2000 2000"), "size 2000 x 2000 x 2000"),
    ("zero.mha", lambda m: m.mha(ElementSpacing="0 2 3"), "spacing 0 x 2 x 3"),
    # flipped, and 1 mm taken
    ("negative.mha", lambda m: m.mha(ElementSpacing="-1.5 2 3"), "spacing -1.5 x 2 x 3"),
    ("nan.mha", lambda m: m.mha(ElementSpacing="nan 2 3"), "spacing nan x 2 x 3"),
    ("two.mha", lambda m: m.mha(ElementSpacing="2 3"), "spacing 2 x 3 mm"),
    # 1 mm taken
    ("none.mha", lambda m: m.mha(ElementSpacing=None), "no ElementSpacing"),
    ("micrometres.mha", lambda m: m.mha(DistanceUnits="um"), "lengths in um"),
    # read as it stands
    ("sheared.mha", lambda m: m.mha(TransformMatrix="1 0 0 0.3 0.95 0 0 0 1"), "sheared or scaled"),
    ("scaled.mha", lambda m: m.mha(TransformMatrix="2 0 0 0 2 0 0 0 2"), "sheared or scaled"),
    ("singular.mha", lambda m: m.mha(TransformMatrix="1 0 0 1 0 0 0 0 1"), "singular"),
    ("nan_matrix.mha", lambda m: m.mha(TransformMatrix="nan 0 0 0 1 0 0 0 1"), "not finite"),
    # 0 in its place
    ("origin.mha", lambda m: m.mha(Offset="0 nan 0"), "origin 0 x nan x 0 mm"),
    ("origin.nrrd", lambda m: m.nrrd(space_origin="(0,inf,0)"), "origin 0 x inf x 0 mm"),
    ("far.nii", lambda m: m.nifti(rows=rows_with(1, 3, 1e30)), "sform with NaN, infinite or huge"),
    ("large.mha", lambda m: m.mha(DimSize="2000 2000 2000"), "size 2000 x 2000 x 2000"),
    ("minus.mha", lambda m: m.mha(DimSize="-4 5 6"), "size -4 x 5 x 6"),
]  # fmt: skip

# Found by damaging files at random, or by thinking of what that would find.
ODD_HEADERS: list[Row] = [
    # voxels are read as they stand
    ("eol.nii", lambda m: m.nifti(version=2, magic=b"n+2\0\n\n\x1a\n"), "without the NIfTI signature"),
    ("pair2.nii", lambda m: m.nifti(version=2, magic=b"ni2\0\r\n\x1a\n"), "a .hdr/.img pair"),
    ("directions.nrrd", lambda m: m.nrrd(space_directions="left back up"), "axes and sizes disagree"),
    ("vector.nrrd", lambda m: m.nrrd(space_directions="(1.5,0) (0,2) (0,0)"), "not three vectors"),
    ("skip_word.nrrd", lambda m: m.nrrd(byte_skip="x"), "'byte skip' says 'x'"),
    ("skip_minus.nrrd", lambda m: m.nrrd(byte_skip="-2"), "'byte skip' says '-2'"),
    ("skip_gzip.nrrd", lambda m: m.nrrd(gzip.compress(m.voxels()), encoding="gzip", byte_skip="-1"), "are packed"),
    ("skip_far.nrrd", lambda m: m.nrrd(byte_skip="9999"), "truncated: 0 of 480 bytes"),
    ("zero_byte.nhdr", lambda m: m.nrrd(b"", data_file="a\0b"), "is missing"),
    ("long_name.nhdr", lambda m: m.nrrd(b"", data_file="x" * 5000), "name too long"),
    ("digits.nrrd", lambda m: m.nrrd(sizes="9" * 5000 + " 5 6"), "not whole numbers"),
    ("size_minus.mha", lambda m: m.mha(zlib.compress(m.voxels()), CompressedData=True, CompressedDataSize=-1),
     "CompressedDataSize '-1'"),
    # as much memory is asked for
    ("size_vast.mha", lambda m: m.mha(zlib.compress(m.voxels()), CompressedData=True, CompressedDataSize=2**40),
     "beyond the end of the file"),
    ("size_word.mha", lambda m: m.mha(zlib.compress(m.voxels()), CompressedData=True, CompressedDataSize="all"),
     "not whole numbers"),
    ("skip_minus.mha", lambda m: m.mha(HeaderSize=-7), "HeaderSize and voxels in the same file"),
    ("skip_word.mha", lambda m: m.mha(HeaderSize="x"), "'HeaderSize' says 'x'"),
    # read from that byte of the file, header or not
    ("skip_local.mha", lambda m: m.mha(HeaderSize=100), "HeaderSize and voxels in the same file"),
    ("endless.mha", lambda m: b"NDims = 3\n" * 200_000, "not a MetaImage header"),
]  # fmt: skip

ODD_GEOMETRY: list[Row] = [
    # z is flipped, in other readers it is not
    ("handedness.nii", lambda m: m.nifti(q=1, s=0, pixdim=(-2, 1.5, 2, 3)), "qform handedness -2"),
    ("position.nii", lambda m: m.nifti(q=1, s=0, quaternion=(0, 0, 1, NAN, 0, 0)), "qform quaternion 0, 0, 1 at [nan"),
    ("pixdim.nii", lambda m: m.nifti(q=1, s=0, pixdim=(1, 1e-6, 2, 3)), "spacing 1e-06 x 2 x 3 mm"),
    ("two.nrrd", lambda m: m.nrrd(**NO_SPACE, spacings="2 3"), "spacing 2 x 3 mm"),
    ("units.nrrd", lambda m: m.nrrd(**NO_SPACE, spacings="1 2 3", units='"cm" "cm" "cm"'), "lengths in cm"),
    ("huge.mha", lambda m: m.mha(ElementSpacing="1e9 2 3"), "spacing 1e+09 x 2 x 3 mm"),
    ("far.mha", lambda m: m.mha(Offset="0 1e300 0"), "origin 0 x 1e+300 x 0 mm"),
]  # fmt: skip

DETACHED: list[Row] = [
    ("short/a.mhd", lambda m: {"short/a.mhd": m.mha(b"", ElementDataFile="a.raw"), "short/a.raw": m.voxels()[:-9]},
     "truncated: 471 of 480"),
    ("short/a.nhdr", lambda m: {"short/a.nhdr": m.nrrd(b"", data_file="a.raw"), "short/a.raw": m.voxels()[:-9]},
     "truncated: 471 of 480"),
    ("cut/a.nhdr", lambda m: {"cut/a.nhdr": m.nrrd(b"", data_file="a.gz", encoding="gzip"),
                              "cut/a.gz": gzip.compress(m.voxels())[:-9]}, "truncated gzip data"),
    ("cut/a.mhd", lambda m: {"cut/a.mhd": m.mha(b"", ElementDataFile="a.z", CompressedData=True),
                             "cut/a.z": zlib.compress(m.voxels())[:-9]}, "truncated zlib data"),
    ("skip/a.mhd", lambda m: {"skip/a.mhd": m.mha(b"", ElementDataFile="a.raw", HeaderSize=-7),
                              "skip/a.raw": m.voxels()}, "'HeaderSize' says '-7'"),
    ("self/a.mhd", lambda m: {"self/a.mhd": m.mha(b"", ElementDataFile="a.mhd")}, "truncated: "),
    ("folder/a.mhd", lambda m: {"folder/a.mhd": m.mha(b"", ElementDataFile="."), "folder/b": b""}, "'.' is missing"),
]  # fmt: skip

TABLE = [
    *(BadInput(name, build, UnreadableInputError, message) for name, build, message in BROKEN + ODD_HEADERS + DETACHED),
    *(BadInput(name, build, UnsuitableInputError, message) for name, build, message in UNSUITABLE),
    *(BadInput(name, build, GeometryError, message) for name, build, message in GEOMETRY + ODD_GEOMETRY),
]

DICOM: list[tuple[bad_series.Rows, type[InputError]]] = [
    (bad_series.UNREADABLE, UnreadableInputError),
    (bad_series.NO_SERIES, UnsuitableInputError),
    (bad_series.NO_GRID, GeometryError),
]
TABLE += [
    BadInput(name, lambda make, build=build: build(), error, message)
    for rows, error in DICOM
    for name, build, message in rows
]

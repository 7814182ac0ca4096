"""Read many damaged scans in one process with little memory: ``python mutations.py FORMAT COUNT SEED FOLDER``.

Every file is either refused by an InputError, or read as an independent reader reads it: nibabel for NIfTI, SimpleITK
for NRRD and MetaImage. Prints one JSON line: how many were refused and read, and what went wrong.
"""

import gzip
import json
import re
import resource
import signal
import sys
import traceback
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
import SimpleITK as sitk  # noqa: N813
from scan_files import mha, nifti, nrrd, voxels

from dropgen_rt.errors import InputError
from dropgen_rt.scan_nifti import QUATERNION_EXCESS
from dropgen_rt.volume import Scan, read_scan

#: Address space of the process, and the longest that one file may take, whatever is in it.
MEMORY_BYTES, SECONDS_PER_FILE = 3 * 2**30, 5

# Numbers that a header may well hold and no reader expects.
ODD_NUMBERS = (
    "0", "-1", "1", "2", "3", "5", "7", "1e-9", "1e9", "1e39", "nan", "inf", "-inf", "-0.0", "4294967296",
    "-2147483649", "0x10", "1.5", "", "a", "4,5", "9" * 400,
)  # fmt: skip
ODD_FLOATS = (0.0, -1.0, 1e-9, 1e9, 1e39, np.nan, np.inf, -np.inf, 352.0, 353.0)
ODD_SHORTS = (0, -1, 1, 2, 3, 4, 5, 8, 16, 64, 128, 256, 1024, 32767, -32768)

# Voxel edges by which an accepted file's corners may lie elsewhere than the referee says, unless a warning tells of it:
# pixdim and sform are two roundings of one length, readers take the one or the other.
PLACE_EDGES = 0.1

Bytes = Callable[[], bytes]


def compressed_nrrd() -> bytes:
    return nrrd(gzip.compress(voxels(), mtime=0), encoding="gzip")


def compressed_mha() -> bytes:
    data = zlib.compress(voxels())
    return mha(data, CompressedData=True, CompressedDataSize=len(data))


def scaled_nifti() -> bytes:
    return nifti("i2", q=1, s=1, slope=0.5, inter=-7)


def nifti2() -> bytes:
    return nifti("u2", ">", version=2, q=1, s=0)


def turned_nrrd() -> bytes:
    return nrrd(space="RAS", space_directions="(0,1.5,0) (-2,0,0) (0,0,3)", space_origin="(10,20,-30)")


def plain_nrrd() -> bytes:
    return nrrd(voxels("i2", ">"), type="short", endian="big", space=None, space_directions=None, space_origin=None,
                spacings="1.5 2 3")  # fmt: skip


def mha_of_four_axes() -> bytes:
    return mha(NDims=4, DimSize="4 5 6 1", ElementSpacing="1.5 2 3 1", Offset="-10 -20 -30 0",
               TransformMatrix="0 1 0 0 -1 0 0 0 0 0 1 0 0 0 0 1")  # fmt: skip


#: What is damaged: of each format a plain file and richer ones.
ORIGINALS: dict[str, tuple[str, tuple[Bytes, ...]]] = {
    "nii": (".nii", (nifti, scaled_nifti, nifti2)),
    "nii.gz": (".nii.gz", (nifti, scaled_nifti, nifti2)),
    "nrrd": (".nrrd", (nrrd, compressed_nrrd, turned_nrrd, plain_nrrd)),
    "mha": (".mha", (mha, compressed_mha, mha_of_four_axes)),
}


def mutated(kind: str, rng: np.random.Generator) -> bytes:
    """One damaged file: bytes flipped, cut, doubled, dropped or put in, or a number of the header made odd."""
    originals = ORIGINALS[kind][1]
    original = originals[rng.integers(len(originals))]()
    if kind == "nii.gz":
        if rng.random() < 0.3:
            return damaged_bytes(gzip.compress(original, mtime=0), rng)
        return gzip.compress(mutated_nifti(original, rng), mtime=0)
    if kind == "nii":
        return mutated_nifti(original, rng)
    return damaged_bytes(original, rng) if rng.random() < 0.3 else mutated_text(original, rng)


def damaged_bytes(data: bytes, rng: np.random.Generator) -> bytes:
    choice = rng.integers(6)
    place = int(rng.integers(len(data)))
    length = int(rng.integers(1, 40))
    if choice == 0:
        return data[:place]
    if choice == 1:
        return data[:place] + rng.bytes(length) + data[place:]
    if choice == 2:
        return data[:place] + data[place + length :]
    if choice == 3:
        return data + data[place:]
    flipped = bytearray(data)
    for _ in range(1 if choice == 4 else length):
        flipped[int(rng.integers(len(data) if choice == 4 else min(len(data), 352)))] = int(rng.integers(256))
    return bytes(flipped)


def mutated_nifti(data: bytes, rng: np.random.Generator) -> bytes:
    if rng.random() < 0.4:
        return damaged_bytes(data, rng)
    header = bytearray(data)
    for _ in range(rng.integers(1, 4)):
        if rng.random() < 0.5:  # dim, datatype, bitpix, qform and sform codes
            place = int(rng.choice([*range(40, 56, 2), 70, 72, 252, 254]))
            header[place : place + 2] = np.int16(rng.choice(ODD_SHORTS)).tobytes()
        else:  # pixdim, offset, slope, intercept, quaternion, sform
            place = int(rng.choice([*range(76, 120, 4), *range(256, 328, 4)]))
            with np.errstate(over="ignore"):
                header[place : place + 4] = np.float32(rng.choice(ODD_FLOATS)).tobytes()
    return bytes(header)


def mutated_text(data: bytes, rng: np.random.Generator) -> bytes:
    """A number or a line of the header changed."""
    end = data.find(b"LOCAL") + 5 if data.startswith(b"ObjectType") else data.find(b"\n\n")
    header, rest = data[:end], data[end:]
    if rng.random() < 0.3:
        lines = header.split(b"\n")
        one, other = rng.integers(len(lines), size=2)
        choice = rng.integers(4)
        if choice == 0:
            lines[one], lines[other] = lines[other], lines[one]
        elif choice == 1:
            del lines[one]
        elif choice == 2:
            lines.insert(one, lines[other])
        else:
            words = lines[other].split(b" ")
            lines[one] = b" ".join([*lines[one].split(b" ")[:2], *words[2:]])
        return b"\n".join(lines) + rest
    for _ in range(rng.integers(1, 3)):
        found = list(re.finditer(rb"-?\d+(\.\d+)?", header))
        spot = found[int(rng.integers(len(found)))]
        header = header[: spot.start()] + str(rng.choice(ODD_NUMBERS)).encode() + header[spot.end() :]
    return header + rest


def differs(path: Path, kind: str, scan: Scan) -> str:
    """How an independent reader reads an accepted file otherwise; "" where it agrees."""
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        array, corners = by_nibabel(path) if kind.startswith("nii") else by_simpleitk(path)
    mine = scan.volume.array[0]
    if array.shape != mine.shape:
        return f"shape {mine.shape}, the referee's {array.shape}"
    if not np.array_equal(array.astype(np.float32), mine):
        return "other values than the referee's"
    geometry = scan.volume.geometry
    if corners is not None and not any("apart" in line for line in scan.warnings):
        ends = geometry.to_world(np.array(list(np.ndindex(2, 2, 2))) * (np.array(geometry.size) - 1))
        apart = float(np.abs(ends - corners).max())
        if not apart <= PLACE_EDGES * min(geometry.spacing_mm):
            return f"{apart} mm from the referee's place"
    return ""


def by_nibabel(path: Path) -> tuple[np.ndarray, np.ndarray | None]:
    """Values (z, y, x) and the corners in LPS millimetres; no corners for a header that sets no transform."""
    image = nibabel.load(path)
    array = np.asarray(image.dataobj, np.float64)
    array = array.reshape(array.shape[:3]).T
    header = image.header
    if header["sform_code"] <= 0 and header["qform_code"] <= 0:
        return array, None
    factor = {1: 1000.0, 3: 0.001}.get(int(header["xyzt_units"]) & 7, 1.0)
    affine = np.diag([-factor, -factor, factor, 1.0]) @ image.affine
    ends = np.array(list(np.ndindex(2, 2, 2))) * (np.array(array.shape[::-1]) - 1)
    return array, ends @ affine[:3, :3].T + affine[:3, 3]


def by_simpleitk(path: Path) -> tuple[np.ndarray, np.ndarray]:
    image = sitk.ReadImage(str(path), imageIO="NrrdImageIO" if path.suffix == ".nrrd" else "MetaImageIO")
    array = sitk.GetArrayFromImage(image)
    array = array.reshape(array.shape[-3:])
    ends = np.array(list(np.ndindex(2, 2, 2))) * (np.array(array.shape[::-1]) - 1)
    rest = [0] * (image.GetDimension() - 3)
    return array, np.array([image.TransformIndexToPhysicalPoint([*map(int, end), *rest])[:3] for end in ends])


def examine(path: Path, kind: str, compare: Callable[[Path, str, Scan], str] = differs) -> str:
    """ "refused", "read", or what went wrong."""
    signal.alarm(SECONDS_PER_FILE)
    try:
        scan = read_scan(path)
    except InputError as error:
        text = str(error)
        return "refused" if text.startswith(f"{path}: ") and text.isprintable() else f"message {text!r}"
    except BaseException:
        return traceback.format_exc()
    finally:
        signal.alarm(0)
    try:
        return compare(path, kind, scan) or "read"
    except Exception as error:
        if "Refusing to change" in str(error):
            return "read alone"
        return f"the referee refuses: {type(error).__name__}: {error}"


def main(kind: str, count: int, seed: int, folder: Path) -> None:
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    signal.signal(signal.SIGALRM, lambda *_: (_ for _ in ()).throw(TimeoutError("too slow")))
    nibabel.Nifti2Header.quaternion_threshold = -QUATERNION_EXCESS  # as NIfTI-1's: both hold roundings of float32
    rng = np.random.default_rng(seed)
    suffix, wrong, tally = ORIGINALS[kind][0], [], {"refused": 0, "read": 0, "read alone": 0}
    path = folder / f"scan{suffix}"
    for number in range(count):
        data = mutated(kind, rng)
        path.write_bytes(data)
        outcome = examine(path, kind)
        if outcome in tally:
            tally[outcome] += 1
        else:
            (folder / f"wrong{number}{suffix}").write_bytes(data)
            wrong.append([number, outcome])
    print(json.dumps({**tally, "wrong": wrong}))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4]))

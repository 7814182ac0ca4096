"""Read many damaged DICOM series in one process with little memory: ``python dicom_mutations.py COUNT SEED FOLDER``.

Every series goes the whole way, guarded children included, and is either refused by an InputError or read as pydicom
alone reads the files that were used. A slice that is not used has to be told of. Prints one JSON line, as mutations.py.
"""

import functools
import io
import json
import re
import resource
import shutil
import signal
import struct
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pydicom
from bad_series import Files, content, series
from dicom_series import SLICES, enhanced, voxels
from mutations import MEMORY_BYTES, ODD_NUMBERS, ODD_SHORTS, PLACE_EDGES, damaged_bytes, examine
from pydicom.dataset import Dataset
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    RLELossless,
)

from dropgen_rt.volume import Scan

#: Explicit VRs whose length has four bytes, PS3.5 7.1.2.
LONG_VRS = (b"OB", b"OW", b"SQ", b"UN", b"UT", b"OF", b"OD")
PIXELS = 0x7FE00010
ODD_VRS = (b"UN", b"OW", b"DS", b"US", b"SQ", b"UI", b"XX", b"\0\0")
ODD_LENGTHS = (0, 1, 2, 7, 255, 65535, 2**31, 0xFFFFFFFE, 0xFFFFFFFF)


def scaled(dataset: Dataset, number: int) -> None:
    dataset.RescaleSlope, dataset.RescaleIntercept = str(1 + number / 2), "-7"
    dataset.BitsStored, dataset.HighBit = 12, 11


def rle() -> Files:
    found = {}
    for name, data in series("s").items():
        dataset = pydicom.dcmread(io.BytesIO(data))
        dataset.compress(RLELossless, generate_instance_uid=False)
        found[name] = content(dataset, RLELossless)
    return found


#: What is damaged: plain series, packed ones, one without types in its elements, one file with all slices.
ORIGINALS: tuple[Callable[[], Files], ...] = (
    functools.cache(lambda: series("s")),
    functools.cache(lambda: series("s", scaled, modality="MR")),
    functools.cache(lambda: series("s", syntax=ImplicitVRLittleEndian)),
    functools.cache(lambda: series("s", syntax=DeflatedExplicitVRLittleEndian)),
    functools.cache(rle),
    functools.cache(lambda: {"s/0.dcm": content(enhanced(voxels(), slopes=[1, 2, 1, 3, 1, 1]))}),
)


def mutated(rng: np.random.Generator) -> Files:
    """A series of which one file, or a few, or all in the same way, are damaged."""
    files = dict(ORIGINALS[rng.integers(len(ORIGINALS))]())
    names = sorted(files)
    count = int(rng.choice([1, 1, 1, 2, len(names)]))
    seed = int(rng.integers(2**32))
    for name in rng.permutation(names)[: min(count, len(names))]:
        again = np.random.default_rng(seed)  # so that all suffer the same
        damage = damaged_bytes if again.random() < 0.25 else mutated_elements
        for _ in range(again.integers(1, 3)):
            files[str(name)] = damage(files[str(name)], again) or b"\0"
    return files


def elements(data: bytes) -> list[tuple[int, int, int, bytes]]:
    """(start, start of the value, its length, VR) of all elements, those in sequences too; as far as they go."""
    found, place = [], 132
    while place + 8 <= len(data):
        vr = data[place + 4 : place + 6]
        if data[place : place + 2] == b"\xfe\xff":  # an item, or an end
            place += 8
            continue
        if not vr.isalpha():  # the elements of an implicit syntax
            length = struct.unpack_from("<I", data, place + 4)[0]
            found.append((place, place + 8, length, b""))
            place += 8 + length
            continue
        long = vr in LONG_VRS
        if long and place + 12 > len(data):
            break
        length = struct.unpack_from("<I" if long else "<H", data, place + (8 if long else 6))[0]
        value = place + (12 if long else 8)
        found.append((place, value, length, vr))
        place = value if vr == b"SQ" else value + length
    return found


def mutated_elements(data: bytes, rng: np.random.Generator) -> bytes:
    """One element removed, doubled, moved, given another type, length or value."""
    found = [element for element in elements(data) if element[1] + element[2] <= len(data) or element[3] == b"SQ"]
    if not found:
        return damaged_bytes(data, rng)
    start, value, length, vr = found[int(rng.integers(len(found)))]
    end = value + (0 if vr == b"SQ" else length)
    choice = rng.random()
    if choice < 0.15:
        return data[:start] + data[end:]
    if choice < 0.2:
        return data[:end] + data[start:]
    if choice < 0.25:
        other = found[int(rng.integers(len(found)))][0]
        return data[:other] + data[start:end] + data[other:]
    if choice < 0.33:
        return data[: start + 4] + ODD_VRS[rng.integers(len(ODD_VRS))] + data[start + 6 :]
    if choice < 0.43:
        kind = "<I" if value - start == 12 or not vr else "<H"
        odd = int(rng.choice(ODD_LENGTHS)) & (0xFFFFFFFF if kind == "<I" else 0xFFFF)
        return data[: value - struct.calcsize(kind)] + struct.pack(kind, odd) + data[value:]
    if vr in (b"US", b"SS"):
        return data[:value] + np.int16(rng.choice(ODD_SHORTS)).tobytes() + data[value + 2 :]
    if value - start == 12 or vr == b"UL":
        return damaged_bytes(data, rng)
    parts = data[value:end].split(b"\\")
    parts[int(rng.integers(len(parts)))] = str(rng.choice(ODD_NUMBERS)).encode()
    text = b"\\".join(parts)
    text += b" " * (len(text) % 2)
    size = struct.pack("<H", len(text) & 0xFFFF) if vr else struct.pack("<I", len(text))
    return data[: value - len(size)] + size + text + data[end:]


def differs(path: Path, kind: str, scan: Scan) -> str:
    """How pydicom reads the used files otherwise; "" where it agrees."""
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        used = list(dict.fromkeys(scan.files.files[plane.header.file] for plane in scan.slices))
        datasets = {file: by_pydicom(file) for file in used}
        if len(scan.slices) != SLICES and not any(
            re.search("left out|missing|ignored", line) for line in scan.warnings
        ):
            return f"{len(scan.slices)} slices of {SLICES}, and nothing said: {scan.warnings}"
        for keyword in ("PatientID", "StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID"):
            if len({str(dataset.get(keyword) or "") for dataset in datasets.values()}) > 1:
                return f"mixed {keyword}"
        stored = {file: dataset.pixel_array for file, dataset in datasets.items()}
        for k, plane in enumerate(scan.slices):
            file = scan.files.files[plane.header.file]
            array = stored[file]
            wrong = plane_differs(
                scan, k, datasets[file], array[plane.frame] if array.ndim == 3 else array, plane.frame
            )
            if wrong:
                return f"slice {k}: {wrong}"
    return ""


def by_pydicom(path: Path) -> Dataset:
    """All up to the pixels; what stands behind them may claim any length, and is not read."""
    seen: list[int] = []

    def behind(tag: int, vr: str | None, length: int) -> bool:
        seen.append(tag)
        return PIXELS in seen[:-1]

    with path.open("rb") as file:
        dataset = pydicom.filereader.read_partial(file, stop_when=behind, force=True)
    if not dataset.file_meta:  # it has found out how the rest is written, and will not decode without being told
        implicit, little = dataset.original_encoding
        explicit = ExplicitVRLittleEndian if little else ExplicitVRBigEndian
        dataset.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian if implicit else explicit
    return dataset


def plane_differs(scan: Scan, k: int, dataset: Dataset, stored: np.ndarray, frame: int) -> str:
    place, axes, spacing, slope, intercept = described(dataset, frame)
    if scan.grid.shift_px is None:
        mine = scan.volume.array[0, k]
        if mine.shape != stored.shape:
            return f"shape {mine.shape}, the referee's {stored.shape}"
        if not np.array_equal(mine, (stored * slope + intercept).astype(np.float32)):
            return "other values than the referee's"
    x, y = (0.0, 0.0) if scan.grid.shift_px is None else scan.grid.shift_px[k]
    rows, columns = stored.shape
    corner = place + axes[:3] * spacing[1] * (columns - 1) + axes[3:] * spacing[0] * (rows - 1)
    geometry = scan.volume.geometry
    ends = geometry.to_world([[x, y, k], [x + columns - 1, y + rows - 1, k]])
    apart = float(np.abs(ends - [place, corner]).max())
    if not apart <= PLACE_EDGES * min(geometry.spacing_mm) and not any("even grid" in line for line in scan.warnings):
        return f"{apart} mm from the referee's place"
    return ""


def described(dataset: Dataset, frame: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, float, float]:
    """Position, orientation, spacing, slope and intercept of a frame."""
    if "PerFrameFunctionalGroupsSequence" not in dataset:
        slope, intercept = dataset.get("RescaleSlope"), dataset.get("RescaleIntercept")
        place, axes, spacing = dataset.ImagePositionPatient, dataset.ImageOrientationPatient, dataset.PixelSpacing
    else:
        group, shared = dataset.PerFrameFunctionalGroupsSequence[frame], dataset.SharedFunctionalGroupsSequence[0]
        scale = group.get("PixelValueTransformationSequence", [Dataset()])[0]
        slope, intercept = scale.get("RescaleSlope"), scale.get("RescaleIntercept")
        place = group.PlanePositionSequence[0].ImagePositionPatient
        axes = shared.PlaneOrientationSequence[0].ImageOrientationPatient
        spacing = shared.PixelMeasuresSequence[0].PixelSpacing
    factor = 1.0 if slope is None else float(slope)
    return *(np.array(list(map(float, part))) for part in (place, axes, spacing)), factor, float(intercept or 0)


def write(files: Files, folder: Path) -> Path:
    shutil.rmtree(folder / "s", ignore_errors=True)
    (folder / "s").mkdir(parents=True)
    for name, data in files.items():
        (folder / name).write_bytes(data)
    return folder / "s"


def main(count: int, seed: int, folder: Path) -> None:
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    signal.signal(signal.SIGALRM, lambda *_: (_ for _ in ()).throw(TimeoutError("too slow")))
    rng = np.random.default_rng(seed)
    wrong, tally = [], {"refused": 0, "read": 0, "read alone": 0}
    for number in range(count):
        path = write(mutated(rng), folder)
        outcome = examine(path, "dicom", differs)
        if outcome in tally:
            tally[outcome] += 1
        else:
            shutil.copytree(path, folder / f"wrong{number}")
            wrong.append([number, outcome])
    print(json.dumps({**tally, "wrong": wrong}))


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))

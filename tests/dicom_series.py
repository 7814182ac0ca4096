"""Synthetic DICOM series, with a patient whose every attribute is a canary: none may sing anywhere outside DICOM."""

import hashlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sequence import Sequence
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, MRImageStorage

CANARIES = ("CANARY", "4711007", "19610203", "19991231", "SINGSONG")
ROWS, COLUMNS, SLICES = 10, 12, 6
SPACING_MM = (1.5, 2.0, 3.0)  # between columns (x), between rows (y), between slices
ORIGIN_MM = (-10.0, -20.0, -30.0)
AXIAL = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)

Edit = Callable[[Dataset, int], None]


def uid(*parts: object) -> str:
    return "2.25." + str(int(hashlib.sha256(repr(parts).encode()).hexdigest()[:30], 16))


def voxels(shape: tuple[int, int, int] = (SLICES, ROWS, COLUMNS)) -> np.ndarray:
    """(z, y, x) int16, every voxel different, from -1000 up."""
    return (np.arange(np.prod(shape)) - 1000).reshape(shape).astype(np.int16)


def positions(
    count: int, orientation: tuple[float, ...] = AXIAL, step_mm: float = SPACING_MM[2],
    sideways_mm: tuple[float, float] = (0.0, 0.0), origin_mm: tuple[float, ...] = ORIGIN_MM,
) -> np.ndarray:  # fmt: skip
    """(count, 3) positions along the normal, each displaced further by ``sideways_mm`` along row and column."""
    row, column = np.array(orientation[:3]), np.array(orientation[3:])
    step = np.cross(row, column) * step_mm + row * sideways_mm[0] + column * sideways_mm[1]
    return np.array(origin_mm) + np.outer(np.arange(count), step)


def base(series: str = "series", modality: str = "CT") -> Dataset:
    """Everything but geometry and pixels."""
    dataset = Dataset()
    dataset.SpecificCharacterSet = "ISO_IR 100"
    dataset.SOPClassUID = CTImageStorage if modality == "CT" else MRImageStorage
    dataset.Modality, dataset.ImageType = modality, ["ORIGINAL", "PRIMARY", "AXIAL"]
    dataset.PatientName, dataset.PatientID = "CANARY^BIRD", "4711007"
    dataset.PatientBirthDate, dataset.PatientSex = "19610203", "O"
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID = uid("study"), uid(series)
    dataset.FrameOfReferenceUID, dataset.PositionReferenceIndicator = uid("frame"), ""
    dataset.StudyDate, dataset.StudyTime, dataset.StudyID = "19991231", "101010", "4711007"
    dataset.SeriesDate, dataset.SeriesTime, dataset.SeriesNumber = "19991231", "101112", 3
    dataset.ContentDate, dataset.ContentTime, dataset.AcquisitionNumber = "19991231", "101112", 1
    dataset.StudyDescription = dataset.SeriesDescription = dataset.ProtocolName = "SINGSONG"
    dataset.AccessionNumber, dataset.ReferringPhysicianName, dataset.InstitutionName = "4711007", "CANARY^X", "CANARY"
    dataset.Manufacturer, dataset.PatientPosition, dataset.BodyPartExamined = "ACME", "HFS", "HEAD"
    dataset.Laterality = ""
    if modality == "CT":
        dataset.KVP = "120"
        dataset.RescaleType = "HU"
        dataset.RescaleSlope, dataset.RescaleIntercept = "1", "0"
    else:
        dataset.ScanningSequence, dataset.SequenceVariant, dataset.ScanOptions = "GR", "NONE", ""
        dataset.MRAcquisitionType, dataset.EchoTime, dataset.RepetitionTime = "3D", "3", "9"
        dataset.EchoTrainLength = "1"
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 16, 16, 15, 1
    return dataset


def one(
    array: np.ndarray, number: int, position: np.ndarray, *, orientation: tuple[float, ...] = AXIAL,
    spacing_mm: tuple[float, float, float] = SPACING_MM, series: str = "series", modality: str = "CT",
) -> Dataset:  # fmt: skip
    """The data set of one slice (rows, columns) int16."""
    dataset = base(series, modality)
    dataset.SOPInstanceUID = uid(series, number)
    dataset.InstanceNumber = number + 1
    dataset.ImagePositionPatient = [f"{value:.12g}"[:16] for value in position]
    dataset.ImageOrientationPatient = [f"{value:.12g}"[:16] for value in orientation]
    dataset.PixelSpacing = [spacing_mm[1], spacing_mm[0]]
    dataset.SliceThickness = spacing_mm[2]
    dataset.Rows, dataset.Columns = array.shape
    dataset.PixelData = np.ascontiguousarray(array).tobytes()
    dataset["PixelData"].VR = "OW"
    return dataset


def save(dataset: Dataset, path: Path, syntax: str = ExplicitVRLittleEndian) -> Path:
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = dataset.SOPClassUID
    meta.MediaStorageSOPInstanceUID = dataset.get("SOPInstanceUID") or uid("none")
    meta.TransferSyntaxUID = syntax
    dataset.file_meta = meta
    path.parent.mkdir(parents=True, exist_ok=True)
    dataset.save_as(path, enforce_file_format=True)
    return path


def write(
    folder: Path, array: np.ndarray | None = None, *, places: np.ndarray | None = None, edit: Edit | None = None,
    prefix: str = "CANARY_4711007_", syntax: str = ExplicitVRLittleEndian, **how: object,
) -> Path:  # fmt: skip
    """A series of (z, y, x) int16 slices, one file each, in an order of names that is not theirs; the folder."""
    array = voxels() if array is None else array
    orientation = how.get("orientation", AXIAL)
    places = positions(len(array), orientation) if places is None else places
    for number in range(len(array)):
        dataset = one(array[number], number, places[number], **how)
        if edit is not None:
            edit(dataset, number)
        save(dataset, folder / f"{prefix}{(number * 7) % len(array)}_{number}.dcm", syntax)
    return folder


def enhanced(array: np.ndarray, *, slopes: list[float] | None = None, order: list[int] | None = None) -> Dataset:
    """An enhanced MR image of (z, y, x) int16 slices, its frames in ``order``."""
    dataset = base("enhanced", "MR")
    dataset.SOPClassUID = "1.2.840.10008.5.1.4.1.1.4.1"
    dataset.SOPInstanceUID = uid("enhanced", 0)
    dataset.InstanceNumber = 1
    order = list(range(len(array))) if order is None else order
    dataset.NumberOfFrames, dataset.Rows, dataset.Columns = len(order), *array.shape[1:]
    shared, measures, plane = Dataset(), Dataset(), Dataset()
    measures.PixelSpacing, measures.SliceThickness = [SPACING_MM[1], SPACING_MM[0]], SPACING_MM[2]
    plane.ImageOrientationPatient = list(AXIAL)
    shared.PixelMeasuresSequence, shared.PlaneOrientationSequence = Sequence([measures]), Sequence([plane])
    dataset.SharedFunctionalGroupsSequence = Sequence([shared])
    groups = []
    for frame, (index, place) in enumerate(zip(order, positions(len(array))[order], strict=True)):
        group, where, content, scale = Dataset(), Dataset(), Dataset(), Dataset()
        where.ImagePositionPatient = place.tolist()
        content.StackID, content.InStackPositionNumber, content.TemporalPositionIndex = "1", index + 1, 1
        scale.RescaleSlope = str(slopes[frame] if slopes else 1)
        scale.RescaleIntercept, scale.RescaleType = "0", "US"
        group.PlanePositionSequence, group.FrameContentSequence = Sequence([where]), Sequence([content])
        group.PixelValueTransformationSequence = Sequence([scale])
        groups.append(group)
    dataset.PerFrameFunctionalGroupsSequence = Sequence(groups)
    dataset.PixelData = np.ascontiguousarray(array[order]).tobytes()
    dataset["PixelData"].VR = "OW"
    return dataset

"""The source data sets as the objects refer to them: without pixels, in one character set, fit for highdicom."""

import hashlib
import logging
from collections.abc import Callable

import highdicom as hd
import pydicom
from pydicom.charset import decode_element
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence as DicomSequence
from pydicom.valuerep import DA, TM

from dropgen_rt.dicom.read import DicomScan

# What these say about a file may quote it; what matters becomes an error of our own.
for _name in ("pydicom", "highdicom"):
    logging.getLogger(_name).addHandler(logging.NullHandler())
    logging.getLogger(_name).propagate = False

# Attributes that may be empty but must be there (type 2); anonymisers remove them.
_TYPE_2 = (
    "PatientID", "PatientName", "PatientBirthDate", "PatientSex", "AccessionNumber", "StudyID", "StudyDate",
    "StudyTime", "ReferringPhysicianName",
)  # fmt: skip

# The only one that holds every patient's name and every label's.
_UTF_8 = "ISO_IR 192"


# What highdicom refuses, and with it the whole series, if it holds what its type does not allow.
_CHECKED: dict[str, Callable[[str], object]] = {
    "PatientBirthDate": DA, "PatientSex": hd.PatientSexValues, "StudyDate": DA, "StudyTime": TM, "SeriesDate": DA,
    "SeriesTime": TM,
}  # fmt: skip


def read_sources(scan: DicomScan) -> tuple[Dataset, ...]:
    """The source data sets in slice order, without pixels; the guarded child has parsed the same bytes before.

    Made fit for reference: the first, from which objects take what is said of patient and study, has its text in UTF-8,
    and a sex, date or time that the standard does not allow is empty there; type 2 attributes that an anonymiser
    removed are there, empty; orientation and slice thickness are stated once for all. Of multi-frame images one is
    left, with the frames of all that were used, in slice order (``settle`` puts their true numbers and files back):
    highdicom takes no more than one.
    """
    files = dict.fromkeys(plane.header.file for plane in scan.slices)
    sources = [pydicom.dcmread(scan.files.files[file], stop_before_pixels=True, force=True) for file in files]
    _make_legible(sources[0])
    for dataset in sources:
        for keyword in _TYPE_2:
            if keyword not in dataset:
                setattr(dataset, keyword, "")
        meta = dataset.file_meta
        dataset.SOPClassUID = dataset.get("SOPClassUID") or meta.MediaStorageSOPClassUID
        dataset.SOPInstanceUID = dataset.get("SOPInstanceUID") or meta.MediaStorageSOPInstanceUID
        if not dataset.get("FrameOfReferenceUID"):
            text = f"frame of reference\n{dataset.SeriesInstanceUID}"
            dataset.FrameOfReferenceUID = f"2.25.{int(hashlib.sha256(text.encode()).hexdigest()[:32], 16)}"
        if scan.slices[0].header.enhanced:
            _keep_used_frames(dataset, scan)
        else:
            dataset.ImageOrientationPatient = sources[0].ImageOrientationPatient
            if not dataset.get("SliceThickness"):
                dataset.SliceThickness = _decimal(scan.grid.geometry.spacing_mm[2])
    return tuple(sources[:1] if scan.slices[0].header.enhanced else sources)


def _make_legible(dataset: Dataset) -> None:
    """An element that cannot be parsed goes: no object needs it, and others can do without it."""
    coding = dataset.get("SpecificCharacterSet")
    for tag in list(dataset.keys()):
        try:
            element = dataset[tag]
            for item in element.value if element.VR == "SQ" else ():
                item.decode()
            if element.VR != "SQ":
                decode_element(element, coding)
        except Exception:  # the parser meets foreign bytes with whatever error they lead it to
            del dataset[tag]
    dataset.SpecificCharacterSet = _UTF_8
    for keyword, check in _CHECKED.items():
        try:
            if dataset.get(keyword):
                check(str(dataset.get(keyword)))
        except ValueError:
            setattr(dataset, keyword, "")


def _keep_used_frames(dataset: Dataset, scan: DicomScan) -> None:
    first = scan.slices[0].plane
    assert first.spacing_mm is not None and first.orientation is not None  # the gate saw to that
    depth = scan.grid.geometry.spacing_mm[2]
    shared = Dataset()
    shared.PixelMeasuresSequence = hd.PixelMeasuresSequence(first.spacing_mm, depth, depth)
    shared.PlaneOrientationSequence = hd.PlaneOrientationSequence("PATIENT", first.orientation)
    groups = []
    for plane in scan.slices:
        group = Dataset()
        assert plane.plane.position is not None
        group.PlanePositionSequence = hd.PlanePositionSequence("PATIENT", plane.plane.position)
        groups.append(group)
    dataset.SharedFunctionalGroupsSequence = DicomSequence([shared])
    dataset.PerFrameFunctionalGroupsSequence = DicomSequence(groups)
    dataset.NumberOfFrames = len(groups)


def _decimal(value: float) -> str:
    """At most 16 characters, as a decimal string may have."""
    return f"{value:.10g}"

"""DICOM objects out: built, written, read back. The caller's atomic group renames them when all are right."""

import warnings
from pathlib import Path

from pydicom.dataset import Dataset

from dropgen_rt.dicom import capture, segmentation, structured_report
from dropgen_rt.dicom.catalogue import Candidate
from dropgen_rt.dicom.job import WritingJob
from dropgen_rt.dicom.read import DicomScan
from dropgen_rt.dicom.sources import read_sources
from dropgen_rt.errors import DropgenError, OutputError, UnsuitableInputError
from dropgen_rt.model import Model
from dropgen_rt.scan_header import refusal
from dropgen_rt.segment import Segmentation


def check_source(path: Path, item: Candidate) -> None:
    """Raise UnsuitableInputError, before the work, if no object could refer to this series."""
    lacking = [
        name
        for name, missing in (
            ("Study Instance UID", not item.stack.header.study),
            ("Series Instance UID", not item.stack.series),
            ("SOP Instance UID", not all(plane.header.sop for plane in item.stack.slices)),
        )
        if missing
    ]
    if lacking:
        given = f"a series without {' and '.join(lacking)}"
        step = "restore them, or use --format nifti"
        raise refusal(UnsuitableInputError, path, given, "identifiers that a segmentation can refer to", step)


def write_objects(scan: DicomScan, result: Segmentation, model: Model, files: dict[str, Path]) -> None:
    """Write the objects that ``files`` names by format, each read back. Raises VerificationError or OutputError."""
    with warnings.catch_warnings():  # pydicom and highdicom quote what they warn of, such as a patient's name
        warnings.simplefilter("ignore")
        try:
            _write_all(scan, result, model, files)
        except (DropgenError, OSError, MemoryError):
            raise
        except Exception as error:  # highdicom refuses sources for many reasons, in words that may quote them
            raise OutputError(
                f"{scan.path}: no DICOM object can be made from this series ({type(error).__name__}); "
                "use --format nifti, or check the series with dciodvfy"
            ) from error


def _write_all(scan: DicomScan, result: Segmentation, model: Model, files: dict[str, Path]) -> None:
    labels = scan.on_source(result.labels.array[0])
    job = WritingJob(scan, labels, model.manifest.labels, result.record, read_sources(scan))
    made: dict[str, Dataset] = {}
    for kind in ("dicom-seg", "dicom-labelmap"):
        if kind in files:
            made[kind] = segmentation.build(job, kind)
            made[kind].save_as(files[kind])
            segmentation.check(files[kind], job)
    if "dicom-sr" in files:
        structured_report.build(job, next(iter(made.values()))).save_as(files["dicom-sr"])
        structured_report.check(files["dicom-sr"], job)
    if "dicom-sc" in files:
        capture.build(job, result).save_as(files["dicom-sc"])
        capture.check(files["dicom-sc"], job, result)

"""A secondary capture: a mosaic of slices under their labels, for viewers that show no segmentations."""

from pathlib import Path

import highdicom as hd
import numpy as np
import pydicom

from dropgen_rt import picture
from dropgen_rt.dicom.job import MANUFACTURER, MARK, SERIES_NUMBERS, WritingJob
from dropgen_rt.errors import VerificationError
from dropgen_rt.segment import Segmentation

# By where the scan's slices follow one another: what lies to the right and below in the mosaic's tiles.
_TILE_ORIENTATION = {
    "S": ("L", "P"), "I": ("L", "P"), "A": ("L", "F"), "P": ("L", "F"), "L": ("P", "F"), "R": ("P", "F"),
}  # fmt: skip


def build(job: WritingJob, result: Segmentation) -> hd.sc.SCImage:
    """One RGB image; MARK is part of the picture itself."""
    source = job.sources[0]
    made = hd.sc.SCImage.from_ref_dataset(
        source,
        pixel_array=_drawn(job, result),
        photometric_interpretation="RGB",
        bits_allocated=8,
        coordinate_system="PATIENT",
        series_instance_uid=job.uid("dicom-sc", "series"),
        series_number=SERIES_NUMBERS["dicom-sc"],
        sop_instance_uid=job.uid("dicom-sc", "instance"),
        instance_number=1,
        manufacturer=MANUFACTURER,
        patient_orientation=_TILE_ORIENTATION[job.scan.volume.geometry.orientation[2]],
        transfer_syntax_uid="1.2.840.10008.1.2.1",
        series_description=job.description("Mosaic"),
        software_versions=job.version,
    )
    made.BurnedInAnnotation = "NO"  # of the patient, that is
    made.ConversionType = "WSD"
    if source.get("BodyPartExamined"):
        made.BodyPartExamined = source.BodyPartExamined
    if source.get("Laterality") or not source.get("BodyPartExamined"):
        made.Laterality = source.get("Laterality", "")  # required, empty or not, unless a body part rules it out
    job.settle(made)
    return made


def check(path: Path, job: WritingJob, result: Segmentation) -> None:
    """Read the file back and compare the picture. Raises VerificationError."""
    if not np.array_equal(pydicom.dcmread(path).pixel_array, _drawn(job, result)):
        raise VerificationError(f"{path}: read back, the picture differs; report this")


def _drawn(job: WritingJob, result: Segmentation) -> np.ndarray:
    heading = f"{MARK} - NOT FOR DIAGNOSIS   {job.record.model['name']}, dropgen-rt {job.version}"
    return picture.mosaic(job.scan.volume, result.labels, job.names, result.record.labels, heading)

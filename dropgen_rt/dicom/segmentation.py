"""A DICOM Segmentation or Label Map Segmentation of the source instances, and its reading back."""

from pathlib import Path
from typing import Any

import highdicom as hd
import numpy as np
from pydicom.sequence import Sequence as DicomSequence
from pydicom.sr.codedict import codes
from pydicom.uid import ExplicitVRLittleEndian, RLELossless

from dropgen_rt.dicom.codes import code_item, property_category, property_type
from dropgen_rt.dicom.job import MANUFACTURER, SERIES_NUMBERS, WritingJob
from dropgen_rt.errors import VerificationError
from dropgen_rt.manifest import Label

_TYPES = {"dicom-seg": "BINARY", "dicom-labelmap": "LABELMAP"}


def build(job: WritingJob, kind: str) -> hd.seg.Segmentation:
    """The object of ``kind`` "dicom-seg" (one bit per segment) or "dicom-labelmap", not yet written.

    Frames without a label are left out of the former: they would be most of it.
    """
    binary = kind == "dicom-seg"
    labels = job.labels
    if not binary:
        labels = labels.astype(np.uint8 if len(job.names) < 256 else np.uint16, copy=False)
    made = hd.seg.Segmentation(
        source_images=job.sources,
        pixel_array=labels,
        segmentation_type=_TYPES[kind],
        segment_descriptions=[_described(job, label) for label in job.names],
        series_instance_uid=job.uid(kind, "series"),
        series_number=SERIES_NUMBERS[kind],
        sop_instance_uid=job.uid(kind, "instance"),
        instance_number=1,
        manufacturer=MANUFACTURER,
        manufacturer_model_name=str(job.record.model["name"])[:64],
        software_versions=job.version,
        device_serial_number=str(job.record.model["sha256"])[:64],
        content_label="SEGMENTATION",
        content_description=job.description("Segmentation"),
        series_description=job.description("Segmentation"),
        transfer_syntax_uid=ExplicitVRLittleEndian if binary else RLELossless,
        omit_empty_frames=binary,
    )
    job.settle(made)
    return made


def check(path: Path, job: WritingJob) -> None:
    """Read the file back and compare every voxel on every source slice. Raises VerificationError."""
    written = hd.seg.segread(path)
    numbers = list(range(1, len(job.names) + 1))
    options: dict[str, Any] = {
        "segment_numbers": numbers,
        "combine_segments": True,
        "assert_missing_frames_are_empty": True,
    }
    options |= {"dtype": job.labels.dtype, "ignore_spatial_locations": True}
    if job.scan.slices[0].header.enhanced:
        frames = [plane.frame + 1 for plane in job.scan.slices]
        read = written.get_pixels_by_source_frame(job.sources[0].SOPInstanceUID, frames, **options)
    else:
        read = written.get_pixels_by_source_instance([source.SOPInstanceUID for source in job.sources], **options)
    wrong = int(np.count_nonzero(read != job.labels))
    if wrong:
        raise VerificationError(f"{path}: read back, {wrong} of {job.labels.size} voxels differ; report this")


def _described(job: WritingJob, label: Label) -> hd.seg.SegmentDescription:
    kind, side = property_type(label)
    model = job.record.model
    described = hd.seg.SegmentDescription(
        segment_number=label.value,
        segment_label=label.name[:64],
        segmented_property_category=property_category(label),
        segmented_property_type=kind,
        algorithm_type="AUTOMATIC",
        algorithm_identification=hd.AlgorithmIdentificationSequence(
            name=str(model["name"])[:64],
            family=codes.DCM.ArtificialIntelligence,
            version=job.version[:64],
            source=MANUFACTURER,
            parameters={"model sha256": str(model["sha256"]), "engine": _engine(job)},
        ),
        tracking_uid=job.uid("tracking", label.value),
        tracking_id=f"{model['name']} {label.value} {label.name}"[:64],
        display_color=hd.color.CIELabColor.from_rgb(*label.colour),
    )
    if side is not None:
        kind_item = described.SegmentedPropertyTypeCodeSequence[0]
        kind_item.SegmentedPropertyTypeModifierCodeSequence = DicomSequence([code_item(side)])
    return described


def _engine(job: WritingJob) -> str:
    engine = job.record.engine
    return f"{engine['name']} {engine['version']} {engine['precision']} {engine['device']}"

"""A DICOM Segmentation or Label Map Segmentation of the source instances, and its reading back."""

from collections.abc import Iterator
from pathlib import Path

import highdicom as hd
import numpy as np
import pydicom
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence as DicomSequence
from pydicom.sr.codedict import codes
from pydicom.uid import ExplicitVRLittleEndian, RLELossless

from dropgen_rt.dicom.codes import code_item, property_category, property_type
from dropgen_rt.dicom.job import MANUFACTURER, SERIES_NUMBERS, WritingJob
from dropgen_rt.dicom.stacks import Slice
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
    """Read the file back by pydicom alone and compare every voxel of every source slice. Raises VerificationError.

    Where a frame belongs is taken from its reference to the source, not from where highdicom put it.
    """
    written = pydicom.dcmread(path)
    places = {_reference(plane): k for k, plane in enumerate(job.scan.slices)}
    read = np.zeros_like(job.labels)
    for group, frame in zip(written.PerFrameFunctionalGroupsSequence, _frames(written), strict=True):
        source = group.DerivationImageSequence[0].SourceImageSequence[0]
        target = read[places[source.ReferencedSOPInstanceUID, source.get("ReferencedFrameNumber")]]
        if written.SegmentationType == "LABELMAP":
            target[...] = frame
        else:
            target[frame != 0] = group.SegmentIdentificationSequence[0].ReferencedSegmentNumber
    wrong = int(np.count_nonzero(read != job.labels))
    if wrong:
        raise VerificationError(f"{path}: read back, {wrong} of {job.labels.size} voxels differ; report this")


def _frames(written: Dataset) -> Iterator[np.ndarray]:
    """The stored frames (rows, columns). Bits follow one another without regard to bytes (PS3.5 8.1.1), which
    pydicom's iterator does not allow for."""
    if written.BitsAllocated != 1:
        yield from pydicom.pixels.iter_pixels(written, raw=True)
        return
    packed = np.frombuffer(written.PixelData, np.uint8)
    count = written.Rows * written.Columns
    for start in range(0, written.NumberOfFrames * count, count):
        first, skipped = divmod(start, 8)
        bits = np.unpackbits(packed[first : (start + count + 7) // 8], bitorder="little")
        yield bits[skipped : skipped + count].reshape(written.Rows, written.Columns)


def _reference(plane: Slice) -> tuple[str, int | None]:
    """The identifier, and in a multi-frame image the number of the frame, by which an object names a slice."""
    return plane.header.sop, plane.frame + 1 if plane.header.enhanced else None


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

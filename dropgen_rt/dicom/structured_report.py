"""A structured report (TID 1500, PS3.16) with the volume of each segment, referring to the segmentation."""

from pathlib import Path
from typing import Any

import highdicom as hd
import numpy as np
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code

from dropgen_rt.dicom.codes import property_category, property_type
from dropgen_rt.dicom.job import MANUFACTURER, SERIES_NUMBERS, WritingJob
from dropgen_rt.errors import VerificationError
from dropgen_rt.manifest import Label

MILLILITRE = Code("mL", "UCUM", "milliliter")


def build(job: WritingJob, segmentation: Dataset) -> hd.sr.Comprehensive3DSR:
    """The report on the segments of ``segmentation``; structures that were not found measure 0 mL."""
    device = hd.sr.DeviceObserverIdentifyingAttributes(
        uid=job.uid("observer"), name=MANUFACTURER, manufacturer_name=MANUFACTURER,
        model_name=str(job.record.model["name"])[:64], serial_number=str(job.record.model["sha256"])[:64],
    )  # fmt: skip
    observer = hd.sr.ObserverContext(codes.DCM.Device, device)
    groups = [_group(job, segmentation, label, ml) for label, ml in zip(job.names, volumes_ml(job), strict=True)]
    content = hd.sr.MeasurementReport(
        observation_context=hd.sr.ObservationContext(observer_device_context=observer),
        procedure_reported=_procedure(job),
        imaging_measurements=groups,
        title=codes.DCM.ImagingMeasurementReport,
    )
    made = hd.sr.Comprehensive3DSR(
        evidence=[segmentation, *job.sources],
        content=content,
        series_instance_uid=job.uid("dicom-sr", "series"),
        series_number=SERIES_NUMBERS["dicom-sr"],
        sop_instance_uid=job.uid("dicom-sr", "instance"),
        instance_number=1,
        manufacturer=MANUFACTURER,
        is_complete=True,
        series_description=job.description("Volumes"),
    )
    made.SoftwareVersions = job.version
    job.settle(made)
    return made


def volumes_ml(job: WritingJob) -> list[float]:
    """Millilitres of each label on the source slices, in the labels' order."""
    counts = np.bincount(job.labels.ravel(), minlength=len(job.names) + 1)
    return [float(counts[label.value]) * job.scan.volume.geometry.voxel_volume_ml for label in job.names]


def check(path: Path, job: WritingJob) -> None:
    """Read the file back and compare the volumes. Raises VerificationError."""
    content: Any = hd.sr.srread(path).content  # a MeasurementReport, as its template identifier says
    groups = content.get_volumetric_roi_measurement_groups()
    read = [float(group.get_measurements(name=codes.SCT.Volume)[0].value) for group in groups]
    expected = volumes_ml(job)
    if len(read) != len(expected) or not np.allclose(read, expected, rtol=1e-6, atol=0):
        raise VerificationError(f"{path}: read back, its volumes are {read} mL instead of {expected}; report this")


def _group(
    job: WritingJob, segmentation: Dataset, label: Label, volume_ml: float
) -> hd.sr.VolumetricROIMeasurementsAndQualitativeEvaluations:
    kind, side = property_type(label)
    return hd.sr.VolumetricROIMeasurementsAndQualitativeEvaluations(
        tracking_identifier=hd.sr.TrackingIdentifier(
            uid=job.uid("tracking", label.value),
            identifier=f"{job.record.model['name']} {label.value} {label.name}"[:64],
        ),
        referenced_segment=hd.sr.ReferencedSegment(
            sop_class_uid=segmentation.SOPClassUID,
            sop_instance_uid=segmentation.SOPInstanceUID,
            segment_number=label.value,
            source_series=hd.sr.SourceSeriesForSegmentation(job.sources[0].SeriesInstanceUID),
        ),
        finding_category=property_category(label),
        finding_type=kind,
        finding_sites=[hd.sr.FindingSite(kind, laterality=side)] if side is not None else None,
        algorithm_id=hd.sr.AlgorithmIdentification(
            name=str(job.record.model["name"]), version=job.version, manufacturer=MANUFACTURER
        ),
        measurements=[hd.sr.Measurement(name=codes.SCT.Volume, value=float(f"{volume_ml:.7g}"), unit=MILLILITRE)],
    )


def _procedure(job: WritingJob) -> Code:
    known = {"MR": codes.cid100.MRIUnspecifiedBodyRegion, "PT": codes.cid100.PETUnspecifiedBodyRegion}
    return known.get(str(job.sources[0].get("Modality")), codes.cid100.CTUnspecifiedBodyRegion)

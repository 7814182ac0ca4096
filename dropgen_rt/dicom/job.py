"""What all objects of one job share: derived identifiers, fixed dates, the software's name.

Identifiers are digests of what went in and what came out, so the same job writes the same objects and a PACS
recognises them; dates are the source's, for a clock would make every run another one.
"""

import copy
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence as DicomSequence

from dropgen_rt.dicom.read import DicomScan
from dropgen_rt.manifest import Label
from dropgen_rt.record import Record

MANUFACTURER = "dropgen-rt"

#: Where the objects stand among the study's series.
SERIES_NUMBERS = {"dicom-seg": 9001, "dicom-labelmap": 9002, "dicom-sr": 9003, "dicom-sc": 9004}

MARK = "RESEARCH USE ONLY"


@dataclass(frozen=True)
class WritingJob:
    """``labels`` (slices, rows, columns) on the source slices, ``sources`` one data set per file in slice order; of
    multi-frame files one that stands for all."""

    scan: DicomScan
    labels: np.ndarray
    names: tuple[Label, ...]
    record: Record
    sources: tuple[Dataset, ...]

    @cached_property
    def digest(self) -> str:
        """What identifies the job: input, model and the labels themselves."""
        parts = (self.scan.sha256, str(self.record.model["sha256"]), str(self.labels.dtype))
        content = hashlib.sha256(np.ascontiguousarray(self.labels).data).hexdigest()
        return hashlib.sha256("\n".join((*parts, content)).encode()).hexdigest()

    def uid(self, *purpose: object) -> str:
        """A UID of its own for each purpose, below 2.25 as PS3.5 B.2 has it for 128-bit numbers."""
        text = "\n".join(map(str, (self.digest, *purpose)))
        return f"2.25.{int(hashlib.sha256(text.encode()).hexdigest()[:32], 16)}"

    def description(self, kind: str) -> str:
        """A series description from the model's name only."""
        return f"{kind} {self.record.model['name']}, {MARK.lower()}"[:64]

    @property
    def version(self) -> str:
        return self.record.versions["dropgen-rt"]

    def settle(self, dataset: Dataset) -> None:
        """Replace what highdicom takes from the clock or draws at random, and the numbers of frames, below all
        sequences; to be called once."""
        date, time = self._moment()
        slices = self.scan.slices if self.scan.slices[0].header.enhanced else ()
        made: dict[str, str] = {}
        settled: set[int] = set()  # highdicom lets several sequences hold the same item
        for part in _parts(dataset):
            if id(part) in settled:
                continue
            settled.add(id(part))
            for keyword, value in (("InstanceCreationDate", date), ("InstanceCreationTime", time),
                                   ("ContentDate", date), ("ContentTime", time),
                                   ("DateOfSecondaryCapture", date), ("TimeOfSecondaryCapture", time),
                                   ("ContributionDateTime", date + time)):  # fmt: skip
                if keyword in part:
                    setattr(part, keyword, value)
            if "DimensionOrganizationUID" in part:
                earlier = str(part.DimensionOrganizationUID)
                part.DimensionOrganizationUID = made.setdefault(earlier, self.uid("dimension", len(made)))
            if "ObservationDateTime" in part:
                part.ObservationDateTime = date + time
            if slices and "ReferencedFrameNumber" in part:
                plane = slices[int(part.ReferencedFrameNumber) - 1]
                part.ReferencedSOPInstanceUID, part.ReferencedFrameNumber = plane.header.sop, plane.frame + 1
            for keyword in ("ReferencedInstanceSequence", "ReferencedSOPSequence"):
                if slices and keyword in part:
                    setattr(part, keyword, self._with_all_files(part[keyword].value))

    def _with_all_files(self, items: DicomSequence) -> DicomSequence:
        """References to the first multi-frame file, which stands for all, as references to each of them."""
        uids = list(dict.fromkeys(plane.header.sop for plane in self.scan.slices))
        found = []
        for item in items:
            for uid in uids if item.ReferencedSOPInstanceUID == self.sources[0].SOPInstanceUID else [None]:
                found.append(copy.deepcopy(item))
                found[-1].ReferencedSOPInstanceUID = uid or item.ReferencedSOPInstanceUID
        return DicomSequence(found)

    def _moment(self) -> tuple[str, str]:
        source = self.sources[0]
        date = next((str(source.get(key)) for key in ("SeriesDate", "StudyDate") if source.get(key)), "19700101")
        time = next((str(source.get(key)) for key in ("SeriesTime", "StudyTime") if source.get(key)), "000000")
        return date, time


def _parts(dataset: Dataset) -> Iterator[Dataset]:
    yield dataset
    for element in dataset:
        if element.VR == "SQ" and isinstance(element.value, DicomSequence):
            for item in element.value:
                yield from _parts(item)

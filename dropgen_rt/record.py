"""What happened in one run, as plain JSON: labels with volumes, timings, versions, digests, warnings."""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dropgen_rt.geometry import Geometry
from dropgen_rt.manifest import Label

RECORD_SCHEMA = "1.0"


@dataclass
class Stopwatch:
    """Wall seconds per named stage, in the order in which stages first ran."""

    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start


@dataclass(frozen=True)
class LabelVolume:
    """One label's extent on the scan's own grid."""

    value: int
    name: str
    voxels: int
    volume_ml: float


@dataclass(frozen=True)
class Record:
    """Everything a reader needs to trust, or to repeat, one segmentation. ``timings_s`` is wall time per stage."""

    input: dict[str, Any]
    model: dict[str, Any]
    engine: dict[str, Any]
    settings: dict[str, Any]
    windows: int
    labels: tuple[LabelVolume, ...]
    timings_s: dict[str, float]
    versions: dict[str, str]
    warnings: tuple[str, ...] = ()
    schema: str = RECORD_SCHEMA
    skipped_windows: int = 0
    predicted_peak_bytes: int = 0

    def with_timings(self, around: Stopwatch) -> "Record":
        """The same with the stages of the caller, which read the scan and wrote the results."""
        stages = {name: round(seconds, 4) for name, seconds in around.seconds.items()}
        return replace(self, timings_s=self.timings_s | stages)

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=2) + "\n"


def label_volumes(
    labels: NDArray[np.unsignedinteger], geometry: Geometry, names: tuple[Label, ...]
) -> tuple[LabelVolume, ...]:
    """Voxel counts and millilitres of every label of the model, absent ones included."""
    # Plane by plane: bincount makes 64-bit copies of what it counts.
    counts = np.zeros(len(names) + 1, np.int64)
    for plane in labels:
        counts += np.bincount(plane.ravel(), minlength=len(names) + 1)
    return tuple(
        LabelVolume(
            label.value, label.name, int(counts[label.value]),
            float(f"{counts[label.value] * geometry.voxel_volume_ml:.7g}"),  # spacings have no more digits
        )
        for label in names
    )  # fmt: skip

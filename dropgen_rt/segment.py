"""The road of a scan: read, working grid, windows, logits, labels on the scan's own grid."""

from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dropgen_rt.engines import Engine, open_engine
from dropgen_rt.errors import UnsuitableInputError, UsageError
from dropgen_rt.geometry import Geometry
from dropgen_rt.kernels import AxisMap, finalise
from dropgen_rt.manifest import Manifest
from dropgen_rt.model import Model
from dropgen_rt.preprocess import normalisation, to_working_grid
from dropgen_rt.record import Record, Stopwatch, label_volumes
from dropgen_rt.slide import argmax_labels, slide
from dropgen_rt.store import open_named
from dropgen_rt.volume import Scan, Volume, read_scan
from dropgen_rt.windows import BLENDS, Blend, WindowPlan

REFERENCE_OVERLAP = 0.5


@dataclass(frozen=True)
class Settings:
    """How windows overlap and blend. ``None`` means the model's own choice.

    ``reference`` fixes both to those of MONAI's sliding window (0.5, constant) and takes the arg-max on the
    working grid, as the published method does; labels then go to the scan's grid by nearest neighbour.
    """

    overlap: float | None = None
    blend: Blend | None = None
    reference: bool = False
    probabilities: bool = False

    def __post_init__(self) -> None:
        if self.overlap is not None and not 0 <= self.overlap < 1:
            raise UsageError(f"overlap {self.overlap}: accepted is a number from 0 up to, not including, 1")
        if self.blend is not None and self.blend not in BLENDS:
            raise UsageError(f"blend {self.blend!r}: accepted are {' and '.join(BLENDS)}")
        if self.reference and (self.overlap, self.blend) != (None, None):
            raise UsageError("reference mode fixes overlap and blend; leave --overlap and --blend out")
        if self.reference and self.probabilities:
            raise UsageError("reference mode takes the arg-max on the working grid and gives no probabilities")

    def resolved(self, manifest: Manifest) -> tuple[float, Blend]:
        """Overlap and blend, every choice made."""
        if self.reference:
            return REFERENCE_OVERLAP, "constant"
        return manifest.overlap if self.overlap is None else self.overlap, self.blend or manifest.blend


@dataclass(frozen=True)
class Segmentation:
    """The result on the scan's own grid.

    ``labels`` is a Volume (1, z, y, x) uint8 (uint16 above 255 labels); ``probabilities``, if asked for, a
    Volume (1, z, y, x) float32 with the softmax probability of the winning label.
    """

    labels: Volume
    record: Record
    probabilities: Volume | None = None


def segment(
    scan: Scan | Volume | Path | str,
    model: Model | Path | str | None = None,
    settings: Settings | None = None,
    *,
    engine: Engine | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Segmentation:
    """Segment one scan.

    ``scan`` is a path, a Scan from read_scan, or a Volume (C, z, y, x); ``model`` a name, a path, a Model, or
    None for the default. An ``engine`` opened before is used and left open. ``progress(done, total)`` counts
    windows. Raises InputError, ModelError, UsageError or ResourceError; see dropgen_rt.errors.
    """
    watch = Stopwatch()
    with watch.stage("read"):
        source = _as_scan(scan)
    with watch.stage("open_model"):
        opened = model if isinstance(model, Model) else open_named(None if model is None else str(model))
    manifest = opened.manifest
    chosen = settings or Settings()
    overlap, blend = chosen.resolved(manifest)
    _check(source, manifest)
    with watch.stage("open_engine"):
        running = engine or open_engine(opened)
    try:
        labels, best, windows = _segment(source.volume, manifest, chosen, running, watch, progress)
        described = {item: getattr(running, item) for item in ("name", "version", "precision", "device")}
    except UnsuitableInputError as error:  # found on the working grid, where the file is not known
        raise UnsuitableInputError(f"{source.path}: {error}") from error
    finally:
        if engine is None:
            running.close()
    geometry = source.volume.geometry
    record = Record(
        input=_describe_input(source),
        model={"name": manifest.name, "sha256": opened.sha256, "window": manifest.window},
        engine=described,
        settings={"overlap": overlap, "blend": blend, "reference": chosen.reference},
        windows=windows,
        labels=label_volumes(labels, geometry, manifest.labels),
        timings_s={name: round(seconds, 4) for name, seconds in watch.seconds.items()},
        versions={name: version(name) for name in ("dropgen-rt", "numpy", "simpleitk")},
        warnings=source.warnings,
    )
    return Segmentation(Volume(labels[None], geometry), record, None if best is None else Volume(best[None], geometry))


def _segment(
    volume: Volume,
    manifest: Manifest,
    settings: Settings,
    engine: Engine,
    watch: Stopwatch,
    progress: Callable[[int, int], None],
) -> tuple[NDArray[np.unsignedinteger], NDArray[np.float32] | None, int]:
    """Labels (z, y, x) on the scan's grid, the winning probability if asked for, and the number of windows."""
    overlap, blend = settings.resolved(manifest)
    with watch.stage("to_working_grid"):
        working = to_working_grid(volume, manifest.orientation, manifest.spacing_mm)
        bounds = normalisation(working, manifest.intensity)
    plan = WindowPlan.cover(working.geometry.shape, manifest.window, overlap)
    done = 0

    def count(windows: int) -> None:
        nonlocal done
        done += windows
        progress(done, len(plan))

    with watch.stage("network"):
        sums, totals = slide(working.array, plan, bounds, engine.infer, manifest.classes, blend=blend, progress=count)
    oriented, change = volume.geometry.reoriented(manifest.orientation)
    with watch.stage("finalise"):
        if settings.reference:
            labels, best = nearest(argmax_labels(sums, totals), working.geometry, oriented), None
        else:
            maps = native_maps(working.geometry, oriented)
            labels, best = finalise(sums, totals, maps, probability=settings.probabilities)
        labels = np.ascontiguousarray(change.undo(labels))
        best = None if best is None else np.ascontiguousarray(change.undo(best))
    return labels, best, len(plan)


def native_maps(working: Geometry, native: Geometry) -> tuple[AxisMap, AxisMap, AxisMap]:
    """Where the voxels of ``native`` lie between those of ``working``, for the axes z, y, x of one direction.

    Beyond the outermost working voxel centres the outermost logits hold.
    """
    z, y, x = (_axis_map(working, native, axis) for axis in (2, 1, 0))
    return z, y, x


def _axis_map(working: Geometry, native: Geometry, axis: int) -> AxisMap:
    last = working.size[axis] - 1
    positions = np.clip(working.axis_positions(native, axis), 0, last)
    lower = np.floor(positions).astype(np.int32)
    upper = np.minimum(lower + 1, last).astype(np.int32)
    return AxisMap(lower, upper, (positions - lower).astype(np.float32))


def nearest(labels: NDArray[np.unsignedinteger], working: Geometry, native: Geometry) -> NDArray[np.unsignedinteger]:
    """(z, y, x) labels of ``working`` at the voxels of ``native``, by nearest neighbour."""
    for axis in range(3):
        positions = np.floor(working.axis_positions(native, 2 - axis) + 0.5).astype(np.intp)
        labels = np.take(labels, np.clip(positions, 0, labels.shape[axis] - 1), axis=axis)
    return labels


def _as_scan(scan: Scan | Volume | Path | str) -> Scan:
    if isinstance(scan, Scan):
        return scan
    if isinstance(scan, Volume):
        return Scan(scan, Path("(array)"), "", str(scan.array.dtype), ())
    return read_scan(Path(scan))


def _check(scan: Scan, manifest: Manifest) -> None:
    channels, voxels = scan.volume.array.shape[0], int(np.prod(scan.volume.geometry.size))
    if channels != len(manifest.channels):
        raise UnsuitableInputError(
            f"{scan.path}: {channels} channel(s), the model {manifest.name!r} takes {len(manifest.channels)} "
            f"({', '.join(manifest.channels)}); give a scan that has them"
        )
    wrong = int(np.prod(scan.volume.array.shape)) - int(np.count_nonzero(np.isfinite(scan.volume.array)))
    if wrong:
        raise UnsuitableInputError(
            f"{scan.path}: {wrong} voxels are NaN or infinite; accepted: finite numbers; replace them, for example by "
            "the value of air"
        )
    if voxels < len(manifest.labels):
        raise UnsuitableInputError(
            f"{scan.path}: {voxels} voxel(s), fewer than the {len(manifest.labels)} labels of {manifest.name!r}; "
            "give a whole scan"
        )


def _describe_input(scan: Scan) -> dict[str, object]:
    geometry = scan.volume.geometry
    return {
        "file": scan.path.name,
        "sha256": scan.sha256,
        "voxel_type": scan.voxel_type,
        "size": geometry.size,
        "spacing_mm": geometry.spacing_mm,
        "orientation": geometry.orientation,
    }

"""The road of a scan: read, working grid, windows, logits, labels on the scan's own grid."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray

from dropgen_rt.air import greatest_of
from dropgen_rt.components import doubt, keep_largest_component
from dropgen_rt.engines import Engine, open_engine
from dropgen_rt.errors import UnsuitableInputError, UsageError
from dropgen_rt.geometry import Geometry
from dropgen_rt.kernels import AxisMap
from dropgen_rt.manifest import Manifest
from dropgen_rt.memory import MemoryPlan, available_bytes, plan_memory, resident_bytes
from dropgen_rt.model import Model
from dropgen_rt.preprocess import normalisation, to_working_grid, working_grid
from dropgen_rt.record import Record, Stopwatch, label_volumes
from dropgen_rt.settings import Settings
from dropgen_rt.slide import Rolled, roll
from dropgen_rt.store import open_named
from dropgen_rt.suitability import doubts, refuse_unsuitable
from dropgen_rt.volume import Scan, Volume, read_scan
from dropgen_rt.window_size import Edges, cheapest_window, require_possible
from dropgen_rt.windows import WindowPlan

# Workspace that a network takes beyond what it took for its trained window, relative, for safety.
WORKSPACE_MARGIN = 1.25

# Spacings are recorded to the nanometre: a header's quaternion makes 1.0000000000000597 of 1.
MM_DIGITS = 6

# Of engines that have run: the windows that went through them, and the bytes of workspace per voxel of a window.
_WARM: WeakKeyDictionary[Engine, set[Edges]] = WeakKeyDictionary()
_WORKSPACE: WeakKeyDictionary[Engine, float] = WeakKeyDictionary()


@dataclass(frozen=True)
class Segmentation:
    """The result on the scan's own grid.

    ``labels`` is a Volume (1, z, y, x) uint8 (uint16 above 255 labels); ``probabilities``, if asked for, a
    Volume (1, z, y, x) float32 with the softmax probability of the winning label, also where that label was then
    left out as a component of its own.
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
    announce: Callable[[str], None] = lambda line: None,
) -> Segmentation:
    """Segment one scan.

    ``scan`` is a path, a Scan from read_scan, or a Volume (C, z, y, x); ``model`` a name, a path, a Model, or
    None for the default. An ``engine`` opened before is used and left open. ``progress(done, total)`` counts
    windows; ``announce`` is told, before the start, how much memory the scan will take. Raises InputError,
    ModelError, UsageError or ResourceError; see dropgen_rt.errors.
    """
    watch = Stopwatch()
    with watch.stage("read"):
        source = _as_scan(scan)
    with watch.stage("open_model"):
        opened = model if isinstance(model, Model) else open_named(None if model is None else str(model))
    manifest = opened.manifest
    chosen = settings or Settings()
    refuse_unsuitable(source, manifest)
    with watch.stage("open_engine"):
        running = engine or open_engine(opened, precision="fp32" if chosen.reference else None)
    try:
        found, memory, plan = _segment(source.volume, manifest, chosen, running, watch, progress, announce)
        described = {item: getattr(running, item) for item in ("name", "version", "precision", "device")}
    except UnsuitableInputError as error:  # found on the working grid, where the file is not known
        raise UnsuitableInputError(f"{source.path}: {error}") from error
    finally:
        if engine is None:
            running.close()
    geometry, names = source.volume.geometry, [label.name for label in manifest.labels]
    record = Record(
        input=_describe_input(source),
        model={"name": manifest.name, "sha256": opened.sha256, "window": plan.window},
        engine=described,
        settings=chosen.told(manifest),
        windows=found.windows,
        skipped_windows=found.skipped,
        predicted_peak_bytes=memory.peak,
        labels=label_volumes(found.labels, geometry, manifest.labels),
        timings_s={name: round(seconds, 4) for name, seconds in watch.seconds.items()},
        versions={name: version(name) for name in ("dropgen-rt", "numpy", "simpleitk")},
        warnings=(
            *source.warnings,
            *doubts(source.volume, manifest),
            *doubt(found.apart, names),
        ),
    )
    best = None if found.probability is None else Volume(found.probability[None], geometry)
    return Segmentation(Volume(found.labels[None], geometry), record, best)


def _segment(
    volume: Volume,
    manifest: Manifest,
    settings: Settings,
    engine: Engine,
    watch: Stopwatch,
    progress: Callable[[int, int], None],
    announce: Callable[[str], None],
) -> tuple[Rolled, MemoryPlan, WindowPlan]:
    """Labels and what goes with them on the scan's grid, the memory they took, and the windows."""
    overlap, _ = settings.resolved(manifest)
    oriented, change = volume.geometry.reoriented(manifest.orientation)
    working = working_grid(volume.geometry, manifest.orientation, manifest.spacing_mm)
    # Planned before anything is made: a scan that does not fit is refused at once.
    window = _window(working, oriented, manifest, settings, engine)
    plan = WindowPlan.cover(working.shape, window, overlap)
    own_grid = tuple(AxisMap.identity(size) for size in plan.shape)
    maps = own_grid if settings.reference else native_maps(working, oriented)
    done = 0

    def count(windows: int, of: int) -> None:
        nonlocal done
        done += windows
        progress(done, of)

    # Of the engines of a GPU those that take another window than the model's take it from the host.
    on_gpu = hasattr(engine, "infer_device") and window == manifest.window
    own_stream = getattr(engine, "own_stream", False)
    if settings.cuda_graph and (own_stream or not on_gpu):
        how = "computes on its own stream" if own_stream else "takes windows from the host"
        raise UsageError(f"--cuda-graph: {engine.name} {how}, which no graph holds; leave it out")
    run = _roll_on_gpu if on_gpu else _roll_on_cpu
    found, memory = run(volume, plan, maps, manifest, settings, engine, watch, count, announce)
    with watch.stage("finalise"):
        labels, best = found.labels, found.probability
        if settings.reference:
            labels = nearest(labels, working, oriented)
        labels = np.ascontiguousarray(change.undo(labels))
        best = None if best is None else np.ascontiguousarray(change.undo(best))
        found = replace(found, labels=labels, probability=best)  # what rolled is no longer held
    if settings.kept(manifest) == "largest":
        with watch.stage("components"):
            found = replace(found, apart=keep_largest_component(labels))
    return found, memory, plan


def _roll_on_cpu(
    volume: Volume, plan: WindowPlan, maps: Sequence[AxisMap], manifest: Manifest, settings: Settings,
    engine: Engine, watch: Stopwatch, count: Callable[[int, int], None], announce: Callable[[str], None],
) -> tuple[Rolled, MemoryPlan]:  # fmt: skip
    """Labels on the grid of ``maps``, and the memory they take."""
    with watch.stage("warm_up"):
        _warm_up(engine, len(manifest.channels), plan.window)
    memory = _memory(plan, (len(maps[0]), len(maps[1]), len(maps[2])), manifest, settings)
    memory.require(settings.memory_bytes, available_bytes())
    announce(memory.line())
    with watch.stage("to_working_grid"):
        working = to_working_grid(volume, manifest.orientation, manifest.spacing_mm)
    with watch.stage("normalisation"):
        bounds = normalisation(working, manifest.intensity)
    with watch.stage("find_air"):
        plan = settings.lay(plan, manifest, partial(greatest_of, working.array), bounds)
    found = roll(
        working.array, plan, bounds, engine.infer, manifest.classes, maps, blend=settings.resolved(manifest)[1],
        probability=settings.probabilities, air=settings.air(manifest), watch=watch,
        progress=lambda windows: count(windows, len(plan)),
    )  # fmt: skip
    return found, memory


def _memory(plan: WindowPlan, native: Edges, manifest: Manifest, settings: Settings) -> MemoryPlan:
    """What this plan will hold on the CPU, beyond what is there now."""
    counted = plan_memory(
        plan, native, channels=len(manifest.channels), batch=1, classes=manifest.classes,
        probabilities=settings.probabilities, resident=resident_bytes(), skips_air=settings.skips_air,
        components=settings.kept(manifest),
    )  # fmt: skip
    return MemoryPlan(counted.resident, counted.parts | {"next scan": settings.reserved_bytes})


def _window(working: Geometry, native: Geometry, manifest: Manifest, settings: Settings, engine: Engine) -> Edges:
    """The window that ``settings`` ask for, (z, y, x). Raises UsageError where the graph or the engine has one size."""
    wish = settings.window
    require_possible(wish, manifest)
    if wish is None or wish == manifest.window:
        return manifest.window
    if hasattr(engine, "infer_device") and not getattr(engine, "any_window", False):
        raise UsageError(f"window: {engine.name} was built for {manifest.window}; leave --window out, or use the CPU")
    if wish != "auto":
        return wish
    _warm_up(engine, len(manifest.channels), manifest.window)
    trained = manifest.window[0] * manifest.window[1] * manifest.window[2]

    def fits(plan: WindowPlan) -> bool:
        memory = _memory(plan, native.shape, manifest, settings)
        larger = plan.window[0] * plan.window[1] * plan.window[2] - trained
        work = int(WORKSPACE_MARGIN * _WORKSPACE[engine] * larger)
        free = available_bytes()
        allowed = settings.memory_bytes is None or memory.peak + work <= settings.memory_bytes
        return allowed and (free is None or sum(memory.parts.values()) + work <= free)

    return cheapest_window(working.shape, manifest, settings.resolved(manifest)[0], fits)


def _warm_up(engine: Engine, channels: int, window: Edges) -> None:
    """One window through a new engine: it takes its workspace then, which the prediction of memory must see.

    A ramp, not zeros: some networks look for what is not zero first, and fail where there is nothing.
    """
    if window in _WARM.setdefault(engine, set()):
        return
    shape = (1, channels, *window)
    ramp = np.linspace(0, 1, int(np.prod(shape)), dtype=np.float32).reshape(shape)
    before = resident_bytes()
    engine.infer(ramp)
    _WARM[engine].add(window)
    _WORKSPACE.setdefault(engine, max(resident_bytes() - before, 0) / ramp[0, 0].size)


def _roll_on_gpu(*arguments: Any) -> tuple[Rolled, MemoryPlan]:
    from dropgen_rt.gpu.scan import roll_scan  # the driver's library is there only where a GPU is

    return roll_scan(*arguments)


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


def _describe_input(scan: Scan) -> dict[str, object]:
    geometry = scan.volume.geometry
    return {
        "file": scan.path.name,
        "sha256": scan.sha256,
        "voxel_type": scan.voxel_type,
        "size": geometry.size,
        "spacing_mm": tuple(round(mm, MM_DIGITS) for mm in geometry.spacing_mm),
        "orientation": geometry.orientation,
    }

"""One scan on a GPU: memory planned, scan up, working grid, bounds, windows, labels down."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from dropgen_rt.engines.contract import Engine
from dropgen_rt.errors import DeviceError
from dropgen_rt.gpu.buffers import Buffers
from dropgen_rt.gpu.device import Device, open_device
from dropgen_rt.gpu.logits import waiting_windows, window_bytes
from dropgen_rt.gpu.road import GpuRoad
from dropgen_rt.gpu.roll import roll_on_gpu
from dropgen_rt.kernels import AxisMap, Taps
from dropgen_rt.kernels.launch import MOST_SUMS
from dropgen_rt.kernels.resample import VOXEL_TYPES
from dropgen_rt.manifest import Manifest
from dropgen_rt.memory import MemoryPlan, plan_memory
from dropgen_rt.preprocess import normalisation_of, working_taps
from dropgen_rt.record import Stopwatch
from dropgen_rt.rolling import ring_depth
from dropgen_rt.slide import Rolled
from dropgen_rt.volume import Volume
from dropgen_rt.windows import WindowPlan

#: Windows per call of the network where memory allows it.
BATCH = 4

_ROADS: dict[str, GpuRoad] = {}


@dataclass(frozen=True)
class _Choice:
    batch: int
    together: int  # windows whose logits are added to the sums at once
    memory: MemoryPlan


def road_on(name: str) -> GpuRoad:
    """The road of a device, "cuda:0"; opened once and kept, with its kernels and staging memory."""
    if name not in _ROADS:
        _ROADS[name] = GpuRoad(open_device(int(name.partition(":")[2] or 0)))
    return _ROADS[name]


def choose_batch(
    device: Device, plan: WindowPlan, native_shape: tuple[int, int, int], *, channels: int, classes: int, most: int,
    probabilities: bool, limit: int | None, logit_type: str = "f32",
) -> _Choice:  # fmt: skip
    """The largest batch, up to ``most``, whose peak fits, and the logits that may wait, up to those of a layer.

    Raises MemoryLimitError if not even one window fits, and DeviceError where one class has more sums than the kernels
    count in 32 bits.
    """
    sums = ring_depth(plan) * plan.shape[1] * plan.shape[2]
    if sums >= MOST_SUMS:
        raise DeviceError(f"a working grid of {plan.shape} voxels: a GPU takes fewer than 2^32 sums; use --device cpu")
    free = device.free_bytes()
    of_window = window_bytes(logit_type, classes, plan.window[0] * plan.window[1] * plan.window[2])
    for batch in range(most, 0, -1):
        counted = plan_memory(
            plan, native_shape, channels=channels, classes=classes, batch=batch, probabilities=probabilities,
            resident=device.memory_bytes - free,
        )  # fmt: skip
        left = min(free, limit - counted.resident if limit is not None else free) - sum(counted.parts.values())
        if batch == 1 or left >= batch * of_window:
            together = waiting_windows(plan, batch, left, of_window)
            memory = MemoryPlan(counted.resident, counted.parts | {"logits": of_window * together})
            memory.require(limit, free)
            return _Choice(batch, together, memory)
    raise AssertionError("a batch is at least one")


def roll_scan(
    volume: Volume, plan: WindowPlan, maps: Sequence[AxisMap], manifest: Manifest, settings: Any,
    engine: Engine, watch: Stopwatch, count: Callable[[int, int], None], announce: Callable[[str], None],
    road: GpuRoad | None = None,
) -> tuple[Rolled, MemoryPlan]:  # fmt: skip
    """Labels on the grid of ``maps``, by settings.Settings, and the memory they take on the engine's GPU.

    Raises DeviceError if the GPU stops answering, and MemoryLimitError if the scan does not fit.
    """
    road = road or road_on(engine.device)
    native = (len(maps[0]), len(maps[1]), len(maps[2]))
    chosen = choose_batch(
        road.device, plan, native, channels=len(manifest.channels), classes=manifest.classes,
        most=getattr(engine, "batch", BATCH), probabilities=settings.probabilities, limit=settings.memory_bytes,
        logit_type=getattr(engine, "logit_type", "f32"),
    )  # fmt: skip
    announce(f"{chosen.memory.line()}, batches of {chosen.batch}")
    with Buffers(road.device, road.stream) as held:
        with watch.stage("to_working_grid"):
            image = _working_image(road, held, volume, manifest)
        shape = (len(volume.array), *plan.shape)
        with watch.stage("normalisation"):
            bounds = normalisation_of(road.channel_percentiles(image, shape), shape[0], manifest.intensity)
        with watch.stage("find_air"):
            plan = settings.lay(plan, manifest, road.greatest(image, shape), bounds)
        found = roll_on_gpu(
            road, held, image, plan, bounds, engine, manifest.classes, maps, blend=settings.resolved(manifest)[1],
            batch=chosen.batch, together=chosen.together, probability=settings.probabilities, watch=watch,
            air=settings.air(manifest), cuda_graph=settings.cuda_graph,
            progress=lambda windows: count(windows, len(plan)),
        )  # fmt: skip
    return found, chosen.memory


def _working_image(road: GpuRoad, held: Buffers, volume: Volume, manifest: Manifest) -> int:
    oriented, change = volume.geometry.reoriented(manifest.orientation)
    array = change.apply(volume.array)
    array = array if array.dtype in VOXEL_TYPES else array.astype("float32")
    taps = working_taps(oriented, oriented.resampled(manifest.spacing_mm))
    return road.resample(array, taps or [Taps.identity(size) for size in array.shape[1:]], held)

"""The windows of a scan that is on a GPU: through the network, onto the ring of sums, and down as labels.

The order of windows, the slab and the arithmetic are those of the CPU's road (slide.roll, rolling.py, the kernels'
headers): between the two only the network differs.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dropgen_rt.air import AirRule, are_air
from dropgen_rt.errors import DeviceMemoryError
from dropgen_rt.gpu.buffers import Buffers
from dropgen_rt.gpu.graphs import NetworkGraph
from dropgen_rt.gpu.logits import ALIGNMENT, ONE, window_bytes, windows_of_layer
from dropgen_rt.gpu.road import FLOAT, GpuRoad
from dropgen_rt.kernels import AxisMap, Normalisation
from dropgen_rt.kernels.accumulate import bounding_box
from dropgen_rt.kernels.launch import AxisTables, accumulate_launch, finalise_launch, gather_launch
from dropgen_rt.record import Stopwatch
from dropgen_rt.rolling import Layer, layers, ring_depth
from dropgen_rt.slide import Rolled, at_z, batches
from dropgen_rt.windows import Blend, WindowPlan, axis_totals, axis_weights

START_BYTES = 12  # three int32


@dataclass
class Tables:
    """What the kernels of one scan look up on the device."""

    normalisation: int
    weights: list[int]
    totals: list[int]  # of y and x; that of z belongs to a layer
    axes: list[AxisTables]  # of y and x
    x_is_identity: bool


class GpuRoll:
    """``slide.roll`` on a GPU, for one scan whose image (C, z, y, x) float32 is on the device at ``image``."""

    def __init__(
        self, road: GpuRoad, held: Buffers, image: int, plan: WindowPlan, normalisation: Normalisation,
        engine: Any, classes: int, maps: Sequence[AxisMap], blend: Blend, batch: int, together: int,
        probability: bool, air: AirRule, cuda_graph: bool = False,
    ) -> None:  # fmt: skip
        self.road, self.held, self.image, self.plan, self.air = road, held, image, plan, air
        self.engine, self.classes, self.maps = engine, classes, maps
        self.channels, self.logit_type = normalisation.channels, getattr(engine, "logit_type", "f32")
        weights = [axis_weights(edge, blend) for edge in plan.window]
        self.totals = axis_totals(plan, tuple(weights))
        self.kept = [normalisation.table(), *weights, *self.totals]  # must live until the stream has read them
        self.tables = Tables(
            held.put(self.kept[0]), [held.put(table) for table in weights], [held.put(t) for t in self.totals[1:]],
            [held.put_axis(axis) for axis in maps[1:]], maps[2].is_identity(plan.shape[2]),
        )  # fmt: skip
        self.window_voxels = int(np.prod(plan.window))
        # A graph holds one address of logits, and an engine takes no other than aligned ones: else none wait.
        waits = not cuda_graph and self._logit_bytes() % ALIGNMENT == 0
        self.batch, self.together = batch, max(min(together, windows_of_layer(plan)), batch) if waits else batch
        self.ring_shape = (classes, ring_depth(plan), *plan.shape[1:])
        self.ring = held.room(self.ring_shape, np.float32)
        road.device.clear(self.ring, FLOAT * int(np.prod(self.ring_shape)), road.stream)
        self.label_type = np.uint8 if classes <= 256 else np.uint16
        shape = tuple(map(len, maps))
        self.labels = held.room(shape, self.label_type)
        self.probability = held.room(shape, np.float32) if probability else 0
        self.results = {self.labels: road.pinned.empty(shape, self.label_type)}
        if probability:
            self.results[self.probability] = road.pinned.empty(shape, np.float32)
        self.windows, self.logits, self.air_logits = 0, 0, 0
        self._make_room()
        infer = partial(engine.infer_device, self.windows, self.logits)
        self.network = NetworkGraph(road.device.graphs(), road.stream, infer) if cuda_graph else None

    def _make_room(self) -> None:
        """The windows of a batch and the logits that are added together; where memory is out, of fewer."""
        while True:
            room: list[int] = []
            try:
                room.append(self.road.device.allocate(FLOAT * self.channels * self.window_voxels * self.batch))
                room.append(self.road.device.allocate(self._logit_bytes() * self.together))
            except DeviceMemoryError:
                for address in room:
                    self.road.device.release(address)
                self._shrink()
                continue
            self.windows, self.logits = room
            return

    def _shrink(self) -> None:
        """Ask for less: first for no logits beyond those of a batch, then for smaller batches. None may be waiting."""
        device = self.road.device
        if self.together > self.batch:
            self.together = self.batch
            if self.logits:
                device.synchronise(self.road.stream)
                device.release(self.logits)
                self.logits = 0
                device.free_bytes()  # released memory is kept for the road; this gives it to the network
                self.logits = device.allocate(self._logit_bytes() * self.together)
            return
        if self.batch == 1:
            raise DeviceMemoryError(
                f"one window of {self.plan.window} voxels and {self.classes} classes does not fit beside the "
                "scan's sums; close other programs, or use --device cpu"
            )
        self.batch = self.together = (self.batch + 1) // 2

    def _logit_bytes(self) -> int:
        return window_bytes(self.logit_type, self.classes, self.window_voxels)

    def close(self) -> None:
        if self.network:
            self.network.close()
        for address in (self.windows, self.logits, self.air_logits):
            if address:
                self.road.device.release(address)

    def run(
        self, air: NDArray[np.bool_], progress: Callable[[int], None]
    ) -> tuple[NDArray[np.unsignedinteger], NDArray[np.float32] | None]:
        """Labels (nz, ny, nx) on the host, and their probability if asked for."""
        starts = self.plan.starts
        for layer in layers(self.plan, self.maps[0], self.totals[0]):
            with Buffers(self.road.device, self.road.stream) as mine:
                self.place(starts[layer.windows], layer, mine)
                self._add_layer(air[layer.windows], progress)
            self.finalise(layer)
        return self.results[self.labels], self.results.get(self.probability)

    def place(self, starts: NDArray[np.int32], layer: Layer, mine: Buffers) -> None:
        """The layer's starts on the device: in the image, and for each place in the ring."""
        self.starts, self.at = starts, mine.put(np.ascontiguousarray(starts))
        rings = [at_z(starts, z) for z in layer.ring_starts]
        self.in_ring = [(moved, mine.put(moved)) for moved in rings]

    def _add_layer(self, air: NDArray[np.bool_], progress: Callable[[int], None]) -> None:
        """Every window of the layer through the network and onto the ring; batches may shrink on the way.

        Logits wait until their memory is full: windows overlap, and sums that several of them add to move once.
        """
        first, waiting = 0, 0
        while first < len(self.starts):
            some, is_air = next(batches(self.starts[first:], air[first:], self.batch))
            if waiting and (is_air or waiting + len(some) > self.together):
                self._accumulate(self.logits, first - waiting, waiting)
                waiting = 0
            if is_air:
                self._accumulate(self._of_air(), first, len(some))
            elif self._of_network(first, len(some), self.logits + waiting * self._logit_bytes()):
                waiting += len(some)
            else:  # memory ran out inside the network: the same again, with less
                if waiting:
                    self._accumulate(self.logits, first - waiting, waiting)
                    waiting = 0
                self._shrink()
                continue
            first += len(some)
            progress(len(some))
        if waiting:
            self._accumulate(self.logits, first - waiting, waiting)

    def _of_network(self, first: int, count: int, logits: int) -> bool:
        """Enqueue the network's answer to a batch, to the address ``logits``; False if it ran out of memory."""
        shape, window, table = (self.channels, *self.plan.shape), self.plan.window, self.tables.normalisation
        at = self.at + first * START_BYTES
        self.road.launch(gather_launch(self.image, shape, at, count, window, table, self.windows))
        try:
            if self.network:
                self.network.infer(count)
            else:
                self._infer(logits, count)
        except DeviceMemoryError:
            return False
        return True

    def _of_air(self) -> int:
        """The network's answer to a window of zeros, or what stands for background; made once, with less if need be."""
        while not self.air_logits:
            made = 0
            try:
                made = self.road.device.allocate(self._logit_bytes())
                self._answer_to_air(made)
            except DeviceMemoryError:
                if made:
                    self.road.device.release(made)
                self._shrink()
            else:
                self.air_logits = made
        return self.air_logits

    def _answer_to_air(self, logits: int) -> None:
        device, stream = self.road.device, self.road.stream
        if self.air == "background":
            self.kept.append(np.full(self.window_voxels, ONE[self.logit_type]))
            device.clear(logits, self._logit_bytes(), stream)
            device.upload(logits, self.kept[-1], stream)
        else:
            device.clear(self.windows, FLOAT * self.channels * self.window_voxels, stream)
            self._infer(logits, 1)

    def _infer(self, logits: int, count: int) -> None:
        """The engine on ``count`` windows, after what the stream was given for them."""
        if getattr(self.engine, "own_stream", False):
            self.road.device.synchronise(self.road.stream)
        self.engine.infer_device(self.windows, logits, count, self.road.stream)

    def _accumulate(self, logits: int, first: int, count: int) -> None:
        for starts, at in self.in_ring:
            box = bounding_box(starts[first : first + count], self.plan.window, self.ring_shape[1:])
            if not box[1][0]:
                continue
            shape, weights = (count, self.classes, *self.plan.window), self.tables.weights
            own = at + first * START_BYTES
            self.road.launch(
                accumulate_launch(self.ring, self.ring_shape, box, logits, shape, own, weights, self.logit_type)
            )

    def finalise(self, layer: Layer) -> None:
        """Labels of the planes that are final, and zeros where the next will be."""
        device, stream = self.road.device, self.road.stream
        planes = layer.planes.stop - layer.planes.start
        plane_bytes = FLOAT * self.ring_shape[2] * self.ring_shape[3]
        with Buffers(device, stream) as mine:
            if planes:
                before = layer.planes.start * len(self.maps[1]) * len(self.maps[2])
                axes = [mine.put_axis(layer.z), *self.tables.axes]
                totals = [mine.put(layer.totals_z), *self.tables.totals]
                out = self.labels + before * np.dtype(self.label_type).itemsize
                chance = self.probability + before * FLOAT if self.probability else None
                identity = self.tables.x_is_identity
                self.road.launch(finalise_launch(self.ring, self.ring_shape, totals, axes, identity, out, chance))
                for address, result in self.results.items():
                    some = result[layer.planes]
                    device.download(some, address + layer.planes.start * result.strides[0], stream)
            for slots in layer.cleared:
                first, count = self.ring + slots.start * plane_bytes, slots.stop - slots.start
                device.clear_rows(first, self.ring_shape[1] * plane_bytes, count * plane_bytes, self.classes, stream)
            device.synchronise(stream)


def roll_on_gpu(
    road: GpuRoad, held: Buffers, image: int, plan: WindowPlan, normalisation: Normalisation, engine: Any,
    classes: int, maps: Sequence[AxisMap], *, blend: Blend, batch: int, together: int = 0, probability: bool = False,
    air: AirRule = "run", cuda_graph: bool = False, progress: Callable[[int], None], watch: Stopwatch,
) -> Rolled:  # fmt: skip
    """``slide.roll`` on a GPU: the same arguments, but that ``image`` is an address and the engine a DeviceEngine.

    ``together`` windows, if that is more than a batch, are added to the sums at once.
    """
    with watch.stage("find_air"):
        shape = (normalisation.channels, *plan.shape)
        starts, greatest = plan.starts, road.greatest(image, shape)
        skipped = np.zeros(len(plan), np.bool_)
        if air != "run":
            skipped = are_air(greatest, starts, plan.window, normalisation)
    roll = GpuRoll(
        road, held, image, plan, normalisation, engine, classes, maps, blend, batch, together, probability, air,
        cuda_graph,
    )  # fmt: skip
    try:
        with watch.stage("network"):
            labels, best = roll.run(skipped, progress)
    finally:
        roll.close()
    return Rolled(labels, best, len(plan), int(skipped.sum()))

"""The road on this GPU against MONAI on the same GPU: stitching and export alone, then everything.

Stitching and export: windows' logits exist already (the "network" returns what is there), so that what is timed is what
comes around the network: cutting windows, summing them, interpolating to the scan's grid, arg-max. MONAI's own way:
``sliding_window_inference``, trilinear interpolation of the K logits to the scan's grid, arg-max.

Whole road: a scan in host memory to labels in host memory, with one PyTorch network (the reference sizes, random
weights) in fp16 and in bf16, the same windows, overlap and blend.
"""

import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from monai.inferers import sliding_window_inference
from torch_engine import TYPES, TorchEngine

from dropgen_rt.geometry import Geometry
from dropgen_rt.gpu import Device
from dropgen_rt.gpu.buffers import Buffers
from dropgen_rt.gpu.road import GpuRoad
from dropgen_rt.gpu.roll import roll_on_gpu
from dropgen_rt.gpu.scan import choose_batch, roll_scan
from dropgen_rt.kernels import Normalisation
from dropgen_rt.manifest import Intensity, Label, Manifest
from dropgen_rt.record import Stopwatch
from dropgen_rt.segment import native_maps
from dropgen_rt.settings import Settings
from dropgen_rt.train.network import DropGen, UNetConfig
from dropgen_rt.volume import Volume
from dropgen_rt.windows import WindowPlan

EDGE, NATIVE, WINDOW, BATCH = 256, 384, (96, 96, 96), 4
RUNS, ROAD_RUNS = 7, 3
IDENTITY = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0)


class Answered:
    """An engine whose logits lie there already."""

    name, version, precision, device, logit_type = "answered", "1", "fp32", "cuda:0", "f32"

    def infer_device(self, windows: int, logits: int, batch: int, stream: int) -> None:
        """Leaves the logits as they are."""


def seconds(work: Callable[[], object], runs: int = RUNS) -> float:
    """Median wall time of ``runs`` runs after one to warm up, device included."""
    times = []
    for run in range(1 + runs):
        torch.cuda.synchronize()
        start = time.perf_counter()
        work()
        torch.cuda.synchronize()
        if run:
            times.append(time.perf_counter() - start)
    return statistics.median(times)


def grids() -> tuple[Geometry, Geometry]:
    """The working grid and a scan's grid of finer voxels, about one centre."""
    native = Geometry((NATIVE,) * 3, (EDGE / NATIVE,) * 3, (0.0, 0.0, 0.0), IDENTITY)
    return native.resampled((1.0, 1.0, 1.0)), native


def stitching_row(device: Device, classes: int) -> dict[str, Any]:
    working, native = grids()
    plan, maps = WindowPlan.cover(working.shape, WINDOW, 0.5), native_maps(working, native)
    image = torch.rand((1, 1, *working.shape), device="cuda")
    logits = torch.randn((BATCH, classes, *WINDOW), device="cuda")
    road = GpuRoad(device, kernels_loaded=True)
    chosen = choose_batch(
        device, plan, native.shape, channels=1, classes=classes, most=BATCH, probabilities=False, limit=None
    )

    def ours() -> None:
        with Buffers(device, road.stream) as held:
            roll_on_gpu(
                road, held, image.data_ptr(), plan, Normalisation.identity(), Answered(), classes, maps,
                blend="gaussian", batch=chosen.batch, together=chosen.together, progress=lambda windows: None,
                watch=Stopwatch(),
            )  # fmt: skip

    def theirs() -> None:
        # MONAI weighs the logits where they are, so they shrink from batch to batch; its time does not mind.
        sums: Any = sliding_window_inference(
            image, WINDOW, BATCH, lambda windows: logits[: len(windows)], overlap=0.5, mode="gaussian"
        )
        stretched = torch.nn.functional.interpolate(sums, size=native.shape, mode="trilinear")
        stretched.argmax(1).to(torch.uint8).cpu()

    torch.cuda.reset_peak_memory_stats()
    row: dict[str, Any] = {"classes": classes, "windows": len(plan), "ours_s": seconds(ours)}
    row["added_at_once"], row["ours_planned_bytes"] = chosen.together, sum(chosen.memory.parts.values())
    torch.cuda.empty_cache()
    row["monai_s"] = seconds(theirs)
    row["monai_peak_bytes"] = torch.cuda.max_memory_allocated()
    torch.cuda.empty_cache()
    return row | {"ratio": row["monai_s"] / row["ours_s"]}


def stitching(device: Device) -> dict[str, Any]:
    """Stitching and export of 14 and of 104 classes."""
    rows = [stitching_row(device, classes) for classes in (14, 104)]
    for row in rows:
        print(f"  {row['classes']:3} classes, {EDGE}^3 to {NATIVE}^3: ours {row['ours_s'] * 1e3:8.1f} ms, "
              f"MONAI {row['monai_s'] * 1e3:8.1f} ms, ratio {row['ratio']:.1f}")  # fmt: skip
    return {"rows": rows}


def reference_network(classes: int) -> DropGen:
    """The reference sizes: 5.9 M parameters of encoder, 36.9 M of segmentor; random weights."""
    torch.manual_seed(0)
    network = DropGen(UNetConfig(17, classes, 20, 5), UNetConfig()).eval()
    for name, parameter in network.named_parameters():  # the features start at zero: let them count
        if parameter.ndim > 1 and not parameter.any():
            torch.nn.init.normal_(parameter, std=0.02)
            print(f"  {name}: was zero, now random")
    return network


def road_row(device: Device, precision: str) -> dict[str, Any]:
    classes = 14
    working, native = grids()
    labels = tuple(Label(value, f"label {value}", (value, 0, 0)) for value in range(1, classes))
    manifest = Manifest("road", labels, (1.0, 1.0, 1.0), WINDOW, 32, intensity=(Intensity("range", 0, 1000),))
    rng = np.random.default_rng(0)
    coarse = torch.from_numpy(rng.random((1, 1, 24, 24, 24), dtype=np.float32))
    smooth = torch.nn.functional.interpolate(coarse, size=native.shape, mode="trilinear")[0].numpy()
    array = (smooth * 1000).astype(np.int16)
    volume, plan, maps = (
        Volume(array, native),
        WindowPlan.cover(working.shape, WINDOW, 0.5),
        native_maps(working, native),
    )
    engine: Any = TorchEngine(reference_network(classes), 1, classes, WINDOW, precision)
    road, watch = GpuRoad(device, kernels_loaded=True), Stopwatch()
    found: dict[str, Any] = {}

    def ours(key: str = "ours", watch: Stopwatch = watch, cuda_graph: bool = False) -> None:
        settings = Settings(overlap=0.5, blend="gaussian", skip_air=False, cuda_graph=cuda_graph)
        found[key], _ = roll_scan(
            volume, plan, maps, manifest, settings, engine, watch, lambda done, of: None, lambda line: None, road
        )

    def theirs() -> None:
        scan = torch.from_numpy(array).cuda().float()[None]
        image = torch.nn.functional.interpolate(scan, size=working.shape, mode="trilinear").clamp(0, 1000) / 1000
        logits: Any = sliding_window_inference(image, WINDOW, BATCH, engine.forward, overlap=0.5, mode="gaussian")
        stretched = torch.nn.functional.interpolate(logits.float(), size=native.shape, mode="trilinear")
        found["theirs"] = stretched.argmax(1).to(torch.uint8).cpu().numpy()[0]

    row: dict[str, Any] = {"precision": precision, "windows": len(plan), "ours_s": seconds(ours, ROAD_RUNS)}
    row |= with_graph(lambda: ours("graph", Stopwatch(), True), found)
    torch.cuda.empty_cache()
    row["monai_s"] = seconds(theirs, ROAD_RUNS)
    windows = torch.zeros((len(plan), 1, *WINDOW), device="cuda").split(BATCH)
    row["network_alone_s"] = seconds(lambda: [engine.forward(batch) for batch in windows], ROAD_RUNS)
    row["ratio"] = row["monai_s"] / row["ours_s"]
    row["stages_s"] = {name: round(spent / (1 + ROAD_RUNS), 4) for name, spent in watch.seconds.items()}
    row["labels_that_agree"] = float((found["ours"].labels == found["theirs"]).mean())
    row["labels_in_use"] = len(np.unique(found["theirs"]))
    torch.cuda.empty_cache()
    return row


def with_graph(work: Callable[[], object], found: dict[str, Any]) -> dict[str, Any]:
    """The same with the network as a CUDA graph: its time, and whether labels stay the same in every voxel."""
    try:
        row: dict[str, Any] = {"graph_s": seconds(work, ROAD_RUNS)}
    except Exception as error:  # of the driver or of PyTorch: the rest is measured all the same
        return {"failed": True, "graph_error": f"{type(error).__name__}: {error}"}
    same = bool((found["graph"].labels == found["ours"].labels).all())
    return row | {"graph_labels_equal": same} | ({} if same else {"failed": True})


def whole_road(device: Device) -> dict[str, Any]:
    """The whole road in each precision that a GPU is fast in."""
    rows = [road_row(device, precision) for precision in TYPES if precision != "fp32"]
    for row in rows:
        print(f"  {row['precision']}: ours {row['ours_s']:.3f} s, MONAI {row['monai_s']:.3f} s, "
              f"ratio {row['ratio']:.2f}, network alone {row['network_alone_s']:.3f} s, "
              f"{row['labels_in_use']} labels, {100 * row['labels_that_agree']:.2f} % of voxels agree")  # fmt: skip
        print(f"       stages {row['stages_s']}")
        graph = {key: value for key, value in row.items() if key.startswith("graph")}
        print(f"       with a CUDA graph: {graph}")
    return {"rows": rows} | ({"failed": True} if any(row.get("failed") for row in rows) else {})

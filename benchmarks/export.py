"""From window logits to labels on the scan's grid: time and peak memory, ours, nnU-Net's and MONAI's ways.

    python benchmarks/export.py --out benchmarks/results/export.json [--large]

The logits of every window are the same noise, made beforehand, so that stitching and export are all that is timed. Each
way runs in a process of its own, one after the other, round by round; its peak is the process's peak resident size less
what it held when the work began.

nnU-Net: its own window placement, Gaussian (``compute_steps_for_sliding_window``, ``compute_gaussian``) and half
accumulators summed as its predictor does, its own ``resample_data_or_seg_to_shape`` with the order that its plans give
for logits (1), arg-max. Install it as benchmarks/requirements.txt says. MONAI: ``sliding_window_inference`` in fp32,
trilinear interpolation of the K logits, arg-max.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from dropgen_rt.geometry import Geometry
from dropgen_rt.kernels import Normalisation
from dropgen_rt.memory import peak_resident_bytes, plan_memory, reset_peak, resident_bytes
from dropgen_rt.segment import native_maps
from dropgen_rt.slide import roll
from dropgen_rt.windows import WindowPlan

WINDOW = (96, 96, 96)
IDENTITY = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0)
WAYS = ("ours", "nnunet", "monai")


def grids(size: list[int], spacing_mm: list[float], working_mm: float) -> tuple[Geometry, Geometry]:
    native = Geometry(tuple(size), tuple(spacing_mm), (0.0, 0.0, 0.0), IDENTITY)
    return native.resampled((working_mm,) * 3), native


def ours(working: Geometry, native: Geometry, logits: np.ndarray) -> np.ndarray:
    plan, image = WindowPlan.cover(working.shape, WINDOW, 0.5), np.zeros((1, *working.shape), np.float32)
    maps = native_maps(working, native)
    return roll(
        image, plan, Normalisation.identity(), lambda windows: logits, logits.shape[1], maps, blend="gaussian"
    ).labels


def nnunet(working: Geometry, native: Geometry, logits: np.ndarray) -> np.ndarray:
    import torch
    from nnunetv2.inference.sliding_window_prediction import compute_gaussian, compute_steps_for_sliding_window
    from nnunetv2.preprocessing.resampling.default_resampling import resample_data_or_seg_to_shape

    gaussian = compute_gaussian(WINDOW, sigma_scale=1 / 8, value_scaling_factor=10, device=torch.device("cpu"))
    steps = compute_steps_for_sliding_window(working.shape, WINDOW, 0.5)
    sums = torch.zeros((logits.shape[1], *working.shape), dtype=torch.half)
    counts, one = torch.zeros(working.shape, dtype=torch.half), torch.from_numpy(logits[0])
    for z in steps[0]:
        for y in steps[1]:
            for x in steps[2]:
                place = (slice(z, z + 96), slice(y, y + 96), slice(x, x + 96))
                sums[(slice(None), *place)] += one * gaussian
                counts[place] += gaussian
    torch.div(sums, counts, out=sums)
    spacings = working.spacing_mm[::-1], native.spacing_mm[::-1]
    full = resample_data_or_seg_to_shape(sums, native.shape, *spacings, is_seg=False, order=1, order_z=0)
    return torch.as_tensor(full).argmax(0).numpy().astype(np.uint8)


def monai(working: Geometry, native: Geometry, logits: np.ndarray) -> np.ndarray:
    import torch
    from monai.inferers import sliding_window_inference

    image, one = torch.zeros((1, 1, *working.shape)), torch.from_numpy(logits)
    sums = sliding_window_inference(image, WINDOW, 1, lambda windows: one.clone(), overlap=0.5, mode="gaussian")
    full = torch.nn.functional.interpolate(sums, size=native.shape, mode="trilinear")
    return full.argmax(1)[0].numpy().astype(np.uint8)


def child(way: str, classes: int, size: list[int], spacing_mm: list[float], working_mm: float) -> None:
    """Run one way once and print what it took, as JSON."""
    import torch

    torch.set_num_threads(2)
    working, native = grids(size, spacing_mm, working_mm)
    logits = np.random.default_rng(0).standard_normal((1, classes, *WINDOW), dtype=np.float32)
    work: Callable[..., np.ndarray] = {"ours": ours, "nnunet": nnunet, "monai": monai}[way]
    before = resident_bytes()
    reset_peak()
    start = time.perf_counter()
    labels = work(working, native, logits)
    spent = time.perf_counter() - start
    predicted = plan_memory(
        WindowPlan.cover(working.shape, WINDOW, 0.5), native.shape, channels=1, classes=classes, batch=1,
        probabilities=False, resident=0, skips_air=False,
    )  # fmt: skip
    print(json.dumps({"seconds": spent, "peak_bytes": peak_resident_bytes() - before, "voxels": labels.size,
                      "process_peak_bytes": peak_resident_bytes(), "working": working.shape,
                      "predicted_bytes": predicted.peak}))  # fmt: skip


def measured(way: str, case: list[object]) -> dict[str, object]:
    command = [sys.executable, __file__, "--child", json.dumps([way, *case])]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    if run.returncode:
        return {"failed": (run.stderr.strip().splitlines() or [f"ended with {run.returncode}"])[-1]}
    return dict(json.loads(run.stdout.splitlines()[-1]))


def compared(name: str, case: list[object], ways: Sequence[str], rounds: int) -> dict[str, object]:
    """Rounds of every way, interleaved; medians, and the ratios to ours."""
    runs: dict[str, list[dict]] = {way: [] for way in ways}
    for _ in range(rounds):
        for way in ways:
            runs[way].append(measured(way, case))
            print(f"{name}: {way} {runs[way][-1]}", flush=True)
    row: dict[str, object] = {"case": name, "arguments": case, "runs": runs}
    whole = {way: found for way, found in runs.items() if not any("failed" in run for run in found)}
    for way in whole:
        if way != "ours":
            for key in ("seconds", "peak_bytes"):
                pairs = zip(whole[way], whole["ours"], strict=True)
                row[f"{way}_over_ours_{key}"] = round(statistics.median(a[key] / b[key] for a, b in pairs), 2)
    print({key: value for key, value in row.items() if "over" in key}, flush=True)
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--child")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--size", type=int, default=192, help="edge of the compared scan, 1 mm voxels")
    parser.add_argument("--classes", type=int, nargs="+", default=[14, 104])
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--large", action="store_true", help="512 x 512 x 400, too: 14 classes, and 104 for ours alone")
    arguments = parser.parse_args()
    if arguments.child:
        return child(*json.loads(arguments.child))
    from recording import write

    edge, rounds = arguments.size, arguments.rounds
    rows = [
        compared(
            f"{classes} classes, {edge}^3 from 1.5 mm", [classes, [edge] * 3, [1.0] * 3, 1.5], arguments.ways, rounds
        )
        for classes in arguments.classes
    ]
    if arguments.large:
        for classes, ways in ((14, arguments.ways), (104, ("ours",))):
            case = [classes, [512, 512, 400], [0.8, 0.8, 1.0], 1.5]
            rows.append(compared(f"{classes} classes, 512 x 512 x 400 from 1.5 mm", case, ways, 1))
    return write(arguments.out, {"rounds": rounds, "rows": rows})


if __name__ == "__main__":
    main()

"""Where the time goes: the stages of one segment(), and the whole against MONAI over the PyTorch network.

    python benchmarks/stages.py --out benchmarks/results/stages.json [--checkpoint RUN/best.pt]

Both run interleaved on the same scan, window and overlap, in fp32, so that their ratio holds on a noisy machine.
Without a checkpoint the PyTorch network has the demo model's layout and random weights: its time is the same.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from importlib import resources
from pathlib import Path

import numpy as np
import torch
from monai.inferers import sliding_window_inference
from recording import write

from dropgen_rt import Settings, open_engine, open_named, read_scan, segment
from dropgen_rt.preprocess import to_working_grid
from dropgen_rt.train.loop import load_network
from dropgen_rt.train.network import DropGen, UNetConfig, rebuild

TEMPLATE = "mni_icbm152_t1_tal_nlin_sym_09a_converted.nii.gz"


def demo_layout() -> DropGen:
    """The demo model's network with random weights."""
    encoder = UNetConfig(width=8, padding_mode="zeros")
    segmentor = UNetConfig(17, 10, 8, 4, padding_mode="zeros")
    return rebuild(DropGen(segmentor, encoder).description())


def timed(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--checkpoint", type=Path)
    parser.add_argument("--runs", type=int, default=5)
    arguments = parser.parse_args()
    torch.set_flush_denormal(True)
    network = load_network(arguments.checkpoint)[0] if arguments.checkpoint else demo_layout().eval()
    model = open_named("brain9")
    with resources.as_file(resources.files("nilearn.datasets") / "data" / TEMPLATE) as path:
        scan = read_scan(path)
    working = to_working_grid(scan.volume, model.manifest.orientation, model.manifest.spacing_mm)
    image = torch.from_numpy(np.ascontiguousarray(working.array[None]))

    def theirs() -> None:
        with torch.no_grad():
            sliding_window_inference(image, model.manifest.window, 1, network, overlap=0.5, mode="constant")

    ours, monai, stages = [], [], []
    with open_engine(model) as engine:
        segment(scan, model, Settings(reference=True), engine=engine)  # warm
        theirs()
        for _ in range(arguments.runs):
            record = None

            def mine() -> None:
                nonlocal record
                record = segment(scan, model, Settings(reference=True), engine=engine).record

            ours.append(timed(mine))
            monai.append(timed(theirs))
            assert record is not None
            stages.append(record.timings_s)
    ratios = [theirs_s / ours_s for ours_s, theirs_s in zip(ours, monai, strict=True)]
    medians = {name: round(statistics.median(run[name] for run in stages), 4) for name in stages[0]}
    print(
        f"MONAI with PyTorch over ours: median {statistics.median(ratios):.2f}, {min(ratios):.2f} to {max(ratios):.2f}"
    )
    print(f"ours, median seconds per stage: {medians}")
    figures = {
        "runs": arguments.runs,
        "windows": record.windows if record else 0,
        "ours_s": ours,
        "monai_network_s": monai,
    }
    write(arguments.out, {**figures, "ratio_median": statistics.median(ratios), "stages_median_s": medians})


if __name__ == "__main__":
    main()

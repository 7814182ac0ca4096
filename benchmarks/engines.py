"""Window throughput of each CPU engine and precision against PyTorch, side by side in one run.

python benchmarks/engines.py --out benchmarks/results/engines.json

The reference network (anatomix encoder of width 16, segmentor of width 20 with 5 levels) with random weights at a
window of 96^3; rounds go round all of them in turn, so that what else the machine does falls on all alike. The ratio
of each is the median of PyTorch's eager fp32 over the median of its own rounds, in one run. Before timing, each is held
against PyTorch's fp32 logits.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from recording import write

from dropgen_rt.engines import open_engine
from dropgen_rt.engines.openvino_engine import supported_precisions
from dropgen_rt.export.to_onnx import ExportOptions, export
from dropgen_rt.model import read_model
from dropgen_rt.train import checkpoint
from dropgen_rt.train.loop import load_network
from dropgen_rt.train.network import ANATOMIX, DropGen, UNetConfig

CLASSES = 4


def network_file(folder: Path, edge: int) -> Path:
    torch.manual_seed(0)
    made = DropGen(UNetConfig(17, CLASSES, 20, 5), ANATOMIX).eval()
    labels = [{"value": value, "name": f"part {value}", "colour": (value, 0, 0)} for value in range(1, CLASSES)]
    content = {
        "network": made.description(), "state": made.state_dict(), "labels": labels,
        "dataset": {"name": "random weights", "notice": "", "channels": ["MRI"]},
        "intensity": {"kind": "percentile", "lower": 0.5, "upper": 99.5},
        "config": {"window": [edge] * 3, "spacing_mm": [1.0] * 3, "orientation": "LPS"},
        "progress": {},
    }  # fmt: skip
    checkpoint.save(folder / "reference.pt", content)
    return folder / "reference.pt"


def torch_runs(network: torch.nn.Module, other: torch.nn.Module) -> dict[str, Callable[[np.ndarray], np.ndarray]]:
    def eager(window: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            return network(torch.from_numpy(window)).numpy()

    last = other.to(memory_format=torch.channels_last_3d)

    def bf16(window: np.ndarray) -> np.ndarray:
        image = torch.from_numpy(window).contiguous(memory_format=torch.channels_last_3d)
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            return last(image).float().numpy()

    return {"PyTorch eager fp32": eager, "PyTorch channels-last bf16": bf16}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--edge", type=int, default=96)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        saved = network_file(Path(folder), arguments.edge)
        export(saved, Path(folder) / "model.onnx", ExportOptions())
        model = read_model(Path(folder) / "model.onnx")
        plain, _ = load_network(saved)
        # Two networks, because the layout of weights belongs to the network.
        runs = torch_runs(plain.eval(), load_network(saved)[0].eval())
        wanted = [("onnxruntime", "fp32"), *(("openvino", precision) for precision in supported_precisions())]
        engines = {f"{kind} {item}": open_engine(model, engine=kind, precision=item) for kind, item in wanted}
        runs |= {name: engine.infer for name, engine in engines.items()}
        figures = measure(runs, arguments.edge, arguments.rounds)
    for name, row in figures.items():
        print(f"{row['times_faster']:6.2f} x  {row['median_s']:.3f} s  error {row['largest_error']:.1e}  {name}")
    write(arguments.out, {"window": [arguments.edge] * 3, "rounds": arguments.rounds, "engines": figures})


def measure(
    runs: dict[str, Callable[[np.ndarray], np.ndarray]], edge: int, rounds: int
) -> dict[str, dict[str, object]]:
    window = np.random.default_rng(0).random((1, 1, edge, edge, edge), dtype=np.float32)
    first = {name: run(window).copy() for name, run in runs.items()}
    expected = first["PyTorch eager fp32"]
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            start = time.perf_counter()
            run(window)
            seconds[name].append(time.perf_counter() - start)
    base = statistics.median(seconds["PyTorch eager fp32"])
    return {
        name: {
            "median_s": round(statistics.median(seconds[name]), 4),
            "all_s": [round(value, 4) for value in seconds[name]],
            "times_faster": round(base / statistics.median(seconds[name]), 3),
            "largest_error": float(np.abs(first[name] - expected).max() / np.ptp(expected)),
        }
        for name in runs
    }


if __name__ == "__main__":
    main()

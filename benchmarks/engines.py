"""Window throughput of each CPU engine and precision against PyTorch, side by side in one run.

python benchmarks/engines.py --out benchmarks/results/engines.json

The reference network (anatomix encoder of width 16, segmentor of width 20 with 5 levels) with random weights at a
window of 96^3; rounds go round all of them in turn, so that what else the machine does falls on all alike. The ratio
of each is the median of PyTorch's eager fp32 over the median of its own rounds, in one run. Before timing, each is held
against PyTorch's fp32 logits.
"""

import argparse
import copy
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import torch
from recording import write

from dropgen_rt.engines import open_engine
from dropgen_rt.engines.openvino_engine import supported_precisions
from dropgen_rt.export.fuse import fuse
from dropgen_rt.export.to_onnx import ExportOptions, fused_graph
from dropgen_rt.manifest import METADATA_KEY, Label, Manifest
from dropgen_rt.model import Model, model_of
from dropgen_rt.train.network import ANATOMIX, DropGen, UNetConfig

CLASSES = 4


def network_and_model(edge: int) -> tuple[DropGen, Model]:
    """The reference network, and its graph for a fixed window of that edge."""
    torch.manual_seed(0)
    network = DropGen(UNetConfig(17, CLASSES, 20, 5), ANATOMIX).eval()
    labels = tuple(Label(value, f"part {value}", (value, 0, 0)) for value in range(1, CLASSES))
    manifest = Manifest("reference", labels, (1.0, 1.0, 1.0), (edge, edge, edge), network.stride)
    proto = fused_graph(fuse(network), manifest, ExportOptions())
    onnx.helper.set_model_props(proto, {METADATA_KEY: manifest.to_json()})
    return network, model_of(Path("reference.onnx"), proto.SerializeToString())


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
    network, model = network_and_model(arguments.edge)
    # Two networks, because the layout of weights belongs to the network.
    runs = torch_runs(network, copy.deepcopy(network))
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
    for name, logits in first.items():
        limit = 1e-4 if name.endswith("fp32") else 5e-2
        assert np.abs(logits - expected).max() <= limit * np.ptp(expected), name
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

"""What instance norms cost at inference: seconds per window beside batch norms, which are folded away, in one run.

python benchmarks/norms.py --out benchmarks/results/norms.json

The networks of the presets tiny and edge with the encoder in the package, random segmentors, at their windows, through
OpenVINO in each precision that this CPU has; rounds go round all of them in turn. Accuracy is domain_shift.py's and
heart.py's to say.
"""

import argparse
import statistics
import time
from contextlib import ExitStack
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
from dropgen_rt.train.checkpoint import load_encoder
from dropgen_rt.train.config import PRESETS
from dropgen_rt.train.encoders import find_encoder
from dropgen_rt.train.network import NORMS, DropGen, Norm, segmentor_config

CLASSES = 4


def model_with(preset: str, norm: Norm) -> Model:
    """The preset's network as ``export`` writes it, its segmentor's weights random."""
    torch.manual_seed(0)
    encoder = load_encoder(find_encoder("stable"))
    width, levels, window = (PRESETS[preset][key] for key in ("width", "levels", "window"))
    segmentor = segmentor_config(1 + encoder.config.out_channels, CLASSES, width, levels, norm)
    network = DropGen(segmentor, encoder.config).eval()
    assert network.encoder is not None
    network.encoder.load_state_dict(encoder.state_dict())
    labels = tuple(Label(value, f"part {value}", (value, 0, 0)) for value in range(1, CLASSES))
    manifest = Manifest(preset, labels, (1.0, 1.0, 1.0), window, network.stride)
    proto = fused_graph(fuse(network), manifest, ExportOptions())
    onnx.helper.set_model_props(proto, {METADATA_KEY: manifest.to_json()})
    return model_of(Path(f"{preset}.onnx"), proto.SerializeToString())


def measure(preset: str, rounds: int) -> dict[str, dict[str, float]]:
    """Per precision the median seconds of a window with each norm, and their ratio."""
    models = {norm: model_with(preset, norm) for norm in NORMS}
    engines = {
        (precision, norm): open_engine(model, engine="openvino", precision=precision)
        for precision in supported_precisions()
        for norm, model in models.items()
    }
    window = np.random.default_rng(0).random((1, 1, *models["batch"].manifest.window), dtype=np.float32)
    seconds: dict[tuple[str, Norm], list[float]] = {key: [] for key in engines}
    with ExitStack() as opened:
        for engine in engines.values():
            opened.enter_context(engine).infer(window)
        for _ in range(rounds):
            for key, engine in engines.items():
                start = time.perf_counter()
                engine.infer(window)
                seconds[key].append(time.perf_counter() - start)
    medians = {key: statistics.median(some) for key, some in seconds.items()}
    return {
        precision: {f"{norm}_s": round(medians[precision, norm], 4) for norm in NORMS}
        | {"instance_over_batch": round(medians[precision, "instance"] / medians[precision, "batch"], 3)}
        for precision in supported_precisions()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=9)
    arguments = parser.parse_args()
    figures = {preset: measure(preset, arguments.rounds) for preset in ("tiny", "edge")}
    for preset, rows in figures.items():
        for precision, row in rows.items():
            print(f"{preset} {precision}: instance norms take {row['instance_over_batch']:.2f} times as long")
    write(arguments.out, {"classes": CLASSES, "rounds": arguments.rounds, "presets": figures})


if __name__ == "__main__":
    main()

"""The demo model on real scans: ONNX Runtime and OpenVINO in fp32 and bf16 against PyTorch fp32.

python benchmarks/parity.py --out benchmarks/results/parity.json

Logits are the stitched ones of reference mode (overlap 0.5, constant blend) on the working grid; labels are their
arg-max. The scans are those of ../shared/data. The PyTorch network is made by this project's own classes, not from the
graph: only the weights are taken from the model file.
"""

import argparse
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from recording import write

from dropgen_rt import open_engine, open_named, read_scan
from dropgen_rt.engines.openvino_engine import supported_precisions
from dropgen_rt.evaluate import dice_per_label
from dropgen_rt.export.fuse import fuse
from dropgen_rt.model import Model, read_model
from dropgen_rt.preprocess import normalisation, to_working_grid
from dropgen_rt.slide import slide
from dropgen_rt.train.network import DropGen, UNetConfig
from dropgen_rt.typed_graph import typed
from dropgen_rt.windows import WindowPlan

SHARED = Path(__file__).parents[2] / "shared" / "data"
SCANS = ("brain_t1/fs_subject_T1norm.nii.gz", "brain_contrasts/avg152T1.nii.gz", "brain_contrasts/avg152PD.nii.gz")


def stitched(path: Path, model: Model, infer: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """(classes, z, y, x) float32 logits on the working grid."""
    manifest = model.manifest
    working = to_working_grid(read_scan(path).volume, manifest.orientation, manifest.spacing_mm)
    bounds = normalisation(working, manifest.intensity)
    plan = WindowPlan.cover(working.geometry.shape, manifest.window, 0.5)
    sums, (z, y, x) = slide(working.array, plan, bounds, infer, manifest.classes)
    return sums / (z[:, None, None] * y[:, None] * x)


def torch_infer(model: Model) -> Callable[[np.ndarray], np.ndarray]:
    """The network in PyTorch: sizes read off the weights, batch norms already folded into them."""
    proto = onnx.load_model_from_string(typed(model.content, "fp32"))
    weights = {item.name: torch.from_numpy(numpy_helper.to_array(item).copy()) for item in proto.graph.initializer}
    weights = {name: value for name, value in weights.items() if name.startswith(("encoder.", "segmentor."))}
    padded = {node.name.split("/")[0] for node in proto.graph.node if node.op_type == "Pad"}
    nets = {name: _config(name, weights, name in padded) for name in ("segmentor", "encoder")}
    network = fuse(DropGen(nets["segmentor"], nets["encoder"]))
    network.load_state_dict(weights, strict=True)

    def infer(windows: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            return network(torch.from_numpy(windows)).numpy()

    return infer


def _config(name: str, weights: dict[str, torch.Tensor], padded: bool) -> UNetConfig:
    """A U-Net has four convolutions a level and four more, and doubles its first layer's width."""
    kernels = [value for key, value in weights.items() if key.startswith(f"{name}.") and value.ndim > 1]
    first = weights[f"{name}.model.0.weight"]
    last = max((key for key in weights if key.startswith(f"{name}.")), key=lambda key: int(key.split(".")[2]))
    outputs = weights[last.rsplit(".", 1)[0] + ".weight"].shape[0]
    levels = len(kernels) // 4 - 1
    bias = f"{last.rsplit('.', 1)[0]}.bias" in weights
    padding = "reflect" if padded else "zeros"
    return UNetConfig(first.shape[1], outputs, first.shape[0], levels, conv_bias=bias, padding_mode=padding)


def compare(logits: np.ndarray, expected: np.ndarray) -> dict[str, object]:
    labels, reference = logits.argmax(0), expected.argmax(0)
    dice = dice_per_label(labels, reference, len(expected) - 1)
    error = np.abs(logits - expected) / np.ptp(expected)
    return {
        "largest_error": float(error.max()),
        "rms_error": float(np.sqrt(np.square(error, dtype=np.float64).mean())),
        "label_agreement": float((labels == reference).mean()),
        "mean_dice": float(np.nanmean(dice)),
        "smallest_dice": float(np.nanmin(dice)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--model", default="brain9")
    parser.add_argument("--scans", nargs="*", type=Path, default=[SHARED / name for name in SCANS])
    arguments = parser.parse_args()
    named = open_named(arguments.model)
    model = read_model(named.path)
    wanted = [("onnxruntime", "fp32"), *(("openvino", item) for item in reversed(supported_precisions()))]
    rows: dict[str, dict[str, dict[str, object]]] = {}
    for path in arguments.scans:
        answers = {}
        for kind, precision in wanted:
            with open_engine(model, engine=kind, precision=precision) as engine:
                answers[f"{kind} {precision}"] = stitched(path, model, engine.infer)
        expected = stitched(path, model, torch_infer(model))
        rows[path.name] = {name: compare(logits, expected) for name, logits in answers.items()}
        for name, row in rows[path.name].items():
            print(f"{path.name}  {name}: " + ", ".join(f"{key} {value:.6g}" for key, value in row.items()))
    write(arguments.out, {"model_sha256": model.sha256, "referee": f"PyTorch {torch.__version__} fp32", "scans": rows})


if __name__ == "__main__":
    main()

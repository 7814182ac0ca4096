"""A checkpoint's network and manifest as one ``model.onnx``, proved equal before it appears."""

from pathlib import Path

import numpy as np
import onnx
import torch
from onnxruntime import InferenceSession

import dropgen_rt
from dropgen_rt.atomic import atomic_path
from dropgen_rt.errors import UsageError, VerificationError
from dropgen_rt.export.fuse import fuse
from dropgen_rt.manifest import METADATA_KEY, Intensity, Label, Manifest, SourceRule
from dropgen_rt.train.loop import load_network
from dropgen_rt.train.network import DropGen

OPSET = 20
INPUT, OUTPUT = "image", "logits"

# Largest |ONNX Runtime - PyTorch| over the logits' range that fp32 rounding explains: both sum the same 10^4
# products per voxel and layer in another order, and some forty layers pass the difference on.
PARITY = 1e-4


def export(
    checkpoint: Path, out: Path, name: str | None = None, window: tuple[int, int, int] | None = None
) -> tuple[Manifest, float]:
    """Write ``out`` from a training checkpoint; returns its manifest and the measured parity error.

    ``window`` (z, y, x) voxels is the graph's fixed input size, by default the training window. The parity
    error is the largest logit difference between ONNX Runtime and PyTorch, both fp32, over the logits' range.
    Raises ModelError for a bad checkpoint, VerificationError (and leaves no file) if the two disagree.
    """
    network, content = load_network(checkpoint)
    manifest = _manifest(network, content, name or out.stem, window)
    with atomic_path(out) as temporary:
        _write(fuse(network), manifest, temporary)
        error = parity(network, manifest, temporary)
        if not error <= PARITY:
            raise VerificationError(
                f"{out}: ONNX Runtime and PyTorch differ by {error:.2e} of the logits' range, accepted is "
                f"{PARITY:.0e}; nothing was written"
            )
    return manifest, error


def _manifest(network: DropGen, content: dict, name: str, window: tuple[int, int, int] | None) -> Manifest:
    config = content["config"]
    chosen = window or tuple(config["window"])
    if any(edge % network.stride for edge in chosen):
        raise UsageError(f"window {chosen}: its edges must be multiples of {network.stride} for this network")
    return Manifest(
        name=name,
        labels=tuple(Label(**label) for label in content["labels"]),
        spacing_mm=tuple(config["spacing_mm"]),
        window=chosen,
        stride=network.stride,
        orientation=config["orientation"],
        channels=tuple(content["dataset"]["channels"]),
        intensity=Intensity(**content["intensity"]),
        training={
            "dataset": content["dataset"]["name"],
            "config": config,
            "progress": content["progress"],
            "exported_by": f"dropgen-rt {dropgen_rt.__version__}",
        },
        notice=content["dataset"]["notice"],
        source=SourceRule(**content.get("source", {})),
    )


def _write(network: DropGen, manifest: Manifest, path: Path) -> None:
    example = torch.zeros(2, len(manifest.channels), *manifest.window)
    program = torch.onnx.export(
        network, (example,), dynamo=True, opset_version=OPSET, input_names=[INPUT], output_names=[OUTPUT],
        dynamic_shapes={"image": {0: torch.export.Dim("batch", min=1)}}, verbose=False,
    )  # fmt: skip
    assert program is not None  # dynamo=True always returns one
    model = program.model_proto
    # Source positions of the exporting machine say nothing to a user and leak its paths.
    for node in model.graph.node:
        del node.metadata_props[:]
    for value in [*model.graph.input, *model.graph.output, *model.graph.value_info, *model.graph.initializer]:
        del value.metadata_props[:]
    onnx.helper.set_model_props(model, {METADATA_KEY: manifest.to_json()})
    onnx.checker.check_model(model, full_check=True)
    onnx.save_model(model, path)


def parity(network: DropGen, manifest: Manifest, path: Path) -> float:
    """Largest |ONNX Runtime - PyTorch| over the range of PyTorch's logits, on seeded windows of noise and a ramp."""
    shape = (2, len(manifest.channels), *manifest.window)
    windows = np.random.default_rng(0).random(shape, dtype=np.float32)
    windows[1] = np.linspace(0, 1, windows[1].size, dtype=np.float32).reshape(shape[1:])
    session = InferenceSession(path.read_bytes(), providers=["CPUExecutionProvider"])
    (ours,) = session.run([OUTPUT], {INPUT: windows})
    with torch.no_grad():
        theirs = network.eval()(torch.from_numpy(windows)).numpy()
    return float(np.abs(ours - theirs).max() / np.ptp(theirs))

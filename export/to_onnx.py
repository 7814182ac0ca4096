"""A checkpoint's network and manifest as one ``model.onnx``, proved equal before it appears."""

from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnxruntime import InferenceSession
from torch import nn

import dropgen_rt
from dropgen_rt.atomic import atomic_path
from dropgen_rt.errors import UsageError, VerificationError
from dropgen_rt.export.fuse import fuse
from dropgen_rt.export.half_weights import round_kernels, store_half
from dropgen_rt.manifest import METADATA_KEY, Intensity, Label, Manifest
from dropgen_rt.train.loop import load_network
from dropgen_rt.train.network import DropGen

OPSET = 20
INPUT, OUTPUT = "image", "logits"

# Largest |ONNX Runtime - PyTorch| over the logits' range that fp32 rounding explains: both sum the same 10^4
# products per voxel and layer in another order, and some forty layers pass the difference on.
PARITY = 1e-4


# Largest logit difference over the range that rounding the kernels to float16 may make: 2^-12 each, in the worst case
# for all of some forty layers the same way, is 1e-2; more means that a layer was changed, not rounded.
ROUNDING = 1e-2

Weights = Literal["fp32", "fp16"]


class Exported(NamedTuple):
    """``parity``: ONNX Runtime against PyTorch with the weights that were stored; ``rounding``: against the
    checkpoint's own weights, equal to ``parity`` where those were stored. Both over the logits' range."""

    manifest: Manifest
    parity: float
    rounding: float


def export(
    checkpoint: Path,
    out: Path,
    name: str | None = None,
    window: tuple[int, int, int] | None = None,
    weights: Weights = "fp32",
) -> Exported:
    """Write ``out`` from a training checkpoint; returns its manifest and the measured differences.

    ``window`` (z, y, x) voxels is the graph's fixed input size, by default the training window. With ``weights``
    "fp16" the kernels are rounded and stored as float16; the graph still computes in float32. Differences are
    the largest of a logit between ONNX Runtime and PyTorch, both fp32, over the logits' range.
    Raises ModelError for a bad checkpoint, VerificationError (and leaves no file) if the two disagree.
    """
    network, content = load_network(checkpoint)
    manifest = _manifest(network, content, name or out.stem, window)
    stored: nn.Module = fuse(network)
    referee: nn.Module = network
    if weights == "fp16":
        stored = referee = round_kernels(stored)
    with atomic_path(out) as temporary:
        _write(stored, manifest, temporary, weights)
        windows = _test_windows(manifest)
        logits = _run(temporary, windows)
        result = Exported(manifest, _difference(logits, referee, windows), _difference(logits, network, windows))
        for error, accepted, what in ((result.parity, PARITY, ""), (result.rounding, ROUNDING, "'s unrounded weights")):
            if not error <= accepted:
                raise VerificationError(
                    f"{out}: ONNX Runtime and PyTorch{what} differ by {error:.2e} of the logits' range, accepted is "
                    f"{accepted:.0e}; nothing was written"
                )
    return result


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
    )


def _write(network: nn.Module, manifest: Manifest, path: Path, weights: Weights) -> None:
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
    if weights == "fp16":
        store_half(model)
    onnx.helper.set_model_props(model, {METADATA_KEY: manifest.to_json()})
    onnx.checker.check_model(model, full_check=True)
    onnx.save_model(model, path)


def _test_windows(manifest: Manifest) -> NDArray[np.float32]:
    """(2, channels, z, y, x): seeded noise and a ramp."""
    shape = (2, len(manifest.channels), *manifest.window)
    windows = np.random.default_rng(0).random(shape, dtype=np.float32)
    windows[1] = np.linspace(0, 1, windows[1].size, dtype=np.float32).reshape(shape[1:])
    return windows


def _run(path: Path, windows: NDArray[np.float32]) -> NDArray[np.float32]:
    session = InferenceSession(path.read_bytes(), providers=["CPUExecutionProvider"])
    logits: NDArray[np.float32] = session.run([OUTPUT], {INPUT: windows})[0]
    return logits


def _difference(logits: NDArray[np.float32], network: nn.Module, windows: NDArray[np.float32]) -> float:
    """Largest |logits - PyTorch's| over the range of PyTorch's."""
    with torch.no_grad():
        expected = network.eval()(torch.from_numpy(windows)).numpy()
    return float(np.abs(logits - expected).max() / np.ptp(expected))

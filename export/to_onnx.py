"""A checkpoint's network and manifest as one ``model.onnx``, proved equal before it appears."""

import logging
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from torch import nn

import dropgen_rt
from dropgen_rt.atomic import atomic_path
from dropgen_rt.components import Components
from dropgen_rt.engines.choose import choose, create
from dropgen_rt.engines.contract import Precision
from dropgen_rt.errors import ModelError, UsageError
from dropgen_rt.export.check import PARITY, ROUNDING, Row, compare, require
from dropgen_rt.export.fuse import folding_scales, fuse
from dropgen_rt.export.golden_scans import golden_windows
from dropgen_rt.export.half_weights import round_kernels, store_half
from dropgen_rt.export.names import tidy
from dropgen_rt.gate import LIMITS
from dropgen_rt.golden import GOLDEN_KEY, Golden, answered, digest, pack
from dropgen_rt.manifest import METADATA_KEY, Manifest
from dropgen_rt.model import model_of
from dropgen_rt.train.loop import load_network
from dropgen_rt.train.network import DropGen
from dropgen_rt.typed_fields import FieldError, is_line, read_fields
from dropgen_rt.typed_graph import typed
from dropgen_rt.windows import Blend, Placement
from dropgen_rt.words import by

# Reading and running everywhere: ONNX Runtime from 1.17, OpenVINO from 2024, TensorRT from 10.
OPSET = 20
OLDEST_OPSET = 18
INPUT, OUTPUT = "image", "logits"

Weights = Literal["fp32", "fp16"]


@dataclass(frozen=True)
class ExportOptions:
    """``window`` (z, y, x) voxels, by default the training window; ``dynamic`` lets it vary in multiples of the stride.

    ``weights`` "fp16" stores kernels as float16; ``precision`` types the graph's body; ``golden`` names scans;
    ``overlap``, ``placement``, ``blend`` and ``components`` are what inference uses unless told otherwise.
    """

    name: str | None = None
    window: tuple[int, int, int] | None = None
    dynamic: bool = False
    weights: Weights = "fp32"
    precision: Precision = "fp32"
    opset: int = OPSET
    golden: tuple[Path, ...] = ()
    overlap: float = 0.5
    placement: Placement = "scan"
    blend: Blend = "constant"
    components: Components = "all"

    def __post_init__(self) -> None:
        if not 0 <= self.overlap < 1:
            raise UsageError(f"--overlap {self.overlap}: accepted is a number from 0 up to, not including, 1")
        if not OLDEST_OPSET <= self.opset <= onnx.defs.onnx_opset_version():
            raise UsageError(f"--opset {self.opset}: accepted are {OLDEST_OPSET} to {onnx.defs.onnx_opset_version()}")
        if not is_line(self.name or ""):
            raise UsageError("--name: accepted is a text of one line of characters that print; write it otherwise")
        if self.weights == "fp16" and self.precision != "fp32":
            raise UsageError(f"--weights fp16 is for fp32 graphs; --precision {self.precision} stores its own")


class Exported(NamedTuple):
    """The manifest as written, and the comparisons that the file passed."""

    manifest: Manifest
    rows: tuple[Row, ...]


def export(checkpoint: Path, out: Path, options: ExportOptions | None = None) -> Exported:
    """Write ``out`` from a training checkpoint.

    The graph and PyTorch run the golden windows and a window of noise, both in fp32, and must agree within PARITY;
    where weights are rounded, PyTorch with the same rounded weights is the referee, and the difference to the
    checkpoint's own is reported and bounded. Raises ModelError for a bad checkpoint, VerificationError (and leaves
    no file) if the two disagree.
    """
    chosen = options or ExportOptions()
    network, content = load_network(checkpoint)
    try:
        manifest = _manifest(network, content, chosen, out.stem)
    except (KeyError, TypeError, FieldError) as error:
        raise ModelError(f"{checkpoint}: it lacks or garbles a field ({error}); train again") from error
    # Rounded before norms are folded, so that the scales of folding stay out of the rounding.
    rounded = round_kernels(network) if chosen.weights == "fp16" else network
    stored = fuse(rounded)
    referee: nn.Module = stored if chosen.weights == "fp16" else network
    windows, source = golden_windows(manifest, chosen.golden)
    golden = answered(
        windows, lambda batch: run_torch(referee, batch), source, f"PyTorch {torch.__version__} fp32, at export"
    )
    with atomic_path(out) as temporary:
        proto = fused_graph(stored, manifest, chosen)
        if chosen.weights == "fp16":
            store_half(proto, folding_scales(rounded))
        manifest = write(proto, manifest, golden, temporary, chosen.precision)
        rows = _check(temporary, manifest, network, referee, chosen, windows)
        require(out, rows)
    return Exported(manifest, tuple(rows))


def write(proto: onnx.ModelProto, manifest: Manifest, golden: Golden, path: Path, precision: Precision) -> Manifest:
    """Write graph, manifest and golden windows as one file; returns the manifest with the golden windows' digest."""
    text = pack(golden)
    manifest = replace(manifest, golden_sha256=digest(text))
    content = proto.SerializeToString()
    if precision != "fp32":
        proto = onnx.load_model_from_string(typed(content, precision))
    onnx.helper.set_model_props(proto, {METADATA_KEY: manifest.to_json(), GOLDEN_KEY: text})
    onnx.checker.check_model(proto, full_check=True)
    onnx.save_model(proto, path)
    return manifest


def _manifest(network: DropGen, content: dict[str, Any], options: ExportOptions, name: str) -> Manifest:
    config = content["config"]
    chosen = options.window or tuple(config["window"])
    network.check_window(chosen)
    fields = {
        "name": options.name or name,
        "labels": content["labels"],
        "spacing_mm": config["spacing_mm"],
        "window": chosen,
        "stride": network.stride,
        "orientation": config["orientation"],
        "channels": content["dataset"]["channels"],
        "intensity": content["intensity"],
        "training": {
            "dataset": content["dataset"]["name"],
            # An encoder's folder is nobody's business but the trainer's.
            "config": {**config, "encoder": Path(config.get("encoder", "")).name},
            "progress": content["progress"],
            "exported_by": f"dropgen-rt {dropgen_rt.__version__}",
        },
        "notice": " ".join(str(content["dataset"]["notice"]).split()),
        "source": content.get("source", {}),
        "dynamic_window": options.dynamic,
        "overlap": options.overlap,
        "placement": options.placement,
        "blend": options.blend,
        "components": options.components,
    }
    return read_fields(Manifest, fields, unknown="refuse")


def fused_graph(network: nn.Module, manifest: Manifest, options: ExportOptions) -> onnx.ModelProto:
    """The ONNX graph of a network that ``fuse`` made ready, without manifest and unproved; ``export`` does the rest."""
    example = torch.zeros(2, len(manifest.channels), *manifest.window)
    varying: dict[int, Any] = {0: torch.export.Dim("batch", min=1)}
    if options.dynamic:
        if min(manifest.window) < 2 * manifest.stride:
            raise UsageError(
                f"--dynamic with a window of {by(manifest.window)}: its edges are at least {2 * manifest.stride} then, "
                "two strides of the network; give a larger --window Z Y X"
            )
        # Two voxels at the bottleneck are what reflecting padding needs.
        axes = [torch.export.Dim(name, min=2, max=64) for name in ("nz", "ny", "nx")]
        varying |= {place + 2: manifest.stride * axis for place, axis in enumerate(axes)}
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # it tells of optional packages that we do not use
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of PyTorch's own code
        program = torch.onnx.export(
            network, (example,), dynamo=True, opset_version=options.opset, input_names=[INPUT], output_names=[OUTPUT],
            dynamic_shapes={"image": varying}, verbose=False,
        )  # fmt: skip
    assert program is not None  # dynamo=True always returns one
    model: onnx.ModelProto = program.model_proto
    tidy(model)
    return model


def _check(
    path: Path,
    manifest: Manifest,
    network: nn.Module,
    referee: nn.Module,
    options: ExportOptions,
    golden: NDArray[np.float32],
) -> list[Row]:
    windows = np.concatenate([golden, noise_and_ramp(manifest)])
    expected, own = run_torch(referee, windows), run_torch(network, windows)
    if options.precision != "fp32":
        limit = LIMITS[options.precision]
        logits, name = run_typed(path, options.precision, windows)
        agreement = limit.agreement if options.golden else None  # of scans; noise is all ties
        return [compare(f"{name}, {options.precision} graph, against PyTorch fp32", logits, own,
                        largest=5e-2, agreement=agreement)]  # fmt: skip
    logits = run_onnxruntime(path, windows)
    rows = [compare("ONNX Runtime fp32 against PyTorch fp32", logits, expected, largest=PARITY)]
    if options.weights == "fp16":
        rows.append(
            compare("with kernels rounded to fp16, against the checkpoint's own", logits, own, largest=ROUNDING)
        )
    return rows


def noise_and_ramp(manifest: Manifest) -> NDArray[np.float32]:
    """(2, channels, z, y, x): seeded noise and a ramp, beside the golden windows."""
    shape = (2, len(manifest.channels), *manifest.window)
    windows = np.random.default_rng(0).random(shape, dtype=np.float32)
    windows[1] = np.linspace(0, 1, windows[1].size, dtype=np.float32).reshape(shape[1:])
    return windows


def run_torch(network: nn.Module, windows: NDArray[np.float32]) -> NDArray[np.float32]:
    with torch.no_grad():
        return np.concatenate([network.eval()(torch.from_numpy(window[None])).numpy() for window in windows])


def run_onnxruntime(path: Path, windows: NDArray[np.float32]) -> NDArray[np.float32]:
    """The written file through ONNX Runtime on the CPU, in fp32, opened as ``infer`` opens it."""
    with create(model_of(path, path.read_bytes()), "onnxruntime", "fp32", "cpu") as engine:
        return _each(engine.infer, windows)


def run_typed(path: Path, precision: Precision, windows: NDArray[np.float32]) -> tuple[NDArray[np.float32], str]:
    """A typed graph: ONNX Runtime has float16 convolutions on a CPU, OpenVINO reads bfloat16."""
    model = model_of(path, path.read_bytes())
    if precision == "fp16":
        engine = create(model, "onnxruntime", "fp32", "cpu")
    else:
        # Where a CPU has bfloat16 convolutions OpenVINO uses them for such a graph, elsewhere it computes wider.
        offered = choose("openvino", device="cpu").precisions
        engine = create(model, "openvino", "bf16" if "bf16" in offered else "fp32", "cpu")
    with engine:
        return _each(engine.infer, windows), engine.name


def _each(infer: Any, windows: Sequence[NDArray[np.float32]] | NDArray[np.float32]) -> NDArray[np.float32]:
    return np.concatenate([infer(window[None]).copy() for window in windows])

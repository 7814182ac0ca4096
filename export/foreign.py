"""Other people's networks: a TorchScript or ONNX file and a TOML manifest become a model of this runtime."""

import tomllib
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

import dropgen_rt
from dropgen_rt.atomic import atomic_path
from dropgen_rt.engines.choose import create
from dropgen_rt.errors import MissingModelError, ModelError
from dropgen_rt.export.check import Row, compare, require
from dropgen_rt.export.golden_scans import golden_windows
from dropgen_rt.export.names import drop_dead
from dropgen_rt.export.to_onnx import INPUT, OUTPUT, Exported, ExportOptions, run_onnxruntime, write
from dropgen_rt.gate import LIMITS
from dropgen_rt.golden import Golden, answered
from dropgen_rt.manifest import SCHEMA, Manifest
from dropgen_rt.model import check_operators, check_self_contained, model_of
from dropgen_rt.typed_fields import read_fields

OUTPUTS = ("logits", "probabilities", "sigmoid")
# Probabilities are turned into logits from here up: a softmax in float32 says nothing reliable below.
SMALLEST_PROBABILITY = 1e-6

Infer = Callable[[NDArray[np.float32]], NDArray[np.float32]]


def read_manifest(path: Path, options: ExportOptions) -> tuple[Manifest, str]:
    """The manifest and the kind of output that a TOML file tells of. Raises ModelError; see docs/model-format.md."""
    if not path.is_file():
        raise MissingModelError(f"{path}: no such manifest; write one as docs/model-format.md shows")
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
        kind = data.pop("output", "logits")
        if isinstance(data.get("labels"), list):
            data["labels"] = [_with_colour(place, item) for place, item in enumerate(data["labels"])]
        given = {"name": path.stem, "stride": 1} | data | {"schema": SCHEMA, "golden_sha256": ""}
        manifest = read_fields(Manifest, given, unknown="refuse")
    except (OSError, ValueError, RecursionError) as error:  # damaged TOML, its text and its fields are ValueErrors
        reason = (str(error).splitlines() or ["nested too deep"])[0]
        raise ModelError(f"{path}: not a manifest ({reason}); write one as docs/model-format.md shows") from error
    except ModelError as error:
        raise ModelError(f"{path}: {error}") from error
    if kind not in OUTPUTS:
        raise ModelError(f"{path}: output {kind!r}; accepted are {', '.join(OUTPUTS)}")
    if manifest.dynamic_window:
        raise ModelError(f"{path}: dynamic_window: the window of another network is fixed; leave it out")
    made = {"exported_by": f"dropgen-rt {dropgen_rt.__version__}"}
    return replace(manifest, name=options.name or manifest.name, training=manifest.training | made), kind


def _with_colour(place: int, label: Any) -> Any:
    return {"colour": colour(place)} | label if isinstance(label, dict) else label


def colour(place: int) -> tuple[int, int, int]:
    """Colours for labels that have none: thirds of the circle, then between them."""
    table = ((230, 80, 60), (70, 160, 230), (90, 200, 90), (240, 190, 60), (170, 100, 220), (80, 210, 200))
    return table[place % len(table)]


def export_torchscript(source: Path, manifest_file: Path, out: Path, options: ExportOptions) -> Exported:
    """Write ``out`` from a TorchScript network. Raises ModelError, VerificationError if the graph disagrees with it."""
    manifest, kind = read_manifest(manifest_file, options)
    network = _Logits(_load(source), kind).eval()
    windows, origin = golden_windows(manifest, options.golden)

    def through(batch: NDArray[np.float32]) -> NDArray[np.float32]:
        try:
            with torch.no_grad():
                return network(torch.from_numpy(batch)).numpy()
        except (RuntimeError, TypeError, AttributeError) as error:
            reason = (str(error).strip().splitlines() or ["?"])[-1]
            raise ModelError(f"{source}: PyTorch cannot run it on windows {batch.shape} ({reason})") from error

    run = _watched(source, through, manifest)
    golden = answered(windows, run, origin, f"PyTorch {torch.__version__} fp32, at export")
    with atomic_path(out) as temporary:
        _trace(network, manifest, source, windows[:1], temporary)
        proto = onnx.load(temporary)
        return _finish(source, proto, manifest, golden, options, temporary, out, run, "PyTorch fp32")


def export_onnx(source: Path, manifest_file: Path, out: Path, options: ExportOptions) -> Exported:
    """Write ``out`` from an ONNX file. Its referee is OpenVINO in fp32, beside ONNX Runtime. Raises as above."""
    manifest, kind = read_manifest(manifest_file, options)
    proto = _load_onnx(source)
    check_self_contained(source, proto)
    check_operators(source, proto)
    _fix_shapes(source, proto, manifest)
    _append_head(proto.graph, kind)
    try:
        proto = onnx.shape_inference.infer_shapes(proto)
    except onnx.shape_inference.InferenceError as error:
        raise _not_sound(source, error) from error
    _fix_output(proto.graph, manifest)
    windows, origin = golden_windows(manifest, options.golden)
    bare = onnx.ModelProto()
    bare.CopyFrom(proto)
    onnx.helper.set_model_props(bare, {"dropgen_rt.manifest": manifest.to_json()})
    with create(model_of(source, bare.SerializeToString()), "openvino", "fp32", "cpu") as engine:
        run = _watched(source, engine.infer, manifest)
        golden = answered(windows, run, origin, f"openvino {engine.version} fp32, at export")
        with atomic_path(out) as temporary:
            return _finish(source, proto, manifest, golden, options, temporary, out, run, "OpenVINO fp32")


def _watched(source: Path, infer: Infer, manifest: Manifest) -> Infer:
    """``infer``, with ModelError for an answer that is not of the manifest's classes and window, or not finite."""

    def run(batch: NDArray[np.float32]) -> NDArray[np.float32]:
        logits, axes = infer(batch), (len(batch), manifest.classes, *manifest.window)
        if logits.shape != axes:
            raise ModelError(
                f"{source}: its output has axes {logits.shape}, the manifest says {axes} (labels and background, "
                "window); change one of them"
            )
        if not np.isfinite(logits).all():
            raise ModelError(f"{source}: its output is not finite; give --golden SCAN if it is on scans")
        return logits

    return run


def _not_sound(source: Path, error: Exception) -> ModelError:
    reason = (str(error).strip().splitlines() or ["?"])[0]
    return ModelError(f"{source}: ONNX's own check refuses its graph ({reason})")


def _finish(
    source: Path, proto: onnx.ModelProto, manifest: Manifest, golden: Golden, options: ExportOptions, temporary: Path,
    out: Path, expected: Infer, referee: str,
) -> Exported:  # fmt: skip
    drop_dead(proto.graph)
    try:
        manifest = write(proto, manifest, golden, temporary, options.precision)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise _not_sound(source, error) from error
    answers = np.concatenate([expected(window[None]).copy() for window in golden.windows])
    logits = run_onnxruntime(temporary, golden.windows)
    limit = LIMITS[options.precision].agreement
    rows = [compare(f"ONNX Runtime against {referee}", logits, answers, agreement=limit)]
    if manifest.largest_batch != 1:
        rows.append(_two_at_once(source, temporary, golden.windows[[0, -1]], logits[[0, -1]], limit))
    require(out, rows)
    return Exported(manifest, tuple(rows))


def _two_at_once(
    source: Path, written: Path, pair: NDArray[np.float32], expected: NDArray[np.float32], limit: float
) -> Row:
    """Graphs that were written for one window may mix several, or fail on them."""
    try:
        with create(model_of(written, written.read_bytes()), "onnxruntime", "fp32", "cpu") as engine:
            both = engine.infer(pair).copy()
    except ModelError as error:
        raise ModelError(
            f"{source}: {error}; if it takes one at a time, put largest_batch = 1 into the manifest"
        ) from (error)
    return compare("two windows at once against one by one", both, expected, agreement=limit)


class _Logits(nn.Module):
    """The network with its output as logits of two channels or more. TorchScript reads attributes, no globals."""

    smallest: Final[float]
    kind: Final[str]

    def __init__(self, network: nn.Module, kind: str) -> None:
        super().__init__()
        self.network = network
        self.smallest, self.kind = SMALLEST_PROBABILITY, kind

    def forward(self, image: Tensor) -> Tensor:
        result = self.network(image)
        if self.kind == "logits":
            return result
        if self.kind == "sigmoid":
            result = torch.cat([1 - result, result], dim=1)
        return torch.log(torch.clamp(result, min=self.smallest))


def _load(source: Path) -> nn.Module:
    if not source.is_file():
        raise MissingModelError(f"{source}: no such TorchScript file; give one that torch.jit.save wrote")
    try:
        return torch.jit.load(source, map_location="cpu").eval()
    except Exception as error:  # its reader meets foreign bytes with whatever error they lead it to
        raise ModelError(f"{source}: not a TorchScript file; give one that torch.jit.save wrote") from error


def _trace(network: nn.Module, manifest: Manifest, source: Path, window: NDArray[np.float32], out: Path) -> None:
    batch = {} if manifest.largest_batch == 1 else {INPUT: {0: "batch"}, OUTPUT: {0: "batch"}}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # TorchScript is on its way out, and instance norms keep their statistics
            torch.onnx.export(
                torch.jit.script(network), (torch.from_numpy(window),), out, dynamo=False, opset_version=18,
                input_names=[INPUT], output_names=[OUTPUT], dynamic_axes=batch,
            )  # fmt: skip
    except Exception as error:  # an operator without ONNX form, a shape that does not fit, …
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ModelError(f"{source}: PyTorch cannot write it as ONNX ({reason}); check window and channels") from error
    proto = onnx.load(out)
    _fix_output(proto.graph, manifest)
    onnx.save_model(proto, out)


def _load_onnx(source: Path) -> onnx.ModelProto:
    if not source.is_file():
        raise MissingModelError(f"{source}: no such ONNX file")
    try:
        return onnx.load_model_from_string(source.read_bytes())
    except Exception as error:  # protobuf's own error, or that of a text in another encoding
        raise ModelError(f"{source}: not an ONNX file") from error


def _fix_shapes(source: Path, proto: onnx.ModelProto, manifest: Manifest) -> None:
    """The input's axes as the manifest says: a free batch, channels, window. Raises ModelError if they contradict."""
    weights = {item.name for item in proto.graph.initializer}
    inputs = [value for value in proto.graph.input if value.name not in weights]
    if len(inputs) != 1 or len(proto.graph.output) != 1:
        raise ModelError(f"{source}: {len(inputs)} inputs and {len(proto.graph.output)} outputs; accepted is one each")
    dims = inputs[0].type.tensor_type.shape.dim
    # One window at a time, or a free batch, of which the runtime then takes at most largest_batch.
    wanted = [1 if manifest.largest_batch == 1 else 0, len(manifest.channels), *manifest.window]
    given = [dim.dim_value for dim in dims]
    fits = len(given) == len(wanted) and all(
        have in (0, want) for have, want in zip(given[1:], wanted[1:], strict=True)
    )
    if not fits:
        raise ModelError(
            f"{source}: its input has axes {given}, the manifest says {wanted} (0 is any); change one of them"
        )
    for place, want in enumerate(wanted):
        dims[place].Clear()
        if want:
            dims[place].dim_value = want
        else:
            dims[place].dim_param = "batch"


def _append_head(graph: onnx.GraphProto, kind: str) -> None:
    """Turn probabilities into logits at the graph's end."""
    output = graph.output[0]
    last = output.name
    if kind == "sigmoid":
        graph.initializer.append(numpy_helper.from_array(np.array(1, np.float32), "head/one"))
        graph.node.append(helper.make_node("Sub", ["head/one", last], ["head/background"], name="head/sub"))
        graph.node.append(
            helper.make_node("Concat", ["head/background", last], ["head/both"], name="head/concat", axis=1)
        )
        last = "head/both"
    if kind != "logits":
        smallest = numpy_helper.from_array(np.array(SMALLEST_PROBABILITY, np.float32), "head/smallest")
        graph.initializer.append(smallest)
        graph.node.append(helper.make_node("Max", [last, "head/smallest"], ["head/clamped"], name="head/max"))
        graph.node.append(helper.make_node("Log", ["head/clamped"], ["head/logits"], name="head/log"))
        last = "head/logits"
    del graph.output[:]
    graph.output.append(helper.make_tensor_value_info(last, TensorProto.FLOAT, None))


def _fix_output(graph: onnx.GraphProto, manifest: Manifest) -> None:
    """The output's axes as the manifest says; an engine whose output differs fails the comparison."""
    shape: list[Any] = [1 if manifest.largest_batch == 1 else "batch", manifest.classes, *manifest.window]
    value = helper.make_tensor_value_info(graph.output[0].name, TensorProto.FLOAT, shape)
    graph.output[0].CopyFrom(value)

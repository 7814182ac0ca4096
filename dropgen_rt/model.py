"""A model file opened: its manifest checked against its graph, and its digest taken."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError

from dropgen_rt.errors import MissingModelError, ModelError, UsageError
from dropgen_rt.manifest import METADATA_KEY, Manifest

# One input and one output of (batch, channels, z, y, x).
RANK = 5
_STANDARD_DOMAINS = ("", "ai.onnx")


@dataclass(frozen=True)
class Model:
    """``content`` is the whole ONNX file, so that what was checked is what an engine gets.

    ``name`` is the installed name under which it was asked for, "" for a file; each name has engines of its own.
    """

    path: Path
    content: bytes
    sha256: str
    manifest: Manifest
    name: str = ""

    def with_window(self, window: tuple[int, int, int]) -> "Model":
        """The same model for windows (z, y, x) of another size. Raises UsageError if its graph has one fixed size."""
        if window == self.manifest.window:
            return self
        if not self.manifest.dynamic_window:
            raise UsageError(
                f"window {window}: {self.manifest.name!r} is fixed to {self.manifest.window}; export it with "
                "--window dynamic"
            )
        return replace(self, manifest=replace(self.manifest, window=window))


def read_model(path: Path) -> Model:
    """Read a ``model.onnx``. Raises MissingModelError, or ModelError if it is not one that this project exported."""
    try:
        if not path.is_file():
            raise MissingModelError(f"{path}: no such model file; give a model.onnx that 'dropgen-rt export' wrote")
        content = path.read_bytes()
    except OSError as error:
        raise ModelError(
            f"{path}: {error.strerror or error}; check the permissions of the file and its folder"
        ) from error
    return model_of(path, content)


def model_of(path: Path, content: bytes) -> Model:
    """Check the bytes of a model file; ``path`` names it in messages. Raises ModelError."""
    try:
        proto = onnx.load_model_from_string(content)
    except DecodeError as error:
        raise ModelError(f"{path}: not an ONNX file; give one that 'dropgen-rt export' wrote") from error
    properties = {item.key: item.value for item in proto.metadata_props}
    if METADATA_KEY not in properties:
        raise ModelError(f"{path}: an ONNX file without a dropgen-rt manifest; write it with 'dropgen-rt export'")
    try:
        manifest = Manifest.from_json(properties[METADATA_KEY])
    except ModelError as error:
        raise ModelError(f"{path}: {error}") from error
    check_self_contained(path, proto)
    check_operators(path, proto)
    _check_graph(path, proto.graph, manifest)
    return Model(path, content, hashlib.sha256(content).hexdigest(), manifest)


def check_self_contained(path: Path, proto: onnx.ModelProto) -> None:
    """All weights lie inside the file. Raises ModelError for one that names another file, wherever that lies."""
    for tensor in _tensors(proto):
        if tensor.data_location == onnx.TensorProto.EXTERNAL or tensor.external_data:
            place = {item.key: item.value for item in tensor.external_data}.get("location", "?")
            raise ModelError(
                f"{path}: weight {tensor.name!r} lies outside, in {place!r}; a model is one file: export it again"
            )


def _nodes(proto: onnx.ModelProto) -> Iterator[onnx.NodeProto]:
    """Every node: of the graph, of the graphs inside its nodes (branches, loop bodies), and of local functions."""
    waiting = [*proto.graph.node, *(node for function in proto.functions for node in function.node)]
    while waiting:
        node = waiting.pop()
        yield node
        waiting += [inner for graph in _inner_graphs(node) for inner in graph.node]


def _inner_graphs(node: onnx.NodeProto) -> list[onnx.GraphProto]:
    single = [attribute.g for attribute in node.attribute if attribute.HasField("g")]
    return [*single, *(graph for attribute in node.attribute for graph in attribute.graphs)]


def _tensors(proto: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    """Every weight and constant, wherever in the model it stands."""
    nodes = list(_nodes(proto))
    for graph in [proto.graph, *(inner for node in nodes for inner in _inner_graphs(node))]:
        yield from graph.initializer
        for sparse in graph.sparse_initializer:
            yield from (sparse.values, sparse.indices)
    for attribute in (attribute for node in nodes for attribute in node.attribute):
        if attribute.HasField("t"):
            yield attribute.t
        yield from attribute.tensors


def check_operators(path: Path, proto: onnx.ModelProto) -> None:
    """Every operator is of the ONNX standard, in the version that the file names. Raises ModelError."""
    versions = {item.domain: item.version for item in proto.opset_import}
    local = {(function.domain, function.name) for function in proto.functions}
    for node in _nodes(proto):
        if (node.domain, node.op_type) in local:
            continue
        newest = versions.get("", versions.get("ai.onnx", 0))
        if node.domain not in _STANDARD_DOMAINS or not _is_standard(node.op_type, newest):
            name = f"{node.domain}::{node.op_type}" if node.domain else node.op_type
            raise ModelError(
                f"{path}: its graph uses {name}, which ONNX {newest} does not have; export it with standard operators"
            )


def _check_graph(path: Path, graph: onnx.GraphProto, manifest: Manifest) -> None:
    """One input (batch, channels, *window), one output (batch, classes, *window), as the manifest promises."""
    weights = {item.name for item in graph.initializer}
    inputs = [value for value in graph.input if value.name not in weights]
    for kind, values, channels in (
        ("input", inputs, len(manifest.channels)),
        ("output", graph.output, manifest.classes),
    ):
        _check_rank(path, kind, values)
        shapes = [[dim.dim_value for dim in value.type.tensor_type.shape.dim][1:] for value in values]
        window = [0, 0, 0] if manifest.dynamic_window else list(manifest.window)
        if shapes != [[channels, *window]]:
            raise ModelError(
                f"{path}: its graph's {kind} has shape {shapes}, its manifest says {[channels, *window]}; "
                "export it again"
            )


def _check_rank(path: Path, kind: str, values: list[onnx.ValueInfoProto]) -> None:
    ranks = [len(value.type.tensor_type.shape.dim) for value in values]
    if ranks != [RANK]:
        raise ModelError(
            f"{path}: its graph has {len(ranks)} {kind}(s) of {ranks} axes; accepted is one of {RANK}: batch, "
            "channels, z, y, x"
        )
    kinds = [value.type.tensor_type.elem_type for value in values]
    if kinds != [onnx.TensorProto.FLOAT]:
        raise ModelError(f"{path}: its graph's {kind} is not float32; export it again")


def _is_standard(operator: str, version: int) -> bool:
    try:
        onnx.defs.get_schema(operator, version, "")
    except onnx.defs.SchemaError:
        return False
    return True

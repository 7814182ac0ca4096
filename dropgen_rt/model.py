"""A model file opened: its manifest checked against its graph, and its digest taken."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError

from dropgen_rt.errors import MissingModelError, ModelError
from dropgen_rt.manifest import METADATA_KEY, Manifest


@dataclass(frozen=True)
class Model:
    """``content`` is the whole ONNX file, so that what was checked is what an engine gets."""

    path: Path
    content: bytes
    sha256: str
    manifest: Manifest


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
    try:
        proto = onnx.load_model_from_string(content)
    except DecodeError as error:
        raise ModelError(f"{path}: not an ONNX file; give one that 'dropgen-rt export' wrote") from error
    properties = {item.key: item.value for item in proto.metadata_props}
    if METADATA_KEY not in properties:
        raise ModelError(f"{path}: an ONNX file without a dropgen-rt manifest; write it with 'dropgen-rt export'")
    manifest = Manifest.from_json(properties[METADATA_KEY])
    _check_graph(path, proto.graph, manifest)
    return Model(path, content, hashlib.sha256(content).hexdigest(), manifest)


def _check_graph(path: Path, graph: onnx.GraphProto, manifest: Manifest) -> None:
    """One input (batch, channels, *window), one output (batch, classes, *window), as the manifest promises."""
    expected = [("input", graph.input, len(manifest.channels)), ("output", graph.output, manifest.classes)]
    for kind, values, channels in expected:
        shapes = [[dim.dim_value for dim in value.type.tensor_type.shape.dim][1:] for value in values]
        if shapes != [[channels, *manifest.window]]:
            raise ModelError(
                f"{path}: its graph's {kind} has shape {shapes}, its manifest says {[channels, *manifest.window]}; "
                "export it again"
            )

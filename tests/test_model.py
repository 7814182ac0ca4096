"""Opening a model file: what it holds, and every refusal."""

import hashlib

import pytest

from dropgen_rt.errors import MissingModelError, ModelError
from dropgen_rt.manifest import METADATA_KEY, SCHEMA
from dropgen_rt.model import read_model


def test_a_model_holds_what_was_checked(model_file, tiny):
    model = read_model(model_file)
    content = model_file.read_bytes()
    assert model.content == content
    assert model.sha256 == hashlib.sha256(content).hexdigest()
    assert model.manifest == tiny.manifest()
    assert model.path == model_file


@pytest.mark.parametrize("name", ["missing.onnx", "."])
def test_a_path_that_is_no_file(tmp_path, name):
    with pytest.raises(MissingModelError, match=r"no such model file; give a model\.onnx that 'dropgen-rt export'"):
        read_model(tmp_path / name)


@pytest.mark.parametrize("content", [b"hello world\n" * 50, bytes(range(256)), b"\x1f\x8b" * 99, b"", b"\0" * 64])
def test_what_is_no_onnx_file(tmp_path, content):
    path = tmp_path / "text.onnx"
    path.write_bytes(content)
    with pytest.raises(ModelError, match=r"text\.onnx: (not an ONNX file|an ONNX file without a dropgen-rt manifest)"):
        read_model(path)


def test_half_a_file(model_file):
    model_file.write_bytes(model_file.read_bytes()[:-40])
    with pytest.raises(ModelError):
        read_model(model_file)


def test_an_onnx_file_without_a_manifest(tmp_path, tiny):
    path = tmp_path / "foreign.onnx"
    path.write_bytes(tiny.onnx({"author": "someone"}))
    with pytest.raises(ModelError, match="without a dropgen-rt manifest; write it with 'dropgen-rt export'"):
        read_model(path)


def test_a_manifest_of_another_major_version(tmp_path, tiny):
    path = tmp_path / "future.onnx"
    path.write_bytes(tiny.onnx({METADATA_KEY: tiny.manifest().to_json().replace(f'"{SCHEMA}"', '"2.0"')}))
    with pytest.raises(ModelError, match=r"schema 2\.0, this version reads 1\.x"):
        read_model(path)


@pytest.mark.parametrize(
    ("graph", "message"),
    [
        ({"channels": 2}, r"input has shape \[\[2, 16, 16, 16\]\], its manifest says \[1, 16, 16, 16\]"),
        ({"classes": 4}, r"output has shape \[\[4, 16, 16, 16\]\], its manifest says \[3, 16, 16, 16\]"),
        ({"window": (16, 16, 8)}, r"input has shape \[\[1, 16, 16, 8\]\], its manifest says \[1, 16, 16, 16\]"),
    ],
    ids=str,
)
def test_a_graph_that_breaks_the_manifests_promise(tmp_path, tiny, graph, message):
    path = tmp_path / "mismatch.onnx"
    path.write_bytes(tiny.onnx({METADATA_KEY: tiny.manifest().to_json()}, **graph))
    with pytest.raises(ModelError, match=message):
        read_model(path)

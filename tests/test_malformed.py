"""Model files that lie: refused with the reason and exit code 4, nothing installed, nothing outside the file read."""

import json
import pickle
import zipfile

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from onnx import TensorProto, helper, numpy_helper

from dropgen_rt.cli import main
from dropgen_rt.errors import ModelError
from dropgen_rt.manifest import METADATA_KEY
from dropgen_rt.model import read_model


@pytest.fixture
def proto(tiny):
    return onnx.load_model_from_string(tiny.onnx({METADATA_KEY: tiny.manifest().to_json()}))


def external(proto, location):
    weight = proto.graph.initializer[0]
    weight.ClearField("raw_data")
    weight.data_location = TensorProto.EXTERNAL
    weight.external_data.add(key="location", value=location)


def add_input(proto):
    proto.graph.input.append(helper.make_tensor_value_info("mask", TensorProto.FLOAT, ["batch", 1, 16, 16, 16]))


def set_rank(proto, values, rank):
    dims = values[0].type.tensor_type.shape.dim
    while len(dims) > rank:
        del dims[-1]


def constant_outside(proto):
    tensor = numpy_helper.from_array(np.zeros(1, np.float32), "c")
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="c.bin")
    proto.graph.node.append(helper.make_node("Constant", [], ["c"], value=tensor))


def weight_of_a_branch_outside(proto):
    tensor = numpy_helper.from_array(np.zeros(1, np.float32), "d")
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="d.bin")
    value = helper.make_tensor_value_info("d", TensorProto.FLOAT, [1])
    branch = helper.make_graph([], "branch", [], [value], [tensor])
    proto.graph.node.append(helper.make_node("If", ["which"], ["either"], then_branch=branch, else_branch=branch))


def operator(proto, name, domain=""):
    proto.graph.node[0].op_type, proto.graph.node[0].domain = name, domain


CHANGES = {
    "weights in another folder": (lambda p: external(p, "../../w.bin"), r"lies outside, in '\.\./\.\./w.bin'"),
    "weights at an absolute path": (lambda p: external(p, "/etc/passwd"), "lies outside, in '/etc/passwd'"),
    "weights beside the file": (lambda p: external(p, "w.bin"), "a model is one file: export it again"),
    "a branch's weight outside": (weight_of_a_branch_outside, "weight 'd' lies outside, in 'd.bin'"),
    "a constant outside": (constant_outside, "weight 'c' lies outside, in 'c.bin'"),
    "an unknown operator": (lambda p: operator(p, "Convolve"), "uses Convolve, which ONNX 17 does not have"),
    "an operator of a vendor": (
        lambda p: operator(p, "FusedConv", "com.microsoft"), "uses com.microsoft::FusedConv, which ONNX 17"
    ),
    "an operator from the future": (lambda p: operator(p, "RotaryEmbedding"), "uses RotaryEmbedding, which ONNX 17"),
    "a flat input": (lambda p: set_rank(p, p.graph.input, 4), r"has 1 input\(s\) of \[4\] axes; accepted is one of 5"),
    "a flat output": (lambda p: set_rank(p, p.graph.output, 3), r"has 1 output\(s\) of \[3\] axes"),
    "two inputs": (add_input, r"has 2 input\(s\) of \[5, 5\] axes"),
    "no output": (lambda p: p.graph.ClearField("output"), r"has 0 output\(s\)"),
    "an integer input": (
        lambda p: setattr(p.graph.input[0].type.tensor_type, "elem_type", TensorProto.INT8), "input is not float32"
    ),
    "no manifest": (lambda p: p.ClearField("metadata_props"), "without a dropgen-rt manifest"),
    "a manifest of text": (lambda p: setattr(p.metadata_props[0], "value", "hello"), "not a dropgen-rt manifest"),
    "a window that does not fit": (
        lambda p: setattr(p.metadata_props[0], "value", p.metadata_props[0].value.replace("[16, 16, 16]", "[8, 8, 8]")),
        r"has shape \[\[1, 16, 16, 16\]\], its manifest says \[1, 8, 8, 8\]",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CHANGES)
@pytest.mark.parametrize("verb", ["build-engine", "verify"])
def test_it_is_refused(proto, home, tmp_path, name, verb):
    change, message = CHANGES[name]
    change(proto)
    path = tmp_path / "bad.onnx"
    path.write_bytes(proto.SerializeToString())
    with pytest.raises(ModelError, match=message):
        read_model(path)
    result = CliRunner().invoke(main, [verb, str(path)])
    assert result.exit_code == 4
    assert result.stderr.startswith("error: ") and result.stderr.count("\n") == 1
    assert not (home / "models").exists() and not (home / "engines").exists()


def test_a_graph_of_a_hundred_thousand_wrong_bytes_each(proto, tmp_path):
    """Damage anywhere is refused or harmless, and never anything but a ModelError."""
    content = proto.SerializeToString()
    path = tmp_path / "bad.onnx"
    rng = np.random.default_rng(0)
    for _ in range(300):
        damaged = bytearray(content)
        for place in rng.integers(0, len(content), 3):
            damaged[place] = rng.integers(0, 256)
        path.write_bytes(bytes(damaged))
        try:
            assert read_model(path).manifest.labels
        except ModelError as error:
            assert "\n" not in str(error)


class Evil:
    def __reduce__(self):
        return (open, ("/tmp/dropgen_rt_was_here", "w"))  # noqa: S108  what a pickle could do


def test_a_checkpoint_with_code_in_its_pickle(tmp_path):
    """A zip as PyTorch writes it, whose pickle opens a file when loaded; it is never run."""
    from pathlib import Path

    Path("/tmp/dropgen_rt_was_here").unlink(missing_ok=True)  # noqa: S108
    path = tmp_path / "evil.pt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("evil/data.pkl", pickle.dumps({"format": Evil()}))
        archive.writestr("evil/version", "3\n")
    for content in (None, pickle.dumps(Evil())):
        if content is not None:
            path.write_bytes(content)
        result = CliRunner().invoke(main, ["export", str(path), "-o", str(tmp_path / "m.onnx")])
        assert result.exit_code == 4
        assert result.stderr == (
            f"error: {path}: not a checkpoint of tensors and plain values; it was not opened further\n"
        )
    assert not Path("/tmp/dropgen_rt_was_here").exists()  # noqa: S108
    assert [entry.name for entry in tmp_path.iterdir()] == ["evil.pt"]


def test_the_unchanged_file_is_read(proto, tmp_path):
    path = tmp_path / "good.onnx"
    path.write_bytes(proto.SerializeToString())
    assert json.loads(read_model(path).manifest.to_json())["name"] == "tiny"

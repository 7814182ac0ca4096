"""Other people's networks: TorchScript and ONNX with a TOML manifest, small ones and deepbet's."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from click.testing import CliRunner
from onnx import TensorProto, helper, numpy_helper
from shared_data import DATA, needs
from torch import nn

from dropgen_rt.cli import main
from dropgen_rt.engines import open_engine
from dropgen_rt.model import read_model
from dropgen_rt.verify import golden_of

ROOT = Path(__file__).parents[2]
MANIFEST = """
labels = [{value = 1, name = "bright"}]
spacing_mm = [1, 1, 2]
window = [8, 12, 16]
"""


def run(*arguments):
    return CliRunner().invoke(main, ["export", *map(str, arguments)])


def assert_refused(result, code, text):
    assert result.exit_code == code, result.output
    assert text in result.stderr and result.stderr.startswith("error: ") and result.stderr.count("\n") == 1


@pytest.fixture
def toml(tmp_path):
    def write(extra="", text=MANIFEST):
        path = tmp_path / "net.toml"
        path.write_text(text + extra)
        return path

    return write


class Smooth(nn.Module):
    """A blur and a threshold at 0.5, in the given kind of output."""

    def __init__(self, kind):
        super().__init__()
        self.blur = nn.Conv3d(1, 1, 3, padding=1, bias=False)
        nn.init.constant_(self.blur.weight, 1 / 27)
        self.kind = kind

    def forward(self, image):
        logit = 20 * (self.blur(image) - 0.5)
        if self.kind == "sigmoid":
            return torch.sigmoid(logit)
        both = torch.cat([torch.zeros_like(logit), logit], 1)
        return both if self.kind == "logits" else torch.softmax(both, 1)


def torchscript(path, kind):
    torch.jit.save(torch.jit.trace(Smooth(kind).eval(), torch.zeros(1, 1, 8, 12, 16)), path)
    return path


def onnx_file(path, kind="logits", shape=("n", 1, "z", "y", "x"), **changes):
    """The same network as an ONNX file of another maker: names of its own, every axis free."""
    weights = numpy_helper.from_array(np.full((1, 1, 3, 3, 3), 1 / 27, np.float32), "w")
    constants = [numpy_helper.from_array(np.float32(v), k) for k, v in (("half", 0.5), ("gain", 20), ("zero", 0))]
    nodes = [
        helper.make_node("Conv", ["scan", "w"], ["blurred"], pads=[1] * 6),
        helper.make_node("Sub", ["blurred", "half"], ["above"]),
        helper.make_node("Mul", ["above", "gain"], ["logit"]),
        helper.make_node("Mul", ["logit", "zero"], ["nothing"]),
        helper.make_node("Concat", ["nothing", "logit"], ["both"], axis=1),
    ]
    if kind == "probabilities":
        nodes.append(helper.make_node("Softmax", ["both"], ["soft"], axis=1))
    if kind == "sigmoid":
        nodes[3:] = [helper.make_node("Sigmoid", ["logit"], ["soft"])]
    nodes.append(helper.make_node("Identity", [changes.get("dead", "scan")], ["unused"]))
    out = helper.make_tensor_value_info("both" if kind == "logits" else "soft", TensorProto.FLOAT, None)
    graph = helper.make_graph(
        nodes, "theirs", [helper.make_tensor_value_info("scan", TensorProto.FLOAT, shape)], [out], [weights, *constants]
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    path.write_bytes(proto.SerializeToString())
    return path


@pytest.mark.parametrize("kind", ["logits", "probabilities", "sigmoid"])
@pytest.mark.parametrize("form", ["--torchscript", "--onnx"])
def test_small_networks(form, kind, toml, tmp_path):
    source = torchscript(tmp_path / "n.pt", kind) if form == "--torchscript" else onnx_file(tmp_path / "n.x", kind)
    out = tmp_path / "m.onnx"
    result = run(form, source, "--manifest", toml(f'output = "{kind}"\n'), "-o", out, "--name", "theirs")
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines()[-1] == f"wrote {out}"
    model = read_model(out)
    assert model.manifest.name == "theirs" and model.manifest.window == (8, 12, 16)
    assert "fp32, at export" in golden_of(model).referee
    windows = np.random.default_rng(0).random((2, 1, 8, 12, 16), dtype=np.float32)
    with torch.no_grad():
        expected = Smooth("logits")(torch.from_numpy(windows)).numpy()[:, 1]
    with open_engine(model, engine="openvino", precision="fp32") as engine:
        logits = engine.infer(windows)
    assert np.allclose(logits[:, 1] - logits[:, 0], expected, atol=1e-3)  # logarithms of float32 probabilities
    assert not any("unused" in node.output for node in onnx.load(out).graph.node)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("labels = [", "not a manifest"),
        ("", "not a manifest"),
        (MANIFEST + 'output = "scores"', "output 'scores'; accepted are logits, probabilities, sigmoid"),
        (MANIFEST + "invention = 3", "not a manifest"),
        (MANIFEST.replace("value = 1", "value = 2"), "label values must count 1, 2, 3"),
        (MANIFEST.replace("[8, 12, 16]", "[8, 12]"), "window"),
        (MANIFEST + 'orientation = "XYZ"', "manifest of 'net'"),
        (MANIFEST + "dynamic_window = true", "the window of another network is fixed; leave it out"),
        (MANIFEST + 'training = "x"', "training: 'x' is not a table"),
        (MANIFEST + "training = {when = 2026-01-01}", "training.when: a date is not a text, a number"),
        (MANIFEST + "name = 5", "name: 5 is not a text"),
        (MANIFEST + 'largest_batch = "x"', "largest_batch: 'x' is not a whole number"),
        (MANIFEST + 'intensity = {kind = "range", lower = "0", upper = "1"}', "intensity.lower: '0' is not a finite"),
        (MANIFEST + "intensity = {upper = inf}", "intensity.upper: inf is not a finite number"),
        (MANIFEST.replace('"bright"', "5"), "labels[0].name: 5 is not a text"),
        (MANIFEST.replace('[{value = 1, name = "bright"}]', "5"), "labels: 5 is not a list"),
        (MANIFEST.replace('[{value = 1, name = "bright"}]', "[5]"), "labels[0]: 5 is not a table"),
        (MANIFEST + f"notice = {'[' * 2000}", "not a manifest"),
        (MANIFEST + "output = 5", "output 5; accepted are logits"),
        (MANIFEST + "output = []", "output []; accepted are logits"),
    ],
)
def test_manifests_that_are_refused(text, message, toml, tmp_path):
    source = onnx_file(tmp_path / "n.x")
    assert_refused(run("--onnx", source, "--manifest", toml(text=text), "-o", tmp_path / "m.onnx"), 4, message)
    assert not (tmp_path / "m.onnx").exists()


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        (("n", 2, "z", "y", "x"), "the manifest says [0, 1, 8, 12, 16]"),
        (("n", 1, 8, 12, 17), "its input has axes [0, 1, 8, 12, 17]"),
        (("n", 1, "y", "x"), "its input has axes [0, 1, 0, 0]"),
    ],
)
def test_onnx_files_that_contradict_the_manifest(shape, message, toml, tmp_path):
    source = onnx_file(tmp_path / "n.x", shape=shape)
    assert_refused(run("--onnx", source, "--manifest", toml(), "-o", tmp_path / "m.onnx"), 4, message)


@pytest.mark.parametrize("form", ["--torchscript", "--onnx"])
@pytest.mark.parametrize("content", [b"", b"text" * 99, b"PK\3\4" + b"\0" * 99])
def test_what_is_no_network(form, content, toml, tmp_path):
    (tmp_path / "n").write_bytes(content)
    result = run(form, tmp_path / "n", "--manifest", toml(), "-o", tmp_path / "m.onnx")
    assert_refused(result, 4, "")
    assert_refused(run(form, tmp_path / "absent", "--manifest", toml(), "-o", tmp_path / "m.onnx"), 4, "no such")


def test_an_operator_that_onnx_does_not_have(toml, tmp_path):
    proto = onnx.load_model_from_string(onnx_file(tmp_path / "n.x").read_bytes())
    proto.graph.node[0].op_type = "Blur"
    (tmp_path / "n.x").write_bytes(proto.SerializeToString())
    assert_refused(
        run("--onnx", tmp_path / "n.x", "--manifest", toml(), "-o", tmp_path / "m.onnx"), 4, "Blur, which ONNX 17"
    )


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("best.pt", "--manifest", "m.toml"),
        ("--onnx", "n.onnx"),
        ("--onnx", "n.onnx", "--torchscript", "n.pt", "--manifest", "m.toml"),
    ],
)
def test_one_source_is_given(arguments, tmp_path):
    assert_refused(run(*arguments, "-o", tmp_path / "m.onnx"), 2, "give one of CHECKPOINT, --torchscript FILE")


@pytest.mark.parametrize(
    ("words", "named"),
    [(("--window", 8, 8, 8), "--window"), (("--window", "dynamic"), "--dynamic"), (("--weights", "fp16"), "--weights"),
     (("--blend", "gaussian"), "--blend"), (("--components", "largest"), "--components"),
     (("--opset", 18), "--opset")],
)  # fmt: skip
def test_options_that_would_change_another_network(words, named, toml, tmp_path):
    source = onnx_file(tmp_path / "n.x")
    result = run("--onnx", source, "--manifest", toml(), "-o", tmp_path / "m.onnx", *words)
    assert_refused(
        result, 2, f"{named}: for a CHECKPOINT only; window, overlap, placement, blend and components of another"
    )


@pytest.mark.parametrize("form", ["--torchscript", "--onnx"])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            ('name = "bright"}', 'name = "bright"}, {value = 2, name = "brighter"}'),
            "the manifest says (1, 3, 8, 12, 16)",
        ),
        (("[8, 12, 16]", '[8, 12, 16]\nchannels = ["a", "b"]'), "2"),
    ],
    ids=["labels", "channels"],
)
def test_networks_that_contradict_the_manifest(form, change, message, toml, tmp_path):
    source = tmp_path / "n"
    torchscript(source, "logits") if form == "--torchscript" else onnx_file(source)
    refused = run(form, source, "--manifest", toml(text=MANIFEST.replace(*change)), "-o", tmp_path / "m.onnx")
    assert_refused(refused, 4, message)
    assert str(source) in refused.stderr and not (tmp_path / "m.onnx").exists()


class Changed(nn.Module):
    """``Smooth`` with something wrong at its end."""

    def __init__(self, wrong):
        super().__init__()
        self.inner, self.wrong = Smooth("logits"), wrong

    def forward(self, image):
        logits = self.inner(image)
        if self.wrong == "nan":
            return logits / (logits - logits)
        if self.wrong == "mixed":  # each window sees the mean of all
            return logits + 50 * logits.mean(0, keepdim=True)
        return logits.reshape(1, 2, 8, 12, 16)


@pytest.mark.parametrize(
    ("wrong", "code", "message"),
    [
        ("nan", 4, "its output is not finite"),
        ("mixed", 5, "two windows at once against one by one"),
        ("one", 4, "if it takes one at a time, put largest_batch = 1 into the manifest"),
    ],
)
def test_networks_that_no_runtime_could_use(wrong, code, message, toml, tmp_path):
    source, out = tmp_path / "n.pt", tmp_path / "m.onnx"
    torch.jit.save(torch.jit.trace(Changed(wrong).eval(), torch.zeros(1, 1, 8, 12, 16)), source)
    assert_refused(run("--torchscript", source, "--manifest", toml(), "-o", out), code, message)
    assert not out.exists()
    if wrong == "one":
        assert run("--torchscript", source, "--manifest", toml("largest_batch = 1"), "-o", out).exit_code == 0


@pytest.mark.parametrize("largest", [0, 2, 5])
def test_a_largest_batch_is_kept(largest, toml, tmp_path):
    out = tmp_path / "m.onnx"
    result = run("--onnx", onnx_file(tmp_path / "n.x"), "--manifest", toml(f"largest_batch = {largest}"), "-o", out)
    assert result.exit_code == 0, result.output
    assert "two windows at once against one by one" in result.stdout
    with open_engine(read_model(out), engine="openvino", precision="fp32") as engine:
        assert engine.infer(np.zeros((3, 1, 8, 12, 16), np.float32)).shape == (3, 2, 8, 12, 16)


class Speckle(nn.Module):
    """Labels like noise, which do not compress: sines of whole numbers, on which all libraries agree."""

    def __init__(self):
        super().__init__()
        self.mix = nn.Conv3d(1, 24, 3, padding=1, bias=False)
        weights = np.random.default_rng(0).integers(-9, 10, self.mix.weight.shape)
        self.mix.weight.data = torch.from_numpy(weights.astype(np.float32))

    def forward(self, image):
        return torch.sin(self.mix(torch.round(image * 255) + 1))


def test_golden_windows_of_a_network_of_many_labels_are_made_to_fit(toml, tmp_path):
    labels = ", ".join(f'{{value = {value}, name = "part {value}"}}' for value in range(1, 24))
    text = f"labels = [{labels}]\nspacing_mm = [1, 1, 1]\nwindow = [96, 96, 96]\n"
    torch.jit.save(torch.jit.trace(Speckle().eval(), torch.zeros(1, 1, 96, 96, 96)), tmp_path / "n.pt")
    out = tmp_path / "m.onnx"
    result = run("--torchscript", tmp_path / "n.pt", "--manifest", toml(text=text), "-o", out)
    assert result.exit_code == 0, result.output
    golden = golden_of(read_model(out))
    assert len(golden.windows) < 3 and len(np.unique(golden.labels)) == 24


@needs("data/brain_t1")
@pytest.mark.slow
def test_deepbet_end_to_end(home, tmp_path):
    """Its two networks through our runtime, against its own package's mask of a real T1."""
    import nibabel
    from deepbet.bet import BrainExtraction

    scan = DATA / "brain_t1" / "fs_subject_T1norm.nii.gz"
    folder = ROOT / "examples" / "deepbet"
    subprocess.run([sys.executable, str(folder / "make_model.py"), str(tmp_path / "d.pt")], check=True)
    out, manifest = tmp_path / "deepbet.onnx", folder / "deepbet.toml"
    result = run("--torchscript", tmp_path / "d.pt", "--manifest", manifest, "--golden", scan, "-o", out)
    assert result.exit_code == 0, result.output
    done = CliRunner().invoke(main, ["infer", str(scan), "--model", str(out), "-o", str(tmp_path)])
    assert done.exit_code == 0, done.output
    ours = nibabel.load(tmp_path / "fs_subject_T1norm_seg.nii.gz").get_fdata() > 0
    theirs = BrainExtraction(no_gpu=True).run(nibabel.load(scan))[1].get_fdata() > 0
    dice = 2 * (ours & theirs).sum() / (ours.sum() + theirs.sum())
    assert dice >= 0.99, dice

"""One fused graph that equals the network it came from, or no file at all."""

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from click.testing import CliRunner
from shared_data import DATA, needs

from dropgen_rt import cli_export
from dropgen_rt.cli import main
from dropgen_rt.engines import open_engine
from dropgen_rt.engines.choose import create
from dropgen_rt.errors import MissingModelError, ModelError, UsageError, VerificationError
from dropgen_rt.export import to_onnx
from dropgen_rt.export.check import PARITY
from dropgen_rt.export.fuse import fuse
from dropgen_rt.export.to_onnx import ExportOptions, export
from dropgen_rt.manifest import Intensity
from dropgen_rt.model import read_model
from dropgen_rt.train import checkpoint
from dropgen_rt.train.layers import Conv3d
from dropgen_rt.train.loop import load_network
from dropgen_rt.train.network import DropGen, Norm, UNetConfig
from dropgen_rt.verify import golden_of


def network(padding: str = "zeros", norm: Norm = "batch") -> DropGen:
    torch.manual_seed(0)
    encoder = UNetConfig(out_channels=4, width=4, levels=2, padding_mode=padding)  # type: ignore[arg-type]
    segmentor = UNetConfig(5, 3, 4, 2, norm, padding_mode=padding, affine=norm == "instance")  # type: ignore[arg-type]
    made = DropGen(segmentor, encoder, drop=0.5, feature_scale=0.1 if padding == "zeros" else 1.0)  # both ways
    for module in made.modules():  # norms that do something
        if isinstance(module, torch.nn.BatchNorm3d):
            module.running_mean.uniform_(-0.2, 0.2)  # type: ignore[union-attr]
            module.running_var.uniform_(0.5, 2)  # type: ignore[union-attr]
        if isinstance(module, torch.nn.InstanceNorm3d) and module.affine:
            torch.nn.init.uniform_(module.weight, 0.5, 2)
            torch.nn.init.uniform_(module.bias, -0.2, 0.2)
    return made.eval()


@pytest.fixture(params=["zeros", "reflect"])
def trained(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return saved(network(request.param), tmp_path / "best.pt")


def saved(made: DropGen, path: Path) -> Path:
    content = {
        "network": made.description(),
        "state": made.state_dict(),
        "labels": [{"value": v, "name": f"part {v}", "colour": (9 * v, 0, 0)} for v in (1, 2)],
        "dataset": {"name": "test", "notice": "", "channels": ["MRI"]},
        "intensity": {"kind": "percentile", "lower": 1.0, "upper": 99.0},
        "config": {
            "window": [16, 16, 16],
            "spacing_mm": [1.0, 1.0, 2.0],
            "orientation": "LPS",
            "encoder": "/home/me/own.pt",
        },
        "progress": {"step": 1, "validation_dice": [0.5, 0.5]},
    }
    checkpoint.save(path, content)
    return path


# Enough for what does not depend on the padding.
REFLECTING = pytest.mark.parametrize("trained", ["reflect"], indirect=True)


def test_fused_network_computes_the_same() -> None:
    made = network()
    image = torch.rand(1, 1, 16, 16, 16)
    fused = fuse(made)
    with torch.no_grad():
        before, after = made(image), fused(image)
    assert torch.abs(before - after).max() <= PARITY * (before.max() - before.min())
    assert not any(isinstance(module, torch.nn.BatchNorm3d) for module in fused.modules())
    assert any(isinstance(module, torch.nn.BatchNorm3d) for module in made.modules())


def test_export_writes_a_model_that_explains_itself(trained: Path, tmp_path: Path) -> None:
    manifest, (row,) = export(trained, tmp_path / "m.onnx", ExportOptions(window=(16, 32, 16)))
    assert row.largest <= PARITY and row.agreement > 0.9999
    model = read_model(tmp_path / "m.onnx")
    assert model.manifest == manifest
    assert manifest.window == (16, 32, 16)
    assert manifest.spacing_mm == (1.0, 1.0, 2.0)
    assert manifest.intensity == (Intensity("percentile", 1.0, 99.0),)
    assert manifest.training["dataset"] == "test"
    assert manifest.training["config"]["encoder"] == "own.pt"
    graph = onnx.load(tmp_path / "m.onnx").graph
    operators = Counter(node.op_type for node in graph.node)
    assert operators["InstanceNormalization"] == 1
    assert not {"Dropout", "BatchNormalization"} & set(operators)
    assert str(Path.cwd()) not in str(graph)  # no source positions of the exporting machine


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_instance_norms_of_the_segmentor_stay(engine: str, tmp_path: Path) -> None:
    made = network(norm="instance")
    _, (row,) = export(saved(made, tmp_path / "best.pt"), tmp_path / "m.onnx")
    assert row.largest <= PARITY
    operators = Counter(node.op_type for node in onnx.load(tmp_path / "m.onnx").graph.node)
    # One of the features, and one after each of the segmentor's convolutions but the last.
    assert operators["InstanceNormalization"] == 1 + sum(isinstance(m, Conv3d) for m in made.segmentor.modules()) - 1
    image = np.random.default_rng(0).random((2, 1, 16, 16, 16), dtype=np.float32)
    with torch.no_grad():
        expected = made(torch.from_numpy(image)).numpy()
    with create(read_model(tmp_path / "m.onnx"), engine, "fp32", "cpu") as opened:
        difference = np.abs(opened.infer(image) - expected).max()
    assert difference <= PARITY * np.ptp(expected)


def test_export_refuses_a_mismatch_and_leaves_nothing(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A wrong graph: the writer is handed a network whose last layer was altered.
    def altered(made: DropGen) -> DropGen:
        wrong = fuse(made)
        with torch.no_grad():
            wrong.segmentor.model[-1].weight[0] *= 1.5  # type: ignore[union-attr, operator, index]
        return wrong

    monkeypatch.setattr(to_onnx, "fuse", altered)
    before = sorted(tmp_path.iterdir())
    with pytest.raises(VerificationError, match="nothing was written"):
        export(trained, tmp_path / "m.onnx")
    assert sorted(tmp_path.iterdir()) == before


def test_window_must_fit_the_network(trained: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="multiples of 4"):
        export(trained, tmp_path / "m.onnx", ExportOptions(window=(16, 18, 16)))


def test_instance_norms_need_two_voxels_at_the_bottleneck(tmp_path: Path) -> None:
    checkpoint = saved(network(norm="instance"), tmp_path / "best.pt")
    with pytest.raises(UsageError, match="edges are multiples of 4 from 4 up, the longest from 8 up"):
        export(checkpoint, tmp_path / "m.onnx", ExportOptions(window=(4, 4, 4)))


def test_missing_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(MissingModelError, match=r"best.pt"):
        export(tmp_path / "absent.pt", tmp_path / "m.onnx")


def test_a_window_too_small_to_vary_is_refused(tmp_path: Path) -> None:
    """Of one stride along an axis; a text of two lines for a name, too, before the network is rebuilt."""
    trained = saved(network(), tmp_path / "best.pt")
    with pytest.raises(UsageError, match=r"--dynamic with a window of 4 x 8 x 8: its edges are at least 8 then"):
        export(trained, tmp_path / "m.onnx", ExportOptions(window=(4, 8, 8), dynamic=True))
    with pytest.raises(UsageError, match="--name: accepted is a text of one line"):
        ExportOptions(name="a\nb")
    assert not (tmp_path / "m.onnx").exists()


def test_batch_is_dynamic(trained: Path, tmp_path: Path) -> None:
    import onnxruntime

    export(trained, tmp_path / "m.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "m.onnx")
    windows = np.random.default_rng(0).random((3, 1, 16, 16, 16), dtype=np.float32)
    (three,) = session.run(None, {"image": windows})
    (one,) = session.run(None, {"image": windows[1:2]})
    assert three.shape == (3, 3, 16, 16, 16)
    assert np.allclose(three[1:2], one, atol=1e-5)


@REFLECTING
def test_names_tell_the_layer_and_nothing_is_dead(trained: Path, tmp_path: Path) -> None:
    export(trained, tmp_path / "m.onnx")
    graph = onnx.load(tmp_path / "m.onnx").graph
    assert {node.name.split("/")[0] for node in graph.node} == {"encoder", "segmentor"}
    convolutions = [node.name for node in graph.node if node.op_type == "Conv"]
    assert convolutions[0] == "encoder/0/conv" and convolutions[-1].startswith("segmentor/")
    assert len({node.name for node in graph.node}) == len(graph.node)
    used = {name for node in graph.node for name in node.input} | {value.name for value in graph.output}
    assert {item.name for item in graph.initializer} <= used
    assert all(used & set(node.output) for node in graph.node)


@REFLECTING
def test_golden_windows_travel_with_the_model(trained: Path, tmp_path: Path) -> None:
    manifest, _ = export(trained, tmp_path / "m.onnx")
    golden = golden_of(read_model(tmp_path / "m.onnx"))
    assert manifest.golden_sha256 and golden.referee.startswith("PyTorch ") and golden.source == "synthetic"
    network, _ = load_network(trained)
    with torch.no_grad():
        expected = np.concatenate([network(torch.from_numpy(window[None])).numpy() for window in golden.windows])
    assert np.array_equal(golden.labels, expected.argmax(1))
    assert np.array_equal(golden.logits, expected)


@REFLECTING
@needs("data/brain_contrasts")
def test_golden_windows_of_a_real_scan(trained: Path, tmp_path: Path) -> None:
    scan = DATA / "brain_contrasts" / "avg152T1.nii.gz"
    export(trained, tmp_path / "m.onnx", ExportOptions(golden=(scan,)))
    golden = golden_of(read_model(tmp_path / "m.onnx"))
    assert golden.source == "avg152T1.nii.gz" and len(golden.windows) == 3
    assert golden.windows.std(axis=(1, 2, 3, 4)).min() > 0.1  # not air


@REFLECTING
def test_a_window_that_varies(trained: Path, tmp_path: Path) -> None:
    manifest, _ = export(trained, tmp_path / "m.onnx", ExportOptions(dynamic=True))
    assert manifest.dynamic_window
    model = read_model(tmp_path / "m.onnx").with_window((32, 16, 8))
    windows = np.random.default_rng(0).random((2, 1, 32, 16, 8), dtype=np.float32)
    network, _ = load_network(trained)
    with torch.no_grad():
        expected = network(torch.from_numpy(windows)).numpy()
    for kind in ("openvino", "onnxruntime"):
        with open_engine(model, engine=kind, precision="fp32") as engine:
            assert np.abs(engine.infer(windows) - expected).max() <= PARITY * np.ptp(expected)
    with pytest.raises(ModelError, match="not three multiples of the stride 4"):
        model.with_window((30, 16, 8))


@REFLECTING
def test_a_fixed_window_does_not_vary(trained: Path, tmp_path: Path) -> None:
    export(trained, tmp_path / "m.onnx")
    with pytest.raises(UsageError, match=r"is fixed to .16, 16, 16.; export it with --window dynamic"):
        read_model(tmp_path / "m.onnx").with_window((32, 32, 32))


@REFLECTING
@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_typed_graphs(trained: Path, tmp_path: Path, precision: str) -> None:
    options = ExportOptions(precision=precision)  # type: ignore[arg-type]
    _, (row,) = export(trained, tmp_path / "m.onnx", options)
    assert 1e-5 < row.largest <= 5e-2 and f"{precision} graph" in row.what
    kinds = {item.data_type for item in onnx.load(tmp_path / "m.onnx").graph.initializer}
    assert {"fp16": onnx.TensorProto.FLOAT16, "bf16": onnx.TensorProto.BFLOAT16}[precision] in kinds


@pytest.mark.parametrize(
    ("options", "message"),
    [({"opset": 9}, "--opset 9: accepted are 18 to"), ({"weights": "fp16", "precision": "bf16"}, "for fp32 graphs")],
)
def test_options_that_are_refused(options: dict, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        ExportOptions(**options)


@REFLECTING
def test_an_older_operator_set(trained: Path, tmp_path: Path) -> None:
    export(trained, tmp_path / "m.onnx", ExportOptions(opset=18))
    assert onnx.load(tmp_path / "m.onnx").opset_import[0].version == 18


@REFLECTING
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"network": None}, "its network cannot be rebuilt"),
        ({"network": {}}, "its network cannot be rebuilt"),
        ({"state": {}}, "its network cannot be rebuilt"),
        ({"labels": 5}, "lacks or garbles a field .labels: 5 is not a list"),
        ({"labels": [{"value": "1", "name": "a", "colour": (1, 2, 3)}]}, r"labels\[0\]\.value: '1' is not a whole"),
        ({"dataset": {}}, "lacks or garbles a field"),
        ({"config": 5}, "lacks or garbles a field"),
        ({"intensity": {"kind": "percentile", "lower": "1", "upper": "99"}}, r"intensity\.lower: '1' is not a finite"),
        ({"progress": {"when": object}}, "not a checkpoint of tensors and plain values"),
    ],
    ids=str,
)
def test_checkpoints_with_other_fields(trained: Path, tmp_path: Path, change: dict, message: str) -> None:
    checkpoint.save(trained, checkpoint.load(trained) | change)
    with pytest.raises(ModelError, match=message) as caught:
        export(trained, tmp_path / "m.onnx")
    assert "\n" not in str(caught.value) and not (tmp_path / "m.onnx").exists()


@REFLECTING
def test_a_name_that_cannot_be_installed_is_told(trained: Path, tmp_path: Path) -> None:
    result = CliRunner().invoke(main, ["export", str(trained), "-o", str(tmp_path / "mödel 1.onnx")])
    assert result.exit_code == 0, result.output
    told = "warning: model name 'mödel 1': accepted are letters, digits, '.', '_' and '-', 64 at most; build-engine "
    assert [line for line in result.stdout.splitlines() if line.startswith(told)]
    assert "warning" not in CliRunner().invoke(main, ["export", str(trained), "-o", str(tmp_path / "m.onnx")]).stdout


@REFLECTING
def test_both_windows_on_the_command_line(trained: Path, tmp_path: Path) -> None:
    out, words = tmp_path / "m.onnx", ["--window", "8", "16", "24", "--window", "dynamic"]
    result = CliRunner().invoke(main, ["export", str(trained), "-o", str(out), *words])
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines()[-1] == f"wrote {out}"
    manifest = read_model(out).manifest
    assert (manifest.window, manifest.dynamic_window) == ((8, 16, 24), True)


@pytest.mark.parametrize(
    ("words", "window", "dynamic"),
    [
        ("", None, False),
        ("--window dynamic", None, True),
        ("--window=dynamic", None, True),
        ("--dynamic", None, True),
        ("--window 8 16 24", (8, 16, 24), False),
        ("--window dynamic --window 8 16 24", (8, 16, 24), True),
    ],
)
def test_spellings_of_the_window(words: str, window: tuple[int, ...] | None, dynamic: bool) -> None:
    given = cli_export.export.make_context("export", ["best.pt", "-o", "m.onnx", *words.split()]).params
    assert (given["window"], given["dynamic"]) == (window, dynamic)


@pytest.mark.parametrize(
    "words", [["large"], ["dynamic", "16", "16"], ["16", "dynamic"], ["0", "16", "16"], ["-1"] * 3]
)
def test_windows_that_are_none(tmp_path: Path, words: list[str]) -> None:
    result = CliRunner().invoke(main, ["export", "best.pt", "-o", str(tmp_path / "m.onnx"), "--window", *words])
    assert result.exit_code == 2 and list(tmp_path.iterdir()) == []

"""One fused graph that equals the network it came from, or no file at all."""

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from dropgen_rt.errors import MissingModelError, UsageError, VerificationError
from dropgen_rt.export import to_onnx
from dropgen_rt.export.check import PARITY
from dropgen_rt.export.fuse import fuse
from dropgen_rt.export.to_onnx import ExportOptions, export
from dropgen_rt.model import read_model
from dropgen_rt.train import checkpoint
from dropgen_rt.train.network import DropGen, UNetConfig


def network(padding: str = "zeros") -> DropGen:
    torch.manual_seed(0)
    encoder = UNetConfig(out_channels=4, width=4, levels=2, padding_mode=padding)  # type: ignore[arg-type]
    segmentor = UNetConfig(5, 3, 4, 2, padding_mode=padding)  # type: ignore[arg-type]
    made = DropGen(segmentor, encoder, drop=0.5)
    for module in made.modules():  # batch norms that do something
        if isinstance(module, torch.nn.BatchNorm3d):
            module.running_mean.uniform_(-0.2, 0.2)  # type: ignore[union-attr]
            module.running_var.uniform_(0.5, 2)  # type: ignore[union-attr]
    return made.eval()


@pytest.fixture(params=["zeros", "reflect"])
def trained(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    made = network(request.param)
    content = {
        "network": made.description(),
        "state": made.state_dict(),
        "labels": [{"value": v, "name": f"part {v}", "colour": (9 * v, 0, 0)} for v in (1, 2)],
        "dataset": {"name": "test", "notice": "", "channels": ["MRI"]},
        "intensity": {"kind": "percentile", "lower": 1.0, "upper": 99.0},
        "config": {"window": [16, 16, 16], "spacing_mm": [1.0, 1.0, 2.0], "orientation": "LPS"},
        "progress": {"step": 1, "validation_dice": [0.5, 0.5]},
    }
    checkpoint.save(tmp_path / "best.pt", content)
    return tmp_path / "best.pt"


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
    assert manifest.intensity.lower == 1.0
    assert manifest.training["dataset"] == "test"
    graph = onnx.load(tmp_path / "m.onnx").graph
    operators = Counter(node.op_type for node in graph.node)
    assert operators["InstanceNormalization"] == 1
    assert not {"Dropout", "BatchNormalization"} & set(operators)
    assert str(Path.cwd()) not in str(graph)  # no source positions of the exporting machine


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


def test_missing_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(MissingModelError, match=r"best.pt"):
        export(tmp_path / "absent.pt", tmp_path / "m.onnx")


def test_batch_is_dynamic(trained: Path, tmp_path: Path) -> None:
    import onnxruntime

    export(trained, tmp_path / "m.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "m.onnx")
    windows = np.random.default_rng(0).random((3, 1, 16, 16, 16), dtype=np.float32)
    (three,) = session.run(None, {"image": windows})
    (one,) = session.run(None, {"image": windows[1:2]})
    assert three.shape == (3, 3, 16, 16, 16)
    assert np.allclose(three[1:2], one, atol=1e-5)

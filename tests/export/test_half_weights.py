"""Kernels stored as float16: half the file, and exactly the function of the rounded kernels."""

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from click.testing import CliRunner
from onnxruntime import InferenceSession

from dropgen_rt.cli import main
from dropgen_rt.engines import open_engine
from dropgen_rt.errors import VerificationError
from dropgen_rt.export import to_onnx
from dropgen_rt.export.check import PARITY, ROUNDING
from dropgen_rt.export.fuse import fuse
from dropgen_rt.export.half_weights import round_kernels
from dropgen_rt.export.to_onnx import ExportOptions, export
from dropgen_rt.model import read_model
from dropgen_rt.train import checkpoint
from dropgen_rt.train.loop import load_network
from dropgen_rt.train.network import DropGen, UNetConfig


@pytest.fixture
def trained(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    encoder = UNetConfig(out_channels=4, width=4, levels=2)
    made = DropGen(UNetConfig(5, 3, 4, 2, padding_mode="zeros"), encoder, drop=0.5).eval()
    content = {
        "network": made.description(),
        "state": made.state_dict(),
        "labels": [{"value": v, "name": f"part {v}", "colour": (9 * v, 0, 0)} for v in (1, 2)],
        "dataset": {"name": "test", "notice": "", "channels": ["MRI"]},
        "intensity": {"kind": "percentile", "lower": 1.0, "upper": 99.0},
        "config": {"window": [16, 16, 16], "spacing_mm": [1.0, 1.0, 1.0], "orientation": "LPS"},
        "progress": {"step": 1, "validation_dice": [0.5, 0.5]},
    }
    checkpoint.save(tmp_path / "best.pt", content)
    return tmp_path / "best.pt"


def test_the_file_halves_and_computes_the_rounded_network(trained: Path, tmp_path: Path) -> None:
    export(trained, tmp_path / "full.onnx")
    _, (parity, rounding) = export(trained, tmp_path / "half.onnx", ExportOptions(weights="fp16"))
    assert parity.largest <= PARITY < rounding.largest <= ROUNDING
    full, half = (onnx.load(tmp_path / name) for name in ("full.onnx", "half.onnx"))
    kernels = [item for item in half.graph.initializer if len(item.dims) > 1]
    assert {item.data_type for item in kernels} == {onnx.TensorProto.FLOAT16}
    assert sum(len(item.raw_data) for item in half.graph.initializer) < 0.55 * sum(
        len(item.raw_data) for item in full.graph.initializer
    )
    rounded = round_kernels(fuse(load_network(trained)[0]))
    windows = np.random.default_rng(5).random((2, 1, 16, 16, 16), dtype=np.float32)
    with torch.no_grad():
        expected = rounded(torch.from_numpy(windows)).numpy()
    (logits,) = InferenceSession(tmp_path / "half.onnx").run(None, {"image": windows})
    with open_engine(read_model(tmp_path / "half.onnx")) as engine:
        ours = engine.infer(windows).copy()
    for found in (logits, ours):
        assert np.abs(found - expected).max() <= PARITY * np.ptp(expected)


def test_a_weight_beyond_float16_is_refused() -> None:
    layer = torch.nn.Conv3d(1, 1, 1)
    with torch.no_grad():
        layer.weight.fill_(1e6)
    with pytest.raises(VerificationError, match="weight: a weight is beyond 65504"):
        round_kernels(layer)
    assert layer.weight.item() == 1e6


def test_a_changed_layer_is_not_taken_for_rounding(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def altered(made: DropGen) -> DropGen:
        wrong = fuse(made)
        with torch.no_grad():
            wrong.segmentor.model[-1].weight[0] *= 1.5  # type: ignore[union-attr, operator, index]
        return wrong

    monkeypatch.setattr(to_onnx, "fuse", altered)
    with pytest.raises(VerificationError, match="against the checkpoint's own"):
        export(trained, tmp_path / "m.onnx", ExportOptions(weights="fp16"))
    assert [path.name for path in tmp_path.iterdir()] == ["best.pt"]


def test_the_command_reports_both_differences(trained: Path, tmp_path: Path) -> None:
    out = tmp_path / "m.onnx"
    result = CliRunner().invoke(main, ["export", str(trained), "-o", str(out), "--weights", "fp16"])
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert lines[-1] == f"wrote {out}"
    assert lines[-2].startswith("with kernels rounded to fp16, against the checkpoint's own ")

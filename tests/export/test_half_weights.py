"""Kernels stored as float16: half the file, and exactly the function of the rounded kernels."""

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from click.testing import CliRunner
from onnx import numpy_helper
from onnxruntime import InferenceSession

from dropgen_rt.cli import main
from dropgen_rt.engines import open_engine
from dropgen_rt.errors import UsageError, VerificationError
from dropgen_rt.export import to_onnx
from dropgen_rt.export.check import PARITY, ROUNDING
from dropgen_rt.export.fuse import folding_scales, fuse
from dropgen_rt.export.half_weights import round_kernels
from dropgen_rt.export.to_onnx import ExportOptions, export
from dropgen_rt.model import read_model
from dropgen_rt.train import checkpoint
from dropgen_rt.train.loop import load_network
from dropgen_rt.train.network import DropGen, UNetConfig
from dropgen_rt.typed_graph import typed


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
    kernels = [item for item in half.graph.initializer if max(item.dims[1:], default=1) > 1]
    assert {item.data_type for item in kernels} == {onnx.TensorProto.FLOAT16}
    assert sum(len(item.raw_data) for item in half.graph.initializer) < 0.55 * sum(
        len(item.raw_data) for item in full.graph.initializer
    )
    rounded = fuse(round_kernels(load_network(trained)[0]))
    windows = np.random.default_rng(5).random((2, 1, 16, 16, 16), dtype=np.float32)
    with torch.no_grad():
        expected = rounded(torch.from_numpy(windows)).numpy()
    (logits,) = InferenceSession(tmp_path / "half.onnx").run(None, {"image": windows})
    with open_engine(read_model(tmp_path / "half.onnx")) as engine:
        ours = engine.infer(windows).copy()
    for found in (logits, ours):
        assert np.abs(found - expected).max() <= PARITY * np.ptp(expected)


def test_an_encoder_that_was_float16_stays_what_it_was(trained: Path, tmp_path: Path) -> None:
    """Folding its norms first would have every kernel rounded anew."""
    network, content = load_network(trained)
    for layer in network.modules():
        if isinstance(layer, torch.nn.BatchNorm3d):
            torch.nn.init.uniform_(layer.weight, 0.9, 1.1)
    checkpoint.save(tmp_path / "scaled.pt", {**content, "state": network.state_dict()})
    export(tmp_path / "scaled.pt", tmp_path / "half.onnx", ExportOptions(weights="fp16"))
    graph = onnx.load_model_from_string(typed((tmp_path / "half.onnx").read_bytes(), "fp32")).graph
    found = {item.name: numpy_helper.to_array(item) for item in graph.initializer}
    kernels, scales = round_kernels(network).encoder.state_dict(), folding_scales(network)
    compared = [name for name in scales if name.startswith("encoder.")]
    assert compared
    for name in compared:
        kernel = kernels[name.removeprefix("encoder.")] * scales[name].reshape(-1, 1, 1, 1, 1)
        assert np.array_equal(found[name], kernel.numpy())


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
        wrong = round_kernels(made)
        with torch.no_grad():
            wrong.segmentor.model[-1].weight[0] *= 2  # type: ignore[union-attr, operator, index]
        return wrong

    monkeypatch.setattr(to_onnx, "round_kernels", altered)
    with pytest.raises(VerificationError, match="against the checkpoint's own"):
        export(trained, tmp_path / "m.onnx", ExportOptions(weights="fp16"))
    assert [path.name for path in tmp_path.iterdir()] == ["best.pt"]


def test_the_command_reports_both_differences(trained: Path, tmp_path: Path) -> None:
    out = tmp_path / "m.onnx"
    result = CliRunner().invoke(
        main, ["export", str(trained), "-o", str(out), "--weights", "fp16", "--blend", "gaussian"]
    )
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert lines[-1] == f"wrote {out}"
    assert read_model(out).manifest.blend == "gaussian"
    assert lines[-2].startswith("golden windows are synthetic")
    assert lines[-3].startswith("with kernels rounded to fp16, against the checkpoint's own ")


def test_what_inference_uses_is_written_and_checked(trained: Path, tmp_path: Path) -> None:
    assert export(trained, tmp_path / "half.onnx").manifest.overlap == 0.5
    assert export(trained, tmp_path / "quarter.onnx", ExportOptions(overlap=0.25)).manifest.overlap == 0.25
    assert export(trained, tmp_path / "body.onnx", ExportOptions(placement="body")).manifest.placement == "body"
    assert export(trained, tmp_path / "smooth.onnx", ExportOptions(blend="gaussian")).manifest.blend == "gaussian"
    assert export(trained, tmp_path / "one.onnx", ExportOptions(components="largest")).manifest.components == "largest"
    with pytest.raises(UsageError, match=r"--overlap 1\.0: accepted is a number from 0 up to, not including, 1"):
        ExportOptions(overlap=1.0)

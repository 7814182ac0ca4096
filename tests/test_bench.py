"""The bench command on a small network that is really trained nowhere, exported, and run both ways."""

import json

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from dropgen_rt.cli import main
from dropgen_rt.export.to_onnx import export
from dropgen_rt.geometry import Geometry
from dropgen_rt.train import checkpoint
from dropgen_rt.train.network import DropGen, UNetConfig
from dropgen_rt.volume import write_labels


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A checkpoint, the model exported from it, and a scan."""
    folder = tmp_path_factory.mktemp("bench")
    torch.manual_seed(0)
    network = DropGen(UNetConfig(9, 3, 4, 2), UNetConfig(1, 8, 4, 2)).eval()
    content = {
        "network": network.description(), "state": network.state_dict(), "progress": {},
        "labels": [{"value": v, "name": f"label {v}", "colour": [v, 0, 0]} for v in (1, 2)],
        "config": {"window": [16, 16, 16], "spacing_mm": [1.0, 1.0, 1.0], "orientation": "LPS"},
        "dataset": {"channels": ["image"], "name": "noise", "notice": ""},
        "intensity": {"kind": "percentile", "lower": 1, "upper": 99},
    }  # fmt: skip
    checkpoint.save(folder / "best.pt", content)
    export(folder / "best.pt", folder / "model.onnx")
    scan = (np.random.default_rng(0).random((20, 24, 26)) * 200).astype(np.uint8)
    geometry = Geometry((26, 24, 20), (1.0, 1.0, 1.0), (0.0, 0.0, 0.0), (1.0, 0, 0, 0, -1.0, 0, 0, 0, 1.0))
    write_labels(scan, geometry, folder / "scan.nii.gz")
    return folder


def run(*arguments):
    return CliRunner().invoke(main, ["bench", *map(str, arguments)])


@pytest.mark.slow
def test_ours_and_monai_side_by_side(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("DROPGEN_RT_HOME", str(tmp_path))
    out = tmp_path / "bench.json"
    named = "--scan", folder / "scan.nii.gz", "--model", folder / "model.onnx", "--checkpoint", folder / "best.pt"
    result = run(*named, "--against", "monai", "--runs", 1, "-o", out)
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines()[-1] == f"wrote {out}"
    found = json.loads(out.read_text())
    assert set(found["seconds"]) == {"ours", "monai fp32", "monai bf16 channels-last"}
    assert all(len(spent) == 1 and spent[0] > 0 for spent in found["seconds"].values())
    # The same network, windows and blend on one grid: what differs is the floor of small weights, which
    # moves labels where an untrained network on noise is undecided.
    assert found["dice"]["ours"] > 0.9
    assert found["stages_median_s"]["network"] > 0


def test_refusals(folder):
    scan = "--scan", folder / "scan.nii.gz", "--model", folder / "model.onnx"
    result = run(*scan, "--against", "tensorflow")
    accepted = "accepted are monai, torch, nnunet, with commas between"
    assert (result.exit_code, result.stderr) == (2, f"error: --against 'tensorflow': {accepted}\n")
    result = run(*scan, "--against", "monai")
    expected = "error: --against runs the network in PyTorch; name its file with --checkpoint\n"
    assert (result.exit_code, result.stderr) == (2, expected)

"""The bench command on a small network that is really trained nowhere, exported, and run both ways."""

import json

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from dropgen_rt.bench import Way, measure, ratio, stages
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
    picture = tmp_path / "bench.png"
    result = run(*named, "--against", "monai", "--precision", "fp32", "--runs", 2, "-o", out, "--picture", picture)
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines()[-1] == f"wrote {picture} and {out}"
    found = json.loads(out.read_text())
    rounds = {name: len(spent) for name, spent in found["seconds"].items()}
    assert rounds == {
        "ours": 2, "ours, published windows": 2, "monai fp32": 1, "monai bf16 channels-last": 2,
        "monai bf16, our overlap": 2,
    }  # fmt: skip
    assert all(spent > 0 for times in found["seconds"].values() for spent in times) and not found["failed"]
    assert found["settings"]["monai fp32"] == "overlap 0.5, constant"
    # The same network and windows: what differs is the order of sums, which moves labels where an untrained
    # network on noise is undecided.
    assert found["dice"]["ours, published windows"]["mean"] > 0.99
    stages = found["stages"]["median_s"]
    assert min(stages[name] for name in ("read", "network", "write")) > 0
    assert 0 < found["stages"]["all_but_network_share"] < 1
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_a_way_that_fails_is_told_and_left_out():
    labels = np.arange(8, dtype=np.uint8).reshape(2, 2, 2) % 3

    def fail():
        raise RuntimeError("no compiler\nat all")

    ways = [
        Way("ours", lambda: labels, 3, "whole"),
        Way("monai fp32", lambda: np.where(labels == 2, 1, labels).astype(np.uint8), 1),
        Way("compiled", lambda: labels, 3, prepare=fail),
    ]
    found = measure(ways, 3)
    assert found["failed"] == {"compiled": "RuntimeError: no compiler"}
    assert {name: len(spent) for name, spent in found["seconds"].items()} == {"ours": 3, "monai fp32": 1}
    # Label 1 is 3 of our voxels and 5 of theirs, 3 shared; label 2 they never gave.
    assert found["dice"] == {"ours": {"mean": 0.375, "per_label": [0.75, 0.0]}}
    with pytest.raises(RuntimeError, match="no compiler"):
        measure([Way("ours", fail, 1)], 3)


def test_ratios_are_taken_within_a_round():
    assert ratio([10.0, 40.0], [5.0, 10.0, 1.0]) == 3.0


def test_what_is_not_the_network():
    runs = [{"read": 1.0, "open_model": 50.0, "network": 8.0, "write": 1.0}] * 2
    assert stages(runs)["all_but_network_share"] == 0.2


def test_refusals(folder):
    scan = "--scan", folder / "scan.nii.gz", "--model", folder / "model.onnx"
    result = run(*scan, "--against", "tensorflow")
    accepted = "accepted are monai, torch, nnunet, with commas between"
    assert (result.exit_code, result.stderr) == (2, f"error: --against 'tensorflow': {accepted}\n")
    result = run(*scan, "--against", "monai")
    expected = "error: --against runs the network in PyTorch; name its file with --checkpoint\n"
    assert (result.exit_code, result.stderr) == (2, expected)

"""Train, export, build-engine, infer, evaluate: the verbs in a row, on real scans, and against MONAI at the end."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813  the name its users know
import torch
from click.testing import CliRunner
from monai.inferers import sliding_window_inference
from shared_data import DATA, needs
from tolerances import LOGIT_PARITY

from dropgen_rt.channels import read_channels
from dropgen_rt.cli import main
from dropgen_rt.engines import open_engine
from dropgen_rt.kernels import gather
from dropgen_rt.manifest import Intensity
from dropgen_rt.model import read_model
from dropgen_rt.preprocess import normalisation, to_working_grid
from dropgen_rt.settings import REFERENCE_OVERLAP
from dropgen_rt.slide import argmax_labels, slide
from dropgen_rt.train.config import build_config
from dropgen_rt.train.config_text import read_toml
from dropgen_rt.train.dataset import read_case, read_dataset
from dropgen_rt.train.loop import load_network
from dropgen_rt.volume import read_label_map, read_scan
from dropgen_rt.windows import WindowPlan

HELD_OUT = "hippocampus_393"
CASES = 10


def invoke(*arguments: object) -> str:
    """Run a verb; returns its last line."""
    result = CliRunner().invoke(main, [str(argument) for argument in arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output.strip().splitlines()[-1]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model trained for a few steps on real hippocampi, exported and installed."""
    work = tmp_path_factory.mktemp("hippocampus")
    source, data = DATA / "hippocampus", work / "data"
    labels = sorted((source / "labelsTr").glob("*.nii.gz"))
    for label in labels[:CASES]:
        for folder, name in (("labelsTr", label.name), ("imagesTr", label.name.replace(".nii.gz", "_0000.nii.gz"))):
            (data / folder).mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source / folder / name, data / folder / name)
    shutil.copyfile(source / "dataset.json", data / "dataset.json")
    shutil.copyfile(labels[-1], work / "label.nii.gz")
    shutil.copyfile(source / "imagesTr" / labels[-1].name.replace(".nii.gz", "_0000.nii.gz"), work / "scan.nii.gz")
    options = ["--encoder", "stable", "--steps", 24, "--validate-every", 12, "--window", 32, 48, 32]
    options += ["--width", 8, "--levels", 2, "--learning-rate", 0.003, "--drop", 0.25]
    # Features from the first step: on the image alone so few steps leave more voxels undecided.
    options += ["--image-first", 0, "--feature-scale", 1, "--settle", 0]
    assert invoke("train", data, "--out", work / "run", *options) == f"wrote {work / 'run' / 'best.pt'}"
    assert invoke("export", work / "run" / "best.pt", "-o", work / "model.onnx") == f"wrote {work / 'model.onnx'}"
    return work


@needs("data/hippocampus")
@pytest.mark.slow
def test_every_verb_on_real_scans(built: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("DROPGEN_RT_HOME", str(tmp_path / "home"))
    last = invoke("build-engine", built / "model.onnx", "--name", "hippocampus")
    entry = tmp_path / "home" / "models" / "hippocampus.json"
    assert last == f"installed hippocampus in {entry}, the default model in place of brain9"
    assert invoke("infer", built / "scan.nii.gz", "-o", tmp_path) == f"wrote {tmp_path / 'scan_seg.nii.gz'}"
    labels, geometry = read_label_map(tmp_path / "scan_seg.nii.gz")
    scan = read_scan(built / "scan.nii.gz")
    assert geometry == scan.volume.geometry
    assert set(np.unique(labels)) <= {0, 1, 2}
    record = json.loads((tmp_path / "scan_seg.json").read_text())
    assert record["engine"]["precision"] in ("fp32", "bf16")  # what this machine computes and the gate let pass
    assert [item["voxels"] for item in record["labels"]] == [int((labels == value).sum()) for value in (1, 2)]
    last = invoke("evaluate", tmp_path / "scan_seg.nii.gz", built / "label.nii.gz", "-o", tmp_path / "dice.json")
    scores = json.loads((tmp_path / "dice.json").read_text())
    assert last == f"mean Dice {scores['mean_dice']:.4f}"
    metrics = (built / "run" / "metrics.csv").read_text().splitlines()
    assert metrics[0] == "step,seconds,samples_per_s,loss,dice"
    assert metrics[-1].startswith("24,")


@needs("data/hippocampus")
@pytest.mark.slow
def test_reference_mode_is_monai_over_the_pytorch_model(built: Path) -> None:
    model = read_model(built / "model.onnx")
    manifest = model.manifest
    working = to_working_grid(read_scan(built / "scan.nii.gz").volume, manifest.orientation, manifest.spacing_mm)
    bounds = normalisation(working, manifest.intensity)
    plan = WindowPlan.cover(working.geometry.shape, manifest.window, REFERENCE_OVERLAP)
    with open_engine(model) as engine:
        sums, totals = slide(working.array, plan, bounds, engine.infer, manifest.classes)
    ours = sums / (totals[0][:, None, None] * totals[1][:, None] * totals[2])
    image = np.clip(working.array, bounds.lower[0], bounds.upper[0])
    image = (image - np.float32(bounds.offset[0])) * np.float32(bounds.scale[0])
    network, _ = load_network(built / "run" / "best.pt")
    with torch.no_grad():
        theirs = sliding_window_inference(
            torch.from_numpy(image[None]), manifest.window, 1, network, overlap=0.5, mode="constant"
        )[0].numpy()
    allowed = LOGIT_PARITY * np.ptp(theirs)
    assert np.abs(ours - theirs).max() <= allowed
    top = np.sort(theirs, axis=0)
    decided = top[-1] - top[-2] > 2 * allowed
    assert decided.mean() > 0.9
    assert np.array_equal(argmax_labels(sums, totals)[decided], theirs.argmax(0)[decided])


@needs("data/hippocampus")
@pytest.mark.slow
def test_channels_of_two_kinds_are_normalised_alike_in_training_and_inference(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Real MR beside a made-up CT: bone where labels are, water around them."""
    monkeypatch.setenv("DROPGEN_RT_HOME", str(tmp_path / "home"))
    source, data = DATA / "hippocampus", tmp_path / "data"
    for folder in ("imagesTr", "labelsTr"):
        (data / folder).mkdir(parents=True)
    for label in sorted((source / "labelsTr").glob("*.nii.gz"))[:5]:
        case = label.name.removesuffix(".nii.gz")
        shutil.copyfile(label, data / "labelsTr" / label.name)
        shutil.copyfile(source / "imagesTr" / f"{case}_0000.nii.gz", data / "imagesTr" / f"{case}_0000.nii.gz")
        made_up = sitk.Cast(sitk.ReadImage(str(label)) > 0, sitk.sitkInt16) * 1500  # beyond the range, and so clipped
        sitk.WriteImage(made_up, str(data / "imagesTr" / f"{case}_0001.nii.gz"))
    described = json.loads((source / "dataset.json").read_text()) | {"channel_names": {"0": "MRI", "1": "CT"}}
    (data / "dataset.json").write_text(json.dumps(described))
    options = ["--method", "erm", "--steps", 2, "--validate-every", 2, "--window", 32, 32, 32, "--width", 4]
    invoke("train", data, "--out", tmp_path / "run", *options, "--levels", 2, "--norm", "batch")
    invoke("export", tmp_path / "run" / "best.pt", "-o", tmp_path / "model.onnx")

    manifest = read_model(tmp_path / "model.onnx").manifest
    assert manifest.intensity == (Intensity(), Intensity("range", -1024.0, 1024.0))
    dataset = read_dataset(data)
    case = dataset.training[0]
    prepared, _ = read_case(case, dataset, build_config(read_toml(tmp_path / "run" / "config.toml")))
    volume = read_channels(case.images).volume
    working = to_working_grid(volume, manifest.orientation, manifest.spacing_mm)
    bounds = normalisation(working, manifest.intensity)
    seen = gather(working.array, np.zeros((1, 3), np.int32), working.geometry.shape, bounds)
    assert np.array_equal(seen[0], prepared)
    assert set(np.unique(prepared[1])) == {0.5, 1.0}

    invoke("infer", case.images[0], "--model", tmp_path / "model.onnx", "-o", tmp_path)
    invoke("build-engine", tmp_path / "model.onnx", "--name", "both")
    shown = CliRunner().invoke(main, ["models", "show", "both"]).output
    assert "intensity  percentile 0.5 to 99.5 (MRI), range -1024 to 1024 (CT)" in shown

"""Training learns, stops soundly, and resumes to the very weights of an unbroken run."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813  the name its users know
import torch

from dropgen_rt.errors import (
    DropgenError,
    ModelError,
    UsageError,
)
from dropgen_rt.export.to_onnx import export
from dropgen_rt.train import checkpoint
from dropgen_rt.train.assemble import same_weights, trained_choices
from dropgen_rt.train.batches import Drawing
from dropgen_rt.train.config import TrainConfig
from dropgen_rt.train.dataset import grid_of, read_dataset
from dropgen_rt.train.loop import load_network, train
from dropgen_rt.train.network import PADDINGS, Padding
from dropgen_rt.train.parallel import ahead
from dropgen_rt.train.prepare import in_memory
from dropgen_rt.train.samples import ScanSampler

CONFIG = TrainConfig(steps=6, window=(16, 16, 16), width=4, levels=2, validate_every=3, drop=0.5)


def run(data: Path, out: Path, config: TrainConfig, encoder: Path | None, resume: bool = False) -> list[dict]:
    rows: list[dict] = []
    train(data, out, config, encoder, resume, rows.append)
    return rows


def test_learns_two_labels(balls: Path, encoder: Path, tmp_path: Path) -> None:
    config = replace(CONFIG, steps=120, validate_every=120, width=8, learning_rate=5e-3)
    rows = run(balls, tmp_path / "run", config, encoder)
    assert rows[-1]["dice"] > 0.6
    assert np.mean([row["loss"] for row in rows[-10:]]) < 0.6 * rows[0]["loss"]


@pytest.mark.parametrize(
    ("config", "elsewhere"),
    [(CONFIG, False), (CONFIG, True), (replace(CONFIG, image_first=0.5, feature_scale=0.1, settle=0.2), False)],
)
def test_resumed_equals_unbroken(
    config: TrainConfig, elsewhere: bool, balls: Path, encoder: Path, tmp_path: Path
) -> None:
    whole = run(balls, tmp_path / "whole", config, encoder)

    class StopError(Exception):
        pass

    def stop(row: dict) -> None:
        if row["step"] == 4:  # one past the checkpoint of step 3
            raise StopError

    with pytest.raises(StopError):
        train(balls, tmp_path / "broken", config, encoder, False, stop)
    if elsewhere:
        as_from_elsewhere(tmp_path / "broken" / "last.pt")
    resumed = run(balls, tmp_path / "broken", config, encoder, resume=True)
    assert [row["step"] for row in resumed] == [4, 5, 6]
    assert [row["loss"] for row in resumed] == [row["loss"] for row in whole[3:]]
    first, second = (load_network(tmp_path / name / "last.pt")[0].state_dict() for name in ("whole", "broken"))
    assert all(torch.equal(first[key], second[key]) for key in first)


def as_from_elsewhere(path: Path) -> None:
    """The checkpoint of a version, or a device, whose optimiser steps otherwise and lays its moments otherwise."""
    content = checkpoint.load(path)
    for state in content["optimiser"]["state"].values():
        state.update({name: value.contiguous() for name, value in state.items()})
    for group in content["optimiser"]["param_groups"]:
        group["fused"] = None
    checkpoint.save(path, content)


def test_the_image_comes_first(balls: Path, encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And what it learned alone is not the best, however well it did: it carries over to no other scanner.

    Validation's Dice is made up, so that it falls when the features come in; the training is a real one.
    """
    falling = iter([0.9, 0.8, 0.1])
    monkeypatch.setattr("dropgen_rt.train.loop.validate", lambda *_: np.array([next(falling)]))
    weights: list[bool] = []

    def look(row: dict) -> None:
        network = load_network(tmp_path / "run" / "last.pt")[0]
        weights.append(bool(network.segmentor.model[0].weight[:, 1:].any()))

    config = replace(CONFIG, image_first=0.7, validate_every=2)  # 4 of 6 steps
    train(balls, tmp_path / "run", config, encoder, False, look)
    assert weights == [False, False, False, False, False, True]  # last.pt is written every second step
    assert load_network(tmp_path / "run" / "best.pt")[1]["progress"]["step"] == 6


def test_a_best_of_the_image_alone_is_the_newest(
    balls: Path, encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that is stopped before features come in; in the place of validation stand Dice that fall."""
    falling = iter([0.9, 0.8])
    monkeypatch.setattr("dropgen_rt.train.loop.validate", lambda *_: np.array([next(falling)]))

    def stop(row: dict) -> None:
        if row["step"] == 4:
            raise KeyboardInterrupt

    config = replace(CONFIG, image_first=0.7, validate_every=2)  # 4 of 6 steps
    with pytest.raises(KeyboardInterrupt):
        train(balls, tmp_path / "run", config, encoder, False, stop)
    assert load_network(tmp_path / "run" / "best.pt")[1]["progress"]["step"] == 4


def test_a_checkpoint_of_before_an_option_was_there_goes_on(balls: Path, tmp_path: Path) -> None:
    config = replace(CONFIG, method="erm", steps=3)
    run(balls, tmp_path / "run", config, None)
    last = tmp_path / "run" / "last.pt"
    content = checkpoint.load(last)
    del content["config"]["padding"], content["config"]["augment"]["intensity_curve"]
    checkpoint.save(last, content)
    assert run(balls, tmp_path / "run", config, None, resume=True) == []
    del content["config"]["seed"]  # had the default, 0
    checkpoint.save(last, content)
    with pytest.raises(UsageError, match="trained with other options"):
        run(balls, tmp_path / "run", replace(config, seed=1), None, resume=True)


def test_resume_with_other_options_is_refused(balls: Path, encoder: Path, tmp_path: Path) -> None:
    run(balls, tmp_path / "run", CONFIG, encoder)
    with pytest.raises(UsageError, match="trained with other options"):
        run(balls, tmp_path / "run", replace(CONFIG, drop=0.25), encoder, resume=True)


@pytest.mark.parametrize("padding", PADDINGS)
def test_borders_are_trained_and_kept_as_asked(balls: Path, encoder: Path, tmp_path: Path, padding: Padding) -> None:
    """Through training, its checkpoint, what --init takes up, and an exported model's answers."""
    best = train(balls, tmp_path / "run", replace(CONFIG, padding=padding), encoder, False, lambda row: None)
    assert load_network(best)[0].segmentor.config.padding_mode == padding
    assert trained_choices(best)["padding"] == padding
    export(best, tmp_path / "m.onnx")  # holds the graph against PyTorch


@pytest.mark.parametrize("lost", ["labels", "progress", "best", "scaler"])
def test_a_checkpoint_that_lacks_something_is_no_traceback(balls: Path, tmp_path: Path, lost: str) -> None:
    config = replace(CONFIG, method="erm")
    run(balls, tmp_path / "run", config, None)
    last = tmp_path / "run" / "last.pt"
    checkpoint.save(last, {key: part for key, part in checkpoint.load(last).items() if key != lost})
    with pytest.raises(ModelError, match=f"last.pt: its network cannot be rebuilt \\('{lost}'\\); give the options"):
        run(balls, tmp_path / "run", config, None, resume=True)


def test_resume_with_other_cases_or_labels_is_refused(balls: Path, tmp_path: Path) -> None:
    config = replace(CONFIG, method="erm")
    run(balls, tmp_path / "run", config, None)
    described = (balls / "dataset.json").read_text()
    (balls / "dataset.json").write_text(described.replace("bright", "light"))
    with pytest.raises(UsageError, match="trained on other cases, labels or channels; give the DATA"):
        run(balls, tmp_path / "run", config, None, resume=True)
    (balls / "dataset.json").write_text(described.replace('"0": "MRI"', '"0": "T1", "1": "T2"'))
    with pytest.raises(UsageError, match="trained on other cases, labels or channels"):
        run(balls, tmp_path / "run", config, None, resume=True)
    (balls / "dataset.json").write_text(described)
    for part in (balls / "imagesTr" / "case0_0000.nii.gz", balls / "labelsTr" / "case0.nii.gz"):
        part.rename(part.with_name(part.name.replace("case0", "other0")))
    with pytest.raises(UsageError, match="trained on other cases"):
        run(balls, tmp_path / "run", config, None, resume=True)


@pytest.mark.parametrize("part", ["imagesTr/case0_0000.nii.gz", "labelsTr/case1.nii.gz", "labelsTr/case4.nii.gz"])
def test_resume_with_other_content_is_refused(balls: Path, tmp_path: Path, part: str) -> None:
    """A file that was exported again, under the same name."""
    config = replace(CONFIG, method="erm")
    run(balls, tmp_path / "run", config, None)
    array = sitk.GetArrayFromImage(before := sitk.ReadImage(str(balls / part)))
    changed = sitk.GetImageFromArray(array[::-1].copy())
    changed.CopyInformation(before)
    sitk.WriteImage(changed, str(balls / part))
    with pytest.raises(
        UsageError, match=r"last\.pt: a file of images or labels, .* is another than it was trained with"
    ):
        run(balls, tmp_path / "run", config, None, resume=True)


def test_resume_with_labels_merged_otherwise_is_refused(balls: Path, tmp_path: Path) -> None:
    config, described = replace(CONFIG, method="erm"), json.loads((balls / "dataset.json").read_text())
    run(balls, tmp_path / "run", config, None)
    described["labels"] = {"background": 0, "dim": 2, "bright": 1}
    (balls / "dataset.json").write_text(json.dumps(described))
    with pytest.raises(UsageError, match=r"what dataset\.json merges, .* is another than it was trained with"):
        run(balls, tmp_path / "run", config, None, resume=True)


@pytest.mark.parametrize("part", ["labelsTr/case1.nii.gz", "synthesis.toml"])
def test_resume_of_other_synthesised_images_is_refused(balls: Path, tmp_path: Path, part: str) -> None:
    table = "[contrasts]\nt1 = 1.0\n[tissues]\ndim = [1]\nbright = [2]\n[means.t1]\ndim = 0.3\nbright = 0.8\n"
    (balls / "synthesis.toml").write_text(table)
    config = replace(CONFIG, method="erm", steps=2, validate_every=2)
    run(balls, tmp_path / "run", config, None)
    assert run(balls, tmp_path / "run", config, None, resume=True) == []
    if part == "synthesis.toml":
        (balls / part).write_text(table.replace("0.3", "0.4"))
    else:
        shutil.copy(balls / "labelsTr" / "case2.nii.gz", balls / part)
    with pytest.raises(UsageError, match=r"or synthesis\.toml is another than it was trained with"):
        run(balls, tmp_path / "run", config, None, resume=True)


def test_precision_may_change_to_fp16_on_resume(balls: Path, tmp_path: Path) -> None:
    config = replace(CONFIG, method="erm")
    run(balls, tmp_path / "run", config, None)
    assert run(balls, tmp_path / "run", replace(config, precision="fp16"), None, resume=True) == []


def test_fp16_without_any_finite_gradient_stops(balls: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A loss in the real one's place whose gradient is NaN in every step, which no scale mends."""

    def loss_without_slope(logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return (logits.sum() * 0).sqrt()  # 0, and its gradient infinity times 0

    monkeypatch.setattr("dropgen_rt.train.loop.make_loss", lambda kind: loss_without_slope)
    config = replace(CONFIG, method="erm", precision="fp16", steps=60, batch=1, validate_every=60)
    with pytest.raises(DropgenError, match="no gradient was finite in fp16"):
        run(balls, tmp_path / "run", config, None)


def test_another_encoder_than_the_checkpoints_is_refused(
    balls: Path, encoder: Path, other_encoder: Path, tmp_path: Path
) -> None:
    run(balls, tmp_path / "run", CONFIG, encoder)
    best, config = tmp_path / "run" / "best.pt", replace(CONFIG, encoder=str(other_encoder))
    with pytest.raises(UsageError, match=r"another encoder than .*leave --encoder out to keep it"):
        train(balls, tmp_path / "next", config, other_encoder, False, lambda row: None, init=best)


def test_erm_needs_no_encoder(balls: Path, encoder: Path, tmp_path: Path) -> None:
    config = replace(CONFIG, method="erm")
    assert len(run(balls, tmp_path / "run", config, None)) == 6
    network, _ = load_network(tmp_path / "run" / "best.pt")
    assert network.encoder is None
    with pytest.raises(UsageError, match="takes no encoder"):
        run(balls, tmp_path / "run2", config, encoder)
    with pytest.raises(UsageError, match="needs an encoder"):
        run(balls, tmp_path / "run3", CONFIG, None)


def test_a_loss_that_is_not_finite_stops_the_run(balls: Path, encoder: Path, tmp_path: Path) -> None:
    config = replace(CONFIG, steps=50, learning_rate=1e30)
    with pytest.raises(DropgenError, match="is the last sound state"):
        run(balls, tmp_path / "run", config, encoder)


def test_weights_that_are_not_finite_are_not_saved(balls: Path, tmp_path: Path) -> None:
    """One step takes them past float32's largest number; its loss was finite."""
    config = replace(
        CONFIG, method="erm", norm="instance", steps=2, validate_every=1, learning_rate=3.2e37, weight_decay=10.0
    )
    with pytest.raises(DropgenError, match=r"step 1: a weight is not finite; .*is the last sound state"):
        run(balls, tmp_path / "run", config, None)
    kept = checkpoint.load(tmp_path / "run" / "last.pt")
    assert kept["progress"]["step"] == 0 and all(torch.isfinite(value).all() for value in kept["state"].values())
    assert not (tmp_path / "run" / "best.pt").exists()


def test_processes_draw_the_same_crops(balls: Path) -> None:
    dataset, config = read_dataset(balls), replace(CONFIG, batch=3)
    grid = grid_of(dataset, config)
    cases = [in_memory(case, grid) for case in dataset.training]
    drawing = Drawing(ScanSampler(cases, config), config.seed, (0, 2))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as in the processes: sums of several threads round otherwise
    torch.set_flush_denormal(True)
    try:
        expected = [drawing(step) for step in range(3, 6)]
    finally:
        torch.set_flush_denormal(False)
        torch.set_num_threads(threads)
    for (image, target), (own_image, own_target) in zip(ahead(drawing.arrays, range(3, 6), 2), expected, strict=True):
        assert image.shape == (2, 1, *config.window) and target.shape == image.shape
        assert np.array_equal(image, own_image) and np.array_equal(target, own_target)


def test_init_starts_from_the_weights_of_a_like_network(balls: Path, encoder: Path, tmp_path: Path) -> None:
    run(balls, tmp_path / "first", CONFIG, encoder)
    start = tmp_path / "first" / "last.pt"
    config = replace(CONFIG, steps=1, validate_every=1, learning_rate=1e-12)
    train(balls, tmp_path / "second", config, encoder, False, lambda row: None, init=start)
    first, second = (load_network(tmp_path / name / "last.pt")[0] for name in ("first", "second"))
    assert torch.allclose(first.segmentor.model[0].weight, second.segmentor.model[0].weight, atol=1e-6)
    with pytest.raises(
        UsageError, match=r"another layout \(segmentor width 4, here 8\); give the same method, encoder"
    ):
        train(balls, tmp_path / "x", replace(config, width=8), encoder, False, lambda row: None, init=start)


def test_a_run_from_weights_keeps_their_encoder_on_resume(
    balls: Path, encoder: Path, other_encoder: Path, tmp_path: Path
) -> None:
    """Which was not asked for by name: that of the package stands in its place until the weights are there."""
    run(balls, tmp_path / "first", CONFIG, other_encoder)
    start, out = tmp_path / "first" / "last.pt", tmp_path / "second"
    train(balls, out, CONFIG, encoder, False, lambda row: None, init=start)
    lines: list[dict] = []
    train(balls, out, CONFIG, encoder, True, lines.append)
    assert lines == []
    kept = load_network(out / "last.pt")[0].encoder
    assert kept is not None and same_weights(kept.state_dict(), checkpoint.load_encoder(other_encoder).state_dict())
    with pytest.raises(UsageError, match="was trained with another encoder"):
        train(balls, out, replace(CONFIG, encoder=str(encoder)), encoder, True, lines.append)


def test_training_on_a_cpu_convolves_before_it_upsamples(
    balls: Path, encoder: Path, tmp_path: Path, joined: list[tuple[int, ...]]
) -> None:
    run(balls, tmp_path / "run", replace(CONFIG, steps=1, batch=1, validate_every=9), encoder)
    assert joined[:2] == [(16, 16, 16)] * 2  # encoder and segmentor

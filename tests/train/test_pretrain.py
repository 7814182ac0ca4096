"""Pretraining writes a loadable encoder, stops soundly, and resumes to the very weights of an unbroken run."""

from pathlib import Path

import pytest
import torch

from dropgen_rt.errors import (
    DropgenError,
    MissingModelError,
    ModelError,
    ResourceError,
    UsageError,
)
from dropgen_rt.train import checkpoint
from dropgen_rt.train.prepare import held
from dropgen_rt.train.pretrain import STATE_FORMAT, PretrainConfig, pretrain


def test_pretraining_writes_a_loadable_encoder(balls: Path, tmp_path: Path) -> None:
    lines: list[str] = []
    out = tmp_path / "encoder.pt"
    pretrain(balls / "labelsTr", out, PretrainConfig(2, 4, 16), lines.append, "cpu")
    assert lines[-1].startswith("step 2 of 2: loss ")
    assert checkpoint.load_encoder(out).config.width == 4
    assert checkpoint.load(out, checkpoint.ENCODER_FORMAT)["provenance"]["label_maps"] == 6
    with pytest.raises(
        ModelError, match="holds a 'dropgen-rt encoder 1'; accepted here is a 'dropgen-rt checkpoint 1'"
    ):
        checkpoint.load(out)


def test_pretraining_on_a_cpu_convolves_before_it_upsamples(
    balls: Path, tmp_path: Path, joined: list[tuple[int, ...]]
) -> None:
    pretrain(balls / "labelsTr", tmp_path / "encoder.pt", PretrainConfig(1, 4, 16), lambda line: None, "cpu")
    assert joined


def test_pretraining_saves_no_state_of_nan(balls: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the place of a step stands one whose loss is NaN from the third on; what is saved, and when, is real."""
    config = PretrainConfig(steps=6, batch=1, edge=32, width=4, save_every=2)

    def descend(model: torch.nn.Module, *rest: object) -> torch.Tensor:
        return torch.tensor(float("nan") if rest[3] >= 2 else 1.0)

    monkeypatch.setattr("dropgen_rt.train.pretrain._descend", descend)
    with pytest.raises(DropgenError, match="step 4: the loss is nan"):
        pretrain(balls / "labelsTr", tmp_path / "encoder.pt", config, lambda _: None, "cpu")
    assert checkpoint.load(tmp_path / "encoder.state.pt", "dropgen-rt pretraining 1")["step"] == 2


def test_pretraining_saves_no_weights_that_are_not_finite(
    balls: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the place of a step stands one that spoils a weight, whose own loss was sound: infinite, or past fp16's 65504.

    What is saved, and when, is real.
    """
    config, spoilt = PretrainConfig(steps=6, batch=1, edge=32, width=4, save_every=2), [1, float("inf")]

    def descend(model: torch.nn.Module, *rest: object) -> torch.Tensor:
        if rest[3] == spoilt[0]:
            next(model.parameters()).data.fill_(spoilt[1])
        return torch.tensor(1.0)

    monkeypatch.setattr("dropgen_rt.train.pretrain._descend", descend)
    with pytest.raises(DropgenError, match=r"step 2: a weight is not finite; nothing had been saved before"):
        pretrain(balls / "labelsTr", tmp_path / "encoder.pt", config, lambda _: None, "cpu")
    spoilt[:] = [3, 1e5]
    with pytest.raises(DropgenError, match=r"step 4: a weight is not finite; .* is the last sound state"):
        pretrain(balls / "labelsTr", tmp_path / "encoder.pt", config, lambda _: None, "cpu")
    assert checkpoint.load(tmp_path / "encoder.state.pt", "dropgen-rt pretraining 1")["step"] == 2
    assert all(torch.isfinite(p).all() for p in checkpoint.load_encoder(tmp_path / "encoder.pt").parameters())


def test_pretraining_overwrites_no_run(balls: Path, tmp_path: Path) -> None:
    out, config = tmp_path / "encoder.pt", PretrainConfig(steps=1, batch=1, edge=32, width=4)
    state = tmp_path / "encoder.state.pt"
    with held(state), pytest.raises(ResourceError, match="another process trains into it"):
        pretrain(balls / "labelsTr", out, config, lambda _: None, "cpu")
    pretrain(balls / "labelsTr", out, config, lambda _: None, "cpu")
    before = out.read_bytes()
    with pytest.raises(UsageError, match=r"encoder\.state\.pt: is there already; go on with its run by --resume"):
        pretrain(balls / "labelsTr", out, config, lambda _: None, "cpu")
    state.unlink()
    with pytest.raises(UsageError, match=r"encoder\.pt: is there already"):
        pretrain(balls / "labelsTr", out, config, lambda _: None, "cpu")
    assert out.read_bytes() == before


def test_resumed_pretraining_ends_where_an_unbroken_one_does(
    balls: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the place of the encoder's writer stands a Ctrl-C, between the state and the encoder; the rest is real."""
    config = PretrainConfig(3, 4, 16, save_every=1)
    pretrain(balls / "labelsTr", tmp_path / "unbroken.pt", config, lambda line: None, "cpu")

    def stop(*arguments: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("dropgen_rt.train.checkpoint.save_encoder", stop)  # after step 1's state was written
        pretrain(balls / "labelsTr", tmp_path / "broken.pt", config, lambda line: None, "cpu")
    pretrain(balls / "labelsTr", tmp_path / "broken.pt", config, lambda line: None, "cpu", resume=True)
    unbroken, resumed = (
        checkpoint.load_encoder(tmp_path / f"{name}.pt").state_dict() for name in ("unbroken", "broken")
    )
    assert all(torch.equal(unbroken[key], resumed[key]) for key in unbroken)
    (tmp_path / "broken.pt").unlink()  # stopped between the last state and the encoder
    pretrain(balls / "labelsTr", tmp_path / "broken.pt", config, lambda line: None, "cpu", resume=True)
    assert (tmp_path / "broken.pt").is_file()


def test_pretraining_goes_on_with_its_own_label_maps_alone(balls: Path, tmp_path: Path) -> None:
    out, config = tmp_path / "encoder.pt", PretrainConfig(2, 4, 16)
    pretrain(balls / "labelsTr", out, config, lambda _: None, "cpu")
    state = (tmp_path / "encoder.state.pt").read_bytes()
    (balls / "labelsTr" / "case5.nii.gz").unlink()
    with pytest.raises(UsageError, match="was trained on other label maps, or with other --tissues"):
        pretrain(balls / "labelsTr", out, config, lambda _: None, "cpu", resume=True)
    assert (tmp_path / "encoder.state.pt").read_bytes() == state


def test_a_run_goes_on_as_it_was_begun(balls: Path, tmp_path: Path) -> None:
    out, config = tmp_path / "encoder.pt", PretrainConfig(1, 4, 16)
    with pytest.raises(MissingModelError, match=r"encoder\.state\.pt: no such state to go on from; leave --resume out"):
        pretrain(balls / "labelsTr", out, config, lambda _: None, "cpu", resume=True)
    pretrain(balls / "labelsTr", out, config, lambda _: None, "cpu")
    with pytest.raises(UsageError, match=r"was trained with other options \(steps\); give the same ones"):
        pretrain(balls / "labelsTr", out, PretrainConfig(2, 4, 16), lambda _: None, "cpu", resume=True)


def test_a_state_that_lacks_something_is_no_traceback(balls: Path, tmp_path: Path) -> None:
    out, config = tmp_path / "encoder.pt", PretrainConfig(1, 4, 16)
    pretrain(balls / "labelsTr", out, config, lambda _: None, "cpu")
    state = out.with_suffix(".state.pt")
    content = checkpoint.load(state, STATE_FORMAT)
    checkpoint.save(state, {key: part for key, part in content.items() if key != "optimiser"}, STATE_FORMAT)
    with pytest.raises(ModelError, match=r"state\.pt: its network cannot be rebuilt \('optimiser'\); remove it"):
        pretrain(balls / "labelsTr", out, config, lambda _: None, "cpu", resume=True)


@pytest.mark.parametrize("seed", [-1, 2**31])
def test_a_seed_that_cannot_be_drawn_by_is_refused(seed: int) -> None:
    with pytest.raises(UsageError, match=f"seed {seed}: accepted is a whole number from 0"):
        PretrainConfig(seed=seed)


@pytest.mark.parametrize("options", [{"edge": 20}, {"steps": 0}, {"batch": 0}])
def test_pretraining_options_out_of_range(options: dict) -> None:
    with pytest.raises(UsageError, match="at least 1"):
        PretrainConfig(**options)


def test_a_missing_gpu_is_said(balls: Path, tmp_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    with pytest.raises(ResourceError, match="sees no NVIDIA GPU; use --device cpu"):
        pretrain(balls / "labelsTr", tmp_path / "encoder.pt", PretrainConfig(), print, "cuda")

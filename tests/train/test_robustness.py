"""What a run survives: a kill at any moment, a full disk, sums that blow up; and what it may be made of."""

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from dropgen_rt.errors import DropgenError, OutputError, UsageError
from dropgen_rt.train import checkpoint
from dropgen_rt.train.assemble import make_network
from dropgen_rt.train.config import LOSSES, TrainConfig
from dropgen_rt.train.dataset import read_dataset
from dropgen_rt.train.loop import Run, cosine, load_network, train
from dropgen_rt.train.segmentors import SEGMENTORS

CONFIG = TrainConfig(steps=6, window=(16, 16, 16), width=4, levels=2, validate_every=2, method="erm")
COMMAND = Path(sys.executable).with_name("dropgen-rt")


def quiet(row: dict) -> None:
    """A report that says nothing."""


def options(data: Path, out: Path, steps: int) -> list[str]:
    line = ["train", data, "--out", out, "--method", "erm", "--steps", steps, "--validate-every", 2, "--width", 4]
    line += ["--levels", 2, "--window", 16, 16, 16, "--device", "cpu", "--spacing-mm", 1, 1, 1]
    line += ["--norm", CONFIG.norm]
    return [str(COMMAND), *map(str, line)]


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_network(run / "last.pt")[0].state_dict()


@pytest.mark.slow
def test_killed_and_resumed_equals_unbroken(balls: Path, tmp_path: Path) -> None:
    train(balls, tmp_path / "whole", replace(CONFIG, steps=16), None, False, quiet)
    line = options(balls, tmp_path / "killed", 16)
    process = subprocess.Popen(line, stdout=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:  # into the midst of the steps, wherever that is
            last = tmp_path / "killed" / "last.pt"
            if last.is_file() and checkpoint.load(last)["progress"]["step"] >= 4:
                break
            time.sleep(0.05)
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    reached = checkpoint.load(tmp_path / "killed" / "last.pt")["progress"]["step"]
    assert 4 <= reached < 16
    cut_short, others = (tmp_path / "killed" / f".writing-0123{suffix}" for suffix in (".pt", ".onnx"))
    picture = cut_short.with_suffix(".png")
    for left in (cut_short, picture, others):  # as a kill in the midst of writing leaves them
        left.write_bytes(b"half")
    done = subprocess.run([*line, "--resume"], capture_output=True, text=True, check=True)
    assert not cut_short.exists() and not picture.exists() and others.exists()
    assert done.stdout.splitlines()[-1] == f"wrote {tmp_path / 'killed' / 'best.pt'}"
    whole, killed = weights(tmp_path / "whole"), weights(tmp_path / "killed")
    assert all(torch.equal(whole[key], killed[key]) for key in whole)


def test_a_full_disk_leaves_the_checkpoint_before(balls: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(KeyboardInterrupt):
        train(balls, tmp_path / "run", CONFIG, None, False, _stop_at(3))
    before = (tmp_path / "run" / "last.pt").read_bytes()
    # The kernel's own refusal: no file of this process may grow beyond a few kB.
    line = " ".join(options(balls, tmp_path / "run", 6))
    limited = subprocess.run(
        ["/bin/bash", "-c", f"ulimit -f 40; exec {line} --resume"], capture_output=True, text=True, check=False
    )
    assert limited.returncode == OutputError.exit_code, limited.stderr
    assert limited.stderr.startswith("error: cannot write ") and "Traceback" not in limited.stderr
    assert (tmp_path / "run" / "last.pt").read_bytes() == before
    assert not list((tmp_path / "run").glob(".writing-*"))
    train(balls, tmp_path / "run", CONFIG, None, True, quiet)
    assert checkpoint.load(tmp_path / "run" / "last.pt")["progress"]["step"] == 6


def _stop_at(step: int):
    def stop(row: dict) -> None:
        if row["step"] == step:
            raise KeyboardInterrupt

    return stop


def test_a_gradient_that_is_not_finite_never_reaches_the_weights(
    balls: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Poisoned(torch.autograd.Function):
        """Sound forward, NaN backward: what an overflow inside a layer does."""

        @staticmethod
        def forward(context: object, x: torch.Tensor) -> torch.Tensor:
            return x.clone()

        @staticmethod
        def backward(context: object, gradient: torch.Tensor) -> torch.Tensor:
            return gradient * float("nan")

    plain = Run._step

    def step(self: Run, forward: object, image: torch.Tensor, target: torch.Tensor) -> float:
        if self.step == 3:
            return plain(self, lambda x: Poisoned.apply(forward(x)), image, target)  # type: ignore[operator]
        return plain(self, forward, image, target)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(Run, "_step", step)
        with pytest.raises(
            DropgenError, match=r"step 3: the gradient's norm is nan; .*last\.pt is the last sound state"
        ):
            train(balls, tmp_path / "run", CONFIG, None, False, quiet)
    content = checkpoint.load(tmp_path / "run" / "last.pt")
    assert content["progress"]["step"] == 2
    assert all(torch.isfinite(value).all() for value in content["state"].values())
    slower = replace(CONFIG, learning_rate=1e-4)  # as the message says
    train(balls, tmp_path / "run", slower, None, True, quiet)
    assert checkpoint.load(tmp_path / "run" / "last.pt")["progress"]["step"] == 6


def test_the_learning_rate_falls_along_half_a_cosine() -> None:
    rates = [cosine(2e-4, step, 100) for step in range(101)]
    assert rates[0] == 2e-4 and rates[50] == pytest.approx(1e-4) and rates[100] == pytest.approx(0, abs=1e-12)
    assert rates == sorted(rates, reverse=True)


def test_bf16_on_a_cpu_is_refused_where_gradients_are_wrong(balls: Path, tmp_path: Path) -> None:
    config = replace(CONFIG, segmentor="dynunet", precision="bf16")
    with pytest.raises(UsageError, match="bf16 on a CPU with segmentor dynunet: PyTorch's gradients are wrong there"):
        train(balls, tmp_path / "run", config, None, False, lambda row: None)


@pytest.mark.slow
@pytest.mark.parametrize("kind", [kind for kind in SEGMENTORS if kind != "unet"])
def test_every_segmentor_trains(balls: Path, encoder: Path, tmp_path: Path, kind: str) -> None:
    """A step on the image alone, then with features and dropout: every weight moves, the checkpoint is the network."""
    edge = 64 if kind == "swinunetr" else 16
    changes = {"window": (edge,) * 3, "width": 12, "batch": 1, "levels": 2, "image_first": 1 / 3, "feature_scale": 0.1}
    config = replace(CONFIG, method="dropgen", drop=0.25, segmentor=kind, steps=3, validate_every=3, **changes)
    rows: list[dict] = []
    torch.manual_seed(config.seed)
    before = make_network(read_dataset(balls), config, encoder)
    train(balls, tmp_path / "run", config, encoder, False, rows.append)
    assert all(np.isfinite(row["loss"]) for row in rows)
    network, content = load_network(tmp_path / "run" / "last.pt")
    assert content["network"]["segmentor"]["kind"] == kind
    started = dict(before.segmentor.named_parameters())
    still = [name for name, value in network.segmentor.named_parameters() if torch.equal(value, started[name])]
    assert still == []
    with torch.no_grad():
        assert network(torch.rand(1, 1, edge, edge, edge)).shape == (1, 3, edge, edge, edge)


@pytest.mark.parametrize("kind", LOSSES)
def test_every_loss_trains(balls: Path, tmp_path: Path, kind: str) -> None:
    rows: list[dict] = []
    config = replace(CONFIG, loss=kind, steps=12, learning_rate=5e-3, validate_every=12)
    train(balls, tmp_path / "run", config, None, False, rows.append)
    assert sum(row["loss"] for row in rows[-3:]) < sum(row["loss"] for row in rows[:3])


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_follows_full(balls: Path, tmp_path: Path, precision: str) -> None:
    losses = {}
    for name in ("fp32", precision):
        rows: list[dict] = []
        train(balls, tmp_path / name, replace(CONFIG, precision=name, steps=4), None, False, rows.append)
        losses[name] = [row["loss"] for row in rows]
    assert losses[precision] != losses["fp32"]
    # Eight bits of mantissa through some ten layers: a few per cent of the loss.
    assert losses[precision] == pytest.approx(losses["fp32"], rel=0.05)

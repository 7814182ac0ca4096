"""Two processes by torchrun, over gloo on a CPU, train what one process trains."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tolerances import (
    TWO_PROCESSES,
    TWO_PROCESSES_BEYOND,
    TWO_PROCESSES_LAYER_MEAN,
    TWO_PROCESSES_MEAN,
    TWO_PROCESSES_WEIGHT,
)

from dropgen_rt.errors import UsageError
from dropgen_rt.train.distributed import Ranks
from dropgen_rt.train.loop import load_network
from dropgen_rt.train.network import NORMS

ARGUMENTS = ["--method", "concat", "--steps", "4", "--validate-every", "2", "--width", "4", "--levels", "2"]
ARGUMENTS += ["--window", "16", "16", "16", "--batch", "4", "--device", "cpu", "--spacing-mm", "1", "1", "1"]
# Every step sees features.
ARGUMENTS += ["--image-first", "0", "--feature-scale", "1", "--settle", "0"]


def run(launcher: list[str], balls: Path, out: Path, encoder: Path, norm: str) -> str:
    command = [*launcher, "train", str(balls), "--out", str(out), "--encoder", str(encoder), "--norm", norm, *ARGUMENTS]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("norm", NORMS)
def test_two_processes_equal_one(balls: Path, encoder: Path, tmp_path: Path, norm: str) -> None:
    """Batch norms, the loss and the gradients are those of the whole batch; one process writes and speaks."""
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    alone = run([sys.executable, "-m", "dropgen_rt.cli"], balls, tmp_path / "one", encoder, norm)
    together = run([*torchrun, "-m", "dropgen_rt.cli"], balls, tmp_path / "two", encoder, norm)
    assert together.count("wrote ") == alone.count("wrote ") == 1
    (one, first), (two, second) = (load_network(tmp_path / name / "last.pt") for name in ("one", "two"))
    assert first["progress"]["step"] == second["progress"]["step"] == 4
    for (name, value), other in zip(one.state_dict().items(), two.state_dict().values(), strict=True):
        if value.is_floating_point():
            far = (value - other).abs()
            assert far.max() <= (TWO_PROCESSES if "running" in name else TWO_PROCESSES_WEIGHT), name
            assert far.mean() <= TWO_PROCESSES_LAYER_MEAN, name
    learnt = zip(one.segmentor.parameters(), two.segmentor.parameters(), strict=True)
    apart = torch.cat([(value - other).detach().abs().flatten() for value, other in learnt])
    assert (apart > TWO_PROCESSES).float().mean() <= TWO_PROCESSES_BEYOND
    assert apart.mean() <= TWO_PROCESSES_MEAN
    assert first["progress"]["validation_dice"] == pytest.approx(second["progress"]["validation_dice"], abs=0.01)


def test_a_batch_is_shared_out_evenly_or_refused() -> None:
    shares = [list(Ranks(rank, 3).share(6)) for rank in range(3)]
    assert sorted(place for share in shares for place in share) == list(range(6)) and {
        len(share) for share in shares
    } == {2}
    with pytest.raises(UsageError, match="batch 4 for 3 processes: give a multiple of 3"):
        Ranks(0, 3).share(4)

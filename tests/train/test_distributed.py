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
from dropgen_rt.train.distributed import LOST_PEER, RENDEZVOUS, Ranks, ranks_of_environment
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


@pytest.mark.slow
def test_where_one_process_fails_the_others_say_one_line(balls: Path, tmp_path: Path) -> None:
    """The first cannot write what it prepares: the kernel's own refusal, no file may grow beyond a few kB."""
    launcher = f"{sys.executable} -m torch.distributed.run --standalone --nproc-per-node 2 -m dropgen_rt.cli"
    train = f"train {balls} --out {tmp_path / 'run'} --norm batch {' '.join(ARGUMENTS).replace('concat', 'erm')}"
    done = subprocess.run(
        ["/bin/bash", "-c", f"ulimit -f 40; exec {launcher} {train}"], capture_output=True, text=True, check=False
    )
    assert done.returncode != 0
    said = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(said) == 2 and any(line.startswith("error: cannot write ") for line in said), done.stderr
    assert "error: another process of this training ended; its own message tells why" in said
    assert "[rank1]: Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("said", "lost"),
    [
        ("[/gloo/transport/tcp/pair.cc:553] Connection closed by peer [127.0.0.1]:27569.", True),
        ("NCCL error: ncclRemoteError: A call failed possibly due to a network error", True),
        ("[/gloo/transport/tcp/device.cc:84] Unable to find address for: eth9", False),
        ("NCCL error: ncclInvalidUsage: Duplicate GPU detected : rank 0 and rank 1", False),
    ],
)
def test_a_fault_of_ones_own_is_not_told_as_a_lost_process(said: str, lost: bool) -> None:
    assert bool(LOST_PEER.search(said)) == lost


def test_an_environment_that_describes_no_group_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a scheduler may leave it; nothing else is put in the place of anything."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    for name in RENDEZVOUS:
        monkeypatch.delenv(name, raising=False)
    with (
        pytest.raises(UsageError, match="WORLD_SIZE is 2, but RANK, MASTER_ADDR, MASTER_PORT not set; start several"),
        ranks_of_environment("cpu"),
    ):
        pass


def test_a_batch_is_shared_out_evenly_or_refused() -> None:
    shares = [list(Ranks(rank, 3).share(6)) for rank in range(3)]
    assert sorted(place for share in shares for place in share) == list(range(6)) and {
        len(share) for share in shares
    } == {2}
    with pytest.raises(UsageError, match="batch 4 for 3 processes: give a multiple of 3"):
        Ranks(0, 3).share(4)

"""Checkpoints hold tensors and plain values; anything else is refused unopened."""

import pickle
from pathlib import Path

import pytest
import torch

from dropgen_rt.errors import MissingModelError, ModelError
from dropgen_rt.train import checkpoint
from dropgen_rt.train.network import UNet, UNetConfig


class Malicious:
    """A pickle that would run a command when loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return Path.touch, (self.path,)


def test_encoder_round_trip_is_half_precision(tmp_path: Path) -> None:
    encoder = UNet(UNetConfig(width=4, levels=2))
    checkpoint.save_encoder(tmp_path / "e.pt", encoder, {"steps": 1})
    again = checkpoint.load_encoder(tmp_path / "e.pt")
    assert again.config == encoder.config
    assert not again.training
    for key, value in encoder.state_dict().items():
        assert torch.equal(again.state_dict()[key], value.half().float() if value.is_floating_point() else value)


def test_code_in_a_checkpoint_is_not_run(tmp_path: Path) -> None:
    for name, protocol_file in (("torch.pt", True), ("plain.pt", False)):
        path, trace = tmp_path / name, tmp_path / f"{name}.ran"
        if protocol_file:
            torch.save({"format": checkpoint.FORMAT, "evil": Malicious(trace)}, path)
        else:
            path.write_bytes(pickle.dumps(Malicious(trace)))
        with pytest.raises(ModelError, match="not a checkpoint of tensors"):
            checkpoint.load(path)
        assert not trace.exists()


def test_other_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(MissingModelError, match="no such checkpoint"):
        checkpoint.load(tmp_path / "absent.pt")
    (tmp_path / "text.pt").write_text("hello")
    with pytest.raises(ModelError, match="not a checkpoint"):
        checkpoint.load(tmp_path / "text.pt")
    torch.save({"format": "something else"}, tmp_path / "other.pt")
    with pytest.raises(ModelError, match="holds a 'something else'; accepted here is a 'dropgen-rt checkpoint 1'"):
        checkpoint.load(tmp_path / "other.pt")

"""Checkpoints: plain values and tensors only, so that ``weights_only=True`` always suffices to load them."""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from dropgen_rt.atomic import atomic_path
from dropgen_rt.errors import MissingModelError, ModelError
from dropgen_rt.train.network import UNet, UNetConfig
from dropgen_rt.typed_fields import is_line

FORMAT = "dropgen-rt checkpoint 1"
ENCODER_FORMAT = "dropgen-rt encoder 1"


def save(path: Path, content: dict[str, Any], kind: str = FORMAT) -> None:
    """Write a checkpoint so that it appears whole or not at all. Raises OutputError, on a full disk too."""
    # Through memory: PyTorch's own writer tells of a full disk as of an error in its C++ streams.
    buffer = io.BytesIO()
    torch.save({"format": kind, **content}, buffer)
    with atomic_path(path) as temporary:
        temporary.write_bytes(buffer.getbuffer())


def load(path: Path, kind: str = FORMAT) -> dict[str, Any]:
    """Read a checkpoint of this project. Raises MissingModelError, or ModelError for anything else than one."""
    if not path.is_file():
        raise MissingModelError(f"{path}: no such checkpoint; give the best.pt or last.pt of a run folder")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # the unpickler meets foreign bytes with whatever error they lead it to
        raise ModelError(f"{path}: not a checkpoint of tensors and plain values; it was not opened further") from error
    found = content.get("format") if isinstance(content, dict) else None
    if found != kind:
        what = f"holds a {found!r}" if isinstance(found, str) and is_line(found) else "was not written by dropgen-rt"
        raise ModelError(f"{path}: {what}; accepted here is a {kind!r}")
    return content


def save_encoder(path: Path, encoder: UNet, provenance: dict[str, Any], *, half: bool = True) -> None:
    """Write an encoder with the configuration that rebuilds it and a note of where it came from; ``half`` its size."""
    state = {
        key: (value.half() if half and value.is_floating_point() else value).cpu()
        for key, value in encoder.state_dict().items()
    }
    save(path, {"config": vars(encoder.config), "state": state, "provenance": provenance}, ENCODER_FORMAT)


def load_encoder(path: Path) -> UNet:
    """An encoder in evaluation mode. Raises MissingModelError or ModelError."""
    content = load(path, ENCODER_FORMAT)
    with rebuilding(path, "add the encoder again"):
        encoder = UNet(UNetConfig(**content["config"]))
        encoder.load_state_dict(
            {key: value.float() if value.is_floating_point() else value for key, value in content["state"].items()}
        )
    return encoder.eval()


def finite(network: nn.Module, *, half: bool = False) -> bool:
    """Whether all that a checkpoint would keep of a network is a number, in ``half`` of the precision too."""
    values = network.state_dict().values()
    return all(bool(torch.isfinite(value.half() if half else value).all()) for value in values)


@contextmanager
def rebuilding(path: Path, advice: str) -> Iterator[None]:
    """Raises ModelError, with ``advice``, where a network is made of what the checkpoint ``path`` holds and is none."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise  # no fault of the file's
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        reason = (str(error).splitlines() or ["?"])[0]
        raise ModelError(f"{path}: its network cannot be rebuilt ({reason}); {advice}") from error

"""Encoders by name: strict loading of published weights, a pinned fetch, one line when offline."""

import hashlib
import threading
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from dropgen_rt.cli import main
from dropgen_rt.errors import MissingModelError, ModelError, UsageError
from dropgen_rt.train import checkpoint, encoders
from dropgen_rt.train.checkpoint import load_encoder
from dropgen_rt.train.network import ANATOMIX, UNet


@pytest.fixture
def published(tmp_path: Path) -> Path:
    """State dicts of the published layout, keys prefixed as torch.compile leaves them: the newest, and the pinned."""
    torch.manual_seed(3)
    state = {f"_orig_mod.{key}": value for key, value in UNet(ANATOMIX).state_dict().items()}
    resolve = tmp_path / "hub" / "neeldey" / "anatomix" / "resolve"
    for revision in (encoders.PUBLISHED["anatomix"].revision, "main"):
        path = resolve / revision / "anatomix.pth"
        path.parent.mkdir(parents=True)
        torch.save(state, path)
        state = {key: value + 1 for key, value in state.items()}
    return path


@pytest.fixture
def hub(published: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A hub of one's own, as a hospital may have."""

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *arguments: object) -> None:
            """Nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(tmp_path / "hub")))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv(encoders.HUB_VARIABLE, f"http://127.0.0.1:{server.server_port}")
    yield published
    server.shutdown()


def command(*arguments: object):
    return CliRunner().invoke(main, ["encoders", *map(str, arguments)])


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_an_encoder_that_is_none_does_not_hide_the_others() -> None:
    encoders.folder().mkdir(parents=True)
    checkpoint.save(encoders.folder() / "odd.pt", {"config": {"depth": 3}, "state": {}}, checkpoint.ENCODER_FORMAT)
    (encoders.folder() / "junk.pt").write_bytes(b"junk")
    lines = command("list").stdout.splitlines()
    assert any(line.startswith("stable: ") and "the default" in line for line in lines)
    assert any("odd.pt: its network cannot be rebuilt" in line for line in lines)
    assert any("junk.pt: not a checkpoint" in line for line in lines)


def test_published_weights_load_strictly_and_keep_every_bit(published: Path) -> None:
    result = command("add", published)
    assert (result.exit_code, result.output.splitlines()[-1]) == (0, f"wrote {encoders.folder() / 'anatomix.pt'}")
    found = load_encoder(encoders.find_encoder("anatomix"))
    assert found.config == ANATOMIX and not found.training
    for key, value in torch.load(published, weights_only=True).items():
        assert torch.equal(found.state_dict()[key.removeprefix("_orig_mod.")], value)


@pytest.mark.parametrize("change", ["missing", "extra", "shape"])
def test_other_layouts_are_refused(published: Path, change: str) -> None:
    state = torch.load(published, weights_only=True)
    key = next(iter(state))
    if change == "missing":
        del state[key]
    elif change == "extra":
        state["model.99.weight"] = torch.zeros(3)
    else:
        state[key] = torch.zeros(3)
    torch.save(state, published)
    with pytest.raises(
        ModelError, match="a state dict of another network; accepted are those of anatomix, anatomix-dev"
    ):
        encoders.add(published)
    assert not (encoders.folder() / "anatomix.pt").exists()


def test_the_names_of_the_package_are_taken(encoder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    result = command("add", encoder, "--name", encoders.DEFAULT_ENCODER)
    assert (result.exit_code, result.stderr) == (
        2, "error: encoder name 'stable': the package has one of this name; give another by --name\n",
    )  # fmt: skip
    monkeypatch.chdir(encoder.parent)
    encoder.rename(encoder.with_suffix(".pth"))
    with pytest.raises(UsageError, match=r"encoder encoder\.pth: a file's name ends in \.pt or has a folder before it"):
        encoders.find_encoder("encoder.pth")


def test_an_own_encoder_is_added_under_a_name(encoder: Path) -> None:
    installed = encoders.add(encoder, "mine")
    assert encoders.installed()["mine"] == installed
    assert "mine: 4 features, 0.0 M parameters, sha256 " in command("list").output
    with pytest.raises(UsageError, match=r"encoder name '../mine': accepted are .*; give another by --name"):
        encoders.add(encoder, "../mine")


def test_fetching_needs_the_right_digest(hub: Path) -> None:
    wrong = command("fetch", "anatomix", "--sha256", "0" * 64)
    assert wrong.exit_code == 4 and "pinned is 0000" in wrong.stderr
    assert not list(encoders.folder().iterdir())
    right = command("fetch", "anatomix", "--sha256", digest(hub).upper())
    assert (right.exit_code, right.output) == (0, f"wrote {encoders.folder() / 'anatomix.pt'}\n")
    assert [path.name for path in encoders.folder().iterdir()] == ["anatomix.pt"]
    assert load_encoder(encoders.find_encoder("anatomix")).config == ANATOMIX


@pytest.mark.parametrize("given", ["", "abc", "g" * 64])
def test_no_digest_is_refused_before_anything_is_fetched(hub: Path, given: str) -> None:
    refused = command("fetch", "anatomix", "--sha256", given)
    assert refused.exit_code == 2 and f"--sha256 {given}: not a digest; give the 64 digits" in refused.stderr


def test_without_a_digest_the_pinned_revision_is_fetched(hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    known = encoders.PUBLISHED["anatomix"]
    tampered = command("fetch", "anatomix")
    assert tampered.exit_code == 4 and f"pinned is {known.sha256}; it was not installed" in tampered.stderr
    pinned = hub.parents[1] / known.revision / hub.name
    monkeypatch.setitem(encoders.PUBLISHED, "anatomix", replace(known, sha256=digest(pinned)))
    assert command("fetch", "anatomix").exit_code == 0
    found = load_encoder(encoders.find_encoder("anatomix")).state_dict()
    for key, value in torch.load(pinned, weights_only=True).items():
        assert torch.equal(found[key.removeprefix("_orig_mod.")], value)


def test_offline_one_line_says_what_to_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(encoders.HUB_VARIABLE, "http://127.0.0.1:9")  # the discard port: nobody answers
    result = command("fetch", "anatomix-dev")
    assert result.exit_code == 6 and result.stderr.count("\n") == 1
    assert "copy it here, and run: dropgen-rt encoders add anatomix-dev.pth --name anatomix-dev" in result.stderr


def test_names_that_are_nowhere() -> None:
    with pytest.raises(MissingModelError, match="fetch it with: dropgen-rt encoders fetch anatomix"):
        encoders.find_encoder("anatomix")
    with pytest.raises(UsageError, match="known on the hub are anatomix, anatomix-dev"):
        encoders.fetch("resnet")
    assert encoders.encoder_for("erm", None) is None


def test_a_file_that_is_not_there_is_no_encoder(tmp_path):
    with pytest.raises(MissingModelError, match=r"gone\.pt: no such encoder file; at hand are: "):
        encoders.find_encoder(str(tmp_path / "gone.pt"))

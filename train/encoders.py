"""Encoders by name: the one in the package, those installed in the user's data folder, and those on the hub."""

import http.client
import os
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path

import torch

from dropgen_rt.atomic import atomic_path
from dropgen_rt.errors import MissingModelError, ModelError, ResourceError, UsageError
from dropgen_rt.store import check_name, home, make_folder
from dropgen_rt.train.checkpoint import load_encoder, save_encoder
from dropgen_rt.train.network import ANATOMIX, ANATOMIX_DEV, UNet, UNetConfig
from dropgen_rt.volume import sha256_of
from dropgen_rt.words import in_place_of

# The encoder that the package carries, and that train takes where none is named.
DEFAULT_ENCODER = "stable"
HUB = "https://huggingface.co"
# The hub's own variable for a mirror inside a hospital.
HUB_VARIABLE = "HF_ENDPOINT"
# torch.compile leaves this before every key.
COMPILED_PREFIX = "_orig_mod."
BLOCK = 2**20


@dataclass(frozen=True)
class Published:
    """An encoder on the hub: ``file`` as it was at ``revision`` of the repository, and its digest there."""

    file: str
    config: UNetConfig
    sha256: str
    repository: str = "neeldey/anatomix"
    revision: str = "842cfe93e634ade096cc6a6bb14309a760c2a8cc"

    @property
    def url(self) -> str:
        hub = os.environ.get(HUB_VARIABLE, HUB).rstrip("/")
        return f"{hub}/{self.repository}/resolve/{self.revision}/{self.file}"


# Revision and digests are those that the authors' own tests recorded on 2026-09-08: github.com/neel-dey/anatomix at
# f68a57aba81792eeb4d075ef7b2132eb5cd898e3, anatomix/registration/tests/results/environment.json.
PUBLISHED = {
    "anatomix": Published("anatomix.pth", ANATOMIX, "1365d7b6e44d3d9b8b5e69f1b04dba1d6dd74920ae432aa4e53632f217aad1b9"),
    "anatomix-dev": Published(
        "anatomix-dev.pth", ANATOMIX_DEV, "7631a4254e5ab8276d192cf93c5be49b62637e3a2c856326ee54244d6b4ea23d"
    ),
}


def folder() -> Path:
    """Where encoders are installed; not made here."""
    return home() / "encoders"


def packaged(name: str) -> Path:
    return Path(str(resources.files("dropgen_rt.models"))) / f"{name}.encoder.pt"


def installed() -> dict[str, Path]:
    """Name to file of every encoder at hand, the packaged ones first."""
    inside = Path(str(resources.files("dropgen_rt.models"))).glob("*.encoder.pt")
    found = {path.name.removesuffix(".encoder.pt"): path for path in sorted(inside)}
    return found | {path.stem: path for path in sorted(folder().glob("*.pt"))}


def find_encoder(name_or_path: str) -> Path:
    """The file of an encoder given by path or by name. Raises MissingModelError, UsageError."""
    if _is_path(name_or_path):
        if not Path(name_or_path).is_file():
            raise MissingModelError(f"{name_or_path}: no such encoder file; at hand are: {', '.join(installed())}")
        return Path(name_or_path)
    found = installed().get(name_or_path)
    if found is not None:
        return found
    if Path(name_or_path).is_file():
        raise UsageError(
            f"encoder {name_or_path}: a file's name ends in .pt or has a folder before it, such as ./{name_or_path}; a "
            f"published one is installed first: dropgen-rt encoders add {name_or_path} --name NAME"
        )
    fetching = f"; fetch it with: dropgen-rt encoders fetch {name_or_path}"
    step = fetching if name_or_path in PUBLISHED else ""
    raise MissingModelError(f"no encoder named {name_or_path!r}; at hand are: {', '.join(installed()) or 'none'}{step}")


def _is_path(name_or_path: str) -> bool:
    return "/" in name_or_path or name_or_path.endswith(".pt")


def absolute(name_or_path: str) -> str:
    """A path from the root, so that a run is resumed from any folder; a name as it is."""
    return str(Path(name_or_path).absolute()) if _is_path(name_or_path) else name_or_path


def encoder_for(method: str, given: str | None) -> Path | None:
    """The encoder file of a training: the one given, else the package's; none for erm. Raises UsageError."""
    if given is not None:
        return find_encoder(given)
    if method == "erm":
        return None
    if not packaged(DEFAULT_ENCODER).is_file():
        raise UsageError(f"method {method!r} needs an encoder; name its file with --encoder")
    return packaged(DEFAULT_ENCODER)


def describe() -> Iterator[str]:
    """A line for each encoder at hand and each that could be fetched."""
    at_hand = installed()
    for name, path in at_hand.items():
        try:
            encoder = load_encoder(path)
        except ModelError as error:
            yield f"{name}: {error}"
            continue
        million = sum(p.numel() for p in encoder.parameters()) / 1e6
        mark = ", the default" if path == packaged(DEFAULT_ENCODER) else ""
        yield (
            f"{name}: {encoder.config.out_channels} features, {million:.1f} M parameters, "
            f"sha256 {sha256_of([path])[:12]}, {path}{mark}"
        )
    for name in sorted(set(PUBLISHED) - set(at_hand)):
        yield f"{name}: not at hand; dropgen-rt encoders fetch {name}"


def add(file: Path, name: str | None = None, source: str = "") -> Path:
    """Install an encoder of this project, or a published anatomix state dict, under a name; returns its file.

    A published one keeps its precision, and every key and shape must be as published. Raises
    MissingModelError, ModelError, UsageError, OutputError.
    """
    if not file.is_file():
        raise MissingModelError(
            f"{file}: {in_place_of(file)}; give an encoder that dropgen-rt wrote or a published .pth"
        )
    chosen = name or file.name.split(".")[0]
    try:
        check_name(chosen, "encoder")
    except UsageError as error:
        raise UsageError(f"{error}; give another by --name") from error
    if packaged(chosen).is_file():
        raise UsageError(f"encoder name {chosen!r}: the package has one of this name; give another by --name")
    target = folder() / f"{chosen}.pt"
    encoder, note, half = read_any(file)
    make_folder(folder())
    save_encoder(
        target, encoder, {**note, "source": source or file.name, "source_sha256": sha256_of([file])}, half=half
    )
    return target


def read_any(file: Path) -> tuple[UNet, dict, bool]:
    """An encoder, its provenance, and whether it may be kept in half precision."""
    try:
        content = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # the unpickler meets foreign bytes with whatever error they lead it to
        raise ModelError(f"{file}: not a checkpoint of tensors and plain values; it was not opened further") from error
    if isinstance(content, dict) and "format" in content:
        note = content.get("provenance")
        return load_encoder(file), note if isinstance(note, dict) else {}, True
    if not isinstance(content, dict) or not all(isinstance(value, torch.Tensor) for value in content.values()):
        raise ModelError(f"{file}: neither an encoder of dropgen-rt nor a state dict; give one of the two")
    state = {key.removeprefix(COMPILED_PREFIX): value for key, value in content.items()}
    for name, published in PUBLISHED.items():
        with torch.device("meta"):
            expected = {key: value.shape for key, value in UNet(published.config).state_dict().items()}
        if expected == {key: value.shape for key, value in state.items()}:
            encoder = UNet(published.config)
            encoder.load_state_dict(state, strict=True)
            return encoder.eval(), {"architecture": name}, False
    raise ModelError(f"{file}: a state dict of another network; accepted are those of {', '.join(PUBLISHED)}")


def fetch(name: str, sha256: str | None = None) -> Path:
    """Download a published encoder, check its digest, install it; returns its file.

    ``sha256`` takes the hub's newest file instead of the pinned revision's, and says what it must be. Raises
    UsageError for another name or a malformed digest, ResourceError offline, ModelError if the digest differs.
    """
    if name not in PUBLISHED:
        raise UsageError(
            f"encoder {name!r}: known on the hub are {', '.join(PUBLISHED)}; add another with: encoders add"
        )
    published = PUBLISHED[name]
    if sha256 is not None:
        published = replace(published, revision="main", sha256=sha256.lower())
    pinned = published.sha256
    if len(pinned) != 64 or not set(pinned) <= set("0123456789abcdef"):
        raise UsageError(
            f"--sha256 {sha256}: not a digest; give the 64 digits that {HUB}/{published.repository} shows for "
            f"{published.file}, or leave it out for the pinned one"
        )
    make_folder(folder())
    with atomic_path(folder() / f".{published.file}") as temporary:
        _download(name, published, temporary)
        found = sha256_of([temporary])
        if found != pinned:
            raise ModelError(f"{published.url}: sha256 is {found}, pinned is {pinned}; it was not installed")
        installed_at = add(temporary, name, published.url)
    (folder() / f".{published.file}").unlink(missing_ok=True)
    return installed_at


def _download(name: str, published: Published, to: Path) -> None:
    try:
        with urllib.request.urlopen(published.url, timeout=60) as answer, to.open("wb") as file:  # noqa: S310
            while block := answer.read(BLOCK):
                file.write(block)
    except (urllib.error.URLError, http.client.HTTPException, TimeoutError, ConnectionError, ValueError) as error:
        raise ResourceError(
            f"cannot reach {published.url} ({getattr(error, 'reason', error)}); on a machine with internet download "
            f"that file, copy it here, and run: dropgen-rt encoders add {published.file} --name {name}"
        ) from error

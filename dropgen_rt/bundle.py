"""A model and its engines as one signed file, to carry to an offline workstation.

The file is a zip whose entries are stored, not compressed: ``bundle.json`` (the list of the other entries with sizes
and digests), ``signature.json`` (an Ed25519 signature of bundle.json and the public key), ``model.onnx`` and
``engines/<digest>``. Import reads named entries into memory after checking list, sizes and digests; it never
extracts by an entry's own path, so paths, links and compression bombs have nothing to act on.
"""

import base64
import hashlib
import json
import zipfile
from collections.abc import Iterator
from pathlib import Path

from dropgen_rt import signing
from dropgen_rt.atomic import atomic_path
from dropgen_rt.engine_files import EngineRecord, read_content, records_of, save, sweep
from dropgen_rt.errors import EngineError, MissingModelError, ModelError, UsageError
from dropgen_rt.model import model_of
from dropgen_rt.store import check_name, install, lock, open_named

SCHEMA = "1.0"
LIST, SIGNATURE, MODEL = "bundle.json", "signature.json", "model.onnx"
MAX_LIST_BYTES = 1_000_000
MAX_BYTES = 8_000_000_000
_EPOCH = (1980, 1, 1, 0, 0, 0)  # entries carry no time, so that the same model gives the same list


def write(name: str, out: Path) -> str:
    """Write model ``name`` and its engines to ``out``; returns the fingerprint of the key that signed it.

    Raises ModelError for a model or engine that was altered, OutputError.
    """
    model = open_named(check_name(name))
    engines = list(records_of(model))
    contents = {MODEL: model.content} | {f"engines/{item.engine_sha256}": read_content(item) for item in engines}
    listing = {
        "schema": SCHEMA,
        "name": name,
        "entries": {entry: {"bytes": len(data), "sha256": _sha256(data)} for entry, data in contents.items()},
        "records": [record.to_json() for record in engines],
    }
    text = json.dumps(listing, sort_keys=True).encode()
    public = signing.own_public_key()
    signature = {"public_key": base64.b64encode(public).decode("ascii"), "signature": signing.sign(text)}
    contents = {LIST: text, SIGNATURE: json.dumps(signature).encode()} | contents
    with atomic_path(out) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as archive:
        for entry, data in contents.items():
            archive.writestr(zipfile.ZipInfo(entry, _EPOCH), data)
    return signing.fingerprint(public)


def read(path: Path, name: str | None, trust: str | None, make_default: bool) -> Iterator[str]:
    """Install what a bundle holds; yields lines to print.

    ``trust`` is the fingerprint of a key to trust from now on. Raises MissingModelError, ModelError for a bundle that
    is damaged, altered or not a bundle, EngineError for a key that is not trusted; then nothing is installed.
    """
    if not path.is_file():
        raise MissingModelError(f"{path}: no such bundle; give a file that dropgen-rt models export wrote")
    try:
        with zipfile.ZipFile(path) as archive:
            text, public = _signed_list(path, archive)
            _require_trust(path, public, trust)
            listing = json.loads(text)
            if str(listing["schema"]).split(".")[0] != SCHEMA.split(".")[0]:
                raise ModelError(f"{path}: bundle schema {listing['schema']}, this version reads {SCHEMA}")
            contents = _contents(path, archive, listing["entries"])
        found = [EngineRecord.from_json(item) for item in listing["records"]]
        chosen = _name_in(path, str(listing["name"])) if name is None else check_name(name)
    except (zipfile.BadZipFile, zipfile.LargeZipFile, NotImplementedError, RuntimeError, EOFError,
            ValueError, KeyError, TypeError, AttributeError) as error:  # fmt: skip
        raise ModelError(f"{path}: not a whole bundle ({error}); export it again") from error
    model = model_of(path, contents[MODEL])
    if any(record.model_sha256 != model.sha256 for record in found):
        raise ModelError(f"{path}: an engine in it belongs to another model; export it again")
    engines = [(record, contents.get(f"engines/{record.engine_sha256}", b"")) for record in found]
    if any(_sha256(content) != record.engine_sha256 for record, content in engines):
        raise ModelError(f"{path}: an engine in it is not the one that its record names; export it again")
    if trust is not None:
        signing.trust(public)
    with lock():
        for record, content in engines:
            save(record, content)
        entry = install(model, chosen, make_default, tuple(record.key for record in found))
        sweep()
    yield from (f"engine {record.engine} {record.precision}, built {record.built_utc}" for record in found)
    yield f"installed {chosen} in {entry}" + (", the default model" if make_default else "")


def _name_in(path: Path, name: str) -> str:
    try:
        return check_name(name)
    except UsageError as error:  # the bundle's fault, not the command line's
        raise ModelError(f"{path}: it gives the {error}; choose another with --name") from error


def _signed_list(path: Path, archive: zipfile.ZipFile) -> tuple[bytes, bytes]:
    """The list and the public key that signed it."""
    for entry in (LIST, SIGNATURE):
        if archive.getinfo(entry).file_size > MAX_LIST_BYTES:
            raise ModelError(f"{path}: {entry} is larger than {MAX_LIST_BYTES} bytes; this is no bundle")
    text, outer = _stored(archive, LIST), json.loads(_stored(archive, SIGNATURE))
    public = base64.b64decode(outer["public_key"], validate=True)
    if not signing.is_signed(text, str(outer["signature"]), public):
        raise ModelError(f"{path}: its signature does not fit its content; it was altered, export it again")
    return text, public


def _require_trust(path: Path, public: bytes, trust: str | None) -> None:
    fingerprint = signing.fingerprint(public)
    if trust is not None and trust != fingerprint:
        raise EngineError(f"{path}: signed by {fingerprint}, not by {trust}; ask its sender which is right")
    if trust is None and not signing.is_trusted(public):
        raise EngineError(
            f"{path}: signed by {fingerprint}, which is not trusted here; compare it with what models export printed, "
            f"then add --trust {fingerprint}"
        )


def _contents(path: Path, archive: zipfile.ZipFile, entries: dict[str, dict[str, object]]) -> dict[str, bytes]:
    """All listed entries, each with its listed size and digest; anything not listed is refused."""
    names = [item.filename for item in archive.infolist()]
    if sorted(names) != sorted([LIST, SIGNATURE, *entries]):
        raise ModelError(f"{path}: it holds other entries than its list names; export it again")
    if sum(int(str(entry["bytes"])) for entry in entries.values()) > MAX_BYTES:
        raise ModelError(f"{path}: more than {MAX_BYTES} bytes; this is no bundle")
    contents = {}
    for name, entry in entries.items():
        if archive.getinfo(name).file_size != entry["bytes"]:
            raise ModelError(f"{path}: {name} has another size than its list says; export it again")
        contents[name] = _stored(archive, name)
        if _sha256(contents[name]) != entry["sha256"]:
            raise ModelError(f"{path}: {name} has another digest than its list says; export it again")
    return contents


def _stored(archive: zipfile.ZipFile, name: str) -> bytes:
    info = archive.getinfo(name)
    if info.compress_type != zipfile.ZIP_STORED or info.compress_size != info.file_size:
        raise ModelError(f"{archive.filename}: {name} is compressed, which no bundle is; export it again")
    return archive.read(info)


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()

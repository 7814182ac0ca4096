"""Engines in the store: each a file named by its content, and a signed record of how it came about.

An engine is loaded only if this installation signed its record and its bytes have the record's digest. The record's
key is the digest of everything that can change the answer, so an engine that no longer fits is never taken for one
that does: it is built again from its model where that can be done here, and otherwise refused with the reason.
"""

import hashlib
import json
import logging
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from dropgen_rt import signing
from dropgen_rt.engines.contract import Engine, Kind, Precision
from dropgen_rt.errors import EngineError, ModelError, VerificationError
from dropgen_rt.gate import GateReport
from dropgen_rt.golden import Golden
from dropgen_rt.model import Model
from dropgen_rt.store import (
    cache_folder,
    engine_keys,
    home,
    lock,
    named_engines,
    named_objects,
    object_path,
    put_object,
    replace_engine,
    write_text,
)
from dropgen_rt.typed_fields import parse_json, read_fields

RECORD_SCHEMA = "1.0"
# The fields that can change the answer, and so make the key.
_KEY_FIELDS = ("engine", "version", "precision", "model_sha256", "window", "batch", "arch", "host", "flags")


@dataclass(frozen=True)
class EngineRecord:
    """``arch``: the GPU capabilities it was built for, () on a CPU. ``host``: what of this machine it depends on.

    ``batch`` is (smallest, usual, largest). ``gate`` is a GateReport's figures, None before its first load on a GPU.
    """

    engine: Kind
    version: str
    precision: Precision
    device: str
    model_sha256: str
    engine_sha256: str
    bytes: int
    window: tuple[int, int, int]
    batch: tuple[int, int, int]
    arch: tuple[str, ...] = ()
    host: dict[str, str] = field(default_factory=dict)
    flags: dict[str, str] = field(default_factory=dict)
    gate: dict[str, Any] | None = None
    built_utc: str = ""
    schema: str = RECORD_SCHEMA

    @property
    def key(self) -> str:
        values = {name: getattr(self, name) for name in _KEY_FIELDS}
        return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()

    @property
    def path(self) -> Path:
        return record_path(self.key)

    def to_json(self) -> str:
        return json.dumps(asdict(self), sort_keys=True)

    @staticmethod
    def from_json(text: str) -> "EngineRecord":
        """Raises ValueError for a text that is no record."""
        record = read_fields(EngineRecord, parse_json(text), unknown="ignore")
        if record.gate is not None:
            read_fields(GateReport, record.gate, "gate", unknown="ignore")
        return record


def record_path(key: str) -> Path:
    return home() / "engines" / f"{key}.json"


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def save(record: EngineRecord, content: bytes) -> None:
    """Keep an engine and its signed record; called under the lock, with the change of names that it belongs to.

    Raises OutputError.
    """
    assert hashlib.sha256(content).hexdigest() == record.engine_sha256
    put_object(content)
    save_record(record)


def sweep() -> list[EngineRecord]:
    """Delete records that no name lists, and objects that no name and no record stands for; called under the lock.

    Returns the records that went. A build that came out with other bytes under the same key leaves an object behind.
    """
    try:
        keys, wanted = named_engines(), named_objects()
    except ModelError:  # a name's entry is damaged: keep all, so that nothing is lost with it
        return []
    known, _ = readable_records()
    for path in _record_paths():
        if path.stem not in keys:
            path.unlink(missing_ok=True)
    if all(key in known for key in keys):  # what an unreadable record stands for cannot be told
        wanted |= {known[key].engine_sha256 for key in keys}
        for path in (home() / "objects").glob("*"):
            if path.name not in wanted:
                path.unlink(missing_ok=True)
    return [record for key, record in known.items() if key not in keys]


def supersede(old: EngineRecord, new: EngineRecord, content: bytes) -> None:
    """Keep ``new`` for every name that has ``old``. Raises OutputError."""
    with lock():
        save(new, content)
        replace_engine(old.key, new.key)
        sweep()


def save_record(record: EngineRecord) -> None:
    text = record.to_json()
    write_text(record.path, json.dumps({"record": text, "signature": signing.sign(text.encode())}) + "\n")


def _record_paths() -> list[Path]:
    return sorted((home() / "engines").glob("*.json"))


def records(model_sha256: str | None = None) -> list[EngineRecord]:
    """This installation's records, of one model or of all, newest first.

    Raises EngineError for a record that it did not sign.
    """
    paths = _record_paths()
    found = [read_record(path) for path in paths if model_sha256 is None or _is_about(path, model_sha256)]
    return sorted(found, key=lambda record: record.built_utc, reverse=True)


def records_of(model: Model) -> Iterator[EngineRecord]:
    """The engines that ``model`` may use, the preferred one first: those of the name by which it was opened, or, for a
    file, all that this model has under any name, newest first. Each is read when its turn comes, and raises EngineError
    where it is damaged or foreign."""
    if not model.name:
        yield from records(model.sha256)
        return
    for path in map(record_path, engine_keys(model.name)):
        if path.is_file():
            yield read_record(path)


def readable_records() -> tuple[dict[str, EngineRecord], list[EngineError]]:
    """All records by their keys, and what is wrong with those that cannot be read."""
    found, wrong = {}, []
    for path in _record_paths():
        try:
            found[path.stem] = read_record(path)
        except EngineError as error:
            wrong.append(error)
    return found, wrong


def _is_about(path: Path, model_sha256: str) -> bool:
    """Whether a record claims to be of this model; one that claims nothing is left alone, and said to be there."""
    try:
        claimed = json.loads(json.loads(path.read_text(encoding="utf-8"))["record"])["model_sha256"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        logging.getLogger("dropgen_rt").warning("%s: not an engine's record; remove it", path)
        return False
    return bool(claimed == model_sha256)


def read_record(path: Path) -> EngineRecord:
    """Raises EngineError for a record that this installation did not sign, or that lies under another's key."""
    try:
        outer = json.loads(path.read_text(encoding="utf-8"))
        text, signature = str(outer["record"]), str(outer["signature"])
        genuine = signing.is_own(text.encode(), signature)
        record = EngineRecord.from_json(text) if genuine else None
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise EngineError(f"{path}: not an engine's record ({error}); remove it and build the engine again") from error
    if record is None or record.path != path:
        raise EngineError(
            f"{path}: this installation did not write this engine's record; remove it and build the engine again, or "
            "take it in with dropgen-rt models import"
        )
    return record


def read_content(record: EngineRecord) -> bytes:
    """The engine's bytes, proved to be the ones recorded. Raises EngineError before anything loads them."""
    path = object_path(record.engine_sha256)
    if not path.is_file():
        raise EngineError(f"{path}: the {record.engine} engine's file is gone; build it again with build-engine")
    content = path.read_bytes()
    if hashlib.sha256(content).hexdigest() != record.engine_sha256:
        raise EngineError(
            f"{path}: the {record.engine} engine was altered after it was built and is not loaded; remove the file and "
            "build it again with build-engine"
        )
    return content


def open_installed(model: Model, device: str, threads: int | None = None) -> Engine | None:
    """The engine that this model prefers on ``device``, opened; None if none is installed for it.

    Raises EngineError for one that was altered, VerificationError for one that fails its first gate here.
    """
    for record in records_of(model):
        place = _place(record, device)
        if place is not None and record.window == model.manifest.window:
            return open_record(model, record, place, threads)
    return None


def _place(record: EngineRecord, device: str) -> str | None:
    """Where this engine can run for a wish of ``device``; None where it cannot."""
    if record.device == "cpu":
        return "cpu" if device in ("auto", "cpu") else None
    if device == "cpu":
        return None
    from dropgen_rt.survey import library_version, survey

    index = int(device.partition(":")[2] or 0)
    gpus = survey().gpus
    if index >= len(gpus) or library_version(record.engine) is None:
        return None
    return f"cuda:{index}" if not record.arch or gpus[index].capability in record.arch else None


def open_record(model: Model, record: EngineRecord, device: str, threads: int | None = None) -> Engine:
    """Open one engine of the store; build it again first if its library or this machine changed since."""
    from dropgen_rt.build import current, rebuild, threads_of
    from dropgen_rt.engines.choose import create

    content = read_content(record)
    wanted = current(record, device)
    if wanted.key != record.key:
        return rebuild(model, record, wanted, device, threads)
    try:
        engine = create(
            model, record.engine, record.precision, device, threads=threads or threads_of(record), compiled=content,
            runtime_cache=runtime_cache(record),
        )  # fmt: skip
    except EngineError:
        return rebuild(model, record, wanted, device, threads)
    if record.gate is None:
        _first_gate(engine, model, record)
    return engine


def runtime_cache(record: EngineRecord) -> Path | None:
    """Where TensorRT for RTX keeps the kernels that it compiled for this engine on this GPU."""
    folder = cache_folder()
    return None if folder is None else folder / f"{record.key}.runtime"


def _first_gate(engine: Engine, model: Model, record: EngineRecord) -> None:
    """The gate that an engine built ahead of time passes at its first load; then its record says so."""
    from dropgen_rt.gate import judge
    from dropgen_rt.verify import golden_of

    golden: Golden = golden_of(model)
    report = judge(engine, golden, model.manifest)
    if not report.passed:
        engine.close()
        raise VerificationError(
            f"{record.engine} {record.precision} of {model.manifest.name}: {'; '.join(report.failures)}; build it in "
            "another precision"
        )
    with lock():
        save_record(replace(record, gate=report.to_dict()))

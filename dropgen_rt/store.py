"""Models by name: those installed in the user's data folder, and the demo model inside the package.

    default                 the default model's name
    models/<name>.json      which model a name stands for, and its engines, the preferred one first
    objects/<sha256>        model files and engine files, named by their content
    engines/<key>.json      an engine's signed record (dropgen_rt.engine_files)
    keys/                   this installation's signing key and those it trusts (dropgen_rt.signing)
    cache/                  safe to delete

Files appear by rename; whoever changes names does so under one lock, so that two builds at once are safe.
"""

import hashlib
import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path

import platformdirs

from dropgen_rt.atomic import atomic_path, output_error
from dropgen_rt.errors import MissingModelError, ModelError, OutputError, ResourceError, UsageError
from dropgen_rt.model import Model, read_model

# The model that the package carries; it is the default until a build-engine names another.
DEMO_MODEL = "brain9"

HOME_VARIABLE = "DROPGEN_RT_HOME"
"""Environment variable that moves the data folder from its place under the user's home."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_DIGEST = re.compile("[0-9a-f]{64}")
LOCK_SECONDS = 60


def home() -> Path:
    """The user's data folder; not made here."""
    given = os.environ.get(HOME_VARIABLE)
    return Path(given) if given else platformdirs.user_data_path("dropgen-rt")


def cache_folder() -> Path | None:
    """Where compiled networks are kept between runs, safe to delete; None if it cannot be made or written to."""
    folder = home() / "cache"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return None
    return folder if os.access(folder, os.W_OK) else None


@contextmanager
def lock() -> Iterator[None]:
    """Held while names and records change. Raises ResourceError if another process keeps it for a minute, OutputError
    for a data folder that cannot be written to."""
    import filelock  # only who changes the store waits for it

    make_folder(home())
    try:
        with (home() / "lock").open("a"):  # filelock takes a lack of permission for another process that holds it
            pass
    except OSError as error:
        raise OutputError(f"{home()}: {_closed(error)}") from error
    try:
        with filelock.FileLock(home() / "lock", timeout=LOCK_SECONDS, is_singleton=True):
            yield
    except filelock.Timeout as error:
        raise ResourceError(
            f"{home()}: another dropgen-rt has been changing models for {LOCK_SECONDS} s; wait for it, or end it"
        ) from error


def check_home() -> None:
    """Raise OutputError if nothing could be installed, before work for it begins."""
    with lock():
        pass


def make_folder(folder: Path) -> Path:
    """``folder``, made if need be. Raises OutputError."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise output_error(folder, error) from error
    return folder


def write_text(path: Path, text: str) -> None:
    make_folder(path.parent)
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def object_path(sha256: str) -> Path:
    return home() / "objects" / sha256


def put_object(content: bytes) -> str:
    """Store bytes under their digest, which is returned; what lies there altered is replaced. Raises OutputError."""
    sha256 = hashlib.sha256(content).hexdigest()
    path = object_path(sha256)
    make_folder(path.parent)
    if not (path.is_file() and path.read_bytes() == content):
        with atomic_path(path) as temporary:
            temporary.write_bytes(content)
    return sha256


def check_name(name: str, kind: str = "model") -> str:
    """A model's name is also a file's. Raises UsageError for anything that could leave the folder."""
    if not _NAME.fullmatch(name):
        raise UsageError(f"{kind} name {name!r}: accepted are letters, digits, '.', '_' and '-', 64 at most")
    return name


def find_model(name_or_path: str | None) -> Path:
    """The file of a model given by path, by name, or not at all (the default).

    Raises MissingModelError, or ModelError for a data folder without permission.
    """
    try:
        if name_or_path is None:
            name_or_path = default_name()
        if _is_path(name_or_path):
            return Path(name_or_path)
        entry = _entry_path(check_name(name_or_path))
        place = object_path(_read_entry(entry).model_sha256) if entry.is_file() else _packaged(name_or_path)
        if place.is_file():
            return place
    except OSError as error:
        raise ModelError(f"{home()}: {_closed(error)}") from error
    file = f"; for the file of that name give ./{name_or_path}" if Path(name_or_path).is_file() else ""
    raise MissingModelError(f"no model named {name_or_path!r}; installed are: {', '.join(installed())}{file}")


def _closed(error: OSError) -> str:
    return f"{error.strerror or error}; check the permissions of this data folder, or set {HOME_VARIABLE}"


def _is_path(name_or_path: str | None) -> bool:
    return name_or_path is not None and ("/" in name_or_path or name_or_path.endswith(".onnx"))


def _entry_path(name: str) -> Path:
    return home() / "models" / f"{name}.json"


@dataclass(frozen=True)
class _Entry:
    """``engines`` are keys of engine records, the preferred one first; other names may list the same ones."""

    model_sha256: str
    engines: tuple[str, ...] = ()

    def to_json(self, name: str) -> str:
        return json.dumps({"schema": "1.0", "name": name} | vars(self)) + "\n"


def _read_entry(path: Path) -> _Entry:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        entry = _Entry(data["model_sha256"], tuple(data.get("engines", ())))
        whole = all(_DIGEST.fullmatch(item) for item in (entry.model_sha256, *entry.engines))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        whole = False
    if not whole:
        raise ModelError(f"{path}: not a model's entry; install the model again with build-engine")
    return entry


def _packaged(name: str) -> Path:
    return Path(str(resources.files("dropgen_rt.models"))) / f"{name}.onnx"


def default_name() -> str:
    """The name that ``infer`` uses when none is given."""
    marker = home() / "default"
    return marker.read_text(encoding="utf-8", errors="replace").strip() if marker.is_file() else DEMO_MODEL


def installed() -> list[str]:
    """Names of all models, the packaged one included, sorted."""
    packaged = [DEMO_MODEL] if _packaged(DEMO_MODEL).is_file() else []
    return sorted({entry.stem for entry in _entries()} | set(packaged))


def _entries() -> list[Path]:
    return sorted(path for path in (home() / "models").glob("*.json") if _NAME.fullmatch(path.stem))


def superseded(name: str) -> bool:
    """Whether the package carries other weights than ``name`` stands for, as after an upgrade. Raises ModelError."""
    entry, packaged = _entry_path(name), _packaged(name)
    if not (entry.is_file() and packaged.is_file()):
        return False
    return hashlib.sha256(packaged.read_bytes()).hexdigest() != _read_entry(entry).model_sha256


def named_objects() -> set[str]:
    """Digests of the models that names stand for. Raises ModelError for a damaged entry."""
    return {_read_entry(path).model_sha256 for path in _entries()}


def named_engines() -> set[str]:
    """Keys of the engines that names have. Raises ModelError for a damaged entry."""
    return {key for path in _entries() for key in _read_entry(path).engines}


def engine_keys(name: str) -> tuple[str, ...]:
    """The engines of one name, the preferred one first; none for the demo model until one is built for it."""
    path = _entry_path(name)
    return _read_entry(path).engines if path.is_file() else ()


def install(model: Model, name: str, make_default: bool, engines: tuple[str, ...] = ()) -> Path:
    """Keep a model in the data folder under ``name``, and put the keys ``engines`` before those that the name has for
    the same model; returns its entry. Other names keep their engines. Raises OutputError, UsageError."""
    path = _entry_path(check_name(name))
    make_folder(path.parent)
    with lock():
        put_object(model.content)
        known = _engines_for(path, model.sha256)
        entry = _Entry(model.sha256, (*engines, *(key for key in known if key not in engines)))
        write_text(path, entry.to_json(name))
        if make_default:
            write_text(home() / "default", name + "\n")
    return path


def _engines_for(path: Path, model_sha256: str) -> tuple[str, ...]:
    """What an entry that is about to be replaced lists for this model; one that is damaged lists nothing."""
    try:
        entry = _read_entry(path) if path.is_file() else _Entry("")
    except ModelError:
        return ()
    return entry.engines if entry.model_sha256 == model_sha256 else ()


def replace_engine(old: str, new: str) -> None:
    """Every name that has the engine ``old`` has ``new`` in its place; called under the lock."""
    for path in _entries():
        entry = _read_entry(path)
        if old in entry.engines:
            keys = dict.fromkeys(new if key == old else key for key in entry.engines)
            write_text(path, replace(entry, engines=tuple(keys)).to_json(path.stem))


def make_default(name: str) -> None:
    """``infer`` uses this model from now on. Raises MissingModelError."""
    open_named(check_name(name))
    with lock():
        write_text(home() / "default", name + "\n")


def remove(name: str) -> list[str]:
    """Forget a model, its file and its engines unless another name stands for them too; what went, in words.

    A default of this name goes back to the demo model. Raises MissingModelError, or UsageError for the demo model.
    """
    from dropgen_rt.engine_files import sweep

    entry = _entry_path(check_name(name))
    if not entry.is_file():
        if name == DEMO_MODEL:
            raise UsageError(f"{name} is part of the package; it goes with pip uninstall dropgen-rt")
        raise MissingModelError(f"no model named {name!r} to remove; installed are: {', '.join(installed())}")
    gone = [f"model {name}"]
    with lock():
        entry.unlink()
        if (home() / "default").is_file() and default_name() == name:
            (home() / "default").unlink()
            gone.append(f"the default, which is now {default_name()}")
        gone += [f"engine {record.engine} {record.precision}" for record in sweep()]
    return gone


def open_named(name_or_path: str | None) -> Model:
    """Find and read a model. Raises MissingModelError, or ModelError, also for one that was altered in the store."""
    path = find_model(name_or_path)
    model = read_model(path)
    if path.parent == home() / "objects" and model.sha256 != path.name:
        raise ModelError(f"{path}: the file was altered after it was installed; install the model again")
    return model if _is_path(name_or_path) else replace(model, name=name_or_path or default_name())

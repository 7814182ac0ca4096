"""Models by name: those installed in the user's data folder, and the demo model inside the package."""

import os
import re
from importlib import resources
from pathlib import Path

import platformdirs

from dropgen_rt.atomic import atomic_path, output_error
from dropgen_rt.errors import MissingModelError, ModelError, UsageError
from dropgen_rt.model import Model, read_model

# The model that the package carries; it is the default until a build-engine names another.
DEMO_MODEL = "brain9"

HOME_VARIABLE = "DROPGEN_RT_HOME"
"""Environment variable that moves the data folder from its place under the user's home."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


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


def check_name(name: str) -> str:
    """A model's name is also a folder's. Raises UsageError for anything that could leave the folder."""
    if not _NAME.fullmatch(name):
        raise UsageError(f"model name {name!r}: accepted are letters, digits, '.', '_' and '-', 64 at most")
    return name


def find_model(name_or_path: str | None) -> Path:
    """The file of a model given by path, by name, or not at all (the default).

    Raises MissingModelError, or ModelError for a data folder without permission.
    """
    try:
        if name_or_path is None:
            name_or_path = default_name()
        if "/" in name_or_path or name_or_path.endswith(".onnx"):
            return Path(name_or_path)
        folder = home() / "models" / check_name(name_or_path)
        for place in (folder / "model.onnx", _packaged(name_or_path)):
            if place.is_file():
                return place
    except OSError as error:
        raise ModelError(
            f"{home()}: {error.strerror or error}; check the permissions of this data folder, or set {HOME_VARIABLE}"
        ) from error
    raise MissingModelError(f"no model named {name_or_path!r}; installed are: {', '.join(installed())}")


def _packaged(name: str) -> Path:
    return Path(str(resources.files("dropgen_rt.models"))) / f"{name}.onnx"


def default_name() -> str:
    """The name that ``infer`` uses when none is given."""
    marker = home() / "default"
    return marker.read_text(encoding="utf-8").strip() if marker.is_file() else DEMO_MODEL


def installed() -> list[str]:
    """Names of all models, the packaged one included, sorted."""
    folders = (home() / "models").glob("*/model.onnx")
    packaged = [DEMO_MODEL] if _packaged(DEMO_MODEL).is_file() else []
    return sorted({folder.parent.name for folder in folders} | set(packaged))


def install(model: Model, name: str, make_default: bool) -> Path:
    """Copy a model into the data folder under ``name``; returns its folder. Raises OutputError, UsageError."""
    folder = home() / "models" / check_name(name)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise output_error(folder, error) from error
    with atomic_path(folder / "model.onnx") as temporary:
        temporary.write_bytes(model.content)
    if make_default:
        with atomic_path(home() / "default") as temporary:
            temporary.write_text(name + "\n", encoding="utf-8")
    return folder


def open_named(name_or_path: str | None) -> Model:
    """Find and read a model. Raises MissingModelError or ModelError."""
    return read_model(find_model(name_or_path))

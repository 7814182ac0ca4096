"""Options as text: TOML files in and out, and the assignments of ``--set``."""

import json
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from dropgen_rt.errors import MissingInputError, UsageError
from dropgen_rt.words import in_place_of


def merge(into: dict[str, Any], layer: Mapping[str, Any]) -> None:
    """Lay options over those of ``into``, nested tables too. Raises UsageError for a part of what is a list there."""
    for key, value in layer.items():
        if isinstance(value, Mapping):
            before = into.get(key)
            if isinstance(before, list):
                raise UsageError(f"{key}: a list here, of which no part is set by name; give it whole, {key}=[…]")
            inner = dict(before) if isinstance(before, Mapping) else {}
            merge(inner, value)
            into[key] = inner
        else:
            into[key] = value


def read_toml(path: Path) -> dict[str, Any]:
    """The options of a TOML file. Raises MissingInputError or UsageError."""
    if not path.is_file():
        raise MissingInputError(f"{path}: {in_place_of(path)}; give a config.toml, such as a run folder holds")
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: not TOML ({error})") from error


def parse_assignments(assignments: Iterable[str]) -> dict[str, Any]:
    """``["augment.noise=0.1"]`` as nested options; a value is TOML, a bare word a string. Raises UsageError."""
    options: dict[str, Any] = {}
    for assignment in assignments:
        key, equals, text = assignment.partition("=")
        if not equals or not all(part.isidentifier() for part in key.strip().split(".")):
            raise UsageError(f"--set {assignment}: accepted is NAME=VALUE, such as augment.noise=0.1")
        try:
            value = tomllib.loads(f"value = {text}")["value"]
        except tomllib.TOMLDecodeError:
            value = text.strip()
        for part in reversed(key.strip().split(".")):
            value = {part: value}
        merge(options, value)
    return options


def to_toml(table: Mapping[str, Any]) -> str:
    """Numbers, texts, switches and lists of them, and one level of tables, in lists too: all that a config holds."""
    lines = [f"{key} = {to_toml_value(value)}" for key, value in table.items() if not isinstance(value, Mapping)]
    for key, value in table.items():
        if isinstance(value, Mapping):
            lines += ["", f"[{key}]", *(f"{inner} = {to_toml_value(item)}" for inner, item in value.items())]
    return "\n".join(lines) + "\n"


def to_toml_value(value: object) -> str:
    """One value, of one line."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False)  # of the escapes that TOML shares
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(to_toml_value(item) for item in value) + "]"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key} = {to_toml_value(item)}" for key, item in value.items()) + "}"
    return repr(value)

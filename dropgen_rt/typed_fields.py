"""Plain data, as JSON, TOML or a checkpoint hold it, into frozen dataclasses: each value against its annotation.

Whatever a file says of itself passes here before anything uses it, so that a text where a number belongs is refused
in one line that names the field, and not met as an error somewhere later.
"""

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import MISSING, fields, is_dataclass
from types import NoneType, UnionType
from typing import TYPE_CHECKING, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

# More than any text, number or nesting of ours has, and little enough to print and to walk.
MAX_CHARACTERS, MAX_WHOLE_NUMBER, MAX_DEPTH = 10_000, 2**53, 32

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Kind = TypeVar("Kind", bound="DataclassInstance")


class FieldError(ValueError):
    """A value that its field cannot have; one line that names the field."""


def parse_json(text: str) -> Any:
    """``json.loads``, with ValueError for nesting that it gives up on."""
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("it is nested too deep") from error


def read_fields(kind: type[Kind], data: object, where: str = "", *, unknown: Literal["ignore", "refuse"]) -> Kind:
    """``data`` as the dataclass ``kind``; ``where`` names it in messages.

    Fields that ``kind`` does not have are ignored, as from a newer version, or refused, as from a slip of the pen.
    Raises FieldError, and what ``kind`` itself raises for values that do not fit each other.
    """
    if not isinstance(data, Mapping):
        raise _no(where, data, "a table of fields")
    hints = get_type_hints(kind)
    known = {item.name: item for item in fields(kind)}
    strangers = [name for name in data if name not in known]
    if strangers and unknown == "refuse":
        raise FieldError(f"{_join(where, strangers[0])}: no such field; accepted are {', '.join(known)}")
    for name, item in known.items():
        if name not in data and item.default is MISSING and item.default_factory is MISSING:
            raise FieldError(f"{_join(where, name)}: is missing")
    return kind(**{
        name: _value(hints[name], data[name], _join(where, name), unknown) for name in known if name in data
    })  # fmt: skip


def _value(hint: Any, value: object, where: str, unknown: Literal["ignore", "refuse"]) -> Any:
    origin, arguments = get_origin(hint), get_args(hint)
    if hint in _PLAIN:
        return _PLAIN[hint](value, where)
    if origin is Literal:
        if not any(value == item and type(value) is type(item) for item in arguments):
            raise _no(where, value, f"one of {', '.join(map(repr, arguments))}")
        return value
    if origin in (Union, UnionType):  # of something and None
        (inner,) = (item for item in arguments if item is not NoneType)
        return None if value is None else _value(inner, value, where, unknown)
    if origin is tuple:
        return _tuple(arguments, value, where, unknown)
    if origin is dict:
        if not isinstance(value, Mapping):
            raise _no(where, value, "a table")
        return {_text(name, where): _value(arguments[1], item, _join(where, name), unknown)
                for name, item in value.items()}  # fmt: skip
    assert isinstance(hint, type) and is_dataclass(hint), hint
    return read_fields(hint, value, where, unknown=unknown)


def _tuple(arguments: tuple[Any, ...], value: object, where: str, unknown: Literal["ignore", "refuse"]) -> Any:
    if isinstance(value, Mapping) and getattr(arguments[0], "ONE_STANDS_FOR_ALL", False):
        return (_value(arguments[0], value, where, unknown),)
    if not isinstance(value, list | tuple):
        raise _no(where, value, "a list")
    kinds = (arguments[0],) * len(value) if arguments[-1] is Ellipsis else arguments
    if len(value) != len(kinds):
        raise _no(where, value, f"a list of {len(kinds)}")
    pairs = enumerate(zip(kinds, value, strict=True))
    return tuple(_value(kind, item, f"{where}[{place}]", unknown) for place, (kind, item) in pairs)


def is_line(text: str) -> bool:
    """Whether a text is of one line, of characters that print, and not too long."""
    return text.isprintable() and len(text) <= MAX_CHARACTERS


def _text(value: object, where: str) -> str:
    if not isinstance(value, str) or not is_line(value):
        raise _no(where, value, f"a text of one line, of {MAX_CHARACTERS} characters at most")
    return value


def _whole(value: object, where: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or abs(value) > MAX_WHOLE_NUMBER:
        raise _no(where, value, "a whole number")
    return value


def _number(value: object, where: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < math.inf:
        raise _no(where, value, "a finite number")
    return float(value) if abs(value) < MAX_WHOLE_NUMBER else _large(value, where)


def _large(value: int | float, where: str) -> float:
    try:
        return float(value)
    except OverflowError as error:
        raise _no(where, value, "a finite number") from error


def _flag(value: object, where: str) -> bool:
    if not isinstance(value, bool):
        raise _no(where, value, "true or false")
    return value


def _anything(value: object, where: str, depth: int = MAX_DEPTH) -> Any:
    """Whatever JSON can hold, kept as it is."""
    if isinstance(value, Mapping | list | tuple):
        if not depth:
            raise FieldError(f"{where}: nested deeper than {MAX_DEPTH}")
        if isinstance(value, Mapping):
            return {_text(name, where): _anything(item, where, depth - 1) for name, item in value.items()}
        return [_anything(item, where, depth - 1) for item in value]
    if value is None or isinstance(value, str | bool | float):
        return value
    if not isinstance(value, int):
        raise _no(where, value, "a text, a number, true or false, a list or a table")
    return _whole(value, where)


_PLAIN: dict[Any, Callable[[object, str], Any]] = {
    str: _text, int: _whole, float: _number, bool: _flag, Any: _anything,
}  # fmt: skip


def _join(where: str, name: object) -> str:
    shown = name if isinstance(name, str) and name.isprintable() and len(name) < 100 else short(name)
    return f"{where}.{shown}" if where else str(shown)


def _no(where: str, value: object, wanted: str) -> FieldError:
    return FieldError(f"{where or 'it'}: {short(value)} is not {wanted}")


def short(value: object) -> str:
    """What was given, as a word or two: its text where that is short, else its kind."""
    if isinstance(value, str | int | float | bool | NoneType):
        with_quotes = repr(value) if not isinstance(value, int) or abs(value) < 10**30 else "a huge number"
        return with_quotes if len(with_quotes) <= 60 else f"{with_quotes[:57]}…"
    return f"a {type(value).__name__}" if not isinstance(value, Mapping) else "a table"

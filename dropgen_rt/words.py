"""How sizes, spacings and missing files are written in lines for people."""

from collections.abc import Iterable
from numbers import Integral
from pathlib import Path


def by(values: Iterable[float]) -> str:
    """``256 x 256 x 180`` or ``1 x 1 x 1.2``: whole numbers in full, others with up to six digits."""
    return " x ".join(str(value) if isinstance(value, Integral) else f"{value:g}" for value in values)


def in_place_of(path: Path) -> str:
    """What lies where a file should: a folder, or nothing."""
    return "a folder" if path.is_dir() else "no such file"

"""Headers grouped into series, and series into stacks: slices of one size, orientation and kind, one per place."""

import itertools
import math
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from dropgen_rt.dicom.gate import SAME_PLACE_MM, Plane

#: How far direction cosines of one stack may differ: 0.06 degrees; at 250 mm that is 0.25 mm.
SAME_DIRECTION = 1e-3

#: What can tell two slices in one place apart, in the order in which it is tried.
SPLIT_KEYS = (
    "stack", "time point", "echo number", "echo time", "inversion time", "flip angle", "b-value",
    "diffusion direction", "image type", "image kind", "trigger delay", "cardiac phase", "tube voltage", "energy",
    "kernel", "repetition time", "acquisition", "frame reference time", "frame time", "acquisition time",
    "content time",
    *(f"dimension {number}" for number in range(1, 10)),
)  # fmt: skip

_UID = re.compile(r"[0-9]+(\.[0-9]+)*")

#: Keys whose values are not for showing: a time is a date's half.
_UNSHOWN = ("acquisition time", "content time", "frame time", "diffusion direction", "image kind")


@dataclass(frozen=True, eq=False)
class Header:
    """One readable image file, as ``headers.read_header`` describes it; ``file`` counts from 0 in name order."""

    file: int
    fields: dict[str, Any] = field(repr=False)

    def __getattr__(self, name: str) -> Any:
        try:
            return self.fields[name]
        except KeyError:
            raise AttributeError(name) from None


@dataclass(frozen=True)
class Slice:
    """One image plane: a file, or a frame of one (``frame`` counts from 0)."""

    header: Header
    frame: int
    plane: Plane
    slope: float | None
    intercept: float | None
    keys: dict[str, str]


@dataclass(frozen=True)
class Stack:
    """Slices that may be a volume. ``distinct`` tells it from its series' other stacks, fit to be shown."""

    series: str
    slices: tuple[Slice, ...]
    distinct: str = ""
    index: int = 0  # from 1 where a series has several

    @property
    def header(self) -> Header:
        return self.slices[0].header

    @property
    def name(self) -> str:
        """What ``--series`` takes: the UID, and the stack's number where the series has several.

        Text that is no UID could be anything, a name too, and is not repeated.
        """
        uid = self.series if is_uid(self.series) else "invalid" if self.series else "none"
        return f"{uid}:{self.index}" if self.index else uid


def slices_of(header: Header) -> list[Slice]:
    """The planes of one file."""
    return [
        Slice(
            header,
            number,
            Plane(*(_tuple(plane[what]) for what in ("position", "orientation", "spacing"))),
            plane["slope"][0] if plane["slope"] else None,
            plane["intercept"][0] if plane["intercept"] else None,
            plane["keys"],
        )
        for number, plane in enumerate(header.slices)
    ]


def stacks_of(headers: Iterable[Header]) -> list[Stack]:
    """All stacks, series by series in the order of their first file."""
    by_series: dict[str, list[Header]] = {}
    for header in headers:
        by_series.setdefault(header.series, []).append(header)
    found: list[Stack] = []
    for series, members in by_series.items():
        parts = [part for group in _alike(members) for part in _apart(group)]
        numbered = len(parts) > 1
        found += [
            Stack(series, tuple(slices), distinct, index if numbered else 0)
            for index, (slices, distinct) in enumerate(parts, 1)
        ]
    return found


def is_uid(text: str) -> bool:
    """Whether this is a unique identifier (PS3.5 9.1): digits and dots, 64 at most."""
    return len(text) <= 64 and _UID.fullmatch(text) is not None


def is_localiser(header: Header) -> bool:
    """Whether ImageType calls it a planning image (its third value in CT and MR, PS3.3 C.8)."""
    return any(part.startswith(("LOCALIZER", "SCOUT", "TOPOGRAM", "SURVEY")) for part in header.image_type[2:])


def _alike(headers: Sequence[Header]) -> list[list[Slice]]:
    """Slices of one matrix, pixel kind and orientation, in the order of their first."""
    groups: list[tuple[Any, list[Slice]]] = []
    for plane in itertools.chain.from_iterable(map(slices_of, headers)):
        kind = _kind(plane)
        home = next((group for key, group in groups if key == kind and _parallel(group[0], plane)), None)
        if home is None:
            groups.append((kind, [plane]))
        else:
            home.append(plane)
    return [group for _, group in groups]


def _kind(plane: Slice) -> Any:
    header = plane.header
    spacing = None if plane.plane.spacing_mm is None else tuple(np.round(plane.plane.spacing_mm, 4).tolist())
    names = ("sop_class", "modality", "rows", "columns", "samples", "photometric", "enhanced")
    return (*(getattr(header, name) for name in names), is_localiser(header), spacing)


def _parallel(one: Slice, other: Slice) -> bool:
    first, second = one.plane.orientation, other.plane.orientation
    if first is None or second is None or len(first) != len(second):
        return first == second
    return max(abs(a - b) for a, b in zip(first, second, strict=True)) <= SAME_DIRECTION


def _apart(group: list[Slice]) -> list[tuple[list[Slice], str]]:
    """The group split so that no stack has two slices in one place, if anything in the headers tells them apart."""
    places = [_place(plane, index) for index, plane in enumerate(group)]
    repeats = max(Counter(places).values())
    if repeats < 2:
        return [(group, "")]
    # Splitting into many small heaps explains nothing: a clock reading is different in every slice.
    most = 2 * repeats
    values = {name: [plane.keys.get(name, "") for plane in group] for name in SPLIT_KEYS}
    varying = [name for name in SPLIT_KEYS if 1 < len(set(values[name])) <= most]
    for count in (1, 2, 3):
        for names in itertools.combinations(varying, count):
            keys = list(zip(*(values[name] for name in names), strict=True))
            if len(set(keys)) <= most and len(set(zip(keys, places, strict=True))) == len(group):
                parts: dict[tuple[str, ...], list[Slice]] = {}
                for key, plane in zip(keys, group, strict=True):
                    parts.setdefault(key, []).append(plane)
                return [
                    (part, _shown(names, key, number, len(parts)))
                    for number, (key, part) in enumerate(parts.items(), 1)
                ]
    return [(group, "")]


def _place(plane: Slice, index: int) -> tuple[int, ...]:
    """Equal for slices in one place; those without a position are all apart."""
    position = plane.plane.position
    if position is None or not all(map(math.isfinite, position)):
        return (index,)
    return (0, *(round(value / SAME_PLACE_MM) for value in position))


def _shown(names: tuple[str, ...], key: tuple[str, ...], number: int, parts: int) -> str:
    words = [
        f"{name} {value[:40]}"
        for name, value in zip(names, key, strict=True)
        if name not in _UNSHOWN
        and all(letter.isascii() and (letter.isalnum() or letter in ".-_\\ ") for letter in value)
    ]
    return ", ".join(words) or f"part {number} of {parts}"


def _tuple(values: list[float] | None) -> tuple[float, ...] | None:
    return None if values is None else tuple(values)

"""The labels of a ``dataset.json``: names, colours, and the source values that each label gathers."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dropgen_rt.errors import MissingInputError, ModelError, UnreadableInputError
from dropgen_rt.manifest import Label, SourceRule
from dropgen_rt.typed_fields import FieldError, is_line, parse_json, read_fields, short
from dropgen_rt.volume import MAX_LABEL
from dropgen_rt.words import in_place_of

# Distinguishable on grey images, so none is grey, and for colour-blind eyes (after Paul Tol's "bright" and "muted").
PALETTE = (
    (68, 119, 170), (204, 187, 68), (34, 136, 51), (170, 51, 119), (238, 102, 119),
    (102, 204, 238), (238, 119, 51), (136, 204, 170), (153, 153, 51), (136, 34, 85),
)  # fmt: skip


@dataclass(frozen=True)
class LabelTable:
    """``sources[i]`` holds the values that ``labels[i]`` gathers; ``background`` those that mean no label."""

    labels: tuple[Label, ...]
    sources: tuple[tuple[int, ...], ...]
    background: tuple[int, ...] = (0,)

    @property
    def known(self) -> frozenset[int]:
        """Every value that the table speaks of."""
        return frozenset(self.background).union(*self.sources)

    @staticmethod
    def plain(values: Sequence[int]) -> "LabelTable":
        """One label per value, 1 and up, named by it."""
        labels = tuple(Label(i + 1, f"label {value}", PALETTE[i % len(PALETTE)]) for i, value in enumerate(values))
        return LabelTable(labels, tuple((value,) for value in values))

    def merge(self, raw: NDArray[np.integer]) -> NDArray[np.unsignedinteger]:
        """Source values to 1, 2, 3 …; a value that no label gathers becomes background. Same shape."""
        size = max([int(raw.max(initial=0)), *(max(values) for values in self.sources)]) + 1
        table = np.zeros(size, np.uint8 if len(self.labels) < 256 else np.uint16)
        for label, values in zip(self.labels, self.sources, strict=True):
            table[list(values)] = label.value
        return table[raw]


def read_description(path: Path) -> dict:
    """A ``dataset.json``. Raises MissingInputError or UnreadableInputError."""
    if not path.is_file():
        raise MissingInputError(f"{path}: {in_place_of(path)}; give a data set's dataset.json")
    try:
        data = parse_json(path.read_text(encoding="utf-8-sig"))
    except ValueError as error:
        raise UnreadableInputError(f"{path}: not JSON ({error}); give a data set's dataset.json") from error
    except OSError as error:
        raise UnreadableInputError(f"{path}: cannot be read ({error.strerror}); allow it to be read") from error
    if not isinstance(data, dict) or not isinstance(data.get("labels"), dict):
        raise UnreadableInputError(f'{path}: it has no "labels" table; see docs/training.md')
    return data


def read_label_table(path: Path) -> LabelTable:
    """The labels of a dataset.json in either style: nnU-Net's name -> value(s), the Decathlon's "value" -> name."""
    data = read_description(path)
    pairs: list[tuple[str, tuple[int, ...]]] = []
    background = {0}
    for key, value in data["labels"].items():
        try:
            name, values = (value, int(key)) if isinstance(value, str) else (key, value)
            gathered = tuple(map(_whole, values)) if isinstance(values, list) else (_whole(values),)
        except (ValueError, TypeError) as error:
            raise UnreadableInputError(
                f'{path}: its "labels" are not name: value(s) or "value": name, as in {{"liver": 1}}: '
                f"{short(key)}: {short(value)}"
            ) from error
        if gathered == (0,) or name.strip().lower() == "background":
            background.update(gathered)  # a list names values that are to count as background
        else:
            pairs.append((name, gathered))
    if not pairs or any(not (1 <= value <= MAX_LABEL) for _, values in pairs for value in values or (0,)):
        raise UnreadableInputError(
            f'{path}: "labels" needs at least one label beside the background, all of values 1 to {MAX_LABEL}'
        )
    _refuse_names(path, [name for name, _ in pairs])
    _refuse_overlap(path, [("background", tuple(background)), *pairs])
    colours, codes = data.get("colours", {}), data.get("codes", {})
    try:
        labels = tuple(
            read_fields(Label, {
                "value": i + 1, "name": name, "colour": colours.get(name, PALETTE[i % len(PALETTE)]),
                "code": codes.get(name),
            }, name, unknown="refuse")
            for i, (name, _) in enumerate(pairs)
        )  # fmt: skip
    except (AttributeError, FieldError, ModelError) as error:
        raise UnreadableInputError(
            f'{path}: "colours" takes a name to [r, g, b] of 0-255, "codes" a name to [value, scheme, meaning], '
            f"texts of one line, and no name is empty ({error})"
        ) from error
    return LabelTable(labels, tuple(values for _, values in pairs), tuple(sorted(background)))


def _whole(value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise ValueError(f"{value!r} is no whole number")
    return value


def _refuse_names(path: Path, names: Sequence[str]) -> None:
    """Raise UnreadableInputError for a name that is given twice, or that a model file would not take."""
    for place, name in enumerate(names):
        if not is_line(name):
            raise UnreadableInputError(
                f'{path}: "labels": {name!r} is too long, or holds a character that does not print, such as a line '
                "break or a no-break space; write it otherwise"
            )
        if name in names[:place]:
            raise UnreadableInputError(
                f'{path}: "labels": {name!r} stands twice; to merge its values, list them: {{"{name}": [1, 2]}}'
            )


def _refuse_overlap(path: Path, pairs: Sequence[tuple[str, tuple[int, ...]]]) -> None:
    """Raise UnreadableInputError where a value stands in two labels, or a label is nnU-Net's "ignore".

    ``pairs`` are names and values, the background's first.
    """
    names: dict[int, str] = {}
    for name, values in pairs:
        for value in values:
            if value in names:
                raise UnreadableInputError(
                    f'{path}: "labels": value {value} stands in both {names[value]!r} and {name!r}; a voxel has one '
                    "label here, so list each value once (overlapping regions need a model each)"
                )
            names[value] = name
    if "ignore" in names.values():
        raise UnreadableInputError(
            f'{path}: "labels": "ignore" would be learnt as a label, voxels cannot be left out of the loss; remove it, '
            'and list its value as "background": [0, …] if it may count as none'
        )


def read_source_rule(path: Path) -> SourceRule:
    """Which DICOM series the data set's model is for: its "dicom" table, see docs/dicom.md. Raises InputError."""
    given = read_description(path).get("dicom", {})
    try:
        return read_fields(SourceRule, given, unknown="refuse")
    except (FieldError, ModelError) as error:
        accepted = "modality, body_part, image_type (lists) and pick (only or thickest)"
        raise UnreadableInputError(f'{path}: "dicom" takes {accepted} ({error})') from error

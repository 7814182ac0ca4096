"""Which files make a case: the nnU-Net / Decathlon folders, or a table of image, label and split."""

import csv
import os
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from dropgen_rt.errors import MissingInputError, UnreadableInputError
from dropgen_rt.inspect_file import scan_suffix, scans_in
from dropgen_rt.volume import stem
from dropgen_rt.words import in_place_of

SPLITS = {"Tr": "training", "Val": "validation", "Ts": "testing"}
# What a table's third column may say, in small letters.
SPLIT_NAMES = {
    "train": "training", "training": "training", "tr": "training",
    "val": "validation", "validation": "validation", "valid": "validation",
    "test": "testing", "testing": "testing", "ts": "testing",
}  # fmt: skip
COLUMNS = ("image", "label", "split")
#: Most patients have no more scans than these: where most of what lies in one folder, or begins with one name, is more,
#: folders or names do not tell patients.
MOST_SCANS = 4


@dataclass(frozen=True)
class Case:
    """One subject on disk: one image file per channel, none where images are synthesised."""

    name: str
    images: tuple[Path, ...]
    label: Path
    patient: str = ""  # as a table's folders tell; where they do not, names may


@dataclass
class Found:
    """Cases by split, and what is wrong with the files' names: one sentence per fault."""

    training: list[Case] = field(default_factory=list)
    validation: list[Case] = field(default_factory=list)
    testing: list[Case] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)

    def of(self, split: str) -> list[Case]:
        cases: list[Case] = getattr(self, split)
        return cases


def find_in_folders(folder: Path, channels: int, synthetic: bool) -> Found:
    """Cases of imagesTr/labelsTr and, where they exist, Val and Ts. Raises MissingInputError without labelsTr."""
    found = Found()
    if not _scans(folder / "labelsTr"):
        raise MissingInputError(f"{folder / 'labelsTr'}: no label maps in it, such as case01.nii.gz; add some")
    for short, split in SPLITS.items():
        labels, images = _scans(folder / f"labels{short}"), _scans(folder / f"images{short}")
        found.faults += _twice(labels) + _twice(images)
        if images and not labels and not synthetic and short == "Val":
            found.faults.append(f"{folder / 'labelsVal'}: no label maps, though imagesVal has images; add them")
        by_stem = {_composed(path): path for path in images}
        for label in labels:
            paths = () if synthetic else _channels(_composed(label), by_stem, channels)
            if not synthetic and len(paths) != channels:
                found.faults.append(_lacking(label, by_stem, channels, short))
                continue
            formats = sorted({scan_suffix(path) for path in paths})
            if len(formats) > 1:
                found.faults.append(
                    f"{label}: its channels are {' and '.join(formats)}; infer takes one format, so save them alike"
                )
            found.of(split).append(Case(stem(label), paths, label))
        if labels and not synthetic:
            found.faults += _beyond(images, labels, channels)
        if labels and not synthetic and short != "Ts":  # a challenge's test images have no labels
            found.faults += [_without_label(path, by_stem, short) for path in images if _lone(path, labels)]
    return found


def _composed(path: Path) -> str:
    """A file's stem, an accented letter as one character: archives of macOS write it as two."""
    return unicodedata.normalize("NFC", stem(path))


def _lacking(label: Path, by_stem: dict[str, Path], channels: int, short: str) -> str:
    """What to do where a label map has not all of its images."""
    if channels > 1 and _composed(label) in by_stem:
        return (
            f"{by_stem[_composed(label)]}: one file for {channels} channels; save each by itself, as "
            f"{_composed(label)}_0000{scan_suffix(label)} and so on"
        )
    wanted = [f"{_composed(label)}_{index:04d}" for index in range(channels)]
    missing = [name for name in wanted if name not in by_stem]
    named = missing[0] if len(missing) == 1 else f"{missing[0]} … {missing[-1]}"
    return (
        f"{label}: {channels - len(missing)} of {channels} channels in images{short}; add {named}{scan_suffix(label)}"
    )


def _beyond(images: Iterable[Path], labels: Iterable[Path], channels: int) -> Iterator[str]:
    """Files of channels that dataset.json does not name: they would be passed over in silence."""
    names = {_composed(label) for label in labels}
    for image in images:
        name = _composed(image)
        number = _numbered(name)
        if name not in names and name[:-5] in names and number is not None and number >= channels:
            yield (
                f"{image}: channel {number}, dataset.json names {channels}; add it to "
                '"channel_names", or move the file elsewhere'
            )


def _numbered(name: str) -> int | None:
    """The channel that a name ends in, as nnU-Net numbers them."""
    return int(name[-4:]) if name[-5:-4] == "_" and name[-4:].isascii() and name[-4:].isdigit() else None


def _scans(folder: Path) -> list[Path]:
    return scans_in(folder) if folder.is_dir() else []


def _twice(paths: Iterable[Path]) -> list[str]:
    """Files of one name and two formats: which is meant cannot be told."""
    first: dict[str, Path] = {}
    return [
        f"{path}: beside it lies {first[_composed(path)].name}, of the same case; move one elsewhere"
        for path in paths
        if first.setdefault(_composed(path), path) != path
    ]


def _channels(name: str, by_stem: dict[str, Path], channels: int) -> tuple[Path, ...]:
    """``<id>_0000`` and on; the Decathlon's plain ``<id>`` where there is one channel."""
    if channels == 1 and f"{name}_0000" not in by_stem and name in by_stem:
        return (by_stem[name],)
    numbered = (f"{name}_{index:04d}" for index in range(channels))
    return tuple(by_stem[key] for key in numbered if key in by_stem)


def _lone(image: Path, labels: Iterable[Path]) -> bool:
    names = {_composed(label) for label in labels}
    name = _composed(image)
    return name not in names and not (_numbered(name) is not None and name[:-5] in names)


def _without_label(image: Path, by_stem: dict[str, Path], short: str) -> str:
    scan, _, end = _composed(image).rpartition("_")
    if end == "seg" and scan in by_stem:  # infer leaves its labels beside the scan
        return f"{image}: not an image but the labels that infer gave {by_stem[scan].name}; move it elsewhere"
    return f"{image}: no label map in labels{short}; add it"


def find_in_table(table: Path, channels: int, synthetic: bool) -> Found:
    """Cases of a CSV with the columns image, label, split; paths are absolute or relative to the table.

    The channels of one case stand in one cell, separated by semicolons. Raises MissingInputError,
    UnreadableInputError.
    """
    if not table.is_file():
        raise MissingInputError(f"{table}: {in_place_of(table)}; give a CSV with the columns {', '.join(COLUMNS)}")
    rows = _rows(table)
    places = [_absolute(table.parent / row["label"]) for _, row in rows]
    names, patients = _names(places), _patients(places)
    found, seen = Found(), set[Path]()
    for (number, row), label in zip(rows, places, strict=True):
        split = SPLIT_NAMES.get(row["split"].lower())
        images = tuple(table.parent / part.strip() for part in row["image"].split(";") if part.strip())
        wrong = _row_faults(split, label, images, channels, synthetic)
        if label in seen:
            wrong.append(f"{label} stands in an earlier line too")
        seen.add(label)
        found.faults += [f"{table}, line {number}: {fault}" for fault in wrong]
        if not wrong and split:
            case = Case(names[label], () if synthetic else images, table.parent / row["label"], patients.get(label, ""))
            found.of(split).append(case)
    return found


def _rows(table: Path) -> list[tuple[int, dict[str, str]]]:
    """Each row's line and its three cells, without blanks around them."""
    try:
        reader = csv.DictReader(table.read_text(encoding="utf-8-sig").splitlines(), skipinitialspace=True)
        reader.fieldnames = [name.strip().lower() for name in reader.fieldnames or ()]
        rows = [(reader.line_num, {name: (row.get(name) or "").strip() for name in COLUMNS}) for row in reader]
    except (UnicodeDecodeError, csv.Error) as error:
        raise UnreadableInputError(f"{table}: not a CSV in UTF-8 ({error}); save it again") from error
    if not rows or not set(COLUMNS) <= set(reader.fieldnames):
        given = f"columns {', '.join(reader.fieldnames)}, {len(rows)} rows" if reader.fieldnames else "an empty file"
        raise UnreadableInputError(
            f"{table}: {given}; accepted are the columns {', '.join(COLUMNS)}, separated by commas, and a row or more"
        )
    return rows


def _absolute(path: Path) -> Path:
    return Path(os.path.normpath(path.absolute()))


def _names(labels: Sequence[Path]) -> dict[Path, str]:
    """A name for each label map: its file's, with as many folders before it as tell it from the others."""
    names: dict[Path, str] = {}
    left, depth = set(labels), 0
    while left:
        named = {label: "_".join((*label.parts[-1 - depth : -1], stem(label))) for label in left}
        counts = Counter(named.values())
        alone = {label for label in left if counts[named[label]] == 1 or depth >= len(label.parts)}
        names |= {label: named[label] for label in alone}
        left, depth = left - alone, depth + 1
    return names


def _patients(labels: Sequence[Path]) -> dict[Path, str]:
    """Whose each label map is, where folders tell: the first ones below that which holds all that tell patients."""
    below = {label: label.relative_to(os.path.commonpath([path.parent for path in labels])) for label in set(labels)}
    for depth in range(1, max((len(path.parts) for path in below.values()), default=0)):
        folders = {label: "/".join(path.parts[:depth]) for label, path in below.items() if len(path.parts) > depth}
        if len(folders) < len(below):
            break
        if tell_patients(list(folders.values())):
            return folders
    return {}


def tell_patients(groups: Sequence[str]) -> bool:
    """Whether the group of each case, such as its folder, is a patient: most cases are of groups of MOST_SCANS or less.

    A patient with more scans among others is one, too; taken apart, he or she would be on two sides of a split.
    """
    return 2 * sum(size for size in Counter(groups).values() if size > MOST_SCANS) <= len(groups)


def _row_faults(split: str | None, label: Path, images: tuple[Path, ...], channels: int, synthetic: bool) -> list[str]:
    faults = [] if split else ["the split is none of train, val, test"]
    if not synthetic and len(images) != channels:
        faults.append(f"{len(images)} images, the data set has {channels} channels; separate them by semicolons")
    missing = [path for path in (*(() if synthetic else images), label) if not path.is_file()]
    return faults + [f"no such file: {path}" for path in missing]

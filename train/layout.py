"""Which files make a case: the nnU-Net / Decathlon folders, or a table of image, label and split."""

import csv
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from dropgen_rt.errors import MissingInputError, UnreadableInputError
from dropgen_rt.inspect_file import scan_suffix, scans_in
from dropgen_rt.volume import stem

SPLITS = {"Tr": "training", "Val": "validation", "Ts": "testing"}
# What a table's third column may say, in small letters.
SPLIT_NAMES = {
    "train": "training", "training": "training", "tr": "training",
    "val": "validation", "validation": "validation", "valid": "validation",
    "test": "testing", "testing": "testing", "ts": "testing",
}  # fmt: skip
COLUMNS = ("image", "label", "split")


@dataclass(frozen=True)
class Case:
    """One subject on disk: one image file per channel, none where images are synthesised."""

    name: str
    images: tuple[Path, ...]
    label: Path


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
        by_stem = {stem(path): path for path in images}
        used: set[Path] = set()
        for label in labels:
            name = stem(label)
            paths = () if synthetic else _channels(name, by_stem, channels)
            used.update(paths)
            if not synthetic and len(paths) != channels:
                wanted = f"{name}_0000" + (f" … {name}_{channels - 1:04d}" if channels > 1 else "")
                found.faults.append(
                    f"{label}: {len(paths)} of {channels} channels in images{short}; add {wanted}{scan_suffix(label)}"
                )
                continue
            found.of(split).append(Case(name, paths, label))
        if labels and not synthetic and short != "Ts":  # a challenge's test images have no labels
            found.faults += [_without_label(path, by_stem, short) for path in images if _lone(path, labels)]
    return found


def _scans(folder: Path) -> list[Path]:
    return scans_in(folder) if folder.is_dir() else []


def _twice(paths: Iterable[Path]) -> list[str]:
    """Files of one name and two formats: which is meant cannot be told."""
    first: dict[str, Path] = {}
    return [
        f"{path}: beside it lies {first[stem(path)].name}, of the same case; move one elsewhere"
        for path in paths
        if first.setdefault(stem(path), path) != path
    ]


def _channels(name: str, by_stem: dict[str, Path], channels: int) -> tuple[Path, ...]:
    """``<id>_0000`` and on; the Decathlon's plain ``<id>`` where there is one channel."""
    if channels == 1 and f"{name}_0000" not in by_stem and name in by_stem:
        return (by_stem[name],)
    numbered = (f"{name}_{index:04d}" for index in range(channels))
    return tuple(by_stem[key] for key in numbered if key in by_stem)


def _lone(image: Path, labels: Iterable[Path]) -> bool:
    names = {stem(label) for label in labels}
    name = stem(image)
    return name not in names and not (name[-5:-4] == "_" and name[-4:].isdigit() and name[:-5] in names)


def _without_label(image: Path, by_stem: dict[str, Path], short: str) -> str:
    scan, _, end = stem(image).rpartition("_")
    if end == "seg" and scan in by_stem:  # infer leaves its labels beside the scan
        return f"{image}: not an image but the labels that infer gave {by_stem[scan].name}; move it elsewhere"
    return f"{image}: no label map in labels{short}; add it"


def find_in_table(table: Path, channels: int, synthetic: bool) -> Found:
    """Cases of a CSV with the columns image, label, split; paths are absolute or relative to the table.

    The channels of one case stand in one cell, separated by semicolons. Raises MissingInputError,
    UnreadableInputError.
    """
    if not table.is_file():
        raise MissingInputError(f"{table}: no such file; give a CSV with the columns {', '.join(COLUMNS)}")
    try:
        rows = list(csv.DictReader(table.read_text(encoding="utf-8-sig").splitlines()))
    except (UnicodeDecodeError, csv.Error) as error:
        raise UnreadableInputError(f"{table}: not a CSV in UTF-8 ({error}); save it again") from error
    if not rows or not set(COLUMNS) <= set(rows[0]):
        raise UnreadableInputError(f"{table}: a CSV with the columns {', '.join(COLUMNS)} and at least one row, please")
    found, labels = Found(), set[Path]()
    stems = Counter(Path((row["label"] or "").strip()).name for row in rows)
    for number, row in enumerate(rows, 2):
        split = SPLIT_NAMES.get((row["split"] or "").strip().lower())
        label = table.parent / (row["label"] or "").strip()
        images = tuple(table.parent / part.strip() for part in (row["image"] or "").split(";") if part.strip())
        wrong = _row_faults(split, label, images, channels, synthetic)
        if label in labels:
            wrong.append(f"{label} stands in an earlier line too")
        labels.add(label)
        found.faults += [f"{table}, line {number}: {fault}" for fault in wrong]
        if not wrong and split:
            # Of p01/seg.nii.gz and p02/seg.nii.gz the folder tells who it is.
            name = stem(label) if stems[label.name] == 1 else f"{label.parent.name}_{stem(label)}"
            found.of(split).append(Case(name, () if synthetic else images, label))
    return found


def _row_faults(split: str | None, label: Path, images: tuple[Path, ...], channels: int, synthetic: bool) -> list[str]:
    faults = [] if split else ["the split is none of train, val, test"]
    if not synthetic and len(images) != channels:
        faults.append(f"{len(images)} images, the data set has {channels} channels; separate them by semicolons")
    missing = [path for path in (*(() if synthetic else images), label) if not path.is_file()]
    return faults + [f"no such file: {path}" for path in missing]

"""Dice, HD95 and normalised surface Dice per label: of two label maps, or of two folders of them."""

import csv
import io
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from itertools import product
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dropgen_rt.atomic import atomic_group, check_writable
from dropgen_rt.dataset_labels import LabelTable, read_label_table
from dropgen_rt.errors import GeometryError, MissingInputError, UnsuitableInputError, UsageError
from dropgen_rt.geometry import Geometry
from dropgen_rt.inspect_file import scans_in
from dropgen_rt.scan_header import refusal
from dropgen_rt.surface import hd95_and_surface_dice
from dropgen_rt.volume import read_label_map, stem
from dropgen_rt.words import by

# Two label maps are on one grid if no corner voxel lies further apart than this: float32 headers round so.
SAME_PLACE_MM = 1e-2
# Surfaces this close count as one in the surface Dice: about a voxel of a brain scan.
TOLERANCE_MM = 1.0

# The finest atlases have some hundred structures; a map of more values is an image whose numbers happen to be whole.
MAX_STRUCTURES = 1000
# A label map with more values than this that nobody expects is more likely the scan itself.
SCANS_VALUES = 32


def dice_per_label(prediction: NDArray[np.integer], reference: NDArray[np.integer], labels: int) -> NDArray[np.float64]:
    """(labels,) float64 Dice of labels 1 … ``labels`` of two (z, y, x) maps; NaN where both lack the label."""

    def voxels(array: NDArray[np.integer]) -> NDArray[np.integer]:
        return np.bincount(array.ravel(), minlength=labels + 1)[1 : labels + 1]

    both = voxels(prediction[prediction == reference])
    with np.errstate(invalid="ignore"):
        return 2.0 * both / (voxels(prediction) + voxels(reference))


@dataclass(frozen=True)
class Score:
    """One label of one subject. ``hd95_mm`` is infinite where one map lacks the label, all are NaN where both do."""

    subject: str
    label: str
    value: int
    dice: float
    hd95_mm: float
    surface_dice: float


COLUMNS = tuple(item.name for item in fields(Score))


def scores_of(
    prediction: NDArray[np.integer],
    reference: NDArray[np.integer],
    table: LabelTable,
    spacing_mm: tuple[float, float, float],
    tolerance_mm: float,
    subject: str,
) -> list[Score]:
    """A score per label of two (z, y, x) maps whose values are the table's labels; ``spacing_mm`` is (x, y, z)."""
    dice = dice_per_label(prediction, reference, len(table.labels))
    scores = []
    for label, d in zip(table.labels, dice, strict=True):
        masks = prediction == label.value, reference == label.value
        surfaces = hd95_and_surface_dice(*masks, spacing_mm, tolerance_mm)
        scores.append(Score(subject, label.name, label.value, float(d), *surfaces))
    return scores


def evaluate_files(
    prediction: Path, label: Path, table: Path | None, out: Path | None, tolerance_mm: float = TOLERANCE_MM
) -> Iterator[str]:
    """Lines of a table: Dice, HD95 and surface Dice of each label of ``prediction`` against ``label``; the mean Dice.

    Without a ``table`` the labels are the values that the maps hold; ``table`` is a dataset.json whose source values
    are merged in the labels first. Two folders are compared file by file, names in common; a prediction may end in
    _seg. ``out`` (NAME.json) also writes the means there and the scores of every subject as NAME.csv. Raises
    InputError if a file cannot be read, is no label map, the grids differ, or a label has no prediction; UsageError for
    a tolerance that is no length.
    """
    if not 0 <= tolerance_mm < math.inf:
        raise UsageError(f"--tolerance-mm {tolerance_mm}: accepted is a length from 0 mm up")
    if out is not None:
        if out.suffix != ".json":
            raise UsageError(f"{out}: the result file's name must end in .json")
        check_writable(out)
    pairs, lone = _pairs(prediction, label)
    if lone:
        yield f"warning: not scored: {_some(lone)}; no label map belongs to them, or a _seg file does"
    values = None
    if table is None:
        found_values, known_values = (_values_present(paths) for paths in zip(*pairs, strict=True))
        values = sorted(found_values | known_values)
        yield from _doubt(known_values - found_values)
        yield from _scans(found_values - known_values, "the predictions", "label map")
        yield from _scans(known_values - found_values, "the label maps", "prediction")
    names = read_label_table(table) if table is not None else LabelTable.plain(values or [])
    scores: list[Score] = []
    ours, theirs = set[int](), set[int]()
    for found, known in pairs:
        predicted, reference, spacing_mm = _on_one_grid(found, known)
        ours, theirs = ours | _values(predicted), theirs | _values(reference)
        scores += _compare(predicted, reference, spacing_mm, names, values, tolerance_mm, stem(known))
    if table is not None:
        yield from _strange(ours, theirs, names)
    rows = {score.label: [other for other in scores if other.label == score.label] for score in scores}
    for name, some in rows.items():
        if all(math.isnan(score.dice) for score in some):
            yield f"nan     {name}, in no map"
            continue
        missing = in_one_map_only(some)
        distance = mean_of([score.hd95_mm for score in some])
        line = f"{mean_of([score.dice for score in some]):.4f}  {name}"
        line += f", HD95 {distance:.2f} mm" if math.isfinite(distance) else ""
        line += f", surface Dice {mean_of([score.surface_dice for score in some]):.4f}"
        yield line + (f", in one map only: {missing}" if missing else "")
    if out is not None:
        write_scores(out, prediction, label, scores, tolerance_mm)
    yield f"mean Dice {mean_dice(scores):.4f}"


def mean_of(values: Sequence[float]) -> float:
    """Of the finite values; NaN where there is none."""
    finite = [value for value in values if np.isfinite(value)]
    return float(np.mean(finite)) if finite else float("nan")


def mean_dice(scores: Sequence[Score]) -> float:
    """Over labels, of each one's mean over its subjects: what few subjects have counts as much as what all have."""
    labels = dict.fromkeys(score.value for score in scores)
    return mean_of([mean_of([score.dice for score in scores if score.value == value]) for value in labels])


def in_one_map_only(scores: Sequence[Score]) -> int:
    """In how many of these cases one map lacks the label: no distance tells of them, and no mean of distances."""
    return sum(math.isinf(score.hd95_mm) for score in scores)


def _pairs(prediction: Path, label: Path) -> tuple[list[tuple[Path, Path]], list[str]]:
    """Predictions with their label maps, and the names of those that are left."""
    if prediction.is_dir() != label.is_dir():
        raise UsageError(f"{prediction} and {label}: one is a folder, the other is not; give two files or two folders")
    if not prediction.is_dir():
        return [(prediction, label)], []
    references = scans_in(label)
    labels = {stem(path): path for path in references}
    if len(labels) < len(references):
        twice = next(path for path in references if labels[stem(path)] != path)
        raise UsageError(f"{twice}: beside it lies {labels[stem(twice)].name}, of the same name; move one elsewhere")
    # Beside the scans themselves, or other files of that name, what ends in _seg is the prediction.
    files = sorted(scans_in(prediction), key=lambda path: stem(path).endswith("_seg"))
    predictions = {_case(path, labels): path for path in files}
    missing = sorted(set(labels) - set(predictions))
    if missing or not labels:
        what = f"no prediction for {_some(missing)}" if missing else f"no label maps in {label}"
        raise MissingInputError(
            f"{prediction}: {what}; names must be alike, a prediction's may end in _seg or _0000_seg"
        )
    pairs = [(predictions[name], path) for name, path in labels.items()]
    return pairs, sorted(path.name for path in {*files} - {path for path, _ in pairs})


def _case(prediction: Path, labels: Mapping[str, Path]) -> str:
    """The label's name that a prediction belongs to: its own, or without _seg, and without nnU-Net's _0000."""
    name = stem(prediction)
    if name in labels:  # two folders of results
        return name
    name = name.removesuffix("_seg")
    return name if name in labels else name.removesuffix("_0000")


def _on_one_grid(prediction: Path, label: Path) -> tuple[NDArray, NDArray, tuple[float, float, float]]:
    """A prediction and its label map (z, y, x), and their spacing (x, y, z). Raises an InputError."""
    predicted, mine = read_label_map(prediction)
    reference, theirs = read_label_map(label)
    _check_same_grid(prediction, mine, label, theirs)
    return predicted, reference, theirs.spacing_mm


def _compare(
    predicted: NDArray, reference: NDArray, spacing_mm: tuple[float, float, float], table: LabelTable,
    values: list[int] | None, tolerance_mm: float, subject: str,
) -> list[Score]:  # fmt: skip
    """Scores of one subject. ``values`` are those of a plain table, in place of whose 1, 2, 3 … they are reported."""
    predicted = predicted if values is None else table.merge(predicted)
    scores = scores_of(predicted, table.merge(reference), table, spacing_mm, tolerance_mm, subject)
    return scores if values is None else [replace(s, value=v) for s, v in zip(scores, values, strict=True)]


def _values(labels: NDArray) -> set[int]:
    """Those that a label map holds, 0 among them."""
    return set(np.flatnonzero(np.bincount(labels.ravel())).tolist())


def _strange(ours: set[int], theirs: set[int], table: LabelTable) -> Iterator[str]:
    """What to say of values that count as background because ``table`` has no place for them."""
    unlisted = sorted(theirs - table.known)
    if unlisted:
        yield f"warning: label values that dataset.json does not list count as none: {_some(unlisted)}"
    beyond = sorted(ours - set(range(len(table.labels) + 1)))
    if beyond:
        yield (
            f"warning: values of predictions that are no label's number, 1 to {len(table.labels)}, count as none: "
            f"{_some(beyond)}; predictions are taken to be merged already"
        )


def _doubt(lone: set[int]) -> Iterator[str]:
    """What to say of values that only labels hold: a model's own numbers may be others."""
    if 0 < len(lone) <= SCANS_VALUES:
        yield (
            f"warning: no prediction holds the label values {_some(sorted(lone))}; if a model merges them, give its "
            "data set's --labels DATASET.JSON"
        )


def _scans(lone: set[int], where: str, other: str) -> Iterator[str]:
    """What to say of so many values in one of the two that it may be no label map."""
    if len(lone) > SCANS_VALUES:
        yield f"warning: {where} hold {len(lone)} values that no {other} holds; if they are scans, give label maps"


def _some(items: Sequence[object]) -> str:
    """The first five, and how many more."""
    return ", ".join(map(str, items[:5])) + (f" and {len(items) - 5} more" if len(items) > 5 else "")


def _values_present(paths: Sequence[Path]) -> set[int]:
    """The values above 0 of any map. Raises UnsuitableInputError for a map that must be something else."""
    present: set[int] = set()
    for path in paths:
        mine = _values(read_label_map(path)[0])
        if len(mine) > MAX_STRUCTURES:
            given, accepted = f"{len(mine)} different values", f"a label map of up to {MAX_STRUCTURES}"
            raise refusal(UnsuitableInputError, path, given, accepted, "check that the right file was given")
        present |= mine
    return present - {0}


def same_grid(mine: Geometry, theirs: Geometry, within_mm: float = SAME_PLACE_MM) -> bool:
    """Whether two grids have one size and their corner voxels lie within ``within_mm`` of each other."""
    corners = np.vstack([np.zeros(3), np.diag(np.array(mine.size) - 1)])  # voxel 0 and the end of each axis
    apart = np.abs(mine.to_world(corners) - theirs.to_world(corners)).max()
    return mine.size == theirs.size and bool(apart <= within_mm)


def apart_mm(mine: Geometry, theirs: Geometry) -> float:
    """The largest distance between corners of two grids of one size."""
    corners = np.array(list(product(*((0, edge - 1) for edge in mine.size))))
    return float(np.linalg.norm(mine.to_world(corners) - theirs.to_world(corners), axis=1).max())


def _check_same_grid(prediction: Path, mine: Geometry, label: Path, theirs: Geometry) -> None:
    if same_grid(mine, theirs):
        return
    differ = f"{by(mine.size)} and {by(theirs.size)} voxels"
    if mine.size == theirs.size:
        differ = f"both {by(mine.size)} voxels, which lie up to {apart_mm(mine, theirs):.4g} mm apart"
    raise GeometryError(
        f"{prediction} and {label}: not on one grid ({differ}); give a prediction made from the labelled scan itself"
    )


def write_scores(out: Path, prediction: Path, label: Path, scores: Sequence[Score], tolerance_mm: float) -> None:
    """NAME.json with the means and NAME.csv with every score; both or neither."""
    labels = []
    for value in dict.fromkeys(score.value for score in scores):
        some = [score for score in scores if score.value == value]
        means = {key: mean_of([getattr(score, key) for score in some]) for key in COLUMNS[3:]}
        known = {key: finite_or_none(mean) for key, mean in means.items()} | {"in_one_map_only": in_one_map_only(some)}
        labels.append({"label": some[0].label, "value": value, **known})
    document = {
        "prediction": prediction.name,
        "label": label.name,
        "subjects": len({score.subject for score in scores}),
        "tolerance_mm": tolerance_mm,
        "mean_dice": finite_or_none(mean_dice(scores)),
        "labels": labels,
    }
    table = io.StringIO()
    writer = csv.DictWriter(table, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(asdict(score) for score in scores)
    with atomic_group([out, out.with_suffix(".csv")]) as (json_file, csv_file):
        json_file.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
        csv_file.write_text(table.getvalue(), encoding="utf-8")


def finite_or_none(value: float) -> float | None:
    """NaN is no JSON: a label that no map holds has no score."""
    return value if np.isfinite(value) else None

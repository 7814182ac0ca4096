"""Dice per label of a prediction against a reference, from arrays or from files."""

import csv
import io
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dropgen_rt.atomic import atomic_group
from dropgen_rt.dataset_labels import LabelTable, read_label_table
from dropgen_rt.errors import GeometryError, UsageError
from dropgen_rt.geometry import Geometry
from dropgen_rt.volume import read_label_map

# Two label maps are on one grid if no corner voxel lies further apart than this: float32 headers round so.
SAME_PLACE_MM = 1e-2


def dice_per_label(prediction: NDArray[np.integer], reference: NDArray[np.integer], labels: int) -> NDArray[np.float64]:
    """(labels,) float64 Dice of labels 1 … ``labels`` of two (z, y, x) maps; NaN where both lack the label."""

    def voxels(array: NDArray[np.integer]) -> NDArray[np.integer]:
        return np.bincount(array.ravel(), minlength=labels + 1)[1 : labels + 1]

    both = voxels(prediction[prediction == reference])
    with np.errstate(invalid="ignore"):
        return 2.0 * both / (voxels(prediction) + voxels(reference))


def evaluate_files(prediction: Path, label: Path, table: Path | None, out: Path | None) -> Iterator[str]:
    """Lines of a table: Dice of each label of ``prediction`` against ``label``, and their mean.

    ``table`` is a dataset.json whose source values are merged in ``label`` first. ``out`` (NAME.json) also
    writes the figures there and as NAME.csv. Raises InputError if a file cannot be read or the grids differ.
    """
    if out is not None and out.suffix != ".json":
        raise UsageError(f"{out}: the result file's name must end in .json")
    predicted, mine = read_label_map(prediction)
    reference, theirs = read_label_map(label)
    _check_same_grid(prediction, mine, label, theirs)
    names = read_label_table(table) if table is not None else _plain_table(predicted, reference)
    scores = dice_per_label(predicted, names.merge(reference), len(names.labels))
    rows = [
        {"label": item.name, "value": item.value, "dice": float(d)}
        for item, d in zip(names.labels, scores, strict=True)
    ]
    mean = float(np.nanmean(scores)) if not np.isnan(scores).all() else float("nan")
    for row in rows:
        yield f"{row['dice']:.4f}  {row['label']}"
    if out is not None:
        _write(out, prediction, label, rows, mean)
    yield f"mean Dice {mean:.4f}"


def _plain_table(*maps: NDArray[np.integer]) -> LabelTable:
    highest = max(int(array.max()) for array in maps)
    return LabelTable.plain(max(highest, 1))


def same_grid(mine: Geometry, theirs: Geometry, within_mm: float = SAME_PLACE_MM) -> bool:
    """Whether two grids have one size and their corner voxels lie within ``within_mm`` of each other."""
    corners = np.vstack([np.zeros(3), np.diag(np.array(mine.size) - 1)])  # voxel 0 and the end of each axis
    apart = np.abs(mine.to_world(corners) - theirs.to_world(corners)).max()
    return mine.size == theirs.size and bool(apart <= within_mm)


def _check_same_grid(prediction: Path, mine: Geometry, label: Path, theirs: Geometry) -> None:
    if not same_grid(mine, theirs):
        raise GeometryError(
            f"{prediction} ({mine.size} voxels) and {label} ({theirs.size} voxels) are not on one grid; "
            "give a prediction made from the labelled scan itself"
        )


def _write(out: Path, prediction: Path, label: Path, rows: list[dict], mean: float) -> None:
    # NaN is no JSON: a label that neither map holds has no Dice.
    known = [row | {"dice": None if np.isnan(row["dice"]) else row["dice"]} for row in rows]
    document = {
        "prediction": prediction.name,
        "label": label.name,
        "mean_dice": None if np.isnan(mean) else mean,
        "labels": known,
    }
    table = io.StringIO()
    writer = csv.DictWriter(table, ("label", "value", "dice"), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    with atomic_group([out, out.with_suffix(".csv")]) as (json_file, csv_file):
        json_file.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
        csv_file.write_text(table.getvalue(), encoding="utf-8")

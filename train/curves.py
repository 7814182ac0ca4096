"""Pictures of a training by matplotlib: its curves, and predictions beside labels."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from dropgen_rt.atomic import atomic_path
from dropgen_rt.manifest import Label

DPI = 110
# More names than these would leave no room for the pictures.
MOST_NAMED = 15


def draw_curves(rows: Sequence[dict[str, str]], path: Path, image_alone: int = 0) -> None:
    """Loss and validation Dice over steps, from the rows of metrics.csv.

    The best is named of the steps after the first ``image_alone``, or, if there are no more, the last: as best.pt is.
    """
    figure = Figure(figsize=(8, 4), layout="constrained")
    left = figure.add_subplot()
    losses = [float(row["loss"]) for row in rows]
    # A single row is no line.
    left.plot([int(row["step"]) for row in rows], losses, color="tab:blue", marker="" if len(rows) > 1 else "o")
    left.set_xlabel("step")
    left.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    left.set_ylabel("loss", color="tab:blue")
    scored = [row for row in rows if row["dice"]]
    right = left.twinx()
    dice = [float(row["dice"]) for row in scored]
    right.plot([int(row["step"]) for row in scored], dice, color="tab:orange", marker="o", markersize=3)
    right.set_ylabel("mean validation Dice", color="tab:orange")
    right.set_ylim(0, 1)
    left.set_title(best_of(scored, image_alone))
    save(figure, path)


def best_of(scored: Sequence[dict[str, str]], image_alone: int) -> str:
    """The picture's title: best.pt's Dice and step, of rows that have one; empty where it is NaN in all."""
    known = [(int(row["step"]), float(row["dice"])) for row in scored if np.isfinite(float(row["dice"]))]
    rivals = [row for row in known if row[0] > image_alone] or known[-1:]
    if not rivals:
        return ""
    step, best = max(rivals, key=lambda row: row[1])
    return f"best Dice {best:.4f} at step {step}"


def draw_examples(
    examples: Sequence[tuple[str, NDArray, NDArray, NDArray]],
    labels: Sequence[Label],
    path: Path,
    spacing_mm: tuple[float, float, float] = (1.0, 1.0, 1.0),
) -> None:
    """One row per (title, image (z, y, x), label, prediction): the slice with the most label, label, prediction.

    ``spacing_mm`` is (x, y, z); voxels are drawn in its proportions.
    """
    figure = Figure(figsize=(9, 3 * len(examples)), layout="constrained")
    colours = ListedColormap([(0, 0, 0, 0), *(tuple(part / 255 for part in label.colour) for label in labels)])
    for row, (title, image, label, prediction) in enumerate(examples):
        plane = int(np.argmax((label > 0).sum((1, 2))))
        for column, (name, overlay) in enumerate((("image", None), ("label", label), ("prediction", prediction))):
            place = figure.add_subplot(len(examples), 3, 3 * row + column + 1)
            place.imshow(image[plane], cmap="gray", vmin=0, vmax=1, aspect=spacing_mm[1] / spacing_mm[0])
            if overlay is not None:
                place.imshow(
                    overlay[plane], cmap=colours, vmin=0, vmax=len(labels), alpha=0.6, interpolation="nearest",
                    aspect=spacing_mm[1] / spacing_mm[0],
                )  # fmt: skip
            place.set_title(f"{title}: {name}" if column == 0 else name, fontsize=8)
            place.axis("off")
    marks = [Patch(color=colours(label.value), label=label.name) for label in labels[:MOST_NAMED]]
    figure.legend(handles=marks, loc="outside lower center", ncols=min(len(marks), 5), fontsize=8)
    save(figure, path)


def save(figure: Figure, path: Path) -> None:
    """Write a figure; it appears whole or not at all."""
    FigureCanvasAgg(figure)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=DPI, metadata={"Software": None})

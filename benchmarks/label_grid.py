"""What a model's grid costs before any training: label maps to that grid and back, against themselves.

python benchmarks/label_grid.py --out benchmarks/results/label_grid.json      (needs ../shared/data)

Per voxel size, mean Dice over labels and every third heart of the shared data, when labels reach the grid by the
nearest voxel, and by the share of each label, which training takes; back always by interpolation, as the road does.
``shares`` is the bound for a network that tells shares exactly.
"""

import argparse
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from recording import write

from dropgen_rt.evaluate import dice_per_label
from dropgen_rt.geometry import Geometry
from dropgen_rt.kernels import finalise
from dropgen_rt.preprocess import labels_to_working_grid, to_working_grid, working_grid
from dropgen_rt.segment import native_maps, nearest
from dropgen_rt.volume import Volume, read_label_map

LABELS = Path(__file__).parents[2] / "shared" / "data" / "heart_acdc" / "labelsTr"
EVERY = 3
CLASSES = 4
ORIENTATION = "LPS"
SPACINGS_MM = ((2.0, 2.0, 2.5), (2.5, 2.5, 2.5), (3.0, 3.0, 3.0), (4.0, 4.0, 4.0))


def on_grid(labels: NDArray, scan: Geometry, spacing_mm: tuple[float, float, float]) -> dict[str, NDArray]:
    """Shares (classes, z, y, x) float32 on the working grid: of one label per voxel by either way, or as they are."""
    shares = np.concatenate(
        [
            to_working_grid(Volume((labels == value).astype(np.float32)[None], scan), ORIENTATION, spacing_mm).array
            for value in range(CLASSES)
        ]
    )
    oriented, change = scan.reoriented(ORIENTATION)
    working = working_grid(scan, ORIENTATION, spacing_mm)
    hard = {
        "nearest voxel": nearest(np.ascontiguousarray(change.apply(labels)), oriented, working),
        "largest share": labels_to_working_grid(labels, scan, ORIENTATION, spacing_mm),
    }
    values = np.arange(CLASSES)[:, None, None, None]
    return {name: (array == values).astype(np.float32) for name, array in hard.items()} | {"shares": shares}


def back(shares: NDArray[np.float32], scan: Geometry, spacing_mm: tuple[float, float, float]) -> NDArray:
    """Labels (z, y, x) on the scan's own grid, as the road makes them of logits."""
    oriented, change = scan.reoriented(ORIENTATION)
    maps = native_maps(working_grid(scan, ORIENTATION, spacing_mm), oriented)
    return change.undo(finalise(shares, [np.ones(n, np.float32) for n in shares.shape[1:]], maps)[0])


def row(spacing_mm: tuple[float, float, float]) -> dict[str, object]:
    scores: dict[str, list[NDArray]] = {}
    for path in sorted(LABELS.glob("*.nii.gz"))[::EVERY]:
        raw, scan = read_label_map(path)
        labels = raw.astype(np.uint8)
        for name, shares in on_grid(labels, scan, spacing_mm).items():
            scores.setdefault(name, []).append(dice_per_label(back(shares, scan, spacing_mm), labels, CLASSES - 1))
    dice = {name: round(float(np.nanmean(rows)), 4) for name, rows in scores.items()}
    print(spacing_mm, dice, flush=True)
    return {"spacing_mm": spacing_mm, "mean_dice": dice}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    write(arguments.out, {"cases": "every third of heart_acdc", "rows": [row(spacing) for spacing in SPACINGS_MM]})


if __name__ == "__main__":
    main()

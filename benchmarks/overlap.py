"""What the choice of windows and precision costs and changes: seconds, windows, and Dice against reference mode.

python benchmarks/overlap.py --out benchmarks/results/overlap.json

The scans are those of ``../shared/data``, taken to the model's grid first: so nothing but the windows differs, not the
way back to the scan's own grid. Where the labels of a scan are known, Dice against those is told, too: what is nearer
to reference mode need not be better. ``default`` is the fastest row whose mean Dice is at least 0.998 on every scan.
"""

import argparse
import statistics
import time
from itertools import product
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from recording import write

from dropgen_rt import Model, Settings, open_engine, open_named, read_scan, segment
from dropgen_rt.dataset_labels import read_label_table
from dropgen_rt.engines import Engine
from dropgen_rt.engines.openvino_engine import supported_precisions
from dropgen_rt.evaluate import dice_per_label
from dropgen_rt.preprocess import labels_to_working_grid, to_working_grid
from dropgen_rt.volume import Volume, read_label_map
from dropgen_rt.windows import BLENDS, PLACEMENTS, Blend

ROOT = Path(__file__).parents[1]
DATA = ROOT.parent / "shared" / "data"
T1 = "brain_t1/fs_subject_T1norm.nii.gz"
SCANS = (T1, *(f"brain_contrasts/avg152{contrast}.nii.gz" for contrast in ("T1", "T2", "PD")))
ASKED = 0.998


def truth(model: Model, scan: str) -> NDArray[np.integer] | None:
    """(z, y, x) known labels on the model's grid: those of the T1, for the demo model's labels or the brain alone."""
    table = read_label_table(ROOT / "examples" / "brain9" / "dataset.json")
    names = [label.name for label in model.manifest.labels]
    if scan != T1 or names not in (["brain"], [label.name for label in table.labels]):
        return None
    values, geometry = read_label_map(DATA / "brain_t1" / "fs_subject_aseg.nii.gz")
    labels = (values > 0).astype(np.uint8) if names == ["brain"] else table.merge(values)
    return labels_to_working_grid(labels, geometry, model.manifest.orientation, model.manifest.spacing_mm)


def choices(
    model: Model, overlaps: list[float], blends: list[Blend], precisions: list[str]
) -> dict[str, tuple[str, Settings]]:
    """(precision, settings) of every row by its name, slow ones last."""
    windows = (None, "auto") if model.manifest.dynamic_window else (None,)
    rows: dict[str, tuple[str, Settings]] = {}
    for precision, window, blend, placement, overlap in product(
        precisions, windows, blends, PLACEMENTS, overlaps
    ):  # fmt: skip
        name = f"{overlap:g} {blend} {placement} {window or 'trained'} {precision}"
        rows[name] = (precision, Settings(overlap=overlap, blend=blend, placement=placement, window=window))
    return rows


def scores(labels: NDArray[np.integer], reference: NDArray[np.integer], classes: int) -> tuple[float, float]:
    """Mean and smallest Dice over the labels that either has."""
    dice = dice_per_label(labels, reference, classes - 1)
    return round(float(np.nanmean(dice)), 5), round(float(np.nanmin(dice)), 5)


def one_scan(
    model: Model, name: str, engines: dict[str, Engine], rows: dict[str, tuple[str, Settings]]
) -> dict[str, dict[str, object]]:
    """The figures of every row, and of reference mode, on one scan."""
    manifest = model.manifest
    scan: Volume = to_working_grid(read_scan(DATA / name).volume, manifest.orientation, manifest.spacing_mm)
    known, reference, found = truth(model, name), None, {}
    for row, (precision, settings) in {"reference": ("fp32", Settings(reference=True)), **rows}.items():
        start = time.perf_counter()
        result = segment(scan, model, settings, engine=engines[precision])
        seconds, labels = time.perf_counter() - start, result.labels.array[0]
        reference = labels if reference is None else reference
        mean, smallest = scores(labels, reference, manifest.classes)
        record = result.record
        found[row] = {
            "dice": mean, "smallest_dice": smallest, "seconds": round(seconds, 2), "window": record.model["window"],
            "windows_run": record.windows - record.skipped_windows,
        }  # fmt: skip
        if known is not None:
            found[row]["dice_against_known"] = scores(labels, known, manifest.classes)[0]
        print(f"{name}  {row}: {found[row]}", flush=True)
    return found


def fastest(scans: dict[str, dict[str, dict[str, object]]]) -> dict[str, object]:
    """Of the rows that reach ASKED on every scan: the one that costs least, the smallest overlap among equals; or none.

    The cost of a row is what it computes, times the median seconds per voxel of all rows of its precision: rows that
    run the same windows then cost the same, whatever else the machine did meanwhile.
    """
    rows = [row for row in next(iter(scans.values())) if row != "reference"]

    def voxels(scan: dict[str, dict[str, object]], row: str) -> int:
        return scan[row]["windows_run"] * int(np.prod(scan[row]["window"]))

    rates: dict[str, list[float]] = {}
    for scan, row in product(scans.values(), rows):
        rates.setdefault(row.split()[-1], []).append(scan[row]["seconds"] / voxels(scan, row))
    costs = {
        row: round(sum(voxels(scan, row) for scan in scans.values()) * statistics.median(rates[row.split()[-1]]), 2)
        for row in rows
    }
    passing = {row: costs[row] for row in rows if all(scan[row]["dice"] >= ASKED for scan in scans.values())}
    best = min(passing, key=lambda row: (passing[row], float(row.split()[0])), default=None)
    return {"asked": ASKED, "reach_it": passing, "default": best}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--model", default="brain9")
    parser.add_argument("--scans", nargs="+", default=list(SCANS), help="Below ../shared/data, or paths.")
    parser.add_argument("--overlaps", nargs="+", type=float, default=[0.5, 0.25])
    parser.add_argument("--blends", nargs="+", choices=BLENDS, default=list(BLENDS))
    parser.add_argument("--precisions", nargs="+", default=list(supported_precisions()), help="Of the rows compared.")
    arguments = parser.parse_args()
    model = open_named(arguments.model)
    rows = choices(model, arguments.overlaps, arguments.blends, arguments.precisions)
    engines = {item: open_engine(model, engine="openvino", precision=item) for item in supported_precisions()}
    scans = {
        name if name in SCANS else Path(name).name: one_scan(model, name, engines, rows) for name in arguments.scans
    }
    chosen = fastest(scans)
    print(chosen)
    write(arguments.out, {"model": model.manifest.name, "model_sha256": model.sha256, **chosen, "scans": scans})


if __name__ == "__main__":
    main()

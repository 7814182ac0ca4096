"""Hippocampus from scratch: the last 52 ids validate; the same Dice must come out of export and infer.

python benchmarks/hippocampus.py --work WORK --out benchmarks/results/hippocampus.json -- --preset tiny

What follows ``--`` are options of ``dropgen-rt train``. The run in WORK/run goes on where it was stopped; ``--so-far``
trains no further and scores the best that it has.
"""

import argparse
import json
import sys
from pathlib import Path

import numpy as np
from click.testing import CliRunner
from recording import write

from dropgen_rt import Model, Settings, open_engine, open_named, segment
from dropgen_rt.cli import main as command
from dropgen_rt.evaluate import dice_per_label
from dropgen_rt.train.outputs import finish
from dropgen_rt.volume import read_label_map

DATA = Path(__file__).parents[2] / "shared" / "data" / "hippocampus"
HELD_OUT = 52


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--so-far", action="store_true", help="Train no further.")
    parser.add_argument("options", nargs="*", help="Of dropgen-rt train, after --.")
    arguments = parser.parse_args()
    work, run = arguments.work, arguments.work / "run"
    work.mkdir(parents=True, exist_ok=True)
    held_out = write_split(work / "split.csv")
    if arguments.so_far:
        finish(DATA, run, split=work / "split.csv")
    else:
        resume = ["--resume"] if (run / "last.pt").is_file() else []
        line = ["train", DATA, "--out", run, "--split", work / "split.csv", *resume, *arguments.options]
        command.main([str(part) for part in line], standalone_mode=False)
    exported = CliRunner().invoke(command, ["export", str(run / "best.pt"), "-o", str(work / "hippocampus.onnx")])
    if exported.exit_code:
        sys.exit(exported.output)
    summary = json.loads((run / "summary.json").read_text())
    trained = summary["validation"]
    model = open_named(str(work / "hippocampus.onnx"))
    dice = {"default": inferred(model, held_out, False), "reference": inferred(model, held_out, True)}
    write(
        arguments.out,
        {
            "train_options": arguments.options,
            "train_seconds": round(summary["seconds"]),
            "best_step": summary["best_step"],
            "validation": trained,
            "infer_mean_dice": dice,
            "reference_minus_trained": round(dice["reference"] - trained["mean_dice"], 5),
        },
    )


def write_split(path: Path) -> list[str]:
    """The table of cases; returns the ids that validate."""
    names = sorted(label.name.removesuffix(".nii.gz") for label in (DATA / "labelsTr").glob("*.nii.gz"))
    rows = ["image,label,split"]
    for place, name in enumerate(names):
        split = "val" if place >= len(names) - HELD_OUT else "train"
        rows.append(f"{DATA}/imagesTr/{name}_0000.nii.gz,{DATA}/labelsTr/{name}.nii.gz,{split}")
    path.write_text("\n".join(rows) + "\n", encoding="utf-8")
    return names[-HELD_OUT:]


def inferred(model: Model, names: list[str], reference: bool) -> float:
    """Mean Dice of the exported model over the held-out scans, on their own grids."""
    scores, settings = [], Settings(reference=reference)
    with open_engine(model) as engine:
        for name in names:
            truth = read_label_map(DATA / "labelsTr" / f"{name}.nii.gz")[0]
            result = segment(DATA / "imagesTr" / f"{name}_0000.nii.gz", model, settings, engine=engine)
            scores.append(dice_per_label(result.labels.array[0], truth, 2))
    return round(float(np.nanmean(scores)), 5)


if __name__ == "__main__":
    main()

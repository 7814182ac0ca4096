"""Dice of all scans of a data set, each by the model that did not train on it, and of the last ids among them.

    for fold in 0 1 2 3 4; do
        python benchmarks/hippocampus.py --fold $fold --work WORK$fold --out FOLD$fold.json \\
            -- --preset tiny --precision bf16 --steps 2500
    done
    python benchmarks/cross_validation.py WORK0 WORK1 WORK2 WORK3 WORK4 --last 52 --out RESULT.json

It tells what a fixed split, such as the last 52 hippocampi, is worth beside cross-validation, in which others report.
"""

import argparse
import csv
import json
import tomllib
from pathlib import Path

import numpy as np
from domain_data import HELD_OUT
from recording import write

# Chosen by the fingerprint of what a fold trains on.
MEASURED = ("window", "spacing_mm", "intensity")


def dice_by_subject(work: Path) -> dict[str, dict[str, float]]:
    """Subject to label to Dice, of one fold's run; without labels that neither map has."""
    table: dict[str, dict[str, float]] = {}
    with (work / "run" / "validation.csv").open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            if np.isfinite(float(row["dice"])):
                table.setdefault(row["subject"], {})[row["label"]] = float(row["dice"])
    return table


def mean(table: dict[str, dict[str, float]]) -> dict[str, float]:
    """Of each label over its subjects, and of those means."""
    labels = sorted({label for dice in table.values() for label in dice})
    means = {label: float(np.mean([dice[label] for dice in table.values() if label in dice])) for label in labels}
    return {label: round(value, 4) for label, value in means.items()} | {"mean": round(np.mean([*means.values()]), 4)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path, nargs="+", help="Work folders of the folds.")
    parser.add_argument(
        "--last", type=int, default=HELD_OUT["hippocampus"], help="How many ids the fixed split holds out."
    )
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    folds = [dice_by_subject(work) for work in arguments.work]
    whole = {subject: dice for fold in folds for subject, dice in fold.items()}
    if len(whole) != sum(map(len, folds)):
        raise SystemExit("a subject stands in two folds; give one work folder per fold")
    if not 0 < arguments.last < len(whole):
        raise SystemExit(f"--last {arguments.last}: the folds hold {len(whole)} subjects; give some of them, not all")
    configs = [tomllib.loads((work / "run" / "config.toml").read_text(encoding="utf-8")) for work in arguments.work]
    options = [{name: value for name, value in config.items() if name not in MEASURED} for config in configs]
    if any(other != options[0] for other in options):
        raise SystemExit("the folds were trained with different options; train them alike")
    last = sorted(whole)[-arguments.last :]
    others = {subject: dice for subject, dice in whole.items() if subject not in last}
    figures = {
        "config": options[0],
        "windows": [config["window"] for config in configs],
        "subjects": len(whole),
        "dice": mean(whole),
        "dice_of_folds": [mean(fold)["mean"] for fold in folds],
        f"dice_of_the_last_{len(last)}": mean({subject: whole[subject] for subject in last}),
        "dice_of_the_others": mean(others),
        "train_seconds": [
            round(json.loads((work / "run" / "summary.json").read_text(encoding="utf-8"))["seconds"])
            for work in arguments.work
        ],
    }
    print(json.dumps(figures, indent=2))
    write(arguments.out, figures)


if __name__ == "__main__":
    main()

"""Training from scratch on one of the shared data sets, and Dice through export and infer: hippocampus.py, heart.py."""

import argparse
import json
import sys
from pathlib import Path

from click.testing import CliRunner
from domain_data import DATA, HELD_OUT
from recording import write

from dropgen_rt import Model, Settings, open_engine, open_named, segment
from dropgen_rt.cli import main as command
from dropgen_rt.dataset_labels import read_label_table
from dropgen_rt.evaluate import TOLERANCE_MM, in_one_map_only, mean_dice, mean_of, scores_of
from dropgen_rt.train.outputs import finish
from dropgen_rt.volume import read_label_map

FOLDS = 5
WAYS = {
    "default": Settings(),
    "reference": Settings(reference=True),
    "gaussian": Settings(blend="gaussian"),
    "largest component": Settings(components="largest"),
    "gaussian, largest component": Settings(blend="gaussian", components="largest"),
}


def from_scratch(description: str, name: str) -> None:
    """The command line of a benchmark: trains on a data set but for its last scans, exports, and infers those."""
    data = DATA / name
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--so-far", action="store_true", help="Train no further.")
    parser.add_argument("--fold", type=int, choices=range(FOLDS), help="Hold out every fifth scan from this one on.")
    parser.add_argument("options", nargs="*", help="Of dropgen-rt train, after --.")
    arguments = parser.parse_args()
    work, run = arguments.work, arguments.work / "run"
    work.mkdir(parents=True, exist_ok=True)
    held_out = write_split(data, HELD_OUT[name], arguments.fold, work / "split.csv")
    if arguments.so_far:
        finish(data, run, split=work / "split.csv")
    else:
        resume = ["--resume"] if (run / "last.pt").is_file() else []
        line = ["train", data, "--out", run, "--split", work / "split.csv", *resume, *arguments.options]
        command.main([str(part) for part in line], standalone_mode=False)
    exported = CliRunner().invoke(command, ["export", str(run / "best.pt"), "-o", str(work / "model.onnx")])
    if exported.exit_code:
        sys.exit(exported.output)
    summary = json.loads((run / "summary.json").read_text())
    trained = summary["validation"]
    model = open_named(str(work / "model.onnx"))
    scores = {name: inferred(model, data, held_out, settings) for name, settings in WAYS.items()}
    dice, hd95_mm, lone = ({name: row[place] for name, row in scores.items()} for place in range(3))
    write(
        arguments.out,
        {
            "train_options": arguments.options,
            "held_out": f"every fifth from {arguments.fold}" if arguments.fold is not None else f"last {len(held_out)}",
            "train_seconds": round(summary["seconds"]),
            "best_step": summary["best_step"],
            "validation": trained,
            "infer_mean_dice": dice,
            "infer_mean_hd95_mm": hd95_mm,
            "infer_in_one_map_only": lone,
            "reference_minus_trained": round(dice["reference"] - trained["mean_dice"], 5),
        },
    )


def write_split(data: Path, last: int, fold: int | None, path: Path) -> list[str]:
    """The table of cases; returns the ids that validate: the last ones, or those of a fold."""
    names = sorted(label.name.removesuffix(".nii.gz") for label in (data / "labelsTr").glob("*.nii.gz"))
    held_out = names[-last:] if fold is None else names[fold::FOLDS]
    rows = ["image,label,split"]
    for name in names:
        split = "val" if name in held_out else "train"
        rows.append(f"{data}/imagesTr/{name}_0000.nii.gz,{data}/labelsTr/{name}.nii.gz,{split}")
    path.write_text("\n".join(rows) + "\n", encoding="utf-8")
    return held_out


def inferred(model: Model, data: Path, names: list[str], settings: Settings) -> tuple[float, float, int]:
    """Mean Dice and HD95 of the exported model over the held-out scans, on their own grids.

    A label that one map lacks has no distance; how often that is so stands beside, for it flatters the mean.
    """
    table = read_label_table(data / "dataset.json")
    scores = []
    with open_engine(model) as engine:
        for name in names:
            raw, grid = read_label_map(data / "labelsTr" / f"{name}.nii.gz")
            found = segment(data / "imagesTr" / f"{name}_0000.nii.gz", model, settings, engine=engine).labels.array[0]
            scores += scores_of(found, table.merge(raw), table, grid.spacing_mm, TOLERANCE_MM, name)
    hd95_mm = mean_of([score.hd95_mm for score in scores])
    return round(mean_dice(scores), 5), round(hd95_mm, 2), in_one_map_only(scores)

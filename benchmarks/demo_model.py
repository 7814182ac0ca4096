"""Dice of the demo model on a real T1 with FreeSurfer labels, merged into the model's nine.

python benchmarks/demo_model.py --out benchmarks/results/demo_model.json
"""

import argparse
from pathlib import Path

from recording import write

from dropgen_rt import open_named, segment
from dropgen_rt.dataset_labels import read_label_table
from dropgen_rt.evaluate import dice_per_label
from dropgen_rt.volume import read_label_map

ROOT = Path(__file__).parents[1]
HEAD = ROOT.parent / "shared" / "data" / "brain_t1"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--model", default="brain9")
    arguments = parser.parse_args()
    model = open_named(arguments.model)
    table = read_label_table(ROOT / "examples" / "brain9" / "dataset.json")
    reference = table.merge(read_label_map(HEAD / "fs_subject_aseg.nii.gz")[0])
    result = segment(HEAD / "fs_subject_T1norm.nii.gz", model)
    scores = dice_per_label(result.labels.array[0], reference, len(table.labels))
    dice = {label.name: round(float(score), 4) for label, score in zip(table.labels, scores, strict=True)}
    for name, score in dice.items():
        print(f"{score:.4f}  {name}")
    print(f"{scores.mean():.4f}  mean")
    figures = {"scan": "brain_t1/fs_subject_T1norm.nii.gz", "model_sha256": model.sha256}
    write(arguments.out, {**figures, "dice": dice, "mean_dice": round(float(scores.mean()), 4)})


if __name__ == "__main__":
    main()

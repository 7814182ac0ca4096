"""How good the demo model is: structures of a real T1, and tissues of one anatomy in T1, T2 and PD with the skull on.

python benchmarks/demo_model.py --out benchmarks/results/demo_model.json

The T1 has FreeSurfer labels, merged into the model's. They do not hold the fluid around the brain, so the mean is
over the other nine. The three contrasts are averages of 152 heads with tissue priors, thresholded at one half.
Cerebellum and brainstem hold two tissues in one label and are left out of grey and white.
"""

import argparse
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from recording import write

from dropgen_rt import Model, open_named, read_scan, segment
from dropgen_rt.dataset_labels import read_label_table
from dropgen_rt.evaluate import dice_per_label
from dropgen_rt.volume import read_label_map

ROOT = Path(__file__).parents[1]
DATA = ROOT.parent / "shared" / "data"
CONTRASTS = ("T1", "T2", "PD")
FLUID = "fluid around the brain"
TISSUES = {
    "grey": ("cerebral cortex", "thalamus", "caudate", "putamen and pallidum", "hippocampus and amygdala"),
    "white": ("cerebral white matter",),
    "csf": ("ventricles and CSF", FLUID),
}
MIXED = ("cerebellum", "brainstem")


def structures(model: Model) -> dict[str, float]:
    """Dice per label on the T1 with FreeSurfer labels."""
    table = read_label_table(ROOT / "examples" / "brain9" / "dataset.json")
    reference = table.merge(read_label_map(DATA / "brain_t1" / "fs_subject_aseg.nii.gz")[0])
    result = segment(DATA / "brain_t1" / "fs_subject_T1norm.nii.gz", model)
    scores = dice_per_label(result.labels.array[0], reference, len(table.labels))
    return {label.name: round(float(score), 4) for label, score in zip(table.labels, scores, strict=True)}


def tissues(model: Model, contrast: str) -> dict[str, float]:
    """Dice per tissue on one contrast, outside the labels that hold two."""
    folder = DATA / "brain_contrasts"
    values = {label.name: label.value for label in model.manifest.labels}
    labels = segment(folder / f"avg152{contrast}.nii.gz", model).labels.array[0]
    pure = ~np.isin(labels, [values[name] for name in MIXED])
    return {
        name: dice(np.isin(labels, [values[member] for member in members]) & pure, prior(folder, name) & pure)
        for name, members in TISSUES.items()
    }


def prior(folder: Path, tissue: str) -> NDArray[np.bool_]:
    """(z, y, x) where the prior of a tissue is above one half."""
    return read_scan(folder / f"{tissue}.nii.gz").volume.array[0] > 0.5


def dice(ours: NDArray[np.bool_], theirs: NDArray[np.bool_]) -> float:
    return round(2 * float((ours & theirs).sum()) / float(ours.sum() + theirs.sum()), 4)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--model", default="brain9")
    arguments = parser.parse_args()
    model = open_named(arguments.model)
    found = structures(model)
    mean = float(np.mean([score for name, score in found.items() if name != FLUID]))
    for name, score in found.items():
        print(f"{score:.4f}  {name}")
    print(f"{mean:.4f}  mean of the nine structures")
    by_contrast = {contrast: tissues(model, contrast) for contrast in CONTRASTS}
    for contrast, scores in by_contrast.items():
        print(f"skull on, {contrast}: " + ", ".join(f"{name} {score:.3f}" for name, score in scores.items()))
    figures = {"scan": "brain_t1/fs_subject_T1norm.nii.gz", "model_sha256": model.sha256}
    write(
        arguments.out, {**figures, "dice": found, "mean_dice_of_nine": round(mean, 4), "tissues_skull_on": by_contrast}
    )


if __name__ == "__main__":
    main()

"""Does a trained model stand other contrasts? Held-out scans as they are and changed, by models of hippocampus.py.

    python benchmarks/changed_contrast.py A.onnx B.onnx --out benchmarks/results/changed_contrast.json

or, with ``--data heart_acdc``, by models of heart.py.

The changes are those of domain_shift.py; the models were trained by ``dropgen-rt train``, whose augmentation varies
contrast, where domain_shift.py's only turns and scales. Every scan goes through segment() in fp32.
"""

import argparse
import zlib
from pathlib import Path

import numpy as np
from domain_data import DATA, HELD_OUT, contrast_changes, rescaled
from recording import write

from dropgen_rt import Model, Settings, open_engine, open_named, segment
from dropgen_rt.evaluate import dice_per_label
from dropgen_rt.volume import Scan, Volume, read_label_map, read_scan

AS_IT_IS = "as it is"
# Of the training's config, what may differ between the models.
TOLD = ("method", "drop", "steps", "image_first", "feature_scale", "settle", "norm")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", type=Path)
    parser.add_argument("--data", choices=HELD_OUT, default="hippocampus")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    labels = sorted((DATA / arguments.data / "labelsTr").glob("*.nii.gz"))[-HELD_OUT[arguments.data] :]
    rows = []
    for path in arguments.models:
        model = open_named(str(path))
        rows.append(row(model, scores(model, labels)))
        print(rows[-1])
    write(arguments.out, {"data": arguments.data, "scans": len(labels), "rows": rows})


def scores(model: Model, labels: list[Path]) -> dict[str, list[float]]:
    """Mean Dice over labels, per change and scan."""
    found: dict[str, list[float]] = {}
    with open_engine(model, precision="fp32") as engine:
        for path in labels:
            truth = read_label_map(path)[0]
            for name, volume in changed(read_scan(image_of(path)), path.name).items():
                result = segment(volume, model, Settings(), engine=engine).labels.array[0]
                dice = dice_per_label(result, truth, len(model.manifest.labels))
                found.setdefault(name, []).append(float(np.nanmean(dice)))
    return found


def image_of(label: Path) -> Path:
    return label.parents[1] / "imagesTr" / label.name.replace(".nii.gz", "_0000.nii.gz")


def changed(scan: Scan, name: str) -> dict[str, Volume]:
    """The scan as it is and with each change; what is random in them follows from its name."""
    image = rescaled(scan.volume.array[0].astype(np.float32))
    changes = contrast_changes(image, np.random.default_rng(zlib.crc32(name.encode())))
    return {kind: Volume(array[None], scan.volume.geometry) for kind, array in ({AS_IT_IS: image} | changes).items()}


def row(model: Model, found: dict[str, list[float]]) -> dict[str, object]:
    dice = {name: round(float(np.mean(values)), 4) for name, values in found.items()}
    config = {"norm": "batch"} | model.manifest.training["config"]  # older models do not tell their norm
    outside = [value for name, value in dice.items() if name != AS_IT_IS]
    return {
        **{key: config[key] for key in TOLD},
        "intensity_curve": config["augment"].get("intensity_curve", 0.0),
        "dice": dice,
        "changed": round(float(np.mean(outside)), 4),
    }


if __name__ == "__main__":
    main()

"""The demo model on painted heads of the label maps that it did not train on: Dice, and docs/training_examples.png.

    python examples/brain9/prepare.py ../shared/data/synthseg_label_maps DATA
    python benchmarks/painted_heads.py DATA --out benchmarks/results/painted_heads.json \\
        --picture docs/training_examples.png

Crops as a training's validation draws them, each one window. The picture is what ``examples.png`` of a run is.
"""

import argparse
from pathlib import Path

import numpy as np
from recording import write

from dropgen_rt import open_engine, open_named
from dropgen_rt.evaluate import dice_per_label
from dropgen_rt.train.assemble import validation_set
from dropgen_rt.train.config import TrainConfig
from dropgen_rt.train.curves import draw_examples
from dropgen_rt.train.dataset import read_dataset

SHOWN = 4


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--picture", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=5)
    arguments = parser.parse_args()
    dataset, model = read_dataset(arguments.data), open_named("brain9")
    config = TrainConfig(window=(96, 96, 96), spacing_mm=(2.0, 2.0, 2.0), seed=arguments.seed)
    heads = []
    with open_engine(model) as engine:
        for image, label in validation_set(dataset, config, []):
            found = engine.infer(np.ascontiguousarray(image[None]))[0].argmax(0).astype(np.uint8)
            heads.append((float(np.nanmean(dice_per_label(found, label, len(dataset.labels)))), image[0], label, found))
    heads.sort(key=lambda head: head[0])
    chosen = [heads[i] for i in np.linspace(0, len(heads) - 1, SHOWN).round().astype(int)]
    draw_examples(
        [(f"painted head ({dice:.3f})", *arrays) for dice, *arrays in chosen], dataset.labels, arguments.picture
    )
    write(arguments.out, {"seed": arguments.seed, "dice": [round(dice, 4) for dice, *_ in heads]})


if __name__ == "__main__":
    main()

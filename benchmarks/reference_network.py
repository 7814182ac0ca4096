"""The data of the full-size network that ``dropgen-rt bench`` is to time: heads at 1 mm, large parts of the brain.

    python benchmarks/reference_network.py LABEL_MAPS DATA [--labels two|brain] [--strip SHARE] [--t1 SHARE] \
        [--severity S]
    dropgen-rt train DATA --out RUN --drop 0.25 --width 20 --levels 5 --batch 2 --window 64 64 64 --spacing-mm 1 1 1 \
        --learning-rate 0.0007 --validate-every 700 --steps 1400 --precision bf16 \
        --norm batch --image-first 0 --feature-scale 1 --settle 0
    dropgen-rt export RUN/best.pt -o reference.onnx --window 96 96 96 --golden SCAN
    dropgen-rt build-engine reference.onnx
    dropgen-rt bench --scan SCAN --model reference --checkpoint RUN/best.pt --against monai,torch,nnunet

Encoder of 5.9 and segmentor of 36.9 million parameters, as published. LABEL_MAPS and how heads are painted are the demo
model's (examples/brain9), mostly in the contrast of a T1 here. Large parts, because a network of this size learns them
in less than an hour on two cores; thin structures lose more to any shortcut (docs/performance.md).

The network of bench.json and overlap_brain.json went on from the two-label one with ``--labels brain``: its last layer
cut to background and brain, window 96 96 96, batch 1; 500 steps of 1000 planned at 0.0005 with --strip 0.1, then 580 at
0.0004 with --strip 0.6, both with --severity 0.3 --t1 0.9.
"""

import argparse
import json
import re
import shutil
from pathlib import Path

BRAIN9 = Path(__file__).parents[1] / "examples" / "brain9"
# FreeSurfer's values. The fourth ventricle goes with the cerebellum, all other fluid with the cerebrum.
CEREBRUM = (
    "cerebral cortex", "cerebral white matter", "thalamus", "caudate", "putamen and pallidum",
    "hippocampus and amygdala",
)  # fmt: skip
CEREBRUM_BESIDES = (4, 5, 14, 24, 26, 28, 30, 31, 43, 44, 58, 60, 62, 63, 72, 85)
BELOW = (7, 8, 15, 16, 46, 47)
HELD_OUT = 2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("label_maps", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("--labels", choices=["two", "brain"], default="two")
    parser.add_argument("--strip", type=float, default=0.5, help="Share of heads without skull.")
    parser.add_argument("--t1", type=float, default=0.8, help="Share of heads painted as a T1.")
    parser.add_argument("--severity", type=float, default=0.5, help="Of deformation and corruption, 0 to 1.")
    arguments = parser.parse_args()
    maps = sorted(arguments.label_maps.glob("training_seg_*.nii.gz"))
    for folder, some in (("labelsTr", maps[:-HELD_OUT]), ("labelsVal", maps[-HELD_OUT : 1 - HELD_OUT])):
        (arguments.data / folder).mkdir(parents=True, exist_ok=True)
        for path in some:
            shutil.copyfile(path, arguments.data / folder / path.name)
    (arguments.data / "dataset.json").write_text(json.dumps(dataset(arguments.labels), indent=1), encoding="utf-8")
    (arguments.data / "synthesis.toml").write_text(synthesis(arguments), encoding="utf-8")
    print(f"{arguments.data}: {len(maps) - HELD_OUT} label maps to train on, one to validate on")


def dataset(kind: str) -> dict:
    """The demo model's values in two labels, or in one, the brain with its fluid."""
    nine = json.loads((BRAIN9 / "dataset.json").read_text(encoding="utf-8"))["labels"]
    cerebrum = sorted({value for name in CEREBRUM for value in nine[name]} | set(CEREBRUM_BESIDES))
    two = {"cerebrum and fluid": cerebrum, "cerebellum and brainstem": list(BELOW)}
    parts = two if kind == "two" else {"brain": sorted(cerebrum + list(BELOW))}
    return {
        "name": f"SynthSeg training label maps, {'two large parts of the brain' if kind == 'two' else 'the brain'}",
        "channel_names": {"0": "MRI"},
        "licence": "Label maps: SynthSeg (Billot et al.), Apache-2.0",
        "labels": {"background": 0, **parts},
    }


def synthesis(arguments: argparse.Namespace) -> str:
    """The demo model's painting, of some heads without skull, mostly as a T1."""
    painting = (BRAIN9 / "synthesis.toml").read_text(encoding="utf-8")
    for name, value in (("strip", arguments.strip), ("severity", arguments.severity)):
        painting = re.sub(rf"^{name} = .*$", f"{name} = {value}", painting, flags=re.MULTILINE)
    shares = f"[contrasts]\nt1 = {arguments.t1}\nrandom = {1 - arguments.t1:.3g}\n"
    return re.sub(r"^\[contrasts\]\n(.+\n)+", shares, painting, flags=re.MULTILINE)


if __name__ == "__main__":
    main()

"""Lay out the demo model's data: SynthSeg's training label maps as a label-only data set.

    python examples/brain9/prepare.py LABEL_MAPS DATA
    dropgen-rt train DATA --out RUN …        (the whole command: dropgen_rt/models/README.md)

LABEL_MAPS is a folder of whole-head label maps with FreeSurfer values (``training_seg_*.nii.gz``). The ten
labels and the values that each gathers are in dataset.json beside this file. Fluid around the brain (24) is a label of
its own: FreeSurfer's own segmentations do not hold it, so only tissue priors can tell how well it is found.
"""

import shutil
import sys
from pathlib import Path

VALIDATION_MAPS = 2


def main(source: Path, data: Path) -> None:
    here = Path(__file__).parent
    maps = sorted(source.glob("training_seg_*.nii.gz"))
    for folder, some in (("labelsTr", maps[:-VALIDATION_MAPS]), ("labelsVal", maps[-VALIDATION_MAPS:])):
        (data / folder).mkdir(parents=True, exist_ok=True)
        for path in some:
            shutil.copyfile(path, data / folder / path.name)
    for name in ("dataset.json", "synthesis.toml"):
        shutil.copyfile(here / name, data / name)
    print(f"{data}: {len(maps)} label maps")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))

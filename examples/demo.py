"""Segment the MNI152 T1 template with the model in the package; ``make demo`` runs this.

    python examples/demo.py [OUT]

The template comes from the nilearn wheel, so nothing is downloaded. It was never seen in training.
"""

import json
import shutil
import subprocess
import sys
from importlib import resources
from pathlib import Path

# Shorter stages are not worth a word.
TOLD_S = 0.05
TEMPLATE = "mni_icbm152_t1_tal_nlin_sym_09a_converted.nii.gz"


def main(out: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    scan = out / "mni152_t1.nii.gz"
    with resources.as_file(resources.files("nilearn.datasets") / "data" / TEMPLATE) as template:
        shutil.copyfile(template, scan)
    command = [str(Path(sys.executable).with_name("dropgen-rt")), "infer", str(scan), "--model", "brain9"]
    subprocess.run(command, check=True)
    record = json.loads((out / "mni152_t1_seg.json").read_text(encoding="utf-8"))
    slow = {name: seconds for name, seconds in record["timings_s"].items() if seconds >= TOLD_S}
    print(f"\n{record['windows']} windows; seconds: " + ", ".join(f"{name} {slow[name]:.1f}" for name in slow) + "\n")
    for label in record["labels"]:
        print(f"  {label['value']}  {label['name']:28} {label['volume_ml']:8.1f} mL")
    print(f"\nlabels   {out}/mni152_t1_seg.nii.gz\npicture  {out}/mni152_t1_seg.png\nrecord   {out}/mni152_t1_seg.json")
    print(f"next:    {command[0]} infer YOUR_HEAD_MRI.nii.gz")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "demo_output"))

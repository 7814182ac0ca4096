"""Several scans in one run: reading ahead and writing behind against one scan wholly after another.

python benchmarks/several_scans.py --out benchmarks/results/several_scans.json

Copies of one head (``../shared/data/brain_contrasts``) taken to 1 mm, as .nii.gz, with the demo model as installed, and
with a report for each where the viewer is there. Both orders run in turns; a limit of memory that is never reached
makes one scan wait for another.
"""

import argparse
import gzip
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
from recording import write

from dropgen_rt import Settings, read_scan
from dropgen_rt.infer import infer_files
from dropgen_rt.preprocess import to_working_grid
from dropgen_rt.volume import nifti_bytes

HEAD = Path(__file__).parents[2] / "shared" / "data" / "brain_contrasts" / "avg152T1.nii.gz"
NEVER_REACHED = 2**50


def copies(folder: Path, count: int) -> list[Path]:
    """The head at 1 mm in int16, ``count`` times."""
    head = to_working_grid(read_scan(HEAD).volume, "LPS", (1.0, 1.0, 1.0))
    values = (head.array[0] * (1000 / head.array.max())).astype(np.int16)
    content = gzip.compress(nifti_bytes(values, head.geometry), 6)
    paths = [folder / f"head{index}.nii.gz" for index in range(count)]
    for path in paths:
        path.write_bytes(content)
    return paths


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--model")
    parser.add_argument("--scans", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    ways = {"in_turn": Settings(memory_bytes=NEVER_REACHED), "overlapped": Settings()}
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    with tempfile.TemporaryDirectory() as folder:
        paths = copies(Path(folder), arguments.scans)
        for number in range(arguments.rounds + 1):
            for name, settings in ways.items():
                start = time.perf_counter()
                infer_files(paths, None, arguments.model, settings, "auto", quiet=True, report=True)
                if number:  # the first finds files in memory and libraries loaded
                    seconds[name].append(time.perf_counter() - start)
                    print(f"{name}: {seconds[name][-1]:.2f} s", flush=True)
    gain = statistics.median(a / b for a, b in zip(seconds["in_turn"], seconds["overlapped"], strict=True))
    write(arguments.out, {"scans": arguments.scans, "seconds": seconds, "in_turn_over_overlapped": round(gain, 3)})


if __name__ == "__main__":
    main()

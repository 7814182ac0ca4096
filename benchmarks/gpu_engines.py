"""Every engine for the GPU at hand, from the command line: built, judged, and run over a real head on the GPU's road.

python benchmarks/gpu_engines.py --scan ../shared/data/brain_t1/fs_subject_T1norm.nii.gz --out gpu_engines.json

For each engine that is installed and each precision that it offers: ``build-engine`` with its gate, ``verify``, and
``infer --device cuda:0``, whose labels are held against those of ONNX Runtime in fp32 on the CPU. The installed models
are kept in a folder of their own. Exit code 1 says that an engine failed.
"""

import argparse
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from click.testing import CliRunner
from recording import write

from dropgen_rt import Settings, open_engine, open_named, segment
from dropgen_rt.cli import main as command
from dropgen_rt.engines.choose import Choice, choose
from dropgen_rt.engines.contract import KINDS, PRECISIONS
from dropgen_rt.errors import DropgenError
from dropgen_rt.evaluate import dice_per_label
from dropgen_rt.gpu import open_device
from dropgen_rt.store import HOME_VARIABLE
from dropgen_rt.survey import library_version
from dropgen_rt.volume import read_label_map

DEVICE, RUNS = "cuda:0", 3
# Least mean Dice of a GPU's labels against the CPU's in fp32: the gate's own limit for a narrow precision.
LEAST_DICE = 0.995


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scan", type=Path, required=True)
    parser.add_argument("--model", default="brain9", help="Name or file.")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    model, gpu = open_named(arguments.model), open_device()
    began = time.perf_counter()
    with open_engine(model, "cpu", engine="onnxruntime", precision="fp32") as engine:
        expected = segment(arguments.scan, model, Settings(), engine=engine).labels.array[0]
    cpu_s = time.perf_counter() - began
    rows = [row_of(choice, arguments, expected) for choice in offered()]
    for row in rows:
        print(" ".join(f"{key} {value}" for key, value in row.items() if key != "said"), flush=True)
    about = {"name": gpu.name, "driver": gpu.driver, "library": gpu.library}
    write(arguments.out, {"gpu": about, "scan": arguments.scan.name, "onnxruntime_cpu_fp32_s": cpu_s, "rows": rows})
    raise SystemExit(1 if not rows or any(row.get("failed") for row in rows) else 0)


def offered() -> list[Choice]:
    """Each engine and precision that runs on this GPU here; why the others do not is printed."""
    found = []
    for kind in KINDS:
        for precision in PRECISIONS:
            try:
                found.append(choose(kind, precision, DEVICE))
            except DropgenError as error:
                print(f"{kind} {precision}: {error}")
    return found


def row_of(choice: Choice, arguments: argparse.Namespace, expected: np.ndarray) -> dict[str, Any]:
    kind, precision = choice.kind, choice.precisions[0]
    row: dict[str, Any] = {"engine": kind, "version": library_version(kind), "precision": precision}
    lines: list[str] = []
    with tempfile.TemporaryDirectory() as folder:
        os.environ[HOME_VARIABLE] = folder
        try:
            build = ["build-engine", arguments.model, "--engine", kind, "--precision", precision, "--device", DEVICE]
            row["build_s"] = timed(build, lines)
            row["verify_s"] = timed(["verify", "--device", DEVICE], lines)
            out = Path(folder) / "out"
            out.mkdir()
            infer = ["infer", str(arguments.scan), "--device", DEVICE, "-o", str(out)]
            row["infer_s"] = [timed(infer, lines) for _ in range(RUNS)]
            row["warm_s"] = warm_seconds(arguments)
            (path,) = out.glob("*.nii.gz")
            labels, _ = read_label_map(path)
        except Exception as error:
            return row | {"failed": True, "error": str(error), "said": lines}
    dice = dice_per_label(labels, expected, int(expected.max()))
    row["mean_dice"], row["least_dice"] = round(float(np.nanmean(dice)), 5), round(float(np.nanmin(dice)), 5)
    row["voxels_that_agree"] = round(float((labels == expected).mean()), 6)
    return row | {"said": lines} | ({"failed": True} if row["mean_dice"] < LEAST_DICE else {})


def warm_seconds(arguments: argparse.Namespace) -> list[float]:
    """Of the scan in one opened engine, after a first time."""
    model, seconds = open_named(arguments.model), []
    with open_engine(model, DEVICE) as engine:
        for _ in range(1 + RUNS):
            began = time.perf_counter()
            segment(arguments.scan, model, Settings(), engine=engine)
            seconds.append(round(time.perf_counter() - began, 3))
    return seconds[1:]


def timed(arguments: list[str], lines: list[str]) -> float:
    """Seconds of one command in this process; raises with what it said if it fails."""
    began = time.perf_counter()
    result = CliRunner().invoke(command, arguments)
    seconds = time.perf_counter() - began
    lines += result.output.splitlines()
    if result.exit_code:
        raise RuntimeError(f"{arguments[0]}: exit code {result.exit_code}: {result.output.strip()[-600:]}")
    return round(seconds, 2)


if __name__ == "__main__":
    main()

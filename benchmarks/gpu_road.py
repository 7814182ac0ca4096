"""Everything about the GPU in one run: compile, check every kernel against its definition, time it.

    python benchmarks/gpu_road.py --out gpu_road.json

docs/gpu.md says what must be installed. Kernels are compiled for the GPU that is there. A section that fails is
reported and the others still run; the exit code is 1 if anything failed. The file is written after every section.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from datetime import UTC, datetime
from importlib.util import find_spec
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path += [str(ROOT / "tests"), str(ROOT / "tests" / "gpu"), str(ROOT / "benchmarks")]

import numpy as np  # noqa: E402
from recording import machine  # noqa: E402

from dropgen_rt.gpu import Device, open_device  # noqa: E402
from dropgen_rt.gpu.device import LIBRARIES, is_installed  # noqa: E402
from dropgen_rt.kernels.architectures import ENTRY_POINTS, THREADS_PER_BLOCK  # noqa: E402
from dropgen_rt.kernels.compile import compile_kernels  # noqa: E402

Figures = dict[str, Any]
CHECK_SECONDS = 2.0  # per kernel


def open_any(library: str | None, figures: Figures) -> Device:
    """The GPU through ``library``, or through the first that works; what failed is kept."""
    for name in LIBRARIES if library is None else (library,):
        try:
            device = open_device(0, name)
        except Exception as error:
            figures.setdefault("libraries_that_failed", {})[name] = f"{type(error).__name__}: {error}"
            continue
        figures["library"] = name
        return device
    raise SystemExit(f"error: no GPU: {figures.get('libraries_that_failed')}")


def load_kernels(device: Device) -> Figures:
    """Compile for this GPU and load."""
    major, minor = device.capability
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        images = compile_kernels(Path(folder), [10 * major + minor])
        seconds = time.perf_counter() - start
        for stem, image in images.items():
            device.load(image.read_bytes(), ENTRY_POINTS[stem])
    return {"architecture": f"sm_{major}{minor}", "seconds": round(seconds, 2), "stems": sorted(images)}


def check_kernels(device: Device, seconds: float) -> Figures:
    """Random cases of every kernel against its NumPy definition, until the time is up."""
    from gpu_cases import CASES

    found = {}
    for name, case in CASES.items():
        cases, failures, end = 0, [], time.perf_counter() + seconds
        while time.perf_counter() < end and len(failures) < 3:
            try:
                case(device, np.random.default_rng(cases), THREADS_PER_BLOCK)
            except Exception as error:
                failures.append(f"seed {cases}: {type(error).__name__}: {str(error)[:600]}")
            cases += 1
        found[name] = {"cases": cases, "failures": failures}
        print(f"  {name:20} {cases:5} cases  {'equal' if not failures else failures[0]}", flush=True)
    if any(row["failures"] for row in found.values()):
        found["failed"] = True
    return found


def nvidia_smi() -> str:
    """Name, driver, memory and clocks as nvidia-smi tells them; empty where it is not on the PATH."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return ""
    query = "--query-gpu=name,driver_version,memory.total,clocks.sm,clocks.mem"
    run = subprocess.run([tool, query, "--format=csv,noheader"], capture_output=True, text=True, check=False)
    return run.stdout.strip()


def checks_through_the_other_library(library: str) -> Figures:
    """The same checks in a process of their own, through the library that was not used."""
    options = ["--library", library, "--checks-only", "--check-seconds", "1", "--out", os.devnull]
    command = [sys.executable, __file__, *options]
    run = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    print("\n".join("  " + line for line in run.stdout.splitlines()))
    found = {"library": library, "output": run.stdout.splitlines(), "errors": run.stderr.strip().splitlines()[-3:]}
    return found | ({"failed": True} if run.returncode else {})


def sections(device: Device, options: argparse.Namespace, figures: Figures) -> dict[str, Callable[[], Figures]]:
    """What is run, in this order."""
    found: dict[str, Callable[[], Figures]] = {
        "compile": lambda: load_kernels(device),
        "checks": lambda: check_kernels(device, options.check_seconds),
    }
    if options.checks_only:
        return found
    from gpu_speed import kernel_speed

    found["speed"] = lambda: kernel_speed(device)
    if find_spec("torch") and find_spec("monai"):
        import gpu_monai

        found["stitching"] = lambda: gpu_monai.stitching(device)
        found["whole road"] = lambda: gpu_monai.whole_road(device)
    else:
        print("PyTorch or MONAI is not installed: no comparison with it", flush=True)
    for other in (name for name in LIBRARIES if name != figures["library"]):
        if is_installed(other):
            found[f"checks through {other}"] = lambda other=other: checks_through_the_other_library(other)
        else:
            print(f"{other} is not installed: no checks through it", flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--library", choices=LIBRARIES)
    parser.add_argument("--checks-only", action="store_true")
    parser.add_argument("--check-seconds", type=float, default=CHECK_SECONDS, help="per kernel")
    arguments = parser.parse_args()
    start = time.perf_counter()
    figures: Figures = {"command": " ".join(["python", *sys.argv])}
    figures["date"] = datetime.now(UTC).isoformat(timespec="minutes")
    device = open_any(arguments.library, figures)
    known = "name", "driver", "capability", "l2_bytes", "memory_bytes"
    figures["gpu"] = {name: getattr(device, name) for name in known} | {"nvidia_smi": nvidia_smi()}
    figures["machine"] = machine()
    print(f"{device.name}, {nvidia_smi()}, through {device.library}", flush=True)
    failed = []
    for name, section in sections(device, arguments, figures).items():
        began = time.perf_counter()
        try:
            figures[name] = section()
        except Exception as error:
            traceback.print_exc()
            figures[name] = {"failed": True, "error": f"{type(error).__name__}: {error}"}
        if figures[name].get("failed"):
            failed.append(name)
        figures[name]["section_seconds"] = round(time.perf_counter() - began, 2)
        print(f"{name}: {'FAILED' if name in failed else 'done'} in {time.perf_counter() - began:.1f} s", flush=True)
        figures["failed"] = failed
        figures["seconds"] = round(time.perf_counter() - start, 1)
        if arguments.out != Path(os.devnull):
            arguments.out.write_text(json.dumps(figures, indent=2) + "\n")
    print(f"{'FAILED: ' + ', '.join(failed) if failed else 'all sections passed'}, {figures['seconds']} s")
    raise SystemExit(1 if failed else 0)


if __name__ == "__main__":
    main()

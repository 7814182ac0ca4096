"""From process start to the first window of ``infer`` with a cached engine, by stages.

python benchmarks/startup.py --out benchmarks/results/startup.json

The demo model is built into a data folder of its own first; then fresh processes open it, each telling when it had
imported, read the model, opened the engine and run one window. Medians over the processes; the first is not counted.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from recording import write

from dropgen_rt.store import find_model

CHILD = """
import sys, time
started = float(sys.argv[1])
stages = {"interpreter": time.time() - started}
def stage(name):
    stages[name] = time.time() - started - sum(stages.values())
import numpy as np
import dropgen_rt.infer
from dropgen_rt import open_engine, open_named
stage("import")
model = open_named(None)
stage("read_model")
engine = open_engine(model)
stage("open_engine")
engine.infer(np.zeros((1, len(model.manifest.channels), *model.manifest.window), np.float32))
stage("first_window")
import json
print(json.dumps({"engine": f"{engine.name} {engine.precision}", "stages": stages}))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--model", default="brain9")
    parser.add_argument("--processes", type=int, default=7)
    arguments = parser.parse_args()
    path = find_model(arguments.model)
    with tempfile.TemporaryDirectory() as folder:
        environment = {**os.environ, "DROPGEN_RT_HOME": folder}
        command = [sys.executable, "-c", "from dropgen_rt.cli import main; main()", "build-engine", str(path)]
        subprocess.run(command, env=environment, check=True, stdout=subprocess.DEVNULL)
        runs = []
        for _ in range(arguments.processes + 1):
            line = [sys.executable, "-c", CHILD, repr(time.time())]
            runs.append(json.loads(subprocess.run(line, env=environment, capture_output=True, check=True).stdout))
    stages = {name: round(statistics.median(run["stages"][name] for run in runs[1:]), 3) for name in runs[0]["stages"]}
    until = sum(seconds for name, seconds in stages.items() if name != "first_window")
    for name, seconds in stages.items():
        print(f"{seconds:.3f} s  {name}")
    print(f"{until:.3f} s  until computing starts")
    write(arguments.out, {"engine": runs[0]["engine"], "median_s": stages, "until_computing_s": round(until, 3)})


if __name__ == "__main__":
    main()

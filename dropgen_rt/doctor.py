"""``doctor``: one page on what this machine can run, and a self-test."""

import sys
import time
from collections.abc import Callable
from importlib.metadata import version

import numpy as np

from dropgen_rt import survey
from dropgen_rt.engines.choose import choose, open_engine
from dropgen_rt.engines.contract import KINDS
from dropgen_rt.errors import VerificationError
from dropgen_rt.gate import judge
from dropgen_rt.show import table
from dropgen_rt.store import home, open_named
from dropgen_rt.verify import golden_of


def examine(line: Callable[[str], None]) -> None:
    """Print the survey, then run the default model's gate. Raises VerificationError or ModelError if that fails."""
    found = survey.survey()
    line(f"dropgen-rt {version('dropgen-rt')}, Python {sys.version.split()[0]}, numpy {np.__version__}")
    line(f"CPU: {survey.cpu_name()}, {survey.cores()} cores")
    _gpus(found, line)
    for kind in KINDS:
        line(f"engine {kind}: {survey.library_version(kind) or 'not installed'}")
    provider = "here" if survey.has_cuda_provider() else f"not installed; {survey.CUDA_PROVIDER_HINT}"
    line(f"engine onnxruntime, CUDA provider: {provider}")
    for name, (_, _, use) in survey.OTHERS.items():
        line(f"library {name}: {survey.other_version(name) or f'not installed; {use}'}")
    for name, text in survey.compilers().items():
        line(f"compiler {name}: {text or 'not found; needed only to build the package or its GPU kernels'}")
    for text in survey.missing(found):
        line(f"missing: {text}")
    choice = choose(found=found)
    precisions = ", then ".join(choice.precisions)
    line(f"build-engine would try: {choice.kind} on {choice.device}, {precisions} ({choice.reason})")
    line(f"models in {home()}:")
    for row in table():
        line(f"  {row}")
    _self_test(line)


def _gpus(found: survey.Survey, line: Callable[[str], None]) -> None:
    for gpu in found.gpus:
        line(f"GPU {gpu.index}: {gpu.name}, sm_{gpu.capability}, {gpu.memory_bytes / 2**30:.0f} GiB")
    if found.driver_cuda:
        line(f"NVIDIA driver: {found.driver or 'version unknown'}, runs CUDA {found.driver_cuda}")
    else:
        line(f"NVIDIA: {found.no_gpu}")
    parts = survey.driver_parts()
    line(f"NVIDIA driver's parts: {', '.join(f'{name} {_here(there)}' for name, there in parts.items())}")


def _here(there: bool) -> str:
    return "found" if there else "absent"


def _self_test(line: Callable[[str], None]) -> None:
    """The engine that infer would use, on the default model's golden windows."""
    model = open_named(None)
    start = time.perf_counter()
    with open_engine(model) as engine:
        opened = time.perf_counter()
        report = judge(engine, golden_of(model), model.manifest)
        seconds = (time.perf_counter() - opened) / report.windows
    line(
        f"self-test: {model.manifest.name}, {report.engine} {report.precision}: opened in {opened - start:.1f} s, "
        f"{seconds:.2f} s a window, label agreement {report.agreement:.6f}"
    )
    if not report.passed:
        raise VerificationError(f"self-test failed: {'; '.join(report.failures)}; build the engine again")
    line("self-test: passed")

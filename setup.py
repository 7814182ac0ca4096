"""Host kernels, CUDA kernels where nvcc is, and the report's viewer; everything else is in pyproject.toml."""

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

from pybind11.setup_helpers import ParallelCompile, Pybind11Extension
from setuptools import setup
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py
from setuptools.command.sdist import sdist

STEMS = ("gather", "accumulate", "finalise", "resample", "reduce", "statistics")
HEADERS = [str(header) for header in sorted(Path("kernels").glob("*.h"))]


def is_stale(compiled: str, source: str) -> bool:
    """An object older than its source, a header or the flags below."""
    return Path(compiled).stat().st_mtime <= max(Path(name).stat().st_mtime for name in (source, *HEADERS, "setup.py"))


def compiler_of_cuda() -> object:
    """kernels/compile.py without the package around it, which does not exist yet."""
    for name in ("architectures", "compile"):
        where = Path("kernels") / f"{name}.py"
        spec = importlib.util.spec_from_file_location(f"dropgen_rt.kernels.{name}", where)
        module = importlib.util.module_from_spec(spec)
        sys.modules[f"dropgen_rt.kernels.{name}"] = module
        spec.loader.exec_module(module)
    return module


class BuildKernels(build_ext):
    """Adds one image per .cu file to a wheel: machine code for every architecture, and PTX for those to come.

    Not into an editable install, which compiles for its own GPU when it first meets one; DROPGEN_RT_CUDA=0 leaves
    them out of a wheel, too.
    """

    def run(self) -> None:
        # In the tree for editable installs, too, so that the next build finds the objects of this one.
        self.build_temp = str(Path("build") / f"objects-{sys.implementation.cache_tag}")
        super().run()
        wanted = os.environ.get("DROPGEN_RT_CUDA", "1") != "0" and not self.inplace and not self.editable_mode
        if wanted and shutil.which("nvcc"):
            out = Path(self.build_lib) / "dropgen_rt" / "kernels"
            out.mkdir(parents=True, exist_ok=True)
            compiler_of_cuda().compile_kernels(out, source=Path("kernels"))


def fetch_viewer() -> None:
    """Into the tree, so that an sdist holds it and a wheel made from that needs neither npm nor a network."""
    subprocess.run([sys.executable, "dropgen_rt/viewer/fetch.py", "--optional"], check=True)


class BuildWithViewer(build_py):
    def run(self) -> None:
        if not self.editable_mode:  # a checkout's owner decides: make viewer
            fetch_viewer()
        super().run()


class SdistWithViewer(sdist):
    def run(self) -> None:
        fetch_viewer()
        super().run()


# One file on each core.
ParallelCompile(needs_recompile=is_stale).install()

setup(
    cmdclass={"build_ext": BuildKernels, "build_py": BuildWithViewer, "sdist": SdistWithViewer},
    ext_modules=[
        Pybind11Extension(
            "dropgen_rt.kernels._host",
            ["kernels/host.cpp", *(f"kernels/{stem}.cpp" for stem in STEMS)],
            depends=HEADERS,
            include_dirs=["kernels"],
            cxx_std=17,
            # No contraction into fused multiply-adds: host, GPU and NumPy must round alike.
            extra_compile_args=["-O3", "-fopenmp", "-ffp-contract=off", "-fvisibility=hidden"],
            extra_link_args=["-fopenmp"],
        )
    ],
)

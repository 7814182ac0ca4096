"""The C++ host kernels and the report's viewer; everything else about the package is in pyproject.toml."""

import subprocess
import sys

from pybind11.setup_helpers import Pybind11Extension
from setuptools import setup
from setuptools.command.build_py import build_py
from setuptools.command.sdist import sdist


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


setup(
    cmdclass={"build_py": BuildWithViewer, "sdist": SdistWithViewer},
    ext_modules=[
        Pybind11Extension(
            "dropgen_rt.kernels._host",
            ["kernels/host.cpp", "kernels/gather.cpp", "kernels/accumulate.cpp", "kernels/finalise.cpp"],
            depends=["kernels/gather.h", "kernels/accumulate.h", "kernels/finalise.h", "kernels/portable.h"],
            include_dirs=["kernels"],
            cxx_std=17,
            # No contraction into fused multiply-adds: host, GPU and NumPy must round alike.
            extra_compile_args=["-O3", "-fopenmp", "-ffp-contract=off", "-fvisibility=hidden"],
            extra_link_args=["-fopenmp"],
        )
    ],
)

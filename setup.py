"""The C++ host kernels; everything else about the package is in pyproject.toml."""

from pybind11.setup_helpers import Pybind11Extension
from setuptools import setup

STEMS = ("gather", "accumulate", "finalise", "resample", "reduce", "statistics")

setup(
    ext_modules=[
        Pybind11Extension(
            "dropgen_rt.kernels._host",
            ["kernels/host.cpp", *(f"kernels/{stem}.cpp" for stem in STEMS)],
            depends=["kernels/portable.h", *(f"kernels/{stem}.h" for stem in STEMS)],
            include_dirs=["kernels"],
            cxx_std=17,
            # No contraction into fused multiply-adds: host, GPU and NumPy must round alike.
            extra_compile_args=["-O3", "-fopenmp", "-ffp-contract=off", "-fvisibility=hidden"],
            extra_link_args=["-fopenmp"],
        )
    ],
)

"""The patch kernels on the host: windows out of a volume, logits into sums, sums into labels.

Arrays are (channels, z, y, x), C-contiguous, float32. Each operation is one stem: ``gather.py`` holds its
definition in NumPy and its checks, ``gather.h`` its arithmetic, ``gather.cpp`` the loop on the host,
``gather.cu`` the one on a GPU.
"""

from dropgen_rt.kernels.accumulate import accumulate
from dropgen_rt.kernels.finalise import AxisMap, finalise
from dropgen_rt.kernels.gather import Normalisation, gather
from dropgen_rt.kernels.reduce import extremes, histogram, percentiles
from dropgen_rt.kernels.resample import Taps, resample
from dropgen_rt.kernels.statistics import statistics
from dropgen_rt.kernels.threads import set_threads, threads

__all__ = [
    "AxisMap",
    "Normalisation",
    "Taps",
    "accumulate",
    "extremes",
    "finalise",
    "gather",
    "histogram",
    "percentiles",
    "resample",
    "set_threads",
    "statistics",
    "threads",
]

"""The CPU engine leaves its caller's process as it found it."""

import numpy as np

from dropgen_rt import open_engine, open_named


def test_the_callers_denormal_numbers_survive_an_engine():
    # 1e-40 is denormal in float32: a thread that flushes denormals makes half of it zero.
    denormal = np.full(1, 1e-40, np.float32)
    model = open_named(None)
    with open_engine(model, "cpu") as engine:
        assert (denormal * np.float32(0.5))[0] > 0
        engine.infer(np.zeros((1, 1, *model.manifest.window), np.float32))
        assert (denormal * np.float32(0.5))[0] > 0

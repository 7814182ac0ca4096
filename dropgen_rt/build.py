"""``build-engine``: compile a model for this machine, try it, and only then install it."""

import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from dropgen_rt.engines import open_engine
from dropgen_rt.errors import VerificationError
from dropgen_rt.model import read_model
from dropgen_rt.store import cache_folder, check_name, install


def build(path: Path, name: str | None, make_default: bool) -> Iterator[str]:
    """Yields lines to print.

    Raises ModelError, UsageError, VerificationError or OutputError; then nothing is installed.
    """
    model = read_model(path)
    manifest = model.manifest
    chosen = check_name(manifest.name if name is None else name)
    window = np.random.default_rng(0).random((1, len(manifest.channels), *manifest.window), dtype=np.float32)
    with open_engine(model, "cpu", cache_folder()) as engine:
        start = time.perf_counter()
        logits = engine.infer(window)
        seconds = time.perf_counter() - start
        expected = (1, manifest.classes, *manifest.window)
        if logits.shape != expected or not np.isfinite(logits).all():
            raise VerificationError(
                f"{path}: a window of noise gave shape {logits.shape}, accepted are finite logits of shape {expected}; "
                "nothing was installed"
            )
        described = f"{engine.name} {engine.version}, {engine.precision}, {engine.device}"
        yield f"engine {described}: one window in {seconds:.2f} s"
    folder = install(model, chosen, make_default)
    yield f"installed {chosen} in {folder}" + (", the default model" if make_default else "")

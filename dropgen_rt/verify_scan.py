"""A real scan through an engine as ``infer`` runs it, beside fp32 reference mode."""

from collections.abc import Callable
from pathlib import Path

import numpy as np

from dropgen_rt.engines.choose import create
from dropgen_rt.engines.contract import Engine
from dropgen_rt.evaluate import dice_per_label
from dropgen_rt.model import Model
from dropgen_rt.segment import segment
from dropgen_rt.settings import Settings
from dropgen_rt.volume import read_scan


def compare_scan(path: Path, model: Model, engine: Engine, line: Callable[[str], None]) -> float:
    """Print label agreement and Dice of (a) the engine in reference mode and (b) as ``infer`` runs it, both against
    fp32 reference mode; returns (a)'s agreement. Raises InputError for a scan that cannot be read.

    (a) tells what the engine's precision changes, (b) adds what blending and interpolation change by intent.
    """
    scan = read_scan(path)
    with create(model, "openvino", "fp32", "cpu") as plain:
        expected = segment(scan, model, Settings(reference=True), engine=plain).labels.array[0]
    agreements = []
    for what, settings in (("reference mode", Settings(reference=True)), ("as infer runs it", Settings())):
        labels = segment(scan, model, settings, engine=engine).labels.array[0]
        agreements.append(float((labels == expected).mean()))
        scores = dice_per_label(labels, expected, len(model.manifest.labels))
        line(f"{path.name}: {engine.name} {engine.precision}, {what}, against openvino fp32 in reference mode")
        line(f"  label agreement  {agreements[-1]:.6f}")
        for label, score in zip(model.manifest.labels, scores, strict=True):
            line(f"  Dice {'absent  ' if np.isnan(score) else format(score, '.6f')}  {label.name}")
    return agreements[0]

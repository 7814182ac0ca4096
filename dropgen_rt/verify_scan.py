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

PRECISION_ONLY = "reference mode, which differs by precision only"
AS_INFER_RUNS_IT = (
    "as infer runs it, which interpolates logits, not labels, and so differs along borders by intent; where the model "
    "says so it keeps the largest component alone"
)


def compare_scan(path: Path, model: Model, engine: Engine, line: Callable[[str], None]) -> float:
    """Print label agreement and Dice of (a) the engine in reference mode and (b) as ``infer`` runs it, both against
    fp32 reference mode; returns (a)'s agreement. Raises InputError for a scan that cannot be read.

    (a) tells what the engine's precision changes, (b) adds what interpolating logits instead of labels, and leaving out
    windows of air and lone components, change by intent.
    """
    scan = read_scan(path)
    with create(model, "openvino", "fp32", "cpu") as plain:
        expected = segment(scan, model, Settings(reference=True), engine=plain).labels.array[0]
    agreements = []
    for what, settings in ((PRECISION_ONLY, Settings(reference=True)), (AS_INFER_RUNS_IT, Settings())):
        labels = segment(scan, model, settings, engine=engine).labels.array[0]
        agreements.append(float((labels == expected).mean()))
        scores = dice_per_label(labels, expected, len(model.manifest.labels))
        line(f"{path.name}: {engine.name} {engine.precision} against openvino fp32 in reference mode: {what}")
        line(f"  label agreement  {agreements[-1]:.6f}")
        for label, score in zip(model.manifest.labels, scores, strict=True):
            line(f"  Dice {'absent  ' if np.isnan(score) else format(score, '.6f')}  {label.name}")
    return agreements[0]

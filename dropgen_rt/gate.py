"""The accuracy gate: golden windows through an engine, held against fp32."""

import time
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from dropgen_rt.engines.contract import Engine
from dropgen_rt.golden import Golden
from dropgen_rt.manifest import Manifest


@dataclass(frozen=True)
class Limit:
    """What an engine of one precision must reach. ``agreement`` is the share of voxels with fp32's label."""

    agreement: float
    dice: float
    reason: str


# The one table of limits.
LIMITS = {
    "fp32": Limit(0.9999, 0.999, "only the order of sums differs: about 1e-6 of the logits' range, so only ties flip"),
    "fp16": Limit(0.998, 0.995, "11 bits of mantissa: about 1e-3 of the logits' range after some forty layers"),
    "bf16": Limit(0.998, 0.995, "8 bits of mantissa: about 1e-2 of the logits' range after some forty layers"),
    "int8": Limit(0.998, 0.995, "256 steps for a layer: as fine as bf16 for large values, coarser for small ones"),
}

# Dice of fewer voxels than this is printed and not judged: at 0.995 one flipped voxel in 100 would fail.
JUDGED_VOXELS = 400


@dataclass(frozen=True)
class GateReport:
    """Figures over all golden windows. Errors are of logits, over the range of the referee's; ``dice`` has one
    number per label, None where neither map has the label; ``failures`` is empty for an engine that passed.
    ``unjudged`` names labels with too few voxels in the golden windows for their Dice to be judged, ``window_s`` is how
    long the engine took for a window, here and now."""

    engine: str
    precision: str
    referee: str
    windows: int
    largest_error: float
    rms_error: float
    agreement: float
    dice: tuple[float | None, ...]
    failures: tuple[str, ...]
    unjudged: tuple[str, ...] = ()
    window_s: float = 0.0

    @property
    def passed(self) -> bool:
        return not self.failures

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON types."""
        return asdict(self) | {name: list(getattr(self, name)) for name in ("dice", "failures", "unjudged")}

    def lines(self, manifest: Manifest) -> list[str]:
        """A table to print."""
        limit = LIMITS[self.precision]
        rows = [
            f"gate: {self.engine} {self.precision} against {self.referee}, {self.windows} golden windows",
            f"  logit error      {self.largest_error:.1e} largest, {self.rms_error:.1e} rms, of the logits' range",
            f"  label agreement  {self.agreement:.6f}  (accepted from {limit.agreement})",
            f"  time             {self.window_s:.2f} s a window",
        ]
        for label, dice in zip(manifest.labels, self.dice, strict=True):
            rows.append(f"  Dice {'absent  ' if dice is None else format(dice, '.6f')}  {label.name}")
        if self.unjudged:
            rows.append(
                f"  not judged: {', '.join(self.unjudged)}, with fewer than {JUDGED_VOXELS} voxels in the golden "
                "windows; export with --golden SCAN, a scan that shows more of them"
            )
        passed = "gate: passed"
        if len(self.unjudged) == len(manifest.labels):
            passed += " by label agreement alone: the golden windows hold next to nothing that the model looks for"
        return [*rows, passed if self.passed else f"gate: FAILED: {'; '.join(self.failures)}"]


def judge(engine: Engine, golden: Golden, manifest: Manifest) -> GateReport:
    """Run the golden windows one by one and compare with the referee's answers."""
    spread = float(np.ptp(golden.logits)) or 1.0
    largest = squares = 0.0
    labels = np.empty_like(golden.labels)
    step, finite, seconds = golden.step, True, 0.0
    for index, window in enumerate(golden.windows):
        start = time.perf_counter()
        logits = engine.infer(window[None])[0]
        seconds += time.perf_counter() - start
        finite = finite and bool(np.isfinite(logits).all())
        labels[index] = logits.argmax(0)
        error = np.abs(logits[:, ::step, ::step, ::step] - golden.logits[index], dtype=np.float64) / spread
        largest, squares = max(largest, float(error.max())), squares + float(np.square(error).mean())
    counts = [np.bincount(item.ravel(), minlength=manifest.classes)[1:] for item in (
        labels, golden.labels, golden.labels[labels == golden.labels])]  # fmt: skip
    agreement = float((labels == golden.labels).mean())
    dice = tuple(2 * float(c) / float(a + b) if a + b else None for a, b, c in zip(*counts, strict=True))
    failures = (
        _failures(engine.precision, agreement, dice, counts[1], manifest) if finite else ["logits are not finite"]
    )
    unjudged = [
        label.name for label, size in zip(manifest.labels, counts[1], strict=True) if size < JUDGED_VOXELS
    ]  # fmt: skip
    return GateReport(
        engine.name, engine.precision, golden.referee, len(labels), largest, (squares / len(labels)) ** 0.5,
        agreement, dice, tuple(failures), tuple(unjudged), seconds / len(labels),
    )  # fmt: skip


def _failures(
    precision: str, agreement: float, dice: tuple[float | None, ...], voxels: np.ndarray, manifest: Manifest
) -> list[str]:
    limit, found = LIMITS[precision], []
    if not agreement >= limit.agreement:
        found.append(f"label agreement {agreement:.6f} is below {limit.agreement}")
    for label, score, size in zip(manifest.labels, dice, voxels, strict=True):
        if score is not None and size >= JUDGED_VOXELS and not score >= limit.dice:
            found.append(f"Dice of {label.name} {score:.6f} is below {limit.dice}")
    return found

"""The proof at export: what was written computes what it came from, printed as a table."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dropgen_rt.errors import VerificationError

# Largest |ONNX Runtime - PyTorch| over the logits' range that fp32 rounding explains: both sum the same 10^4
# products per voxel and layer in another order, and some forty layers pass the difference on.
PARITY = 1e-4
# The same after rounding the kernels to float16: 2^-12 each, in the worst case for all of some forty layers the same
# way, is 1e-2; more means that a layer was changed, not rounded.
ROUNDING = 1e-2


@dataclass(frozen=True)
class Row:
    """One comparison of logits (n, K, z, y, x): errors over the range of the expected ones, and label agreement."""

    what: str
    largest: float
    rms: float
    agreement: float
    accepted: str
    passed: bool

    def text(self) -> str:
        return (
            f"{self.what:<58} {self.largest:.1e} largest, {self.rms:.1e} rms of the logits' range, "
            f"label agreement {self.agreement:.6f} (accepted: {self.accepted})"
        )


def compare(
    what: str,
    logits: NDArray[np.float32],
    expected: NDArray[np.float32],
    *,
    largest: float | None = None,
    agreement: float | None = None,
) -> Row:
    """One row; passed if the largest error and the label agreement are within the limits that are given."""
    error = np.abs(logits - expected, dtype=np.float64) / (float(np.ptp(expected)) or 1.0)
    same = float((logits.argmax(1) == expected.argmax(1)).mean())
    worst = float(error.max())
    passed = (largest is None or worst <= largest) and (agreement is None or same >= agreement)
    limits = ([f"error to {largest:.0e}"] if largest is not None else []) + (
        [f"agreement from {agreement}"] if agreement is not None else []
    )
    return Row(what, worst, float(np.sqrt(np.square(error).mean())), same, ", ".join(limits) or "reported", passed)


def require(out: Path, rows: list[Row]) -> None:
    """Raises VerificationError for the first row that failed."""
    for row in rows:
        if not row.passed:
            raise VerificationError(f"{out}: {row.text()}; nothing was written")

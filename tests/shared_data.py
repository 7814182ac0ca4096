"""Where real scans lie beside a checkout, and the marker for tests that need them. Skips say what is missing."""

from pathlib import Path

import pytest

SHARED = Path(__file__).resolve().parents[2] / "shared"
DATA = SHARED / "data"


def needs(*parts: str) -> pytest.MarkDecorator:
    """Skip a test where one of these paths below ../shared is absent."""
    absent = [part for part in parts if not (SHARED / part).exists()]
    return pytest.mark.skipif(bool(absent), reason=f"real data not at ../shared: {', '.join(absent)}")

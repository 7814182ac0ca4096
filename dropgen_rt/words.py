"""How sizes and spacings are written in lines for people."""

from collections.abc import Iterable
from numbers import Integral


def by(values: Iterable[float]) -> str:
    """``256 x 256 x 180`` or ``1 x 1 x 1.2``: whole numbers in full, others with up to six digits."""
    return " x ".join(str(value) if isinstance(value, Integral) else f"{value:g}" for value in values)

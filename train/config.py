"""One frozen description of a training run; checked when made, stored in every checkpoint."""

from dataclasses import asdict, dataclass

from dropgen_rt.errors import UsageError
from dropgen_rt.train.network import METHODS, Method


@dataclass(frozen=True)
class TrainConfig:
    """All choices of a run. Defaults suit small data on a CPU; the paper's values stand in the comments."""

    steps: int = 1000  # paper: 250 000
    batch: int = 2  # paper: 4
    window: tuple[int, int, int] = (48, 48, 48)  # (z, y, x) voxels
    spacing_mm: tuple[float, float, float] = (1.0, 1.0, 1.0)  # (x, y, z)
    orientation: str = "LPS"
    method: Method = "dropgen"
    drop: float = 0.75
    width: int = 8  # paper: 20
    levels: int = 4  # paper: 5
    learning_rate: float = 1e-3  # paper: 2e-4, for a hundred times as many steps
    weight_decay: float = 1e-5
    gradient_clip: float = 1.0
    validate_every: int = 250  # paper: 1 000
    seed: int = 0

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise UsageError(f"method {self.method!r}: accepted are {', '.join(METHODS)}")
        if not 0 <= self.drop < 1:
            raise UsageError(f"drop {self.drop}: accepted is a number from 0 up to, not including, 1")
        if min(self.steps, self.batch, self.width, self.levels, self.validate_every) < 1:
            raise UsageError("steps, batch, width, levels and validate_every must be at least 1")
        stride = 2**self.levels
        if any(edge % stride for edge in self.window):
            raise UsageError(f"window {self.window}: with this segmentor, edges are multiples of {stride}")

    def summary(self) -> dict[str, object]:
        """Plain JSON types, for checkpoints and the manifest."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}

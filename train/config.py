"""One frozen description of a training run; checked when made, stored in every checkpoint and as TOML in the run."""

import math
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

from dropgen_rt.atomic import atomic_path
from dropgen_rt.errors import DropgenError, UsageError
from dropgen_rt.manifest import Intensity, plain_intensity
from dropgen_rt.train.config_text import merge, to_toml
from dropgen_rt.train.network import METHODS, NORMS, PADDINGS, Method, Norm, Padding
from dropgen_rt.train.segmentors import SEGMENTORS, SegmentorKind

LossKind = Literal["dice_ce", "dice_focal", "tversky", "ce"]
LOSSES: tuple[LossKind, ...] = get_args(LossKind)
Precision = Literal["auto", "fp32", "bf16", "fp16"]
PRECISIONS: tuple[Precision, ...] = get_args(Precision)
AXES = ("x", "y", "z")
# Halved eight times an edge is 256 voxels and more, past any window.
MOST_LEVELS = 8
# Times the million that keeps the seeds of steps apart it must fit into PyTorch's 64 bits.
MOST_SEED = 2**31 - 1
# AdamW holds these in float32: ten times the learning rate, in its first step, and the rate times the weight decay.
MOST_IN_STEP = 3.4e38
# A bias field is the exponential of up to 20 terms of this size: of more, float32 would not hold it.
MOST_OF_RANGE = {"gibbs": 1.0, "bias_field": 4.0}


def check_seed(seed: int) -> None:
    """Raises UsageError for one that PyTorch or NumPy does not take."""
    if not 0 <= seed <= MOST_SEED:
        raise UsageError(f"seed {seed}: accepted is a whole number from 0 to {MOST_SEED}")


@dataclass(frozen=True)
class AugmentConfig:
    """Each kind happens with ``probability``; the ranges are the reference's. Zero or 1 … 1 switches a kind off.

    ``intensity_curve`` is a probability of its own, of a kind that the reference has not: contrasts drawn at random.

    ``flip_axes`` (of the oriented scan: x is left-right in LPS) and ``quarter_turns`` (in the x-y plane) are
    off, because they are right only where no label is of one side.
    """

    probability: float = 0.33
    rotation_degrees: float = 45.0
    shear: float = 0.2
    scale: float = 0.2
    zoom: tuple[float, float] = (0.25, 1.0)
    noise: float = 0.05
    bias_field: tuple[float, float] = (0.0, 0.1)
    gibbs: tuple[float, float] = (0.0, 0.33)
    gamma: tuple[float, float] = (0.5, 2.0)
    smooth_voxels: tuple[float, float] = (0.25, 1.0)
    sharpen: bool = True
    intensity_curve: float = 0.0
    flip_axes: tuple[str, ...] = ()
    quarter_turns: bool = False

    def __post_init__(self) -> None:
        for name in ("probability", "intensity_curve"):
            if not 0 <= getattr(self, name) <= 1:
                raise UsageError(f"augment.{name} {getattr(self, name)}: accepted is a number from 0 to 1")
        if not set(self.flip_axes) <= set(AXES):
            raise UsageError(f"augment.flip_axes {list(self.flip_axes)}: accepted are {', '.join(AXES)}")
        for name in ("zoom", "bias_field", "gibbs", "gamma", "smooth_voxels"):
            low, high = getattr(self, name)
            most = MOST_OF_RANGE.get(name, math.inf)
            if not 0 <= low <= high <= most or not math.isfinite(high):
                up = f"to {most:g}" if name in MOST_OF_RANGE else "up"
                raise UsageError(f"augment.{name} {low, high}: accepted are two numbers from 0 {up}, the smaller first")
        for name, most in (("rotation_degrees", 180.0), ("shear", 1.0), ("scale", 0.99), ("noise", 10.0)):
            if not 0 <= getattr(self, name) <= most:
                raise UsageError(f"augment.{name} {getattr(self, name)}: accepted is a number from 0 to {most:g}")


@dataclass(frozen=True)
class TrainConfig:
    """All choices of a run. Defaults suit small data on a CPU; the paper's values stand in the comments."""

    steps: int = 1000  # paper: 250 000
    batch: int = 2  # paper: 4; over all processes together
    window: tuple[int, int, int] = (48, 48, 48)  # (z, y, x) voxels
    spacing_mm: tuple[float, float, float] = (1.0, 1.0, 1.0)  # (x, y, z)
    coverage: float = 0.0  # of the median scan that a window shall cover, by coarser voxels; 0: as fine as the data
    orientation: str = "LPS"
    method: Method = "dropgen"
    encoder: str = ""  # name or file; empty takes the one in the package
    drop: float = 0.75
    feature_scale: float = 1.0  # of the features beside the image; below 1 they are taken in more slowly; paper: 1
    image_first: float = 0.0  # share of the steps on the image alone, before the features come in; paper: none
    settle: float = (
        0.0  # share of the steps, the last, that drop nothing: batch norms see what inference will; paper: none
    )
    width: int = 8  # paper: 20
    levels: int = 4  # paper: 5
    learning_rate: float = 1e-3  # paper: 2e-4, for a hundred times as many steps
    weight_decay: float = 1e-5
    gradient_clip: float = 1.0
    validate_every: int = 250  # paper: 1 000
    seed: int = 0
    segmentor: SegmentorKind = "unet"
    norm: Norm = "batch"  # of the segmentor "unet"; instance norms see one crop, batch norms all; paper: batch
    padding: Padding = "zeros"  # beyond the borders of the segmentor "unet"; paper: reflect
    loss: LossKind = "dice_ce"
    precision: Precision = "auto"  # bf16 on a GPU, fp32 on a CPU; paper: bf16
    compile: bool = False
    subjects: int = 0  # training cases drawn at random by the seed; 0 takes all
    intensity: tuple[Intensity, ...] = (Intensity(),)  # one for all channels, or one for each
    augment: AugmentConfig = field(default_factory=AugmentConfig)

    def __post_init__(self) -> None:
        self._check_choices()
        if not 0 <= self.drop < 1:
            raise UsageError(f"drop {self.drop}: accepted is a number from 0 up to, not including, 1")
        self._check_image_and_features()
        if min(self.steps, self.batch, self.width, self.levels, self.validate_every) < 1:
            raise UsageError("steps, batch, width, levels and validate_every must be at least 1")
        if self.levels > MOST_LEVELS:
            raise UsageError(f"levels {self.levels}: accepted are 1 to {MOST_LEVELS}")
        if not 0 <= self.coverage <= 1:
            raise UsageError(
                f"coverage {self.coverage}: accepted is a share from 0, as fine as the data, to 1, all of it"
            )
        if self.subjects < 0:
            raise UsageError(f"subjects {self.subjects}: accepted are 0 (all) and up")
        self._check_orientation()
        self._check_descent()
        if len(self.window) != 3:
            raise UsageError(f"window {self.window}: accepted are three voxel counts")
        if len(self.spacing_mm) != 3 or not all(0 < mm < math.inf for mm in self.spacing_mm):
            raise UsageError(f"spacing_mm {self.spacing_mm}: accepted are three lengths above 0")
        stride = 2**self.levels
        if any(edge % stride or edge < 1 for edge in self.window):
            raise UsageError(f"window {self.window}: with this segmentor, edges are multiples of {stride}")
        square = self.window[1] == self.window[2] and self.spacing_mm[0] == self.spacing_mm[1]
        if self.augment.quarter_turns and not square:
            raise UsageError(
                f"augment.quarter_turns with window {self.window} and spacing_mm {self.spacing_mm}: turned crops must "
                "fit, so x and y are to be equal; give --window Z Y X and --spacing-mm X Y Z, or leave the turns off"
            )

    def _check_orientation(self) -> None:
        if not re.fullmatch("[LR][PA][SI]", self.orientation):
            raise UsageError(
                f"orientation {self.orientation!r}: accepted is a direction for each of x, y and z, such as LPS or RAS"
            )

    def _check_descent(self) -> None:
        for name, zero in (("learning_rate", False), ("gradient_clip", False), ("weight_decay", True)):
            value = getattr(self, name)
            if not 0 <= value < math.inf or (value == 0 and not zero):
                raise UsageError(f"{name} {value}: accepted is a number {'from' if zero else 'above'} 0")
        if self.learning_rate * max(self.weight_decay, 10) > MOST_IN_STEP:
            raise UsageError(
                f"learning_rate {self.learning_rate:g} with weight_decay {self.weight_decay:g}: a step would pass what "
                "float32 holds; give smaller ones"
            )
        check_seed(self.seed)

    def _check_choices(self) -> None:
        for name, accepted in CHOICES.items():
            if getattr(self, name) not in accepted:
                raise UsageError(f"{name} {getattr(self, name)!r}: accepted are {', '.join(accepted)}")
        for name, plain in (("norm", "batch"), ("padding", "zeros")):
            if getattr(self, name) != plain and self.segmentor != "unet":
                raise UsageError(
                    f"{name} {getattr(self, name)!r}: {self.segmentor} has {name}s of its own; give --{name} {plain}, "
                    "or --segmentor unet"
                )

    def _check_image_and_features(self) -> None:
        if not 0 <= self.image_first < 1:
            raise UsageError(f"image_first {self.image_first}: accepted is a share from 0 up to, not including, 1")
        if not self.settle >= 0 or round(self.image_first + self.settle, 9) > 1:
            raise UsageError(
                f"image_first {self.image_first:g} and settle {self.settle:g}: accepted are shares from 0 that add up "
                "to no more than 1; change one"
            )
        if not 0 < self.feature_scale <= 1:
            raise UsageError(f"feature_scale {self.feature_scale}: accepted is a number above 0, to 1")
        if (self.image_first, self.feature_scale) != (0, 1) and self.method not in WITH_BOTH:
            raise UsageError(
                f"image_first and feature_scale with method {self.method!r}: they are for those that see image and "
                f"features, {' and '.join(WITH_BOTH)}; give --image-first 0 --feature-scale 1"
            )

    @property
    def channel_drop(self) -> float:
        """The dropout that the method has: ``drop`` for dropgen, none for the others."""
        return self.drop if self.method == "dropgen" else 0.0

    def image_alone(self, step: int) -> bool:
        """Whether ``step`` is one of the first that see the image alone."""
        return step < self.image_steps

    @property
    def image_steps(self) -> int:
        """How many steps, the first, see the image alone."""
        return round(self.image_first * self.steps)

    def settling(self, step: int) -> bool:
        """Whether ``step`` is one of the last, which drop nothing."""
        return step >= self.steps - round(self.settle * self.steps)

    def summary(self) -> dict[str, object]:
        """Plain JSON types, for checkpoints and the manifest."""
        options = {key: _plain(value) for key, value in asdict(self).items()}
        return options | {"intensity": plain_intensity(self.intensity)}

    def save(self, path: Path) -> None:
        """Write the config as TOML, such as ``read_toml`` takes."""
        with atomic_path(path) as temporary:
            temporary.write_text(to_toml(self.summary()), encoding="utf-8")


#: The methods that have an image and features.
WITH_BOTH = ("dropgen", "concat")

#: How a small network takes features in: measured, in docs/training-results.md.
IMAGE_FIRST: dict[str, Any] = {"image_first": 0.7, "feature_scale": 0.1, "settle": 0.1}

CHOICES: dict[str, tuple[str, ...]] = {
    "method": METHODS, "segmentor": SEGMENTORS, "norm": NORMS, "padding": PADDINGS, "loss": LOSSES,
    "precision": PRECISIONS,
}  # fmt: skip

# What a preset sets beside the defaults; ``window`` is the largest, the data set's own size may ask for less.
PRESETS: dict[str, dict[str, Any]] = {
    # A small segmentor on few steps: three channels of four dropped is more than it learns to do without, and it gets
    # further if it learns from the image first. Batches of two leave batch norms noisy; norms of one crop stand changed
    # contrast better (docs/training-results.md).
    "tiny": {
        "steps": 7500, "batch": 2, "window": (48, 48, 48), "width": 8, "levels": 4, "learning_rate": 1e-3,
        "drop": 0.25, "validate_every": 1000, "coverage": 0.125, "norm": "instance", **IMAGE_FIRST,
    },
    "edge": {
        "steps": 40_000, "batch": 4, "window": (96, 96, 96), "width": 12, "levels": 4, "learning_rate": 5e-4,
        "validate_every": 1000, "precision": "bf16", "coverage": 0.05,
    },
    "paper": {
        "steps": 250_000, "batch": 4, "window": (128, 128, 128), "width": 20, "levels": 5, "learning_rate": 2e-4,
        "validate_every": 1000, "precision": "bf16", "padding": "reflect",
    },
}  # fmt: skip


def preset_for(
    name: str, given: Sequence[Mapping[str, Any]], trained: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """What preset ``name`` sets below the layers ``given``.

    Methods without image or features have no order of the two, and MONAI's segmentors norms and borders of their own.
    Weights to start from know features already: ``trained`` is how their network scales these, and its norm and
    padding. Raises UsageError for an unknown name.
    """
    if name not in PRESETS:
        raise UsageError(f"preset {name!r}: accepted are {', '.join(PRESETS)}")
    named = {key: value for layer in given for key, value in layer.items()}
    both = named.get("method", TrainConfig.method) in WITH_BOTH
    chosen = PRESETS[name]
    if trained is not None or not both:
        chosen = _without(IMAGE_FIRST, chosen)
    chosen = chosen | dict(trained or {})
    if named.get("segmentor", TrainConfig.segmentor) != "unet":
        chosen = _without(("norm", "padding"), chosen)
    return chosen if both else _without(("feature_scale",), chosen)


def _without(names: Collection[str], options: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in options.items() if key not in names}


def build_config(*layers: Mapping[str, Any]) -> TrainConfig:
    """A config from layers of options, a later one over an earlier; nested tables are merged.

    Raises UsageError for an unknown name or a value of the wrong kind.
    """
    merged: dict[str, Any] = {}
    for layer in layers:
        merge(merged, layer)
    config: TrainConfig = _made(TrainConfig(), merged, "")
    return config


def _made(default: Any, values: Mapping[str, Any], prefix: str) -> Any:
    known = {item.name: getattr(default, item.name) for item in fields(default)}
    unknown = sorted(set(values) - set(known))
    if unknown:
        raise UsageError(f"{prefix}{unknown[0]}: no such option; accepted are {', '.join(prefix + k for k in known)}")
    try:
        return replace(default, **{key: _typed(known[key], value, prefix + key) for key, value in values.items()})
    except DropgenError as error:
        raise UsageError(str(error)) from error


def _typed(default: Any, value: Any, name: str) -> Any:
    """``value`` as the kind that the default has; TOML and the command line know no tuples."""
    if is_dataclass(default):
        if not isinstance(value, Mapping):
            raise UsageError(f"{name} {value!r}: accepted is a table, such as {name}.{fields(default)[0].name} = …")
        return _made(default, value, name + ".")
    if isinstance(default, tuple):
        if default and is_dataclass(default[0]):
            return _tables(default[0], value, name)
        if not isinstance(value, (list, tuple)) or (default and len(value) != len(default)):
            raise UsageError(f"{name} {value!r}: accepted is a list of {len(default) or 'any number of'} values")
        return tuple(_typed(default[0], item, name) if default else str(item) for item in value)
    if isinstance(default, float) and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if type(value) is not type(default):
        accepted = "true or false" if isinstance(default, bool) else f"a value such as {default!r}"
        raise UsageError(f"{name} {value!r}: accepted is {accepted}")
    return value


def _tables(default: Any, value: Any, name: str) -> tuple[Any, ...]:
    """One table, or a list of them."""
    if isinstance(value, Mapping):
        return (_typed(default, value, name),)
    if not isinstance(value, (list, tuple)) or not value:
        raise UsageError(f"{name} {value!r}: accepted is a table, or a list of one for each channel")
    for place, item in enumerate(value):
        if isinstance(item, Mapping) and item.get("kind") == "range" and not {"lower", "upper"} <= item.keys():
            raise UsageError(f"{name}[{place}] of kind 'range': give its bounds, too, lower = … and upper = …")
    return tuple(_typed(default, item, f"{name}[{place}]") for place, item in enumerate(value))


def _plain(value: object) -> object:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, (list, tuple)) else value

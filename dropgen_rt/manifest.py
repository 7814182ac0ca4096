"""What a model says about itself: labels, working grid, intensities, window, provenance.

The manifest travels inside ``model.onnx`` as one JSON text under :data:`METADATA_KEY`, so the model file is
all that inference needs. Unknown fields of a newer minor version are ignored; a newer major one is refused.
"""

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any, ClassVar, Literal

from dropgen_rt.components import COMPONENTS, Components
from dropgen_rt.errors import GeometryError, ModelError
from dropgen_rt.geometry import parse_orientation
from dropgen_rt.typed_fields import FieldError, parse_json, read_fields
from dropgen_rt.windows import BLENDS, PLACEMENTS, Blend, Placement

METADATA_KEY = "dropgen_rt.manifest"
SCHEMA_MAJOR, SCHEMA_MINOR = 1, 4
SCHEMA = f"{SCHEMA_MAJOR}.{SCHEMA_MINOR}"

# What no scan of a person needs: lengths in mm beyond these, and windows of more voxels (512^3).
SMALLEST_MM, LARGEST_MM = 1e-3, 1e3
MOST_VOXELS = 2**27
MOST_LABELS = 65535
# Within float32, and so is its reciprocal.
LARGEST_INTENSITY = 1e30


@dataclass(frozen=True)
class Label:
    """One structure: its voxel value (1 and up; 0 is background), name, and colour as (r, g, b) in 0-255.

    ``code`` and ``category`` are (value, scheme, meaning), such as ("10200004", "SCT", "Liver"): what DICOM calls
    the segmented property's type and category. Without them the DICOM writer looks the name up.
    """

    value: int
    name: str
    colour: tuple[int, int, int]
    code: tuple[str, str, str] | None = None
    category: tuple[str, str, str] | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "colour", tuple(int(part) for part in self.colour))
        for item in ("code", "category"):
            given = getattr(self, item)
            if given is not None:
                object.__setattr__(self, item, tuple(map(str, given)))
                if len(given) != 3 or not all(given):
                    raise ModelError(f"label {self.value} {self.name!r}: {item} {given} is not value, scheme, meaning")
        if self.value < 1 or not self.name or len(self.colour) != 3 or not set(self.colour) <= set(range(256)):
            raise ModelError(f"label {self.value} {self.name!r} {self.colour}: value >= 1, a name, colour 0-255")


@dataclass(frozen=True)
class Intensity:
    """How raw intensities become network input: clip to two bounds, then map those to 0 and 1.

    In a file one table may stand for all channels, where a list has one for each.

    ``kind="percentile"``: the bounds are these percentiles of the whole scan on the working grid (MR).
    ``kind="range"``: the bounds are these intensities themselves (CT, Hounsfield units).
    """

    ONE_STANDS_FOR_ALL: ClassVar = True

    kind: Literal["percentile", "range"] = "percentile"
    lower: float = 0.5
    upper: float = 99.5

    def __post_init__(self) -> None:
        if self.kind not in ("percentile", "range"):
            raise ModelError(f"intensity kind {self.kind!r}: accepted are 'percentile' and 'range'")
        if not (math.isfinite(self.lower) and math.isfinite(self.upper) and self.lower < self.upper):
            raise ModelError(f"intensity bounds {self.lower}, {self.upper}: the first must be the smaller, both finite")
        if max(-self.lower, self.upper) > LARGEST_INTENSITY or self.upper - self.lower < 1 / LARGEST_INTENSITY:
            raise ModelError(
                f"intensity bounds {self.lower}, {self.upper}: accepted are -{LARGEST_INTENSITY:g} to "
                f"{LARGEST_INTENSITY:g}, {1 / LARGEST_INTENSITY:g} apart or more"
            )
        if self.kind == "percentile" and not (self.lower >= 0 and self.upper <= 100):
            raise ModelError(f"intensity percentiles {self.lower}, {self.upper}: accepted are 0 to 100")

    def __str__(self) -> str:
        return f"{self.kind} {self.lower:g} to {self.upper:g}"


def each_channel(intensity: Sequence[Intensity], channels: int) -> tuple[Intensity, ...]:
    """Of so many channels, from one for all of them or one for each."""
    return tuple(intensity) * channels if len(intensity) == 1 else tuple(intensity)


def intensity_told(intensity: Sequence[Intensity], channels: Sequence[str]) -> str:
    """For a person: whose it is, where there are several."""
    if len(intensity) == 1:
        return str(intensity[0])
    return ", ".join(f"{own} ({name})" for own, name in zip(intensity, channels, strict=True))


def plain_intensity(intensity: Sequence[Intensity]) -> dict[str, Any] | list[dict[str, Any]]:
    """As files hold it: a table that is of all channels, or a list of one for each."""
    tables = [asdict(item) for item in intensity]
    return tables[0] if len(tables) == 1 else tables


@dataclass(frozen=True)
class SourceRule:
    """Which DICOM series the model is for. Empty fields leave the choice open.

    ``modality`` and ``body_part`` list what is accepted, ``image_type`` values that ImageType must hold, or with a
    leading "!" must not. ``pick`` says what to do if several stacks fit: "only" lists them and stops, "thickest"
    takes the one with the most slices.
    """

    modality: tuple[str, ...] = ()
    body_part: tuple[str, ...] = ()
    image_type: tuple[str, ...] = ()
    pick: Literal["only", "thickest"] = "only"

    def __post_init__(self) -> None:
        for item in ("modality", "body_part", "image_type"):
            object.__setattr__(self, item, tuple(str(value).upper() for value in getattr(self, item)))
        if self.pick not in ("only", "thickest"):
            raise ModelError(f"source rule picks {self.pick!r}: accepted are 'only' and 'thickest'")

    def describe(self) -> str:
        """The rule in a few words."""
        items = (self.modality, self.body_part, self.image_type)
        return ", ".join(" or ".join(item) for item in items if item) or "any"


@dataclass(frozen=True)
class Manifest:
    """Everything the runtime must know of a model. ``spacing_mm`` is (x, y, z), ``window`` is (z, y, x) voxels.

    With ``dynamic_window`` the graph takes windows of any multiples of ``stride``, and ``window`` is the usual one.
    ``golden_sha256`` is the digest of the golden windows beside it (dropgen_rt.golden), "" if there are none.
    ``overlap``, ``blend`` and ``placement`` are by default the published ones; whoever knows that a model's labels stay
    the same with fewer windows says so here (benchmarks/overlap.py). ``intensity`` holds one for all channels, or one
    for each. ``components`` "largest" keeps of all that is
    labelled one connected component (dropgen_rt.components).
    ``largest_batch`` is how many windows the graph takes at once, 0 for any number.
    """

    name: str
    labels: tuple[Label, ...]
    spacing_mm: tuple[float, float, float]
    window: tuple[int, int, int]
    stride: int
    orientation: str = "LPS"
    channels: tuple[str, ...] = ("image",)
    intensity: tuple[Intensity, ...] = (Intensity(),)
    overlap: float = 0.5
    blend: Blend = "constant"
    training: dict[str, Any] = field(default_factory=dict)
    notice: str = ""
    dynamic_window: bool = False
    golden_sha256: str = ""
    largest_batch: int = 0
    schema: str = SCHEMA
    source: SourceRule = field(default_factory=SourceRule)
    placement: Placement = "scan"
    components: Components = "all"

    def __post_init__(self) -> None:
        count = len(self.labels)
        if not 1 <= count <= MOST_LABELS or [label.value for label in self.labels] != list(range(1, count + 1)):
            raise ModelError(f"manifest of {self.name!r}: label values must count 1, 2, 3 … without gaps")
        if len(self.spacing_mm) != 3 or not all(SMALLEST_MM <= mm <= LARGEST_MM for mm in self.spacing_mm):
            raise ModelError(f"manifest of {self.name!r}: spacing_mm {self.spacing_mm} is not three lengths in mm")
        if len(self.window) != 3 or self.stride < 1 or any(edge < 1 or edge % self.stride for edge in self.window):
            raise ModelError(
                f"manifest of {self.name!r}: window {self.window} is not three multiples of the stride {self.stride}"
            )
        if math.prod(self.window) > MOST_VOXELS:
            raise ModelError(f"manifest of {self.name!r}: window {self.window} has more than {MOST_VOXELS} voxels")
        if not self.name or self.largest_batch < 0 or not re.fullmatch("([0-9a-f]{64})?", self.golden_sha256):
            raise ModelError(
                f"manifest of {self.name!r}: largest_batch {self.largest_batch}, golden_sha256 {self.golden_sha256!r}; "
                "accepted are a name, 0 and up, and a sha256 or nothing"
            )
        self._check_channels()
        choices = {"blend": BLENDS, "placement": PLACEMENTS, "components": COMPONENTS}
        for item, accepted in choices.items():
            if getattr(self, item) not in accepted:
                raise ModelError(
                    f"manifest of {self.name!r}: {item} {getattr(self, item)!r}; accepted are {' or '.join(accepted)}"
                )
        try:
            parse_orientation(str(self.orientation))
        except GeometryError as error:
            raise ModelError(f"manifest of {self.name!r}: {error}") from error

    def _check_channels(self) -> None:
        if not self.channels or not 0 <= self.overlap < 1:
            raise ModelError(
                f"manifest of {self.name!r}: channels {self.channels}, overlap {self.overlap}; accepted are one "
                "channel or more, and 0 up to, not including, 1"
            )
        if len(self.intensity) not in (1, len(self.channels)):
            raise ModelError(
                f"manifest of {self.name!r}: intensity has {len(self.intensity)} tables for {len(self.channels)} "
                "channels; accepted are one for all, or one for each"
            )

    @property
    def classes(self) -> int:
        """Output channels of the network, background included."""
        return len(self.labels) + 1

    def to_json(self) -> str:
        return json.dumps(asdict(self) | {"intensity": plain_intensity(self.intensity)}, sort_keys=True)

    @staticmethod
    def from_json(text: str) -> "Manifest":
        """Read and check a manifest, whoever wrote it. Raises ModelError for another major version, for a field that is
        missing or of another type, and for values that no model has."""
        try:
            data = parse_json(text)
            schema = re.fullmatch(r"(\d{1,9})(\.\d{1,9})?", str(data["schema"]), re.ASCII)
        except (ValueError, KeyError, TypeError) as error:
            raise ModelError("the model's manifest is not a dropgen-rt manifest; export it again") from error
        if schema is None:
            raise ModelError("the model's manifest is not a dropgen-rt manifest; export it again")
        if int(schema[1]) != SCHEMA_MAJOR:
            raise ModelError(
                f"the model's manifest has schema {schema[0]}, this version reads {SCHEMA_MAJOR}.x; "
                "export the model again or install the matching dropgen-rt"
            )
        try:
            _require_intensity(data)
            return read_fields(Manifest, data, unknown="ignore")
        except FieldError as error:
            raise ModelError(f"the model's manifest lacks or garbles a field ({error}); export it again") from error


def _require_intensity(data: Mapping[str, Any]) -> None:
    """Intensity has defaults for those who write a manifest; one that was written says what it is."""
    if "intensity" not in data:
        raise FieldError("intensity: is missing")
    given = data["intensity"]
    for table in given if isinstance(given, list) else [given]:
        lacking = [item.name for item in fields(Intensity) if isinstance(table, Mapping) and item.name not in table]
        if lacking:
            raise FieldError(f"intensity.{lacking[0]}: is missing")

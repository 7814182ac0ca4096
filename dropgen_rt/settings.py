"""What can be chosen about the road of one scan."""

from dataclasses import dataclass
from typing import Any

from dropgen_rt.air import AirRule, Greatest, body_box
from dropgen_rt.components import COMPONENTS, Components
from dropgen_rt.errors import UsageError
from dropgen_rt.kernels import Normalisation
from dropgen_rt.manifest import Manifest
from dropgen_rt.window_size import Wish
from dropgen_rt.windows import BLENDS, PLACEMENTS, Blend, Placement, WindowPlan

REFERENCE_OVERLAP = 0.5


@dataclass(frozen=True)
class Settings:
    """How windows lie, overlap and blend, and which components stay. ``None`` means the model's own choice.

    ``reference`` fixes these to MONAI's sliding window (over the scan, 0.5, constant) and takes the arg-max on the
    working grid, as the published method does; labels then go to the scan's grid by nearest neighbour; no window is
    skipped, and all components stay. ``placement`` "body" lays windows over what is not air, evenly; all else is
    background.
    ``memory_bytes`` is the most that this process may hold; None leaves it to what the machine has free.
    ``window`` is (z, y, x) voxels for a model whose graph takes any, or "auto": the size that computes least and fits.
    ``reserved_bytes`` is what other work of this process will take meanwhile, and is counted in the prediction.
    ``cuda_graph`` lets a GPU start the network with one call per batch, from the second batch on.
    """

    overlap: float | None = None
    blend: Blend | None = None
    reference: bool = False
    probabilities: bool = False
    skip_air: bool = True
    memory_bytes: int | None = None
    window: Wish | None = None
    reserved_bytes: int = 0
    cuda_graph: bool = False
    placement: Placement | None = None
    components: Components | None = None

    def __post_init__(self) -> None:
        if self.overlap is not None and not 0 <= self.overlap < 1:
            raise UsageError(f"overlap {self.overlap}: accepted is a number from 0 up to, not including, 1")
        if self.blend is not None and self.blend not in BLENDS:
            raise UsageError(f"blend {self.blend!r}: accepted are {' and '.join(BLENDS)}")
        if self.placement is not None and self.placement not in PLACEMENTS:
            raise UsageError(f"placement {self.placement!r}: accepted are {' and '.join(PLACEMENTS)}")
        if self.components is not None and self.components not in COMPONENTS:
            raise UsageError(f"components {self.components!r}: accepted are {' and '.join(COMPONENTS)}")
        fixed = self.overlap, self.blend, self.placement, self.components
        if self.reference and fixed != (None, None, None, None):
            raise UsageError(
                "reference mode fixes overlap, blend, placement and components; leave --overlap, --blend, --placement "
                "and --components out"
            )
        if self.placement == "body" and not self.skip_air:
            raise UsageError("placement body leaves air out; give it or --every-window, not both")
        if self.reference and self.window is not None:
            raise UsageError("reference mode keeps the trained window; leave --window out")
        if self.reference and self.probabilities:
            raise UsageError("reference mode takes the arg-max on the working grid and gives no probabilities")

    @property
    def skips_air(self) -> bool:
        """Whether windows of nothing but air are left out; in reference mode none is."""
        return self.skip_air and not self.reference

    def resolved(self, manifest: Manifest) -> tuple[float, Blend]:
        """Overlap and blend, every choice made."""
        if self.reference:
            return REFERENCE_OVERLAP, "constant"
        return manifest.overlap if self.overlap is None else self.overlap, self.blend or manifest.blend

    def placed(self, manifest: Manifest) -> Placement:
        """Where windows lie; over the whole scan where none may be left out."""
        return (self.placement or manifest.placement) if self.skips_air else "scan"

    def kept(self, manifest: Manifest) -> Components:
        """Which connected components of the labels stay; in reference mode all."""
        return "all" if self.reference else self.components or manifest.components

    def told(self, manifest: Manifest) -> dict[str, Any]:
        """What a record says of how labels were made."""
        overlap, blend = self.resolved(manifest)
        placement, components = self.placed(manifest), self.kept(manifest)
        return {
            "overlap": overlap, "blend": blend, "placement": placement, "components": components,
            "reference": self.reference,
        }  # fmt: skip

    def air(self, manifest: Manifest) -> AirRule:
        """What is done with windows of nothing but air."""
        if not self.skips_air:
            return "run"
        return "background" if self.placed(manifest) == "body" else "ask"

    def lay(self, plan: WindowPlan, manifest: Manifest, greatest: Greatest, bounds: Normalisation) -> WindowPlan:
        """``plan``, or its windows around the body that ``greatest`` finds in the working image."""
        if self.placed(manifest) == "scan":
            return plan
        return plan.around(body_box(greatest, plan.shape, bounds), self.resolved(manifest)[0])

"""Where the voxels of a scan lie in the patient: size, spacing, origin, direction.

Frame: LPS (x grows to the patient's left, y to the back, z to the head), millimetres, as in SimpleITK and
DICOM. Everything here is in (x, y, z) order, except ``shape`` and the arrays that ``AxisChange`` turns,
which are numpy's (z, y, x).
"""

import itertools
import math
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from dropgen_rt.errors import GeometryError

#: How far two axes may be from perpendicular, and an axis from unit length. Header texts with four decimals
#: stay within it; at 250 mm from the origin it moves a voxel by 0.05 mm at most.
DIRECTION_TOLERANCE = 2e-4

#: Grids whose centres lie closer than this many voxels are taken as concentric: origins in float32 headers
#: are no better, and an offset of exactly 0 keeps resampling the same, to the bit, under flips.
CONCENTRIC_VOXELS = 1e-6

_LETTERS = ("RL", "AP", "IS")  # per LPS axis: the end it comes from, the end it goes to

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class AxisChange:
    """A permutation and flips of the axes of an array (..., z, y, x); both directions are numpy views.

    ``order[i]`` is the old axis (0 = x, 1 = y, 2 = z) that becomes new axis ``i``; ``flips[i]`` says whether
    new axis ``i`` runs backward.
    """

    order: tuple[int, int, int]
    flips: tuple[bool, bool, bool]

    def apply(self, array: np.ndarray) -> np.ndarray:
        """The array (..., z, y, x) with its axes permuted, then flipped."""
        return self._flip(np.transpose(array, _numpy_order(array.ndim, self.order)))

    def undo(self, array: np.ndarray) -> np.ndarray:
        """The inverse: ``undo(apply(x))`` equals ``x``."""
        back = (self.order.index(0), self.order.index(1), self.order.index(2))
        return np.transpose(self._flip(array), _numpy_order(array.ndim, back))

    def _flip(self, array: np.ndarray) -> np.ndarray:
        return np.flip(array, tuple(array.ndim - 1 - axis for axis in range(3) if self.flips[axis]))


@dataclass(frozen=True)
class Geometry:
    """A rigid voxel grid.

    ``size`` in voxels, ``spacing_mm`` and ``origin_mm`` (centre of voxel 0, 0, 0) in millimetres,
    ``direction`` row-major: its column i is the unit vector along which index i grows. Left-handed grids
    are legal.

    Raises GeometryError for sizes below 1, spacing that is not positive and finite, an origin that is not
    finite, or axes that are not unit and perpendicular within DIRECTION_TOLERANCE.
    """

    size: tuple[int, int, int]
    spacing_mm: tuple[float, float, float]
    origin_mm: tuple[float, float, float]
    direction: tuple[float, ...]

    def __post_init__(self) -> None:
        if len(self.size) != 3 or any(int(n) != n or n < 1 for n in self.size):
            raise GeometryError(f"size {self.size}; accepted: three whole numbers from 1 up")
        if len(self.spacing_mm) != 3 or not all(math.isfinite(s) and s > 0 for s in self.spacing_mm):
            raise GeometryError(f"spacing {self.spacing_mm} mm; accepted: three positive finite lengths")
        if len(self.origin_mm) != 3 or not all(map(math.isfinite, self.origin_mm)):
            raise GeometryError(f"origin {self.origin_mm} mm; accepted: three finite coordinates")
        if len(self.direction) != 9 or not is_orthonormal(np.reshape(self.direction, (3, 3))):
            raise GeometryError(f"direction {self.direction}; accepted: unit perpendicular columns")

    @property
    def shape(self) -> tuple[int, int, int]:
        """The array shape (z, y, x)."""
        x, y, z = self.size
        return z, y, x

    @property
    def voxel_volume_ml(self) -> float:
        """The volume of one voxel in millilitres."""
        return math.prod(self.spacing_mm) / 1000.0

    @property
    def matrix(self) -> Floats:
        """``direction`` as a (3, 3) float64 array."""
        return np.array(self.direction, dtype=np.float64).reshape(3, 3)

    def to_world(self, points_xyz: npt.ArrayLike) -> Floats:
        """Continuous voxel indices (..., 3), in x, y, z order, to LPS millimetres (..., 3)."""
        steps = np.asarray(points_xyz, dtype=np.float64) * self.spacing_mm
        return np.asarray(steps @ self.matrix.T + self.origin_mm)

    def to_voxel(self, points_mm: npt.ArrayLike) -> Floats:
        """LPS millimetres (..., 3) to continuous voxel indices (..., 3), in x, y, z order."""
        from_origin = np.asarray(points_mm, dtype=np.float64) - self.origin_mm
        return np.asarray(from_origin @ np.linalg.inv(self.matrix).T / self.spacing_mm)

    @property
    def center_mm(self) -> Floats:
        """The centre of the field of view, LPS millimetres, (3,)."""
        return self.to_world((np.array(self.size) - 1) / 2)

    @property
    def orientation(self) -> str:
        """The nearest axis orientation: letter i says where index i grows to; the identity is "LPS".

        Of an oblique grid every body axis is named once: the assignment with the largest sum of cosines.
        """
        world = _nearest_axes(self.matrix)
        return "".join(_LETTERS[world[i]][int(self.matrix[world[i], i] > 0)] for i in range(3))

    def reoriented(self, code: str) -> tuple["Geometry", AxisChange]:
        """This grid with axes permuted and flipped to ``code``, and the change that does it to an array.

        The voxels stay where they are: an oblique grid stays oblique. Raises GeometryError for a code that
        does not name each body axis once.
        """
        wanted, mine = parse_orientation(code), self.orientation
        axes = [_axis_of(letter) for letter in mine]
        order = tuple(axes.index(_axis_of(letter)) for letter in wanted)
        flips = tuple(letter != mine[axis] for letter, axis in zip(wanted, order, strict=True))
        change = AxisChange((order[0], order[1], order[2]), (flips[0], flips[1], flips[2]))
        return self._changed(change), change

    def _changed(self, change: AxisChange) -> "Geometry":
        corner = np.zeros(3)
        for axis, flipped in zip(change.order, change.flips, strict=True):
            corner[axis] = self.size[axis] - 1 if flipped else 0
        signs = np.where(change.flips, -1.0, 1.0)
        a, b, c = change.order
        return Geometry(
            (self.size[a], self.size[b], self.size[c]),
            (self.spacing_mm[a], self.spacing_mm[b], self.spacing_mm[c]),
            _triple(self.to_world(corner)),
            tuple((self.matrix[:, change.order] * signs).ravel().tolist()),
        )

    def resampled(self, spacing_mm: tuple[float, float, float]) -> "Geometry":
        """The grid of exactly this spacing over the same field of view, about the same centre.

        Per axis ``size = max(1, floor(size * spacing / new + 1/2))``, that is, rounded half up. Because the
        centre stays, it makes no difference whether a grid is resampled or reoriented first.
        """
        sizes = list(map(_covering, self.size, self.spacing_mm, spacing_mm))
        size = (sizes[0], sizes[1], sizes[2])
        if size == self.size and tuple(spacing_mm) == tuple(self.spacing_mm):
            return self
        half_mm = (np.array(size) - 1) / 2 * np.array(spacing_mm)
        origin = self.center_mm - self.matrix @ half_mm
        return replace(self, size=size, spacing_mm=_triple(spacing_mm), origin_mm=_triple(origin))

    def axis_positions(self, other: "Geometry", axis: int) -> Floats:
        """The continuous index in this grid of every voxel centre of ``other`` along one axis (0 = x).

        Shape (other.size[axis],), float64. Counted from the centres, so that flipping both grids gives the
        mirrored positions. Raises GeometryError unless both grids have the same direction.
        """
        if not np.allclose(self.matrix, other.matrix, rtol=0, atol=DIRECTION_TOLERANCE):
            raise GeometryError(f"directions {self.direction} and {other.direction}; accepted: equal ones")
        center = (self.size[axis] - 1) / 2
        offset = float(self.to_voxel(other.center_mm)[axis]) - center
        offset = 0.0 if abs(offset) < CONCENTRIC_VOXELS else offset
        from_center = np.arange(other.size[axis], dtype=np.float64) - (other.size[axis] - 1) / 2
        return np.asarray(center + (from_center * (other.spacing_mm[axis] / self.spacing_mm[axis]) + offset))


def is_orthonormal(matrix: npt.ArrayLike) -> bool:
    """Whether the columns of a (3, 3) matrix are finite, unit and perpendicular, within the tolerance."""
    columns = np.asarray(matrix, dtype=np.float64)
    if not np.isfinite(columns).all():
        return False
    return bool(np.abs(columns.T @ columns - np.eye(3)).max() <= DIRECTION_TOLERANCE)


def parse_orientation(code: str) -> str:
    """The code in capitals. Raises GeometryError unless it names each of R/L, A/P and I/S once."""
    letters = code.upper()
    if len(letters) != 3 or sorted(_axis_of(letter) for letter in letters) != [0, 1, 2]:
        raise GeometryError(f"orientation {code!r}; accepted: one letter each of L/R, P/A, S/I, such as LPS")
    return letters


def _axis_of(letter: str) -> int:
    return next((axis for axis, ends in enumerate(_LETTERS) if letter in ends), -1)


def _nearest_axes(matrix: Floats) -> tuple[int, ...]:
    """For each index axis the LPS axis it is named after; ties go to the first permutation."""
    cosines = np.abs(matrix)
    return max(itertools.permutations(range(3)), key=lambda p: sum(cosines[p[i], i] for i in range(3)))


def _covering(size: int, spacing_mm: float, new_mm: float) -> int:
    if not (math.isfinite(new_mm) and new_mm > 0):
        raise GeometryError(f"spacing {new_mm} mm; accepted: a positive finite length")
    return max(1, math.floor(size * spacing_mm / new_mm + 0.5))


def _numpy_order(ndim: int, order: tuple[int, int, int]) -> list[int]:
    leading = list(range(ndim - 3))
    return leading + [ndim - 1 - order[axis] for axis in (2, 1, 0)]


def _triple(values: npt.ArrayLike) -> tuple[float, float, float]:
    x, y, z = (float(v) for v in np.asarray(values))
    return x, y, z

"""The geometry gate: slices in, one rigid grid (or one tilted stack) out, or the reason why not.

Positions and orientations are those of PS3.3 C.7.6.2: LPS, millimetres, ``orientation`` the direction along
a row of the image, then along a column. Slices are ordered along the cross product of the two.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from dropgen_rt.errors import GeometryError, InputError, UnsuitableInputError
from dropgen_rt.geometry import DIRECTION_TOLERANCE, Geometry, is_orthonormal
from dropgen_rt.scan_header import MAX_AXIS_VOXELS, MAX_COORDINATE_MM, MAX_VOXELS, SPACING_LIMITS_MM

#: How far a slice may lie from its place on the grid: the larger of a length and a share of the slice spacing,
#: but never so much that a missing slice could pass for it. Tables and rounded headers stay within.
JITTER_MM = 0.1
JITTER_SHARE = 0.01
JITTER_LIMIT = 0.25

#: Slices closer than this lie in one place.
SAME_PLACE_MM = 0.01

#: A wider step than this many usual ones is a gap, a smaller difference is uneven spacing.
GAP_STEPS = 1.5

#: Gantries tilt by 30 degrees; beyond this the stack is no set of parallel slices over one another.
MAX_TILT_DEGREES = 45.0

_EXPORT = "export the whole series again"
Floats = npt.NDArray[np.float64]


class Refused(Exception):  # noqa: N818  a verdict that becomes an InputError once the path is known
    """Why a stack is no volume: what was given, what is accepted, what to do; the error class to raise."""

    def __init__(self, given: str, accepted: str, step: str, kind: type[InputError] = GeometryError) -> None:
        super().__init__(given)
        self.given, self.accepted, self.step, self.kind = given, accepted, step, kind


@dataclass(frozen=True)
class Plane:
    """Where one slice lies: ``position`` of its first pixel's centre (3,), ``orientation`` (6,), row then column
    direction, ``spacing_mm`` (between rows, between columns) as in DICOM; None where the header is silent."""

    position: tuple[float, ...] | None
    orientation: tuple[float, ...] | None
    spacing_mm: tuple[float, ...] | None


@dataclass(frozen=True)
class Grid:
    """``order[k]`` is the input slice at index k along z. ``geometry`` is of the voxel array that is segmented.

    ``shift_px`` (slices, 2) float64 says, for a tilted stack, how many pixels (x, y) slice k is displaced within
    ``geometry``; None for a rectangular stack, whose slices are the planes of ``geometry`` themselves.
    """

    order: tuple[int, ...]
    geometry: Geometry
    shift_px: Floats | None
    warnings: tuple[str, ...]


def gate(planes: Sequence[Plane], rows: int, columns: int) -> Grid:
    """The grid of these slices of ``rows`` x ``columns`` pixels. Raises Refused."""
    row, column, spacing_mm = _common_frame(planes)
    if len(planes) < 2:
        raise Refused("a single image", "a stack of at least 2 slices", "name the whole series", UnsuitableInputError)
    if max(rows, columns, len(planes)) > MAX_AXIS_VOXELS or rows * columns * len(planes) > MAX_VOXELS:
        given = f"{columns} x {rows} x {len(planes)} voxels"
        raise Refused(given, f"{MAX_AXIS_VOXELS} per axis, {MAX_VOXELS} in all", "check how it was exported")
    normal = np.cross(row, column)
    normal /= np.linalg.norm(normal)
    positions = np.array([plane.position for plane in planes], dtype=np.float64)
    order = np.argsort(positions @ normal, kind="stable")
    placed = positions[order]
    origin, step = _straight_line(placed, normal)
    axes = np.column_stack((row, column, normal))
    size = (columns, rows, len(planes))
    edges = (spacing_mm[1], spacing_mm[0], float(step @ normal))
    sideways = step - (step @ normal) * normal
    if (len(planes) - 1) * np.linalg.norm(sideways) <= _tolerance_mm(edges[2]):
        middle = placed.mean(axis=0)
        straight = middle - (len(planes) - 1) / 2 * edges[2] * normal
        geometry = Geometry(size, edges, _triple(straight), tuple(axes.ravel().tolist()))
        return Grid(tuple(order.tolist()), geometry, None, _warnings(placed, straight, edges[2] * normal))
    return _tilted(order, size, edges, axes, origin, step, placed)


def _common_frame(planes: Sequence[Plane]) -> tuple[Floats, Floats, tuple[float, float]]:
    """The directions and the pixel spacing that all slices share."""
    for what, name, length in (("position", "image position", 3), ("orientation", "image orientation", 6),
                               ("spacing_mm", "pixel spacing", 2)):  # fmt: skip
        values = [getattr(plane, what) for plane in planes]
        bad = sum(v is None or len(v) != length or not all(map(math.isfinite, v)) for v in values)
        if bad:
            raise Refused(f"{bad} of {len(planes)} slices without a valid {name}", "one in every slice", _EXPORT)
    first = planes[0]
    assert first.orientation is not None and first.spacing_mm is not None
    spacing = first.spacing_mm
    low, high = SPACING_LIMITS_MM
    if not all(low <= edge <= high for edge in spacing):
        given = f"pixel spacing {spacing[0]:g} x {spacing[1]:g} mm"
        raise Refused(given, f"{low:g} to {high:g} mm", "correct the header or export again")
    row, column = np.array(first.orientation[:3]), np.array(first.orientation[3:])
    if not is_orthonormal(np.column_stack((row, column, np.cross(row, column)))):
        given = "image orientation that is not two perpendicular unit vectors"
        raise Refused(given, f"unit vectors within {DIRECTION_TOLERANCE:g}", "correct the header or export again")
    furthest = max(abs(value) for plane in planes for value in plane.position or ())
    if furthest > MAX_COORDINATE_MM:
        raise Refused(f"image position {furthest:g} mm", f"up to {MAX_COORDINATE_MM:g} mm", "export again")
    return row, column, (float(spacing[0]), float(spacing[1]))


def _tolerance_mm(step_mm: float) -> float:
    return min(max(JITTER_MM, JITTER_SHARE * step_mm), JITTER_LIMIT * step_mm)


def _straight_line(placed: Floats, normal: Floats) -> tuple[Floats, Floats]:
    """Origin and step (3,) of the evenly spaced line through the ordered positions. Raises Refused."""
    depth = placed @ normal
    steps = np.diff(depth)
    same = int((steps < SAME_PLACE_MM).sum())
    if same:
        given = f"{same + 1} different slices in one place" if same == len(steps) else f"{same} places with 2 slices"
        raise Refused(given, "one slice per place", "export one series, time point or echo by itself")
    index = np.arange(len(placed)) - (len(placed) - 1) / 2
    step = index @ placed / (index @ index)
    origin = placed.mean(axis=0) + index[0] * step
    off = np.linalg.norm(placed - (origin + np.outer(np.arange(len(placed)), step)), axis=1)
    usual = float(np.median(steps))
    if off.max() > _tolerance_mm(usual):
        raise _uneven(steps, usual, placed, normal)
    low, high = SPACING_LIMITS_MM
    if not low <= usual <= high:
        raise Refused(f"slices {usual:g} mm apart", f"{low:g} to {high:g} mm", "correct the header or export again")
    return origin, step


def _uneven(steps: Floats, usual: float, placed: Floats, normal: Floats) -> Refused:
    wide = steps > GAP_STEPS * usual
    allowed = _tolerance_mm(usual)
    if wide.any() and (np.abs(steps[~wide] - usual) <= 2 * allowed).all():
        missing = int(np.round(steps[wide] / usual - 1).sum())
        place = int(np.argmax(wide)) + 1
        given = f"a gap of {steps[wide].max():.4g} mm after slice {place}, where slices lie {usual:.4g} mm apart"
        return Refused(f"{given}: {missing} missing", "a series without gaps", _EXPORT)
    if np.ptp(steps) > allowed:
        given = f"slices {steps.min():.4g} to {steps.max():.4g} mm apart"
        accepted = f"even spacing within {allowed:.2g} mm"
        return Refused(given, accepted, "reconstruct the series with even spacing")
    lateral = placed - np.outer(placed @ normal, normal)
    given = f"slices shifted sideways by up to {np.ptp(lateral, axis=0).max():.3g} mm, not in a line"
    return Refused(given, f"a line within {allowed:.2g} mm", "export one acquisition by itself")


def _tilted(
    order: npt.NDArray[np.intp], size: tuple[int, int, int], edges: tuple[float, float, float], axes: Floats,
    origin: Floats, step: Floats, placed: Floats,
) -> Grid:  # fmt: skip
    """The rectangular grid around a sheared stack: as deep, and as much wider as the slices are displaced."""
    degrees = math.degrees(math.acos(min(1.0, edges[2] / float(np.linalg.norm(step)))))
    if degrees > MAX_TILT_DEGREES:
        given = f"slices displaced at {degrees:.1f} degrees to their normal"
        raise Refused(given, f"up to {MAX_TILT_DEGREES:g} degrees", "reconstruct the series without tilt")
    per_slice = (step @ axes)[:2] / np.array(edges[:2])
    shift = np.outer(np.arange(size[2]), per_slice)
    lowest = shift.min(axis=0)
    shift -= lowest
    wider = np.ceil(shift.max(axis=0) - 1e-9).astype(int)
    corner = origin + axes[:, :2] @ (lowest * edges[:2])
    whole = (size[0] + int(wider[0]), size[1] + int(wider[1]), size[2])
    geometry = Geometry(whole, edges, _triple(corner), tuple(axes.ravel().tolist()))
    tilt = (
        f"gantry tilt of {degrees:.1f} degrees: segmented on a rectangular grid, in-plane interpolation; "
        "labels return to the tilted slices within half a pixel"
    )
    return Grid(tuple(order.tolist()), geometry, shift, (tilt, *_warnings(placed, origin, step)))


def _warnings(placed: Floats, origin: Floats, step: Floats) -> tuple[str, ...]:
    off = float(np.linalg.norm(placed - (origin + np.outer(np.arange(len(placed)), step)), axis=1).max())
    if off <= SAME_PLACE_MM:
        return ()
    return (f"slices lie up to {off:.2g} mm from an even grid; the grid is used",)


def _triple(values: Floats) -> tuple[float, float, float]:
    return float(values[0]), float(values[1]), float(values[2])

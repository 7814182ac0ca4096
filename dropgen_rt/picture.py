"""A picture of a result: three orthogonal slices that show most of what was found, with legend and scale."""

import io
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from dropgen_rt.manifest import Label
from dropgen_rt.record import LabelVolume
from dropgen_rt.volume import Volume

PANEL_PX = 360
MARGIN_PX = 16
LEGEND_PX = 300
OPACITY = 0.5
INK, PAPER = (235, 235, 235), (18, 18, 20)
# Black and white, and which slices are shown, come from about this many voxels, evenly spread: sorting all takes
# seconds and a second scan's room.
LOOKED_AT_VOXELS = 2e6
# Scale bars come in lengths that a reader can halve and double in the head.
BAR_LENGTHS_MM = (1, 2, 5, 10, 20, 50, 100, 200)


@dataclass(frozen=True)
class _Plane:
    """One slice, seen as radiologists do: patient's left on the picture's right, head or front up."""

    name: str
    axis: int  # of (z, y, x)
    flip_rows: bool
    sides: str  # of the patient, on the picture's left and right


_PLANES = (_Plane("axial", 0, False, "RL"), _Plane("coronal", 1, True, "RL"), _Plane("sagittal", 2, True, "AP"))


def draw(scan: Volume, labels: Volume, names: tuple[Label, ...], volumes: tuple[LabelVolume, ...]) -> bytes:
    """A PNG file's bytes. ``scan`` (C, z, y, x) and ``labels`` (1, z, y, x) share one grid; channel 0 is shown."""
    geometry, change = scan.geometry.reoriented("LPS")
    image = change.apply(scan.array[0])
    shades = _shades(image)
    marked = change.apply(labels.array[0])
    spacing = geometry.spacing_mm[::-1]  # z, y, x, as the arrays
    chosen = _telling_slices(marked, len(names) + 1)
    scale = PANEL_PX / max(n * s for n, s in zip(image.shape, spacing, strict=True))
    width = 3 * (PANEL_PX + MARGIN_PX) + MARGIN_PX + LEGEND_PX
    canvas = Image.new("RGB", (width, PANEL_PX + 3 * MARGIN_PX + 24), PAPER)
    pen = ImageDraw.Draw(canvas)
    font = ImageFont.load_default(size=14)
    for index, plane in enumerate(_PLANES):
        tile = _tile(image, shades, marked, plane, chosen[plane.axis], names)
        rows, columns = (spacing[axis] * image.shape[axis] for axis in range(3) if axis != plane.axis)
        size = (max(round(columns * scale), 1), max(round(rows * scale), 1))
        left = MARGIN_PX + index * (PANEL_PX + MARGIN_PX)
        picture = Image.fromarray(tile).resize(size, Image.Resampling.BICUBIC)
        canvas.paste(picture, (left + (PANEL_PX - size[0]) // 2, 2 * MARGIN_PX + (PANEL_PX - size[1]) // 2))
        pen.text((left, 6), plane.name, INK, font)
        for side, letter in zip((left + 6, left + PANEL_PX - 6), plane.sides, strict=True):
            place = side, 2 * MARGIN_PX + PANEL_PX // 2
            pen.text(place, letter, INK, font, anchor="mm", stroke_width=2, stroke_fill=PAPER)
    _scale_bar(pen, font, scale, canvas.height)
    _legend(pen, font, width - LEGEND_PX, names, volumes)
    buffer = io.BytesIO()
    canvas.save(buffer, "PNG")
    return buffer.getvalue()


def _shades(image: NDArray[np.floating | np.integer]) -> tuple[float, float]:
    """What is black, and how far from it white is."""
    low, high = np.percentile(_spread(image)[0], [0.5, 99.5])
    if low == high:
        low, high = image.min(), image.max()
    return float(low), float(high - low) or 1.0  # a constant scan is black


def _spread(array: NDArray) -> tuple[NDArray, int]:
    """A view of every n-th voxel along each axis, and n."""
    step = max(round((array.size / LOOKED_AT_VOXELS) ** (1 / 3)), 1)
    return array[::step, ::step, ::step], step


def _grey(values: NDArray[np.floating | np.integer], shades: tuple[float, float]) -> NDArray[np.uint8]:
    black, span = shades
    return (np.clip((values.astype(np.float64) - black) / span, 0, 1) * 255).astype(np.uint8)


def _telling_slices(marked: NDArray[np.integer], classes: int) -> list[int]:
    """Of each axis (z, y, x) the slice that shows most; the middle of the scan if there are no labels.

    A structure counts by the square root of its area: several of them tell more than one large one, specks little.
    """
    seen, step = _spread(marked)
    chosen = []
    for axis in range(3):
        areas = [np.bincount(plane.ravel(), minlength=classes)[1:] for plane in np.moveaxis(seen, axis, 0)]
        telling = np.sqrt(areas).sum(1)
        if telling.any():
            chosen.append(int(telling.argmax()) * step)
        else:  # what is smaller than a step lies between the voxels that were looked at
            filled = np.flatnonzero(marked.any(axis=tuple({0, 1, 2} - {axis})))
            chosen.append(int(filled[filled.size // 2]) if filled.size else marked.shape[axis] // 2)
    return chosen


def _tile(
    image: NDArray[np.floating | np.integer], shades: tuple[float, float], marked: NDArray[np.integer], plane: _Plane,
    index: int, names: tuple[Label, ...],
) -> NDArray[np.uint8]:  # fmt: skip
    """(rows, columns, 3) uint8: a grey slice under its labels' colours."""
    base = _grey(np.take(image, index, plane.axis), shades)[..., None].repeat(3, axis=-1).astype(np.float32)
    values = np.take(marked, index, plane.axis)
    colours = np.array([(0, 0, 0), *(label.colour for label in names)], np.float32)
    strength = np.where(values > 0, OPACITY, 0.0)[..., None]
    mixed = base * (1 - strength) + colours[values] * strength
    return np.ascontiguousarray((mixed[::-1] if plane.flip_rows else mixed).astype(np.uint8))


def _scale_bar(
    pen: ImageDraw.ImageDraw, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, scale: float, height: int
) -> None:
    length = max([mm for mm in BAR_LENGTHS_MM if mm * scale <= PANEL_PX / 3] or [BAR_LENGTHS_MM[0]])
    y = height - MARGIN_PX
    pen.line([(MARGIN_PX, y), (MARGIN_PX + length * scale, y)], INK, 3)
    pen.text((MARGIN_PX + length * scale + 8, y - 10), f"{length} mm", INK, font)


def _legend(
    pen: ImageDraw.ImageDraw,
    font: ImageFont.FreeTypeFont | ImageFont.ImageFont,
    left: int,
    names: tuple[Label, ...],
    volumes: tuple[LabelVolume, ...],
) -> None:
    room = PANEL_PX + MARGIN_PX
    shown = list(zip(names, volumes, strict=True))[: room // 22 - 1]
    for row, (label, volume) in enumerate(shown):
        y = 2 * MARGIN_PX + row * 22
        pen.rectangle([left, y + 2, left + 14, y + 16], label.colour)
        found = f"{volume.volume_ml:.1f} mL" if volume.voxels else "not found"
        pen.text((left + 22, y), f"{label.name}  {found}", INK, font)
    if len(shown) < len(names):
        pen.text((left, 2 * MARGIN_PX + len(shown) * 22), f"and {len(names) - len(shown)} more", INK, font)


# Wide enough for its heading beside the legend, however few slices there are.
MOSAIC_TILES, MOSAIC_COLUMNS, MOSAIC_TILE_PX, MOSAIC_WIDTH_PX = 20, 5, 200, 900


def mosaic(
    scan: Volume, labels: Volume, names: tuple[Label, ...], volumes: tuple[LabelVolume, ...], heading: str
) -> NDArray[np.uint8]:
    """(rows, columns, 3) RGB: slices evenly through what is labelled, under ``heading``, with the legend.

    In the plane of the scan's own slices (z of the array), seen as radiologists do. ``scan`` (C, z, y, x) and
    ``labels`` (1, z, y, x) share one grid.
    """
    geometry, change = scan.geometry.reoriented("LPS")
    image, marked = change.apply(scan.array[0]), change.apply(labels.array[0])
    shades = _shades(image)
    plane = next(plane for plane in _PLANES if plane.axis == 2 - change.order.index(2))
    within = tuple(axis for axis in range(3) if axis != plane.axis)
    filled = np.flatnonzero(marked.any(axis=within))
    first, last = (int(filled[0]), int(filled[-1])) if filled.size else (0, marked.shape[plane.axis] - 1)
    shown = np.unique(np.linspace(first, last, MOSAIC_TILES).round().astype(int))
    columns = min(MOSAIC_COLUMNS, len(shown))
    edge, top = MOSAIC_TILE_PX, 2 * MARGIN_PX + 14
    size = (columns * edge + MARGIN_PX + LEGEND_PX, top + max(-(-len(shown) // columns) * edge, PANEL_PX))
    canvas = Image.new("RGB", (max(size[0], MOSAIC_WIDTH_PX), size[1]), PAPER)
    pen, font = ImageDraw.Draw(canvas), ImageFont.load_default(size=14)
    pen.text((MARGIN_PX, MARGIN_PX // 2), heading, INK, font)
    spacing = geometry.spacing_mm[::-1]  # z, y, x, as the arrays
    extent = np.array([image.shape[axis] * spacing[axis] for axis in reversed(within)])
    width, height = (int(n) for n in np.maximum((extent * (edge - 4) / extent.max()).round(), 1))
    for place, index in enumerate(shown[::-1] if plane.name == "axial" else shown):  # from the head down
        tile = Image.fromarray(_tile(image, shades, marked, plane, int(index), names))
        left, upper = place % columns * edge, top + place // columns * edge
        canvas.paste(tile.resize((width, height), Image.Resampling.BICUBIC), (left, upper))
        if plane.name != "sagittal":
            pen.text((left + width - 12, upper), "L", INK, font)
    _legend(pen, font, canvas.width - LEGEND_PX, names, volumes)
    return np.asarray(canvas)

"""The picture of a result: a PNG with the labels' colours in it, patient's left on the right, head up."""

import io
import tracemalloc
import warnings

import numpy as np
import pytest
from PIL import Image

from dropgen_rt.geometry import Geometry
from dropgen_rt.manifest import Label
from dropgen_rt.picture import LEGEND_PX, MARGIN_PX, PANEL_PX, draw
from dropgen_rt.record import label_volumes
from dropgen_rt.volume import Volume

IDENTITY = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0)
NAMES = (Label(1, "medium", (10, 200, 30)), Label(2, "bright", (220, 40, 250)))


def scene(size=(30, 24, 20), spacing_mm=(1.0, 1.0, 1.0), *, box=None, grey=None):
    """A grey scan in LPS with label 1 in ``box`` (slices z, y, x), and its picture's (rows, columns, 3)."""
    geometry = Geometry(size, spacing_mm, (0.0, 0.0, 0.0), IDENTITY)
    scan = np.random.default_rng(0).normal(100, 10, (1, *geometry.shape)).astype(np.float32) if grey is None else grey
    labels = np.zeros((1, *geometry.shape), np.uint8)
    if box is not None:
        labels[0][box] = 1
    return Volume(scan, geometry), Volume(labels, geometry)


def picture(scan, labels, names=NAMES):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        data = draw(scan, labels, names, label_volumes(labels.array, labels.geometry, names))
    with Image.open(io.BytesIO(data)) as image:
        assert image.format == "PNG"
        return np.asarray(image.convert("RGB"))


def tinted(pixels):
    """Where label 1's colour lies over the grey of the three panels: (panel, rows, columns) masks."""
    panels = []
    for index in range(3):
        left = MARGIN_PX + index * (PANEL_PX + MARGIN_PX)
        panel = pixels[2 * MARGIN_PX : 2 * MARGIN_PX + PANEL_PX, left : left + PANEL_PX].astype(int)
        panels.append(panel[..., 1] - panel[..., 0] > 60)
    return panels


def has(pixels, colour):
    return bool((pixels == colour).all(axis=-1).any())


def test_every_labels_colour_is_in_the_legend():
    pixels = picture(*scene(box=np.s_[5:15, 5:15, 5:15]))
    assert pixels.shape[1] == 3 * (PANEL_PX + MARGIN_PX) + MARGIN_PX + LEGEND_PX
    assert all(has(pixels[:, -LEGEND_PX:], label.colour) for label in NAMES)


def test_a_label_is_seen_in_all_three_planes_and_only_there():
    assert all(panel.mean() > 0.02 for panel in tinted(picture(*scene(box=np.s_[5:15, 5:15, 5:15]))))
    assert not any(panel.any() for panel in tinted(picture(*scene())))


def test_the_slice_that_shows_several_labels_is_chosen():
    """Label 2 meets the ends of label 1 only, far from its middle, and a speck elsewhere tells little."""
    scan, labels = scene(box=np.s_[2:16, 4:20, 4:20])
    labels.array[0, 15:18, 4:20, 20:28] = 2
    labels.array[0, 5, 22, 2] = 2
    axial = picture(scan, labels)[2 * MARGIN_PX :, MARGIN_PX : MARGIN_PX + PANEL_PX][:PANEL_PX].astype(int)
    green, violet = axial[..., 1] - axial[..., 0] > 60, axial[..., 2] - axial[..., 1] > 60
    assert green.mean() > 0.1 and violet.mean() > 0.05


@pytest.mark.parametrize(
    ("box", "panel", "side"),
    [
        (np.s_[8:12, 10:14, 22:28], 0, "right"),  # x grows to the patient's left
        (np.s_[8:12, 17:22, 12:16], 0, "bottom"),  # y to the back
        (np.s_[14:19, 10:14, 12:16], 1, "top"),  # z to the head
        (np.s_[8:12, 10:14, 22:28], 1, "right"),
        (np.s_[14:19, 10:14, 12:16], 2, "top"),
        (np.s_[8:12, 17:22, 12:16], 2, "right"),
    ],
)
@pytest.mark.parametrize("code", ["LPS", "RAI", "ASL"])
def test_the_patient_is_seen_as_radiologists_do(box, panel, side, code):
    scan, labels = scene(box=box)
    geometry, change = scan.geometry.reoriented(code)
    scan, labels = (Volume(np.ascontiguousarray(change.apply(v.array)), geometry) for v in (scan, labels))
    rows, columns = np.nonzero(tinted(picture(scan, labels))[panel])
    middle = PANEL_PX / 2
    found = {"right": columns.mean() > middle, "bottom": rows.mean() > middle, "top": rows.mean() < middle}
    assert found[side]
    assert abs((columns if side == "right" else rows).mean() - middle) > 20


@pytest.mark.parametrize(
    ("size", "spacing_mm"),
    [((1, 1, 2), (1.0, 1.0, 1.0)), ((3, 2, 4), (0.1, 0.1, 0.1)), ((64, 64, 2), (0.3, 0.3, 90.0)),
     ((2, 200, 3), (0.01, 5.0, 0.01)), ((1, 300, 300), (50.0, 1.0, 1.0))],
)  # fmt: skip
def test_tiny_and_strongly_anisotropic_scans(size, spacing_mm):
    pixels = picture(*scene(size, spacing_mm, box=np.s_[:1, :1, :1]))
    assert has(pixels, NAMES[0].colour)


def test_a_scan_that_is_nearly_constant():
    scan, labels = scene()
    flat = np.zeros_like(scan.array)
    flat[0, 10, 12, 15] = 9
    pixels = picture(Volume(flat, scan.geometry), labels)
    assert has(pixels, (0, 0, 0)) and has(pixels, NAMES[1].colour)


def test_a_constant_scan_is_drawn_black():
    scan, labels = scene()
    assert has(picture(Volume(np.full_like(scan.array, 7), scan.geometry), labels), (0, 0, 0))


def test_more_labels_than_the_legend_has_room_for():
    names = tuple(Label(value, f"part {value}", (value, 255 - value, 7)) for value in range(1, 60))
    pixels = picture(*scene(box=np.s_[5:9, 5:9, 5:9]), names)
    assert has(pixels, names[0].colour) and not has(pixels[:, -LEGEND_PX:], names[-1].colour)


def test_a_large_scan_is_drawn_in_less_room_than_its_own():
    """The peak that is predicted before a scan starts has no room for copies of it here."""
    edge = 256
    grey = np.zeros((1, edge, edge, edge), np.float32)
    scan, labels = scene((edge, edge, edge), box=(slice(60, 200), slice(40, 90), slice(100, 220)), grey=grey)
    volumes = label_volumes(labels.array, labels.geometry, NAMES)
    tracemalloc.start()
    draw(scan, labels, NAMES, volumes)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 0.5 * grey.nbytes


def test_the_same_result_gives_the_same_bytes():
    scan, labels = scene(box=np.s_[5:15, 5:15, 5:15])
    volumes = label_volumes(labels.array, labels.geometry, NAMES)
    assert draw(scan, labels, NAMES, volumes) == draw(scan, labels, NAMES, volumes)

"""Every orientation, oblique and tilted: what was found on a slice lies on that slice in the written object."""

import itertools
import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pydicom
import pytest
from dicom_objects import COLUMNS, COUNT, ROWS, blobs, source, written
from dicom_series import positions, write

from dropgen_rt.dicom.read import DicomScan, read_dicom
from dropgen_rt.dicom.write import write_objects
from dropgen_rt.engines import Engine, open_engine
from dropgen_rt.model import Model, read_model
from dropgen_rt.segment import segment
from dropgen_rt.settings import Settings


def orientations() -> list[tuple[tuple[float, ...], tuple[float, float]]]:
    """(rows and columns, sideways step): the 24 of the body axes, oblique ones, tilted ones."""
    axes = [sign * np.eye(3)[axis] for axis in range(3) for sign in (1, -1)]
    straight = [np.concatenate(pair) for pair in itertools.permutations(axes, 2) if not pair[0] @ pair[1]]
    c, s = math.cos(0.3), math.sin(0.3)
    turn = np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]]) @ np.array([[1, 0, 0], [0, c, -s], [0, s, c]])
    oblique = [np.concatenate([turn @ pair[:3], turn @ pair[3:]]) for pair in straight[::6]]
    cases = [(tuple(pair.tolist()), (0.0, 0.0)) for pair in [*straight, *oblique]]
    return cases + [
        (tuple(pair.tolist()), tilt) for pair in (*straight[::8], *oblique[:1]) for tilt in ((0.0, 1.1), (0.7, -0.4))
    ]


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize(("orientation", "tilt"), orientations())
def test_masks_come_back_on_the_source_instances(
    tmp_path: Path, orientation: tuple[float, ...], tilt: tuple[float, float], reverse: bool
) -> None:
    """48 orientations, oblique and tilted: read with nothing but pydicom and the references in the object."""
    places = positions(COUNT, orientation, sideways_mm=tilt)[:: -1 if reverse else 1]
    scan = source(tmp_path / "in", places=places, orientation=orientation)
    labels = blobs()
    files = written(scan, labels, tmp_path / "out", "dicom-seg")
    truth = {plane.header.sop: labels[k] for k, plane in enumerate(scan.slices)}
    seg = pydicom.dcmread(files["dicom-seg"])
    frames = seg.pixel_array
    found = {sop: np.zeros_like(labels[0]) for sop in truth}
    for group, frame in zip(seg.PerFrameFunctionalGroupsSequence, frames, strict=True):
        sop = group.DerivationImageSequence[0].SourceImageSequence[0].ReferencedSOPInstanceUID
        number = group.SegmentIdentificationSequence[0].ReferencedSegmentNumber
        found[sop][frame > 0] = number
        index = next(int(path.stem.rsplit("_")[-1]) for path in (tmp_path / "in").iterdir()
                     if pydicom.dcmread(path, stop_before_pixels=True).SOPInstanceUID == sop)  # fmt: skip
        assert np.allclose(group.PlanePositionSequence[0].ImagePositionPatient, places[index], atol=1e-4)
    assert all(np.array_equal(found[sop], truth[sop]) for sop in truth)


@pytest.fixture(scope="module")
def opened(tiny, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Model, Engine]]:
    """The network that marks what exceeds 30 and 70, on a grid of 1 mm."""
    network = read_model(tiny.write(tmp_path_factory.mktemp("model") / "tiny.onnx"))
    with open_engine(network, "cpu") as engine:
        yield network, engine


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize(("orientation", "tilt"), orientations())
def test_what_a_network_finds_lies_on_the_source_instances(
    tmp_path: Path, opened: tuple[Model, Engine], orientation: tuple[float, ...], tilt: tuple[float, float],
    reverse: bool,
) -> None:  # fmt: skip
    """Read, segmented, written, read back: on each slice the pixels that exceed the network's thresholds there."""
    network, engine = opened
    array = np.random.default_rng(2).integers(0, 10, (9, ROWS, COLUMNS)).astype(np.int16)
    array[2:7, 3:10, 4:15], array[3:5, 5:8, 9:13] = 60, 100
    sideways = (tilt[0] / 3, tilt[1] / 3)  # they are of slices 3 mm apart
    places = positions(9, orientation, step_mm=1.0, sideways_mm=sideways)[:: -1 if reverse else 1]
    write(tmp_path, array, places=places, orientation=orientation, spacing_mm=(1.0, 1.0, 1.0), modality="MR")
    scan = read_dicom(tmp_path)
    result = segment(scan, network, Settings(), engine=engine)
    write_objects(scan, result, network, {"dicom-seg": tmp_path / "seg.dcm"})
    found = on_instances(pydicom.dcmread(tmp_path / "seg.dcm"), scan)
    stored = np.stack([pydicom.dcmread(scan.files.files[plane.header.file]).pixel_array for plane in scan.slices])
    expected = (stored > 30).astype(np.uint8) + (stored > 70)
    assert np.array_equal(found, scan.on_source(result.labels.array[0]))
    if not any(tilt):
        assert np.array_equal(found, expected)
    else:  # interpolated within slices on the way in, so that edges move by up to half a pixel
        inside = 2 * np.count_nonzero((found == expected) & (found > 0)) / np.count_nonzero([found, expected])
        assert inside > 0.8


def on_instances(seg: pydicom.Dataset, scan: DicomScan) -> np.ndarray:
    """(slices, rows, columns) by nothing but the references in the object."""
    found = np.zeros((len(scan.slices), ROWS, COLUMNS), np.uint8)
    places = {plane.header.sop: k for k, plane in enumerate(scan.slices)}
    for group, frame in zip(seg.PerFrameFunctionalGroupsSequence, seg.pixel_array, strict=True):
        sop = group.DerivationImageSequence[0].SourceImageSequence[0].ReferencedSOPInstanceUID
        found[places[sop]][frame > 0] = group.SegmentIdentificationSequence[0].ReferencedSegmentNumber
    return found

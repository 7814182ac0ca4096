"""Labels on a synthetic series, and the objects written of them: what the tests of writing share."""

from pathlib import Path

import numpy as np
from dicom_series import write

from dropgen_rt.dicom.read import DicomScan, read_dicom
from dropgen_rt.dicom.write import write_objects
from dropgen_rt.manifest import Label, Manifest
from dropgen_rt.model import Model
from dropgen_rt.record import Record, label_volumes
from dropgen_rt.segment import Segmentation
from dropgen_rt.volume import Volume

ALL = ("dicom-seg", "dicom-labelmap", "dicom-sr", "dicom-sc")
COUNT, ROWS, COLUMNS = 6, 14, 17
NAMES = (
    Label(1, "left kidney", (10, 200, 30)), Label(2, "Liver", (200, 20, 30)), Label(3, "a made-up thing", (1, 2, 3)),
    Label(4, "coded", (9, 9, 9), ("49755003", "SCT", "Morphologically Abnormal Structure"), ("1", "99X", "Test")),
)  # fmt: skip


def blobs(seed: int = 0) -> np.ndarray:
    """(slices, rows, columns) uint8 labels 0 to 4 without any symmetry; label 4 is absent, one slice empty."""
    labels = np.random.default_rng(seed).integers(0, 4, (COUNT, ROWS, COLUMNS)).astype(np.uint8)
    labels[2] = 0
    return labels


def model(names: tuple[Label, ...] = NAMES) -> Model:
    manifest = Manifest("tiny", names, (1.0, 1.0, 1.0), (16, 16, 16), 1)
    return Model(Path("tiny.onnx"), b"", "ab" * 32, manifest)


def result_of(scan: DicomScan, labels: np.ndarray) -> Segmentation:
    """What segment() would give if the network found these labels on the volume's grid."""
    geometry = scan.volume.geometry
    record = Record(
        input={}, model={"name": "tiny", "sha256": "ab" * 32}, settings={}, windows=1, timings_s={},
        engine={"name": "e", "version": "1", "precision": "fp32", "device": "cpu"},
        labels=label_volumes(labels, geometry, NAMES), versions={"dropgen-rt": "1.2"},
    )  # fmt: skip
    return Segmentation(Volume(labels[None], geometry), record)


def on_grid(scan: DicomScan, labels: np.ndarray) -> np.ndarray:
    """Labels of the source slices placed on the volume's grid."""
    if scan.grid.shift_px is None:
        return labels
    grid = np.zeros(scan.volume.geometry.shape, np.uint8)
    for plane, (x, y), target in zip(labels, np.floor(scan.grid.shift_px + 0.5).astype(int), grid, strict=True):
        target[y : y + ROWS, x : x + COLUMNS] = plane
    return grid


def source(folder: Path, **how: object) -> DicomScan:
    array = np.random.default_rng(1).integers(0, 900, (COUNT, ROWS, COLUMNS)).astype(np.int16)
    return read_dicom(write(folder, array, **how))


def written(
    scan: DicomScan, labels: np.ndarray, folder: Path, *kinds: str, names: tuple[Label, ...] = NAMES
) -> dict[str, Path]:
    folder.mkdir(exist_ok=True)
    files = {kind: folder / f"{kind}.dcm" for kind in kinds}
    write_objects(scan, result_of(scan, on_grid(scan, labels)), model(names), files)
    return files

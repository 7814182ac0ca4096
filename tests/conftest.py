"""Fixtures that more than one test file uses."""

import cores  # noqa: F401, I001  first of all: libraries count cores when they load
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
from machine import without_rights_of_root
from scan_files import COUNT, NIFTI_ROWS, ORIGIN_MM, SIZE, SPACING_MM, mha, nifti, nrrd, voxels

from dropgen_rt.manifest import METADATA_KEY, Intensity, Label, Manifest
from dropgen_rt.model import Model, read_model
from dropgen_rt.store import HOME_VARIABLE


@pytest.fixture
def make(builders: SimpleNamespace) -> SimpleNamespace:
    """The same, for a single test."""
    return builders


@pytest.fixture(scope="session")
def builders() -> SimpleNamespace:
    """Builders of the bytes of scan files, and the grid that they all have."""
    return SimpleNamespace(
        nifti=nifti, nrrd=nrrd, mha=mha, voxels=voxels, size=SIZE, spacing_mm=SPACING_MM, origin_mm=ORIGIN_MM,
        count=COUNT, rows=NIFTI_ROWS,
    )  # fmt: skip


# A network small enough to be worked out by hand: at each voxel the logits are 0, v - 0.3 and 3v - 1.7 of the
# normalised intensity v, so label 1 begins at 0.3 and label 2 at 0.7. Logits are linear in v: interpolating
# them is interpolating v.
TINY_THRESHOLDS = (0.3, 0.7)
TINY_WINDOW = (16, 16, 16)
TINY_COLOURS = ((10, 200, 30), (220, 40, 250))


def tiny_manifest(**changes: Any) -> Manifest:
    """One channel, labels medium and bright, 1 mm, intensities 0 to 100 taken to 0 to 1."""
    fields: dict[str, Any] = {
        "name": "tiny", "spacing_mm": (1.0, 1.0, 1.0), "window": TINY_WINDOW, "stride": 1,
        "labels": (Label(1, "medium", TINY_COLOURS[0]), Label(2, "bright", TINY_COLOURS[1])),
        "intensity": (Intensity("range", 0.0, 100.0),), **changes,
    }  # fmt: skip
    return Manifest(**fields)


def tiny_onnx(
    metadata: dict[str, str], channels: int = 1, classes: int = 3, window: tuple[int, ...] = TINY_WINDOW
) -> bytes:
    """The graph as an ONNX file's bytes; classes beyond the third never win."""
    weights = np.zeros((classes, channels, 1, 1, 1), np.float32)
    weights[:3, 0, 0, 0, 0] = (0.0, 1.0, 3.0)
    bias = np.array([0.0, -0.3, -1.7, *[-100.0] * (classes - 3)], np.float32)
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("Conv", ["image", "weights", "bias"], ["logits"])],
        "tiny",
        [onnx.helper.make_tensor_value_info("image", onnx.TensorProto.FLOAT, ["batch", channels, *window])],
        [onnx.helper.make_tensor_value_info("logits", onnx.TensorProto.FLOAT, ["batch", classes, *window])],
        [onnx.numpy_helper.from_array(weights, "weights"), onnx.numpy_helper.from_array(bias, "bias")],
    )
    proto = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)
    onnx.helper.set_model_props(proto, metadata)
    onnx.checker.check_model(proto, full_check=True)
    return bytes(proto.SerializeToString())


def write_tiny(path: Path, **changes: Any) -> Path:
    """The tiny model as a file, graph and manifest in agreement; ``changes`` are the manifest's."""
    manifest = tiny_manifest(**changes)
    metadata = {METADATA_KEY: manifest.to_json()}
    path.write_bytes(tiny_onnx(metadata, len(manifest.channels), manifest.classes, manifest.window))
    return path


@pytest.fixture(scope="session")
def tiny() -> SimpleNamespace:
    """Builders of the tiny model, and what is known of it."""
    return SimpleNamespace(
        manifest=tiny_manifest, onnx=tiny_onnx, write=write_tiny, thresholds=TINY_THRESHOLDS, colours=TINY_COLOURS,
    )  # fmt: skip


@pytest.fixture
def model_file(tmp_path: Path) -> Path:
    """The tiny model's file."""
    return write_tiny(tmp_path / "tiny.onnx")


@pytest.fixture
def model(model_file: Path) -> Model:
    """The tiny model, opened."""
    return read_model(model_file)


@pytest.fixture
def nobody(tmp_path: Path) -> Iterator[Path]:
    """A folder ``closed`` that the test may not enter, though it runs as root."""
    folder = tmp_path / "closed"
    folder.mkdir()
    (folder / "a.nii").write_bytes(b"closed")
    folder.chmod(0)
    with without_rights_of_root():
        yield folder
    folder.chmod(0o700)


@pytest.fixture
def public() -> Iterator[Path]:
    """A folder that everybody may enter, as pytest's own may not be."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty data folder in place of the user's."""
    folder = tmp_path / "home"
    folder.mkdir()
    monkeypatch.setenv(HOME_VARIABLE, str(folder))
    return folder

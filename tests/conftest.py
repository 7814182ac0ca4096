"""Fixtures that more than one test file uses."""

import os
import struct
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest

from dropgen_rt.manifest import METADATA_KEY, Intensity, Label, Manifest
from dropgen_rt.model import Model, read_model
from dropgen_rt.store import HOME_VARIABLE

# The grid of every file made here, in LPS millimetres, and its voxels 0, 1, 2, … in the order x, y, z.
SIZE = (4, 5, 6)
SPACING_MM = (1.5, 2.0, 3.0)
ORIGIN_MM = (-10.0, -20.0, -30.0)
COUNT = 120
NIFTI_ROWS = [[-1.5, 0, 0, 10], [0, -2, 0, 20], [0, 0, 3, -30]]  # the same grid, RAS

NIFTI_CODES = {
    "u1": 2, "i2": 4, "i4": 8, "f4": 16, "f8": 64, "i1": 256, "u2": 512, "u4": 768, "i8": 1024, "u8": 1280,
    "c8": 32, "c16": 1792,
}  # fmt: skip


def voxels(code: str = "f4", end: str = "<") -> bytes:
    return np.arange(COUNT).astype(end + code).tobytes()


def nifti(code: str = "f4", end: str = "<", data: bytes | None = None, version: int = 1, **fields: Any) -> bytes:
    """A NIfTI file.

    Fields: dim, pixdim, rows, quaternion, q, s, slope, inter, units, offset, magic, datatype, bits.
    """
    body = voxels(code, end) if data is None else data
    size = fields.get("dim", (3, *SIZE))
    dim = [*size, *[1] * (8 - len(size))]
    pixdim = [*fields.get("pixdim", (1, *SPACING_MM)), 0, 0, 0, 0][:8]
    rows = np.ravel(np.array(fields.get("rows", NIFTI_ROWS), dtype=float))
    quaternion = fields.get("quaternion", (0, 0, 1, 10, 20, -30))
    datatype = fields.get("datatype", NIFTI_CODES[code])
    bits = fields.get("bits", np.dtype(code).itemsize * 8)
    header = bytearray(352 if version == 1 else 544)

    def put(fmt: str, offset: int, *values: float) -> None:
        struct.pack_into(end + fmt, header, offset, *values)

    scaling = fields.get("slope", 1.0), fields.get("inter", 0.0)
    codes = fields.get("q", 0), fields.get("s", 1)
    units, offset = fields.get("units", 2), fields.get("offset", len(header))
    if version == 1:
        put("i", 0, 348)
        put("8h", 40, *dim)
        put("hh", 70, datatype, bits)
        put("8f", 76, *pixdim)
        put("3f", 108, offset, *scaling)
        put("B", 123, units)
        put("2h", 252, *codes)
        put("6f", 256, *quaternion)
        put("12f", 280, *rows)
        header[344:348] = fields.get("magic", b"n+1\0")
    else:
        put("i", 0, 540)
        put("hh", 12, datatype, bits)
        put("8q", 16, *dim)
        put("8d", 104, *pixdim)
        put("q", 168, offset)
        put("dd", 176, *scaling)
        put("ii", 344, *codes)
        put("6d", 352, *quaternion)
        put("12d", 400, *rows)
        put("i", 500, units)
        header[4:12] = fields.get("magic", b"n+2\0\r\n\x1a\n")
    return bytes(header) + body


def nrrd(data: bytes | None = None, **changes: str | None) -> bytes:
    """A NRRD file; a change of None drops the field."""
    fields: dict[str, str | None] = {
        "type": "float", "dimension": "3", "space": "left-posterior-superior", "sizes": "4 5 6",
        "space_directions": "(1.5,0,0) (0,2,0) (0,0,3)", "kinds": "domain domain domain", "endian": "little",
        "encoding": "raw", "space_origin": "(-10,-20,-30)", **changes,
    }  # fmt: skip
    lines = [f"{key.replace('_', ' ')}: {value}\n" for key, value in fields.items() if value is not None]
    return ("NRRD0004\n# a comment\n" + "".join(lines) + "\n").encode() + (voxels() if data is None else data)


def mha(data: bytes | None = None, **changes: object) -> bytes:
    """A MetaImage file; a change of None drops the field."""
    fields: dict[str, object] = {
        "ObjectType": "Image", "NDims": 3, "BinaryData": True, "BinaryDataByteOrderMSB": False,
        "CompressedData": False, "TransformMatrix": "1 0 0 0 1 0 0 0 1", "Offset": "-10 -20 -30",
        "ElementSpacing": "1.5 2 3", "DimSize": "4 5 6", "ElementType": "MET_FLOAT", **changes,
    }  # fmt: skip
    fields["ElementDataFile"] = fields.pop("ElementDataFile", "LOCAL")
    lines = [f"{key} = {value}\n" for key, value in fields.items() if value is not None]
    return "".join(lines).encode() + (voxels() if data is None else data)


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
        "intensity": Intensity("range", 0.0, 100.0), **changes,
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
    mine = os.geteuid()
    if mine == 0:
        os.seteuid(65534)  # with it go the rights of root
    try:
        yield folder
    finally:
        os.seteuid(mine)
        folder.chmod(0o700)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty data folder in place of the user's."""
    folder = tmp_path / "home"
    folder.mkdir()
    monkeypatch.setenv(HOME_VARIABLE, str(folder))
    return folder

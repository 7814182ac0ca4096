"""Every transfer syntax that docs/dicom.md names: encoded for real, read back, compared with the original's voxels."""

import base64
import io
import itertools
from collections.abc import Callable
from pathlib import Path

import gdcm
import jpeg_ls
import numpy as np
import pydicom
import pytest
import SimpleITK as sitk  # noqa: N813  the referee
from dicom_series import one, positions, save
from PIL import Image
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate
from pydicom.uid import (
    HTJ2K,
    JPEG2000,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    HTJ2KLossless,
    HTJ2KLosslessRPCL,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    JPEGLSNearLossless,
    RLELossless,
)

from dropgen_rt.dicom.read import read_dicom
from dropgen_rt.errors import UnsuitableInputError

Encode = Callable[[Path, str], None]
ROWS, COLUMNS = 36, 40
CERTAIN, POSSIBLE = "the images were compressed with loss", "the images may have been compressed with loss"

#: (bits stored, bits allocated, signed), of CT, MR, PET and of secondary devices.
KINDS = ((8, 8, 0), (12, 16, 0), (12, 16, 1), (16, 16, 0), (16, 16, 1))

# (x² 7 + y² 11 + x y 5) modulo 4096 in 12 bits as HTJ2K, reversible, by ojph_compress 0.9.0: no encoder for it is
# among the Python packages.
HTJ2K_STREAM = base64.b64decode(
    "/0//UQApQAAAAAAQAAAADAAAAAAAAAAAAAAAEAAAAAwAAAAAAAAAAAABCwEB/1AACAACAAAACP9SAAwAAgABAAUEBEAB/1wAEyBweHiAeHiAeHiA"
    "eHh4cHB4/2QAFgABT3BlbkpQSCBWZXIgMC45LjAu/5AACgAAAAAA7wAB/5PAATA1+wMHdAAAwACaAATQABKAgP4Ch3QAAvgDB3QADAIHdADAAKmA"
    "ATQABIDfhIOTrwFCtADb6wBiNACQEjMAwAC04ABakAAn977vjRtANdf3BgD+FP5iCLG3ANf1el3XdUGunghV/gAET3PkMbgAAMiADWvlAMABdRAA"
    "XZwACUDtbtu2bUMDJWq727Zt29DAC93utm3bNjSQ6wztfrL52v1lwisbMb4AVWtVVVVVVVVVrVVVVVVVVVXBXAFegX4FBBU4VIBRgUgFLQAhABBC"
    "ACUf16/WXoxqMbEB+P0IVAD/2Q=="
)
SIGN_OF_COMPONENT = HTJ2K_STREAM.index(b"\xff\x51") + 40  # in its SIZ marker, ISO/IEC 15444-1 A.5.1


def series(bits: int, signed: int) -> np.ndarray:
    """(6, rows, columns) int64 with all that the bits hold, from the lowest to the highest."""
    low = -(1 << bits - 1) if signed else 0
    y, x = np.mgrid[:ROWS, :COLUMNS]
    smooth = 0.5 + 0.4 * np.sin(x / 4) * np.cos(y / 5)
    array = np.stack([np.floor(low + ((1 << bits) - 1) * smooth) + k for k in range(6)]).astype(np.int64)
    array[:, 0, 0], array[:, 0, 1] = low, low + (1 << bits) - 1
    return array


def dataset_of(array: np.ndarray, k: int, bits: int, allocated: int, signed: int) -> Dataset:
    dataset = one(array[k], k, positions(6)[k], modality="MR")
    dataset.BitsStored, dataset.HighBit, dataset.BitsAllocated = bits, bits - 1, allocated
    dataset.PixelRepresentation = signed
    dataset.PixelData = array[k].astype(f"<{'i' if signed else 'u'}{allocated // 8}").tobytes()
    dataset["PixelData"].VR = "OB" if allocated == 8 else "OW"
    return dataset


def written(folder: Path, array: np.ndarray, kind: tuple[int, int, int], encode: Encode, syntax: str) -> Path:
    for k in range(len(array)):
        encode(save(dataset_of(array, k, *kind), folder / str(k)), syntax)
    return folder


def by_pydicom(path: Path, syntax: str, **how: object) -> None:
    dataset = pydicom.dcmread(path)
    dataset.compress(syntax, generate_instance_uid=False, **how)
    dataset.save_as(path)


def by_gdcm(path: Path, syntax: str) -> None:
    reader, change, writer = gdcm.ImageReader(), gdcm.ImageChangeTransferSyntax(), gdcm.ImageWriter()
    reader.SetFileName(str(path))
    assert reader.Read()
    change.SetTransferSyntax(gdcm.TransferSyntax(gdcm.TransferSyntax.GetTSType(str(syntax))))
    change.SetInput(reader.GetImage())
    assert change.Change()
    writer.SetImage(change.GetOutput())
    writer.SetFile(reader.GetFile())
    writer.SetFileName(str(path))
    assert writer.Write()


def packed(path: Path, syntax: str, stream: bytes) -> None:
    """The file with these bytes as its pixels."""
    dataset = pydicom.dcmread(path)
    dataset.PixelData = encapsulate([stream])
    dataset["PixelData"].VR = "OB"
    dataset["PixelData"].is_undefined_length = True
    dataset.file_meta.TransferSyntaxUID = syntax
    dataset.save_as(path)


def unpacked(path: Path, syntax: str) -> None:
    """The file with its native pixels as this syntax has them."""
    dataset = Dataset({element.tag: element for element in pydicom.dcmread(path)})  # without its encoding
    if syntax == ExplicitVRBigEndian and dataset["PixelData"].VR == "OW":
        dataset.PixelData = np.frombuffer(dataset.PixelData, "<u2").astype(">u2").tobytes()
    save(dataset, path, syntax)


NATIVE = [(unpacked, syntax) for syntax in (ExplicitVRLittleEndian, ImplicitVRLittleEndian, ExplicitVRBigEndian,
                                            DeflatedExplicitVRLittleEndian)]  # fmt: skip
LOSSLESS = [
    *((by_pydicom, syntax) for syntax in (RLELossless, JPEG2000Lossless, JPEGLSLossless)),
    *((by_gdcm, syntax) for syntax in (JPEGLossless, JPEGLosslessSV1, JPEG2000Lossless, JPEGLSLossless, RLELossless)),
]


@pytest.mark.parametrize("kind", KINDS, ids=str)
@pytest.mark.parametrize(("encode", "syntax"), [*NATIVE, *LOSSLESS])
def test_lossless_syntaxes_are_read_exactly(
    tmp_path: Path, encode: Encode, syntax: str, kind: tuple[int, int, int]
) -> None:
    array = series(kind[0], kind[2])
    scan = read_dicom(written(tmp_path, array, kind, encode, syntax))
    assert pydicom.dcmread(tmp_path / "0", stop_before_pixels=True).file_meta.TransferSyntaxUID == syntax
    assert np.array_equal(scan.volume.array[0], array)
    assert scan.warnings == ()


@pytest.mark.parametrize("signed", [0, 1])
@pytest.mark.parametrize("syntax", [HTJ2KLossless, HTJ2KLosslessRPCL, HTJ2K])
def test_htj2k_is_read_exactly(tmp_path: Path, syntax: str, signed: int) -> None:
    y, x = np.mgrid[:12, :16]
    stream = bytearray(HTJ2K_STREAM)
    stream[SIGN_OF_COMPONENT] |= 0x80 * signed  # unsigned components are stored less half their range: the same bits
    expected = (x * x * 7 + y * y * 11 + x * y * 5) % 4096 - 2048 * signed
    kind = (12, 16, signed)
    small = series(12, signed)[:, :12, :16]
    scan = read_dicom(written(tmp_path, small, kind, lambda p, s: packed(p, s, bytes(stream)), syntax))
    assert np.array_equal(scan.volume.array[0], np.repeat(expected[None], 6, 0))
    assert scan.warnings == ((POSSIBLE,) if syntax == HTJ2K else ())


def test_near_lossless_jpeg_ls_stays_within_its_bound(tmp_path: Path) -> None:
    array = series(12, 0)
    scan = read_dicom(written(tmp_path, array, (12, 16, 0), lambda p, s: by_pydicom(p, s, jls_error=2),
                              JPEGLSNearLossless))  # fmt: skip
    assert 0 < np.abs(scan.volume.array[0] - array).max() <= 2
    assert scan.warnings == (POSSIBLE,)


def jpeg(path: Path, syntax: str) -> None:
    stream = io.BytesIO()
    Image.fromarray(pydicom.dcmread(path).pixel_array).save(stream, "JPEG", quality=95)
    packed(path, syntax, stream.getvalue())


@pytest.mark.parametrize("syntax", [JPEGBaseline8Bit, JPEGExtended12Bit])
def test_jpeg_of_8_bits_is_read_with_a_warning(tmp_path: Path, syntax: str) -> None:
    array = np.clip(series(8, 0), 30, 220)  # no edges, which ring
    scan = read_dicom(written(tmp_path, array, (8, 8, 0), jpeg, syntax))
    assert np.abs(scan.volume.array[0] - array).max() <= 8
    assert scan.warnings == (CERTAIN,)


def test_jpeg_of_12_bits_is_refused(tmp_path: Path) -> None:
    """GDCM decodes its sign and range wrongly now and then, and pydicom has no other decoder for it."""
    written(tmp_path, series(12, 0), (12, 16, 0), lambda p, s: packed(p, s, b"\xff\xd8\xff\xd9"), JPEGExtended12Bit)
    with pytest.raises(UnsuitableInputError, match="pixels stored as lossy JPEG of 12 bits; accepted: uncompressed, "):
        read_dicom(tmp_path)


@pytest.mark.parametrize(("said", "warning"), [("01", CERTAIN), ("00", ""), (None, POSSIBLE)])
def test_jpeg_2000_that_may_be_lossy(tmp_path: Path, said: str | None, warning: str) -> None:
    def encode(path: Path, syntax: str) -> None:
        by_pydicom(path, syntax, j2k_cr=[2])
        dataset = pydicom.dcmread(path)
        dataset.LossyImageCompression = said
        dataset.save_as(path)

    scan = read_dicom(written(tmp_path, series(12, 0), (12, 16, 0), encode, JPEG2000))
    assert scan.warnings == ((warning,) if warning else ())


def as_words(path: Path, syntax: str) -> None:
    """JPEG-LS of the words with what stands in their spare bits, as DCMTK's encoder makes it."""
    dataset = pydicom.dcmread(path)
    words = np.frombuffer(dataset.PixelData, "<u2").reshape(ROWS, COLUMNS)
    packed(path, syntax, bytes(jpeg_ls.encode_array(words)))


@pytest.mark.parametrize("signed", [0, 1])
@pytest.mark.parametrize(("encode", "syntax"), [(as_words, JPEGLSLossless), (by_pydicom, RLELossless), *NATIVE])
def test_overlays_in_the_spare_bits_are_dropped(tmp_path: Path, encode: Encode, syntax: str, signed: int) -> None:
    array = series(12, signed)
    overlaid = (array & 0xFFF) | 0x5000
    for k in range(6):
        dataset = dataset_of(array, k, 12, 16, signed)
        dataset.PixelData = overlaid[k].astype("<u2").tobytes()
        encode(save(dataset, tmp_path / str(k)), syntax)
    assert np.array_equal(read_dicom(tmp_path).volume.array[0], array)


@pytest.mark.parametrize(("allocated", "used"), [(8, 8), (32, 20)])
def test_big_endian_words_hold_parts_and_pairs_of_pixels(tmp_path: Path, allocated: int, used: int) -> None:
    """As DCMTK writes it and ITK reads it; pydicom puts the halves of 32 bits the other way round."""
    array = series(used, 0)
    for k in range(6):
        dataset = dataset_of(array, k, allocated, allocated, 0)
        dataset["PixelData"].VR = "OW"
        unpacked(save(dataset, tmp_path / str(k)), ExplicitVRBigEndian)
    assert np.array_equal(read_dicom(tmp_path).volume.array[0], array)
    assert np.array_equal(sitk.GetArrayFromImage(sitk.ReadImage(tmp_path / "2"))[0], array[2])


def test_big_endian_bytes_of_more_than_8_bits_are_refused(tmp_path: Path) -> None:
    for k in range(6):
        dataset = dataset_of(series(12, 0), k, 12, 16, 0)
        dataset["PixelData"].VR = "OB"
        save(dataset, tmp_path / str(k), ExplicitVRBigEndian)
    with pytest.raises(UnsuitableInputError, match=r"big endian pixels of type OB; accepted: words \(OW\)"):
        read_dicom(tmp_path)


def test_syntaxes_mixed_in_one_series(tmp_path: Path) -> None:
    """A PACS may hold some slices packed; the first one's packing says nothing of the others."""
    array = series(12, 0)
    ways = itertools.cycle([(unpacked, ExplicitVRLittleEndian), (by_pydicom, RLELossless), (by_gdcm, JPEGLosslessSV1)])
    for k, (encode, syntax) in zip(range(6), ways, strict=False):
        encode(save(dataset_of(array, k, 12, 16, 0), tmp_path / str(k)), syntax)
    assert np.array_equal(read_dicom(tmp_path).volume.array[0], array)

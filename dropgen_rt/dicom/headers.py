"""What the header of one DICOM file says, as plain JSON. Runs in the guarded child; the pixels stay unread.

Elements are taken as they are stored and converted one by one: pydicom's own conversion takes longer than
reading the file. Patient and study are known here only by a digest, to tell whether two files agree.
"""

import hashlib
import re
import struct
from pathlib import Path
from typing import Any

import pydicom
from pydicom.dataset import Dataset

#: Functional groups that hold what varies from frame to frame, by what it is called here.
_FRAME_KEYS = {
    "stack": ("FrameContentSequence", "StackID"),
    "time point": ("FrameContentSequence", "TemporalPositionIndex"),
    "echo time": ("MREchoSequence", "EffectiveEchoTime"),
    "inversion time": ("MRModifierSequence", "InversionTimes"),
    "flip angle": ("MRTimingAndRelatedParametersSequence", "FlipAngle"),
    "repetition time": ("MRTimingAndRelatedParametersSequence", "RepetitionTime"),
    "b-value": ("MRDiffusionSequence", "DiffusionBValue"),
    "diffusion direction": ("MRDiffusionSequence", "DiffusionGradientDirectionSequence"),
    "trigger delay": ("CardiacSynchronizationSequence", "NominalCardiacTriggerDelayTime"),
    "cardiac phase": ("CardiacSynchronizationSequence", "NominalPercentageOfCardiacPhase"),
    "tube voltage": ("CTXRayDetailsSequence", "KVP"),
    "kernel": ("CTReconstructionSequence", "ConvolutionKernel"),
    "acquisition": ("FrameContentSequence", "FrameAcquisitionNumber"),
    "frame time": ("FrameContentSequence", "FrameReferenceDateTime"),
    "acquisition time": ("FrameContentSequence", "FrameAcquisitionDateTime"),
}

#: Where a converter puts the attributes of single slices that it knows no group for.
_CONVERTED = "UnassignedPerFrameConvertedAttributesSequence"
_CONVERTED_KEYS = {
    "echo time": "EchoTime", "inversion time": "InversionTime", "flip angle": "FlipAngle",
    "repetition time": "RepetitionTime", "trigger delay": "TriggerTime", "time point": "TemporalPositionIdentifier",
}  # fmt: skip
_FRAME_TYPES = ("MRImageFrameTypeSequence", "CTImageFrameTypeSequence", "PETFrameTypeSequence", "XAXRFFrameCharacteristicsSequence")  # fmt: skip  # noqa: E501

#: The same for files of one slice. Times of day are compared, never shown.
_SLICE_KEYS = {
    "image type": 0x00080008, "echo number": 0x00180086, "echo time": 0x00180081, "inversion time": 0x00180082,
    "flip angle": 0x00181314, "repetition time": 0x00180080, "time point": 0x00200100, "b-value": 0x00189087,
    "diffusion direction": 0x00189089, "trigger delay": 0x00181060, "cardiac phase": 0x00209241,
    "tube voltage": 0x00180060, "kernel": 0x00181210, "acquisition": 0x00200012, "frame reference time": 0x00541300,
    "acquisition time": 0x00080032, "content time": 0x00080033,
}  # fmt: skip

# Types of those that are no text, for files that do not say them.
_SLICE_VRS = {0x00189087: "FD", 0x00189089: "FD", 0x00209241: "FL"}

#: Private elements that stand in for them: group, creator, element within its block, VR; from the conformance
#: statements of Siemens, GE and Philips.
_PRIVATE_KEYS = {
    "b-value": ((0x0019, "SIEMENS MR HEADER", 0x0C, "IS"), (0x0043, "GEMS_PARM_01", 0x39, "IS"),
                (0x2001, "Philips Imaging DD 001", 0x03, "FL")),
    "diffusion direction": ((0x0019, "SIEMENS MR HEADER", 0x0E, "FD"), (0x0019, "GEMS_ACQU_01", 0xBB, "DS"),
                            (0x2005, "Philips MR Imaging DD 001", 0xB0, "FL")),
    "image kind": ((0x0043, "GEMS_PARM_01", 0x2F, "SS"),),
    "energy": ((0x0053, "GEHC_CT_ADVAPP_001", 0x75, "DS"),),
}  # fmt: skip

#: In place of a length: pixels in a data set that is packed as a whole, and pixels in fragments.
DEFLATED, ENCAPSULATED = -2, -1

#: The data set's own elements by tag, as they are stored.
Elements = dict[int, Any]

_CODE = re.compile(r"[^A-Z0-9_ .-]")
_PIXEL_TAGS = {b"\xe0\x7f\x10\x00": "<", b"\x7f\xe0\x00\x10": ">"}
_ITEM, _DELIMITER = b"\xfe\xff\x00\xe0", b"\xfe\xff\xdd\xe0"
_TEXT_VRS = ("AE", "AS", "CS", "DA", "DS", "DT", "IS", "LO", "LT", "PN", "SH", "ST", "TM", "UC", "UI", "UN", "UR", "UT")
_BINARY_VRS = {"FD": "d", "FL": "f", "SS": "h", "US": "H", "SL": "i", "UL": "I"}
_SHORT_VRS = ("US", "SS", "UN", None)
_LONG_VRS = (b"OB", b"OW", b"UN")


def read_header(path: str) -> dict[str, Any]:
    """The header of one file, or ``{"error": reason}`` if it cannot be made out. Raises MemoryError."""
    try:
        with Path(path).open("rb") as file:
            dataset = pydicom.dcmread(file, stop_before_pixels=True, force=True)  # without a preamble, too
            header = _describe(dataset)
            size = Path(path).stat().st_size
            header["pixels"], header["pixel_vr"] = _place_of_pixels(file, header["syntax"], size)
            packed = header["pixels"] is not None and header["pixels"][1] == ENCAPSULATED
            header["whole"] = not packed or _has_fragments(file, header["frames"], size)
            return header
    except MemoryError:
        raise
    except Exception as error:  # whatever a damaged file makes the library raise; its text may quote the file
        return {"error": type(error).__name__}


def _describe(dataset: Dataset) -> dict[str, Any]:
    meta = dataset.file_meta
    elements = {int(element.tag): element for element in dataset.elements()}
    header: dict[str, Any] = {
        "syntax": str(meta.get("TransferSyntaxUID", "") if meta else _syntax_found(dataset)),
        "sop_class": _text(elements, 0x00080016) or str(meta.get("MediaStorageSOPClassUID", "")),
        "sop": _text(elements, 0x00080018) or str(meta.get("MediaStorageSOPInstanceUID", "")),
        "series": _text(elements, 0x0020000E),
        "study": _text(elements, 0x0020000D),
        "patient": _patient(elements),
        "frame_of_reference": _text(elements, 0x00200052),
        "modality": _code(_text(elements, 0x00080060)),
        "body_part": _code(_text(elements, 0x00180015)),
        "image_type": [_code(part) for part in _texts(elements, 0x00080008)],
        "burned_in": _text(elements, 0x00280301) == "YES",
        "lossy": _text(elements, 0x00282110),
        "modality_lut": bool(getattr(elements.get(0x00283000), "value", None)),
        "photometric": _code(_text(elements, 0x00280004)),
        "instance": _integer(_text(elements, 0x00200013)),
        "frames": _integer(_text(elements, 0x00280008)) or 1,
    }
    for name, tag in (("samples", 0x00280002), ("rows", 0x00280010), ("columns", 0x00280011),
                      ("bits_allocated", 0x00280100), ("bits_stored", 0x00280101), ("high_bit", 0x00280102),
                      ("signed", 0x00280103)):  # fmt: skip
        header[name] = _short(elements, tag, "H")
    header["padding"] = [_short(elements, tag, "h" if header["signed"] else "H") for tag in (0x00280120, 0x00280121)]
    groups = 0x52009230 in elements
    header["enhanced"] = groups
    header["slices"] = _frames(dataset, header["frames"]) if groups else [_slice(elements)]
    if groups and not any(plane["slope"] or plane["intercept"] for plane in header["slices"]):
        whole = _slice(elements)  # stated once for all frames, outside of the groups
        header["slices"] = [
            plane | {name: whole[name] for name in ("slope", "intercept")} for plane in header["slices"]
        ]
    return header


def _syntax_found(dataset: Dataset) -> str:
    """How a data set without a meta header was found to be written; only native pixels come so."""
    implicit, little = dataset.original_encoding
    if implicit:
        return str(pydicom.uid.ImplicitVRLittleEndian)
    return str(pydicom.uid.ExplicitVRLittleEndian if little else pydicom.uid.ExplicitVRBigEndian)


def _patient(elements: Elements) -> str:
    """A digest of number and name, the same for what differs in case, padding or empty parts of the name only."""
    parts = [_text(elements, tag).upper().rstrip(" ^") for tag in (0x00100020, 0x00100010)]
    return hashlib.sha256(repr(parts).encode()).hexdigest()


def _slice(elements: Elements) -> dict[str, Any]:
    return {
        "position": _numbers(_texts(elements, 0x00200032)),
        "orientation": _numbers(_texts(elements, 0x00200037)),
        "spacing": _numbers(_texts(elements, 0x00280030)),
        "slope": _scale(_texts(elements, 0x00281053)),
        "intercept": _scale(_texts(elements, 0x00281052)),
        "keys": _private_keys(elements)
        | {name: key for name, tag in _SLICE_KEYS.items() if (key := _comparable(elements, tag))},
    }


def _private_keys(elements: Elements) -> dict[str, str]:
    """What the private elements say; of GE's b-value the number without the flag that it adds to it."""
    found: dict[str, str] = {}
    for name, places in _PRIVATE_KEYS.items():
        for group, creator, element, vr in places:
            block = next((b for b in range(0x10, 0x18) if _text(elements, group << 16 | b).strip() == creator), None)
            key = _comparable(elements, group << 16 | block << 8 | element, vr) if block else ""
            if key:
                number = _integer(key) if name == "b-value" and group == 0x0043 else None
                found[name] = key if number is None else str(number % 100_000)
    return found


def _frames(dataset: Dataset, count: int) -> list[dict[str, Any]]:
    """One entry per frame of a multi-frame image; what is shared stands in the shared functional groups."""
    shared = (dataset.get("SharedFunctionalGroupsSequence") or [Dataset()])[0]
    per_frame = dataset.PerFrameFunctionalGroupsSequence
    if len(per_frame) != count:
        raise ValueError("frames and functional groups differ in number")
    return [_frame(group, shared) for group in per_frame]


def _frame(group: Dataset, shared: Dataset) -> dict[str, Any]:
    def find(sequence: str, keyword: str) -> Any:
        for place in (group, shared):
            items = place.get(sequence)
            if items and keyword in items[0]:
                return items[0].get(keyword)
        return None

    keys = {name: str(value) for name, key in _CONVERTED_KEYS.items() if (value := find(_CONVERTED, key)) is not None}
    keys |= {name: str(value) for name, names in _FRAME_KEYS.items() if (value := find(*names)) is not None}
    indices = find("FrameContentSequence", "DimensionIndexValues")
    indices = [indices] if isinstance(indices, int) else indices or []
    keys |= {f"dimension {number}": str(value) for number, value in enumerate(indices, 1)}
    direction = find("MRDiffusionSequence", "DiffusionGradientDirectionSequence")
    if direction:
        keys["diffusion direction"] = str(direction[0].get("DiffusionGradientOrientation"))
    types = [find(name, "FrameType") for name in _FRAME_TYPES]
    keys["image type"] = next(("\\".join(map(str, kind)) for kind in types if kind), "")
    return {
        "position": _numbers(find("PlanePositionSequence", "ImagePositionPatient")),
        "orientation": _numbers(find("PlaneOrientationSequence", "ImageOrientationPatient")),
        "spacing": _numbers(find("PixelMeasuresSequence", "PixelSpacing")),
        "slope": _scale(find("PixelValueTransformationSequence", "RescaleSlope")),
        "intercept": _scale(find("PixelValueTransformationSequence", "RescaleIntercept")),
        "keys": keys,
    }


def _place_of_pixels(file: Any, syntax: str, size: int) -> tuple[list[int] | None, str]:
    """Byte offset, length there is and length declared of native pixels, and their VR; None if there are none.

    DEFLATED or ENCAPSULATED stand for a length where it is not to be had.

    pydicom leaves the file at the element that it stopped before; PS3.5 section 7.1 gives its layout.
    """
    if syntax == pydicom.uid.DeflatedExplicitVRLittleEndian:
        return [0, DEFLATED, 0], ""
    head = file.read(12)
    end = _PIXEL_TAGS.get(head[:4])
    if end is None:
        return None, ""
    explicit = syntax != pydicom.uid.ImplicitVRLittleEndian
    if explicit and head[4:6] not in _LONG_VRS:
        raise ValueError("pixels of an unexpected type")
    (length,) = struct.unpack(end + "I", head[8:12] if explicit else head[4:8])
    offset = file.tell() - 12 + (12 if explicit else 8)
    vr = head[4:6].decode() if explicit else "OW"
    if length == 0xFFFFFFFF:
        return [offset, ENCAPSULATED, 0], vr
    return [offset, min(length, size - offset), length], vr


def _has_fragments(file: Any, frames: int, size: int) -> bool:
    """Whether all fragments of compressed pixels (PS3.5 A.4) are there, one for each frame at least.

    Decoders take what stands in a fragment's place for it, the delimiter behind it too. A delimiter that is missing
    at the end of the file is none of the damage: some writers leave it out.
    """
    found = -1  # the first is a table
    while head := file.read(8):
        if head[:4] == _DELIMITER:
            break
        if len(head) < 8 or head[:4] != _ITEM:
            return False
        (length,) = struct.unpack("<I", head[4:])
        if file.tell() + length > size:
            return False
        file.seek(length, 1)
        found += 1
    return found >= frames


def _text(elements: Elements, tag: int) -> str:
    """The value as text. An element of a type that is no text, or no type at all, is damage, whatever it looks like."""
    element = elements.get(tag)
    if element is not None and element.VR is not None and element.VR not in _TEXT_VRS:
        raise ValueError("an element of an unexpected type")
    value = None if element is None else element.value
    if isinstance(value, bytes):
        return value.decode("latin-1").strip(" \0")
    if value is None:
        return ""
    return "\\".join(map(str, value)) if isinstance(value, (list, pydicom.multival.MultiValue)) else str(value)


def _texts(elements: Elements, tag: int) -> list[str]:
    text = _text(elements, tag)
    return [part.strip() for part in text.split("\\")] if text else []


def _comparable(elements: Elements, tag: int, usual_vr: str = "") -> str:
    """The value as text. ``usual_vr`` is the type where the file does not say one, as for private elements."""
    element = elements.get(tag)
    if element is None:
        return ""
    vr = usual_vr or _SLICE_VRS.get(tag, "") if element.VR in (None, "UN") else str(element.VR)
    kind = _BINARY_VRS.get(vr)
    if kind is None:
        return _text(elements, tag) if vr in (*_TEXT_VRS, "") else ""
    if not isinstance(element.value, bytes):
        return str(element.value)
    order, count = "<" if element.is_little_endian else ">", len(element.value) // struct.calcsize(kind)
    return "\\".join(f"{number:g}" for number in struct.unpack_from(f"{order}{count}{kind}", element.value))


def _short(elements: Elements, tag: int, kind: str) -> int | None:
    element = elements.get(tag)
    if element is not None and element.VR not in _SHORT_VRS:
        raise ValueError("a number of an unexpected type")
    if element is None or not element.value:
        return None if element is None or element.value in (None, b"", "") else int(element.value)
    if isinstance(element.value, bytes):
        return int(struct.unpack_from(("<" if element.is_little_endian else ">") + kind, element.value)[0])
    return int(element.value)


def _integer(text: str) -> int | None:
    try:
        return int(text.split("\\")[0])
    except ValueError:
        return None


def _numbers(values: Any) -> list[float] | None:
    """The numbers of a decimal string element; None if it is absent or holds something else."""
    if values is None or values == []:
        return None
    if isinstance(values, (str, int, float)):
        values = [values]
    try:
        return [float(value) for value in values]
    except (TypeError, ValueError):
        return None


def _scale(values: Any) -> list[float] | None:
    """The same for slope and intercept, which nothing may stand in for once they are there."""
    found = _numbers(values)
    if found is None and values not in (None, [], ""):
        raise ValueError("a slope or intercept that is no number")
    return found


def _code(text: str) -> str:
    """A code string (VR CS) that may be shown: other characters, as of free text in the wrong place, are dropped."""
    return _CODE.sub("", text.upper())[:16].strip()

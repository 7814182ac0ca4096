"""Codes for structures: the manifest's own, SNOMED CT by name, or a private one that says what the model says."""

import functools
import hashlib
import re

from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code

from dropgen_rt.manifest import Label

#: DICOM's context groups of anatomy, PS3.16: only their codes are looked up by name, the specific ones first.
ANATOMY = ("cid7140", "cid7192", "cid7151", "cid4")

#: The scheme of codes made here; the prefix 99 marks private ones (PS3.3 section 8.2).
PRIVATE_SCHEME = "99DROPGENRT"

_SIDES = {"left": codes.SCT.Left, "right": codes.SCT.Right}


def property_type(label: Label) -> tuple[Code, Code | None]:
    """What the segment is, and the side if the name says one that the code does not."""
    if label.code is not None:
        return Code(*label.code), None
    words = re.findall(r"[a-z0-9]+", label.name.lower())
    known = _by_name("".join(words))
    if known is not None:
        return known, None
    sides = [word for word in words if word in _SIDES]
    rest = "".join(word for word in words if word not in _SIDES)
    known = _by_name(rest) if len(sides) == 1 else None
    if known is not None:
        return known, _SIDES[sides[0]]
    return Code(hashlib.sha256(label.name.encode()).hexdigest()[:12].upper(), PRIVATE_SCHEME, label.name[:64]), None


def property_category(label: Label) -> Code:
    """The segment's category: an anatomical structure unless the manifest says otherwise."""
    return codes.SCT.AnatomicalStructure if label.category is None else Code(*label.category)


def code_item(code: Code) -> Dataset:
    """A code as the item of a sequence."""
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = code.value, code.scheme_designator, code.meaning
    return item


def _by_name(name: str) -> Code | None:
    found = _anatomy()
    return next((found[form] for form in (name, name + "structure", name.removesuffix("s")) if form in found), None)


@functools.cache
def _anatomy() -> dict[str, Code]:
    found: dict[str, Code] = {}
    for group in ANATOMY:
        concepts = getattr(codes, group)
        for keyword in concepts.dir():
            code = getattr(concepts, keyword)
            if code.scheme_designator == "SCT":
                found.setdefault(keyword.lower(), code)
    return found

"""The forms that labels are written in: which exist, what their files are called, what needs a DICOM source."""

from collections.abc import Sequence
from pathlib import Path

from dropgen_rt.errors import UsageError

#: Label maps that SimpleITK writes on the volume's own grid, and the endings of their files.
LABEL_FORMATS = {"nifti": "_seg.nii.gz", "nrrd": "_seg.nrrd", "mha": "_seg.mha"}

#: Objects on the source instances of a DICOM series.
DICOM_FORMATS = {
    "dicom-seg": "_seg.dcm",
    "dicom-labelmap": "_labelmap.dcm",
    "dicom-sr": "_sr.dcm",
    "dicom-sc": "_sc.dcm",
}

FORMATS = LABEL_FORMATS | DICOM_FORMATS


def parse_formats(given: Sequence[str]) -> tuple[str, ...]:
    """The formats named, each once, in order; commas separate too. Raises UsageError for an unknown one."""
    names = [name.strip() for text in given for name in text.split(",") if name.strip()]
    for name in names:
        if name not in FORMATS:
            raise UsageError(f"format {name!r}: accepted are {', '.join(FORMATS)}, several separated by commas")
    return tuple(dict.fromkeys(names))


def chosen_formats(formats: Sequence[str], dicom: bool, path: Path) -> tuple[str, ...]:
    """What is written for one input: what was asked for, or a NIfTI label map, or for DICOM a segmentation.

    A structured report refers to the segments of a segmentation, so one is added. Raises UsageError.
    """
    if not dicom:
        for name in formats:
            if name in DICOM_FORMATS:
                raise UsageError(f"{path}: {name} needs a DICOM series to refer to; use {', '.join(LABEL_FORMATS)}")
        return tuple(formats) or ("nifti",)
    chosen = tuple(formats) or ("dicom-seg",)
    if "dicom-sr" in chosen and not {"dicom-seg", "dicom-labelmap"} & set(chosen):
        chosen = ("dicom-seg", *chosen)
    return chosen

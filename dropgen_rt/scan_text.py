"""What the two formats with a text header share: sizes of axes, and voxels in the same file or another."""

import os
from pathlib import Path

from dropgen_rt.errors import UnreadableInputError, UnsuitableInputError
from dropgen_rt.scan_header import not_an_image, refusal, whole_numbers

#: A text header longer than this is not one.
HEADER_BYTES = 2**20


def axis_sizes(path: Path, fields: dict[str, str], count_key: str, sizes_key: str) -> tuple[int, ...]:
    """The sizes, as many as the header counts. Raises UnreadableInputError."""
    sizes = whole_numbers(path, sizes_key, fields.get(sizes_key, ""))
    if not sizes or whole_numbers(path, count_key, fields.get(count_key, "")) != (len(sizes),):
        raise not_an_image(path, f"a header whose {count_key} and {sizes_key} disagree")
    return sizes


def place_of_voxels(
    path: Path, name: str | None, end: int, fields: dict[str, str], skip_key: str, length: int | None
) -> tuple[Path, int, int]:
    """The file with the voxels, the byte at which they begin, and how many unpacked bytes to pass over.

    ``name`` is the data file's, its bytes decoded as latin-1, None if the voxels follow the header, which ends at byte
    ``end``. ``length`` is that of voxels stored plain, None of packed ones. A skip of -1 means that plain voxels are
    the last bytes of the file.
    Raises UnreadableInputError or UnsuitableInputError.
    """
    source, start = (path, end) if name is None else (_detached(path, name), 0)
    skip = whole_numbers(path, skip_key, fields.get(skip_key, "0"))
    if len(skip) != 1 or skip[0] < -1:
        raise not_an_image(path, f"header line {skip_key!r} says {fields[skip_key][:60]!r}")
    if length is None:
        if skip[0] < 0:
            raise not_an_image(path, f"header line {skip_key!r} says -1, and the voxels are packed")
        return source, start, skip[0]
    return source, start + skip[0] if skip[0] >= 0 else max(start, source.stat().st_size - length), 0


def _detached(path: Path, name: str) -> Path:
    """The one data file that a header names: its bytes as the system takes those of a file's name, or as latin-1."""
    own = os.fsdecode(name.encode("latin-1"))
    try:
        for source in (path.parent / own, path.parent / name):
            if source.is_file():
                return source
    except ValueError:  # a zero byte
        pass
    if name.split()[:1] == ["LIST"] or "%" in name:
        raise refusal(UnsuitableInputError, path, "voxels in several files", "one file", "save it as .nii.gz")
    step = "copy it beside the header"
    raise refusal(UnreadableInputError, path, f"data file {own[:200]!r} is missing", "one that exists", step)

"""Cases on the working grid, prepared once into a cache: the runtime's own preprocessing, in several processes.

Torch is not imported here: the work runs in processes that would each pay for it.
"""

import errno
import hashlib
import json
import resource
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import filelock
import numpy as np
from numpy.typing import NDArray

from dropgen_rt.atomic import atomic_group, check_writable, output_error, remove_unfinished
from dropgen_rt.channels import SAME_GRID, read_channels
from dropgen_rt.dataset_labels import LabelTable
from dropgen_rt.errors import GeometryError, ResourceError, UnsuitableInputError
from dropgen_rt.evaluate import same_grid
from dropgen_rt.manifest import Intensity, plain_intensity
from dropgen_rt.preprocess import labels_to_working_grid, normalisation, to_working_grid
from dropgen_rt.store import home, make_folder
from dropgen_rt.train.layout import Case
from dropgen_rt.train.parallel import each
from dropgen_rt.train.survey import Finding
from dropgen_rt.volume import read_label_map

FORMAT = "dropgen-rt prepared case 3"
LOCK = ".lock"
# Voxels kept per label to centre crops on; drawn once, so that a crop need not search a whole scan.
PLACES_PER_LABEL = 4096
# Other processes may write to the cache; no array takes one a day.
ABANDONED_S = 86_400


@dataclass(frozen=True)
class Grid:
    """What decides a prepared case beside its files: the working grid, the intensities, the merged labels."""

    orientation: str
    spacing_mm: tuple[float, float, float]
    intensity: tuple[Intensity, ...]
    table: LabelTable


@dataclass(frozen=True)
class Prepared:
    """One case on the working grid.

    ``image`` (channels, z, y, x) float32 in [0, 1], ``label`` (z, y, x) uint8, both perhaps memory-mapped;
    ``places`` (n, 4) int32 rows of label value, z, y, x: voxels of each label. ``key`` names the content of its files
    and the settings; it is empty where the case is of no cache. To another process a memory-mapped array travels as
    its file's name.
    """

    name: str
    image: NDArray[np.float32]
    label: NDArray[np.unsignedinteger]
    places: NDArray[np.int32]
    key: str = ""

    def __reduce__(self) -> tuple[Any, ...]:
        return _unpacked, (self.name, _packed(self.image), _packed(self.label), self.places, self.key)


def _packed(array: NDArray) -> NDArray | Path:
    """The file, where the array is all of one."""
    if not isinstance(array, np.memmap) or array.filename is None:
        return array
    file = Path(array.filename)
    return file if array.offset + array.nbytes == file.stat().st_size else np.array(array)


def _unpacked(name: str, image: NDArray | Path, label: NDArray | Path, places: NDArray, key: str) -> Prepared:
    def whole(given: NDArray | Path) -> NDArray:
        return np.load(given, mmap_mode="r") if isinstance(given, Path) else given

    return Prepared(name, whole(image), whole(label), places, key)


def on_working_grid(case: Case, grid: Grid) -> tuple[NDArray, NDArray]:
    """Image (channels, z, y, x) float32 in [0, 1] and labels (z, y, x) uint8. Raises an InputError."""
    volume = read_channels(case.images).volume
    labels, geometry = read_label_map(case.label)
    if not same_grid(volume.geometry, geometry, SAME_GRID * min(geometry.spacing_mm)):
        raise GeometryError(
            f"{case.label}: shape {labels.shape}, its image has {volume.geometry.shape}; they must match, "
            "and in place and spacing too"
        )
    working = to_working_grid(volume, grid.orientation, grid.spacing_mm)
    try:
        scale = normalisation(working, grid.intensity)
    except UnsuitableInputError as error:
        raise UnsuitableInputError(f"{case.images[0]}: {error}") from error
    shape = (-1, 1, 1, 1)
    lower, upper, offset, factor = (
        np.array(values, np.float32).reshape(shape) for values in (scale.lower, scale.upper, scale.offset, scale.scale)
    )
    image = (np.clip(working.array, lower, upper) - offset) * factor
    # Of two headers that differ by rounding one may come to a voxel more, or another orientation: the image's counts.
    target = labels_to_working_grid(grid.table.merge(labels), volume.geometry, grid.orientation, grid.spacing_mm)
    return image.astype(np.float32), target


def places_of(label: NDArray[np.integer], labels: int) -> NDArray[np.int32]:
    """(n, 4) int32: label value and voxel (z, y, x), at most PLACES_PER_LABEL of each label, drawn by a fixed seed."""
    rng = np.random.default_rng(0)
    rows = []
    for value in range(1, labels + 1):
        voxels = np.argwhere(label == value)
        if len(voxels) > PLACES_PER_LABEL:
            voxels = voxels[np.sort(rng.choice(len(voxels), PLACES_PER_LABEL, replace=False))]
        rows.append(np.column_stack([np.full(len(voxels), value), voxels]))
    return np.concatenate(rows).astype(np.int32)


def default_cache() -> Path:
    """Below the user's data folder; safe to delete."""
    return home() / "cache" / "prepared"


@contextmanager
def held(out: Path) -> Iterator[None]:
    """While a run folder, or the file ``out``, is written to. Raises ResourceError where another process holds it.

    A folder holds the lock itself, a file has it beside it, hidden. Raises OutputError where it cannot be made.
    """
    path = out / LOCK if out.is_dir() else out.with_name(f".{out.name}{LOCK}")
    check_writable(path)  # filelock takes a lack of permission for another process that holds it
    lock = filelock.FileLock(path, timeout=0)
    try:
        lock.acquire()
    except filelock.Timeout as error:
        raise ResourceError(
            f"{out}: another process trains into it; wait until it ends, or give another --out"
        ) from error
    except OSError as error:
        raise output_error(path, error) from error
    try:
        yield
    finally:
        lock.release()


def prepare(
    cases: Sequence[Case],
    findings: Sequence[Finding],
    grid: Grid,
    cache: Path,
    workers: int | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[Prepared]:
    """Every case on the working grid, from ``cache`` where it is there already; a stopped preparation goes on.

    A cached case is named by the content of its files and by the settings, so that a changed one is another.
    Arrays are memory-mapped. Raises OutputError if the cache cannot be written.
    """
    remove_unfinished(make_folder(cache), ".npy", ABANDONED_S)
    _allow_open_files()
    keys = [_key(finding, grid) for finding in findings]
    missing = [(case, key) for case, key in zip(cases, keys, strict=True) if not _is_there(cache, key)]
    if missing:
        each(partial(_write, grid=grid, cache=cache), missing, workers, progress)
    return [load(cache, key, case.name) for case, key in zip(cases, keys, strict=True)]


def _allow_open_files() -> None:
    """As many as the system lets a user have: each memory-mapped array keeps one, and the usual limit is 1024.

    Processes that are started later have the limit of this one.
    """
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def lost_labels(made: Sequence[Prepared], findings: Sequence[Finding], table: LabelTable) -> list[tuple[str, int, int]]:
    """(label, lost, cases) where the working grid is too coarse for a label: lost in some of the cases that have it."""
    rows = []
    for place, label in enumerate(table.labels):
        had = [case for case, finding in zip(made, findings, strict=True) if finding.voxels[place]]
        lost = sum(label.value not in case.places[:, 0] for case in had)
        if lost:
            rows.append((label.name, lost, len(had)))
    return rows


def in_memory(case: Case, grid: Grid) -> Prepared:
    """A case prepared without a cache."""
    image, label = on_working_grid(case, grid)
    return Prepared(case.name, image, label, places_of(label, len(grid.table.labels)))


def _key(finding: Finding, grid: Grid) -> str:
    note: list[object] = [FORMAT, finding.digests, grid.orientation, grid.spacing_mm, plain_intensity(grid.intensity)]
    note += [grid.table.sources, PLACES_PER_LABEL]
    return hashlib.sha256(json.dumps(note).encode()).hexdigest()[:32]


def _paths(cache: Path, key: str) -> list[Path]:
    return [cache / f"{key}.{part}.npy" for part in ("image", "label", "places")]


def _is_there(cache: Path, key: str) -> bool:
    """Whether the cache holds the case whole; a file cut short, on a disk that was full, is made again."""
    try:
        load(cache, key, "")
    except (OSError, ValueError, EOFError):
        return False
    return True


class _Writer:
    """What NumPy does not take for a file: its own writing to one does not tell why a disk refused."""

    def __init__(self, file: BinaryIO) -> None:
        self.write = file.write


def _write(item: tuple[Case, str], grid: Grid, cache: Path) -> None:
    case, key = item
    made = in_memory(case, grid)
    with atomic_group(_paths(cache, key)) as temporaries:
        for path, array in zip(temporaries, (made.image, made.label, made.places), strict=True):
            with path.open("wb") as file:
                np.save(_Writer(file), array)


def load(cache: Path, key: str, name: str) -> Prepared:
    """A case of the cache, image and label memory-mapped. Raises ResourceError where no more files may be open."""
    image, label, places = _paths(cache, key)
    try:
        return Prepared(name, np.load(image, mmap_mode="r"), np.load(label, mmap_mode="r"), np.load(places), key)
    except OSError as error:
        if error.errno not in (errno.EMFILE, errno.ENFILE):
            raise
        raise ResourceError(
            "the system lets too few files be open for so many cases, of which each needs two; raise the limit "
            "(ulimit -n), or give fewer cases"
        ) from error

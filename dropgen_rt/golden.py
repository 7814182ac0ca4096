"""Golden windows: a few inputs with the fp32 answers they must get, carried inside the model file.

They lie beside the manifest in the ONNX metadata, as text of an ``.npz`` of at most 2 MB: images in 256 steps, the
arg-max of every voxel, and the logits themselves on a lattice. The manifest holds their digest.
"""

import base64
import hashlib
import io
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from dropgen_rt.errors import ModelError
from dropgen_rt.manifest import Manifest

GOLDEN_KEY = "dropgen_rt.golden"
MAX_BYTES = 2_000_000
WINDOWS = 3
# Voxels of a window's own grid at most; a larger window repeats each voxel of a smaller one.
MAX_VOXELS = 64**3
MAX_LOGIT_BYTES = 900_000
# Logits are thinned out to this before a window is left out.
LEAST_LOGIT_BYTES = 100_000

Infer = Callable[[NDArray[np.float32]], NDArray[np.float32]]


@dataclass(frozen=True)
class Golden:
    """``windows`` (n, C, z, y, x) float32 in steps of 1/255, ``labels`` (n, z, y, x) the fp32 arg-max, ``logits``
    (n, K, …) float32 at every ``step``-th voxel of each axis, ``referee`` who computed them."""

    windows: NDArray[np.float32]
    labels: NDArray[np.unsignedinteger]
    logits: NDArray[np.float32]
    step: int
    source: str
    referee: str


def answered(windows: NDArray[np.float32], infer: Infer, source: str, referee: str) -> Golden:
    """Golden windows with the answers of ``infer``, one window at a time."""
    logits = np.concatenate([infer(window[None]).copy() for window in windows])
    kind = np.uint8 if logits.shape[1] <= 256 else np.uint16
    step = 1
    while logits[:, :, ::step, ::step, ::step].nbytes > MAX_LOGIT_BYTES:
        step += 1
    lattice = np.ascontiguousarray(logits[:, :, ::step, ::step, ::step])
    return Golden(windows, logits.argmax(1).astype(kind), lattice, step, source, referee)


def coarse_grid(window: tuple[int, ...]) -> tuple[int, ...]:
    """The grid (z, y, x) on which golden images of this window are kept: halved until it is small enough."""
    grid = window
    while np.prod(grid) > MAX_VOXELS and not any(edge % 2 for edge in grid):
        grid = tuple(edge // 2 for edge in grid)
    return grid


def as_windows(images: NDArray[np.floating], window: tuple[int, ...]) -> NDArray[np.float32]:
    """(n, C, z, y, x) images of 0 to 1 on the coarse grid, as float32 windows in steps of 1/255."""
    quantised = np.rint(np.clip(images, 0, 1) * 255).astype(np.uint8)
    return _enlarge(quantised, window)


def _enlarge(quantised: NDArray[np.uint8], window: tuple[int, ...]) -> NDArray[np.float32]:
    for axis, edge in enumerate(window, start=2):
        quantised = np.repeat(quantised, edge // quantised.shape[axis], axis=axis)
    return np.ascontiguousarray(quantised.astype(np.float32) / np.float32(255))


def synthetic_windows(manifest: Manifest, count: int = WINDOWS) -> NDArray[np.float32]:
    """Seeded windows with the spectrum of natural images: smooth shapes, fine texture, a third of it empty."""
    grid = coarse_grid(manifest.window)
    rng = np.random.default_rng(0)
    frequency = np.sqrt(sum(axis**2 for axis in np.meshgrid(*map(np.fft.fftfreq, grid), indexing="ij")))
    frequency.flat[0] = np.inf
    images = np.empty((count, len(manifest.channels), *grid))
    for image in images.reshape(-1, *grid):
        field = np.fft.ifftn(np.fft.fftn(rng.standard_normal(grid)) / frequency**1.5).real
        low, high = np.quantile(field, (0.33, 0.999))
        image[:] = (field - low) / max(high - low, 1e-9)
    return as_windows(images, manifest.window)


def pack(golden: Golden) -> str:
    """The text for the metadata, of as much of ``golden`` as 2 MB hold.

    Networks of many classes or large windows leave out logits first, to a coarser lattice, and then windows: one whole
    window has voxels enough to judge by. Raises ModelError where not even that fits.
    """
    while len(text := _text(golden)) > MAX_BYTES:
        if golden.logits.nbytes > LEAST_LOGIT_BYTES and min(golden.logits.shape[2:]) > 1:
            coarser = np.ascontiguousarray(golden.logits[:, :, ::2, ::2, ::2])
            golden = replace(golden, logits=coarser, step=2 * golden.step)
        elif len(golden.windows) > 1:
            golden = replace(golden, windows=golden.windows[:-1], labels=golden.labels[:-1], logits=golden.logits[:-1])
        else:
            raise ModelError(
                f"one golden window of {golden.labels.shape[1:]} voxels takes {len(text)} bytes, accepted are "
                f"{MAX_BYTES}; give --golden SCAN, because labels of a scan compress better, or a smaller window"
            )
    return text


def _text(golden: Golden) -> str:
    grid = coarse_grid(golden.windows.shape[2:])
    coarse = golden.windows
    for axis, edge in enumerate(grid, start=2):
        coarse = coarse.take(range(0, coarse.shape[axis], coarse.shape[axis] // edge), axis=axis)
    stream = io.BytesIO()
    np.savez_compressed(
        stream, images=np.rint(coarse * 255).astype(np.uint8), labels=golden.labels, logits=golden.logits,
        step=np.int64(golden.step), source=np.str_(golden.source), referee=np.str_(golden.referee),
    )  # fmt: skip
    return base64.b64encode(stream.getvalue()).decode("ascii")


def stored(content: bytes, manifest: Manifest) -> Golden | None:
    """The golden windows inside a model file's ``content``; None where its manifest names none. Raises ModelError."""
    if not manifest.golden_sha256:
        return None
    properties = {item.key: item.value for item in onnx.load_model_from_string(content).metadata_props}
    return unpack(properties.get(GOLDEN_KEY, ""), manifest)


def digest(text: str) -> str:
    return hashlib.sha256(text.encode("ascii")).hexdigest()


def unpack(text: str, manifest: Manifest) -> Golden:
    """Golden windows of the metadata. Raises ModelError if they are not those that the manifest names."""
    if len(text) > MAX_BYTES or not text.isascii() or digest(text) != manifest.golden_sha256:
        raise ModelError("its golden windows are not the ones that its manifest names; export the model again")
    try:
        stream = io.BytesIO(base64.b64decode(text, validate=True))
        limit = 64 * WINDOWS * int(np.prod(manifest.window))
        with zipfile.ZipFile(stream) as archive:
            if sum(item.file_size for item in archive.infolist()) > limit + MAX_BYTES:
                raise ValueError("they unpack to more than they can hold")
        with np.load(stream, allow_pickle=False) as data:
            return _checked({name: data[name] for name in _ARRAYS}, manifest)
    except Exception as error:  # the readers of zip and npy meet foreign bytes with whatever error they lead to
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ModelError(f"its golden windows cannot be read ({reason}); export the model again") from error


# The arrays of the .npz: kinds of dtype, and axes.
_ARRAYS = {"images": ("u1", 5), "labels": ("u1 u2", 4), "logits": ("f4", 5), "step": ("i8 i4", 0), "source": ("U", 0),
           "referee": ("U", 0)}  # fmt: skip
MAX_TEXT = 1000


def _checked(arrays: dict[str, NDArray[Any]], manifest: Manifest) -> Golden:
    """The arrays as golden windows of this manifest. Raises ValueError where they are not."""
    for name, (kinds, axes) in _ARRAYS.items():
        found = arrays[name].dtype
        known = found.kind if found.kind == "U" else f"{found.kind}{found.itemsize}"
        if known not in kinds.split() or arrays[name].ndim != axes:
            raise ValueError(f"{name} is {found} of {arrays[name].ndim} axes; accepted is {kinds} of {axes}")
    source, referee = (str(arrays[name]) for name in ("source", "referee"))
    if not all(text.isprintable() and len(text) <= MAX_TEXT for text in (source, referee)):
        raise ValueError("source and referee are not texts of one line")
    images, labels, logits, step = arrays["images"], arrays["labels"], arrays["logits"], int(arrays["step"])
    count, window = len(images), manifest.window
    if not 1 <= step <= max(window):
        raise ValueError(f"step {step} is not 1 to the window's longest edge")
    if not 1 <= count <= WINDOWS or images.shape[1:2] != (len(manifest.channels),) or not _divides(images, window):
        raise ValueError(f"{images.shape} images; accepted are 1 to {WINDOWS} of the manifest's channels and window")
    lattice = tuple(-(-edge // step) for edge in window)
    if labels.shape != (count, *window) or logits.shape != (count, manifest.classes, *lattice):
        raise ValueError("their shapes are not the manifest's")
    if int(labels.max()) >= manifest.classes or not np.isfinite(logits).all():
        raise ValueError("they hold labels that the manifest does not have, or logits that are not finite")
    return Golden(_enlarge(images, window), labels, logits, step, source, referee)


def _divides(images: NDArray[Any], window: tuple[int, ...]) -> bool:
    return all(size and edge % size == 0 for size, edge in zip(images.shape[2:], window, strict=True))

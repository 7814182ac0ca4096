"""Read the stored voxels to their end, block by block: checksums, declared length, numbers that are finite.

Memory stays at a few blocks, and the voxels if they are asked for, however large, or however hostile, the file is.
"""

import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np

from dropgen_rt.errors import InputError, UnreadableInputError, UnsuitableInputError
from dropgen_rt.scan_header import Packing, Payload, refusal

BLOCK_BYTES = 2**20

#: Packed bytes read at once: small, because what a decoder leaves over is copied.
PACKED_BYTES = 2**16

#: Unpacked bytes tolerated after the declared voxels: the padding of some writers. More is another file's
#: data, or a small file that unpacks to fill the disk and the hours.
TRAILING_BYTES = 2**20

#: Unpacked bytes read of a stream whose header is refused already, to learn whether it is damaged.
DAMAGE_SEARCH_BYTES = 2**26

# zlib's window codes: gzip with its CRC; zlib or gzip, by the stream's own header, as MetaImage reads it.
_WINDOW = {"gzip": 31, "zlib": 47}


def first_bytes(path: Path, packing: Packing, count: int) -> bytes:
    """The first ``count`` unpacked bytes, or as many as there are. Raises UnreadableInputError."""
    found = b""
    for block in _blocks(path, 0, packing, None):
        found += block
        if len(found) >= count:
            break
    return found[:count]


def check_undamaged(path: Path, packing: Packing) -> None:
    """Raise UnreadableInputError if the stream is damaged within DAMAGE_SEARCH_BYTES."""
    received = 0
    for block in _blocks(path, 0, packing, None):
        received += len(block)
        if received > DAMAGE_SEARCH_BYTES:
            return


def check_payload(payload: Payload, keep: bytearray | None = None) -> tuple[str, ...]:
    """Read the voxels to their end, and append their bytes to ``keep`` if it is given; returns warnings.

    Raises UnreadableInputError for a damaged, short or far too long stream, UnsuitableInputError for voxels
    that are NaN or infinite (the NIfTI reader would turn them into 0).
    """
    end = payload.skip + payload.length
    received, finite = 0, _FiniteCheck(payload)
    for block in _blocks(payload.path, payload.start, payload.packing, payload.stored):
        voxels = block[max(0, payload.skip - received) : max(0, end - received)]
        finite.feed(voxels)
        if keep is not None:
            keep += voxels
        received += len(block)
        if payload.packing != "raw" and received > end + TRAILING_BYTES:
            raise _unreadable(payload.path, f"unpacks to more than the {end} bytes that its header declares")
    if received < end:
        raise _unreadable(payload.path, f"truncated: {received} of {end} bytes")
    if finite.bad:
        given = f"{finite.bad} voxels are NaN or infinite"
        step = "replace them, for example by the value of air"
        raise refusal(UnsuitableInputError, payload.path, given, "finite numbers", step)
    return (f"{received - end} bytes after the voxels are ignored",) if received > end else ()


class _FiniteCheck:
    """Counts the NaN and infinite voxels in a stream of blocks that may cut a voxel in two."""

    def __init__(self, payload: Payload) -> None:
        self.bad = 0
        self._voxel = payload.voxel
        self._rest = b""

    def feed(self, block: bytes) -> None:
        if self._voxel.kind != "f" or not block:
            return
        data = self._rest + block
        whole = len(data) // self._voxel.itemsize * self._voxel.itemsize
        values = np.frombuffer(data[:whole], self._voxel)
        self.bad += values.size - int(np.count_nonzero(np.isfinite(values)))
        self._rest = data[whole:]


def _blocks(path: Path, start: int, packing: Packing, stored: int | None) -> Iterator[bytes]:
    with path.open("rb") as file:
        file.seek(start)
        source = _Source(file, stored, BLOCK_BYTES if packing == "raw" else PACKED_BYTES)
        if packing == "raw":
            while block := source.read():
                yield block
            return
        more = True
        while more:
            yield from _member(path, source, packing)
            more = _another(path, source, packing)


class _Source:
    """Blocks of a file, at most ``limit`` bytes in all; what a decoder did not use can be put back."""

    def __init__(self, file: BinaryIO, limit: int | None, size: int) -> None:
        self._file = file
        self._size = size
        self._left = limit
        self.pending = b""

    def read(self) -> bytes:
        if self.pending:
            block, self.pending = self.pending, b""
            return block
        block = self._file.read(self._size if self._left is None else min(self._size, self._left))
        if self._left is not None:
            self._left -= len(block)
        return block


def _member(path: Path, source: _Source, packing: Packing) -> Iterator[bytes]:
    """The unpacked blocks of one gzip member or zlib stream, its checksum verified at the end."""
    decoder = zlib.decompressobj(_WINDOW[packing])
    try:
        while not decoder.eof:
            packed = source.read()
            block = decoder.decompress(packed, BLOCK_BYTES)
            source.pending = decoder.unconsumed_tail + decoder.unused_data
            if not packed and not block and not decoder.eof:
                raise _unreadable(path, f"truncated {packing} data")
            yield block
    except zlib.error as error:
        raise _unreadable(path, f"damaged {packing} data ({error})") from error


def _another(path: Path, source: _Source, packing: Packing) -> bool:
    """Whether another gzip member follows. Zero padding may follow (tapes, block devices), nothing else."""
    while rest := source.read():
        if packing == "gzip" and rest.startswith(b"\x1f\x8b"):
            source.pending = rest
            return True
        if rest.strip(b"\0"):
            raise _unreadable(path, f"other bytes after the {packing} data")
    return False


def _unreadable(path: Path, given: str) -> InputError:
    return refusal(UnreadableInputError, path, given, "a complete, undamaged file", "copy or export it again")

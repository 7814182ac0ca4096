"""Files that appear whole or not at all: written under a temporary name, then renamed."""

import errno
import os
import secrets
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType

from dropgen_rt.errors import OutputError

_NEXT_STEP = {
    errno.ENOSPC: "the disk is full; free some space or name another output folder",
    errno.EDQUOT: "the disk quota is used up; free some space or name another output folder",
    errno.EFBIG: "the file exceeds a size limit; raise it (ulimit -f) or name another output folder",
    errno.EROFS: "the file system is read-only; name another output folder",
    errno.EACCES: "no permission to write there; change the permissions or name another output folder",
    errno.EPERM: "no permission to write there; change the permissions or name another output folder",
    errno.ENOENT: "the folder does not exist; create it first",
    errno.ENOTDIR: "the parent is a file; name a folder",
    errno.EISDIR: "a folder of this name is in the way; remove it or choose another name",
    errno.ENAMETOOLONG: "the name is too long; choose a shorter one",
    errno.EIO: "the device reports an error; name another output folder",
}

# Beginning of a name until its file is whole; end of the name that a file which is being replaced has beside its own.
_TEMPORARY, _REPLACED = ".writing-", ".replaced"
# Failures of a device carry no file name; only these are taken for a failure of the output.
_DEVICE_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO}


@contextmanager
def atomic_path(final: Path) -> Iterator[Path]:
    """Yield a temporary path in the folder of ``final``; on success it is renamed to ``final``.

    The temporary file exists already, empty, so that a folder that cannot be written to is found before
    the work; its name starts with a dot and keeps the suffix, by which writers choose the format. Any
    exception, KeyboardInterrupt included, removes it. Raises OutputError when folder or disk refuse.
    """
    with atomic_group([final]) as (temporary,):
        yield temporary


@contextmanager
def atomic_group(finals: Sequence[Path]) -> Iterator[tuple[Path, ...]]:
    """Like ``atomic_path`` for files that belong together: either all of them appear, or none.

    Raises OutputError when a folder or disk refuses. If a rename fails, those before it are undone, and what they had
    replaced comes back where the file system knows hard links. Ctrl-C waits until all are renamed.
    """
    targets = [Path(final) for final in finals]
    temporaries = [_beside(final) for final in targets]  # known before they are made, so that Ctrl-C leaves none
    try:
        for temporary, final in zip(temporaries, targets, strict=True):
            _create(temporary, final)
        try:
            yield tuple(temporaries)
        except OSError as error:
            _raise_if_output(error, targets, temporaries)
            raise
        except OutputError as error:
            raise OutputError(_with_final_names(str(error), targets, temporaries)) from error
        _publish(temporaries, targets)
    finally:
        for temporary in temporaries:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)


def remove_unfinished(folder: Path, suffix: str, untouched_s: float = 0) -> None:
    """Delete what processes that were killed while they wrote files of ``suffix`` left in ``folder``.

    For a caller who knows that no other process writes such files there now, or has left one ``untouched_s`` seconds
    long. Raises OutputError.
    """
    for left in folder.glob(f"{_TEMPORARY}*{suffix}"):
        try:
            if time.time() - left.stat().st_mtime >= untouched_s:
                left.unlink()
        except FileNotFoundError:  # its writer was alive, and has renamed it
            continue
        except OSError as error:
            raise output_error(left, error) from error


def check_writable(final: Path) -> None:
    """Raise OutputError if no file could be made in this place, so that hours of work do not end there."""
    temporary = _beside(final)
    _create(temporary, final)
    temporary.unlink()


def output_error(final: Path, error: OSError) -> OutputError:
    """One line for a write that failed: what was to be written, why it failed, what to do."""
    if error.errno == errno.ENOENT and final.parent.is_dir():  # as in /proc
        return OutputError(f"cannot write {final}: its folder takes no files; name another output folder")
    reason = _NEXT_STEP.get(error.errno or 0, f"{error.strerror or error}; name another output folder")
    return OutputError(f"cannot write {final}: {reason}")


def _beside(final: Path) -> Path:
    # The stem is left out: with it, names near the file system's limit would not fit.
    return final.parent / f"{_TEMPORARY}{secrets.token_hex(6)}{_suffix(final)}"


def _create(temporary: Path, final: Path) -> None:
    try:
        if final.is_dir():
            raise IsADirectoryError(errno.EISDIR, "is a folder", str(final))
        temporary.touch(exist_ok=False)
    except OSError as error:
        raise output_error(final, error) from error


def _suffix(path: Path) -> str:
    """``.nii.gz`` of ``scan.v2.nii.gz``: the last suffix, and the one before a ``.gz``."""
    return "".join(path.suffixes[-2:] if path.suffix.lower() == ".gz" else path.suffixes[-1:])


def _raise_if_output(error: OSError, targets: Sequence[Path], temporaries: Sequence[Path]) -> None:
    for final, temporary in zip(targets, temporaries, strict=True):
        if error.filename is not None and os.fspath(error.filename) in (str(temporary), str(final)):
            raise output_error(final, error) from error
    if error.filename is None and error.errno in _DEVICE_ERRORS:
        raise output_error(targets[0], error) from error


def _with_final_names(text: str, targets: Sequence[Path], temporaries: Sequence[Path]) -> str:
    for final, temporary in zip(targets, temporaries, strict=True):
        text = text.replace(str(temporary), str(final))
    return text


def _publish(temporaries: list[Path], targets: Sequence[Path]) -> None:
    """Rename all; ``temporaries`` are none then."""
    for temporary, final in zip(temporaries, targets, strict=True):
        try:
            _sync(temporary)
        except OSError as error:
            raise output_error(final, error) from error
    with _ctrl_c_waits():
        _rename_all(temporaries, targets)
        temporaries.clear()  # or Ctrl-C in the midst of their removal would leave some
    for folder in {final.parent for final in targets}:
        with suppress(OSError):  # some network file systems refuse to sync a folder; the files are in place
            _sync(folder)


def _rename_all(temporaries: Sequence[Path], targets: Sequence[Path]) -> None:
    """All or none. Raises OutputError."""
    links = [temporary.with_name(f"{temporary.name}{_REPLACED}") for temporary in temporaries]
    done = 0
    try:
        for temporary, final, link in zip(temporaries, targets, links, strict=True):
            if len(targets) > 1:
                with suppress(OSError):  # nothing to replace, or a file system without links
                    link.hardlink_to(final)
            temporary.replace(final)
            done += 1
    except OSError as error:
        for final, link in zip(targets[:done], links[:done], strict=True):
            if link.exists():
                link.replace(final)
            else:
                final.unlink(missing_ok=True)
        raise output_error(targets[done], error) from error
    finally:
        for link in links:
            with suppress(OSError):
                link.unlink(missing_ok=True)


@contextmanager
def _ctrl_c_waits() -> Iterator[None]:
    """Ctrl-C that comes meanwhile is heard afterwards. Only the main thread ever hears it.

    A mask, as in ``train.parallel``, would not do: any other thread would take the signal.
    """
    before = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(before):
        yield
        return
    heard: list[tuple[int, FrameType | None]] = []
    signal.signal(signal.SIGINT, lambda number, frame: heard.append((number, frame)))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    for number, frame in heard[:1]:
        before(number, frame)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

"""Folders, files and ZIP archives: what is found in them, and what they cannot do."""

import io
import zipfile
from pathlib import Path

import numpy as np
import pytest
from dicom_series import voxels, write
from machine import without_rights_of_root

from dropgen_rt.dicom import files
from dropgen_rt.dicom.files import find_files, has_mark, is_dicom
from dropgen_rt.dicom.read import read_dicom
from dropgen_rt.errors import MissingInputError, UnreadableInputError, UnsuitableInputError


def packed(folder: Path, target: Path, method: int = zipfile.ZIP_DEFLATED, name: str = "{}") -> Path:
    with zipfile.ZipFile(target, "w", method) as archive:
        for path in sorted(folder.iterdir()):
            archive.write(path, name.format(path.name))
    return target


def test_a_zip_archive_is_read_and_leaves_nothing(tmp_path: Path) -> None:
    path = packed(write(tmp_path / "series"), tmp_path / "study.zip")
    scan = read_dicom(path)
    assert np.array_equal(scan.volume.array[0], voxels())
    assert scan.files.temporary is not None
    unpacked = Path(scan.files.temporary.name)
    assert unpacked.is_dir()
    del scan
    assert not unpacked.exists()


@pytest.mark.parametrize("name", ["../../{}", "/etc/{}", "a\\..\\..\\{}", "CANARY/{}"])
def test_member_names_lead_nowhere(tmp_path: Path, name: str) -> None:
    found = find_files(packed(write(tmp_path / "series"), tmp_path / "study.zip", name=name))
    assert found.temporary is not None
    assert [path.parent for path in found.files] == [Path(found.temporary.name)] * 6
    assert [path.name for path in found.files] == [f"{k:06d}" for k in range(6)]


def test_a_member_that_is_larger_than_it_says(tmp_path: Path) -> None:
    path = packed(write(tmp_path / "series"), tmp_path / "study.zip")
    content = bytearray(path.read_bytes())
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        size = archive.infolist()[0].file_size.to_bytes(4, "little")
    place = content.index(b"PK\x01\x02")
    assert content[place + 24 : place + 28] == size
    content[place + 24 : place + 28] = (10).to_bytes(4, "little")
    path.write_bytes(content)
    with pytest.raises(UnreadableInputError, match="a damaged or unusual ZIP archive"):
        find_files(path)


@pytest.mark.parametrize("method", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_a_member_whose_compressed_bytes_are_damaged(tmp_path: Path, method: int) -> None:
    path = packed(write(tmp_path / "series"), tmp_path / "study.zip", method)
    content = bytearray(path.read_bytes())
    size, name, extra = (int.from_bytes(content[k : k + n], "little") for k, n in ((18, 4), (26, 2), (28, 2)))
    start = 30 + name + extra
    content[start : start + size] = b"\xff" * size
    path.write_bytes(content)
    with pytest.raises(UnreadableInputError, match="a damaged or unusual ZIP archive"):
        find_files(path)


def test_an_archive_that_unpacks_to_too_much(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = packed(write(tmp_path / "series"), tmp_path / "study.zip")
    monkeypatch.setattr(files, "MAX_UNPACKED_BYTES", 1000)
    with pytest.raises(UnsuitableInputError, match=r"6 files of .* GiB in all; accepted: up to"):
        find_files(path)


def test_an_encrypted_archive(tmp_path: Path) -> None:
    path = packed(write(tmp_path / "series"), tmp_path / "study.zip")
    content = bytearray(path.read_bytes())
    content[content.index(b"PK\x01\x02") + 8] |= 1
    path.write_bytes(content)
    with pytest.raises(UnreadableInputError, match="an encrypted ZIP archive"):
        find_files(path)


@pytest.mark.parametrize("content", [b"PK\x03\x04" + bytes(50), b"nothing", b""])
def test_no_archive(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "study.zip").write_bytes(content)
    with pytest.raises(UnreadableInputError):
        find_files(tmp_path / "study.zip")


def test_a_truncated_archive(tmp_path: Path) -> None:
    path = packed(write(tmp_path / "series"), tmp_path / "study.zip")
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(UnreadableInputError, match="ZIP archive"):
        find_files(path)


def test_what_is_taken_for_dicom(tmp_path: Path) -> None:
    folder = write(tmp_path / "deep" / "er")
    assert is_dicom(tmp_path) and is_dicom(folder) and has_mark(next(folder.iterdir()))
    (tmp_path / "scan.nii").write_bytes(bytes(500))
    assert not is_dicom(tmp_path / "scan.nii") and not is_dicom(tmp_path / "none")


def test_links_that_lead_round(tmp_path: Path) -> None:
    folder = write(tmp_path / "series")
    (folder / "round").symlink_to(tmp_path)
    assert len(find_files(tmp_path).files) == 6


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    import os

    folder = write(tmp_path / "series")
    os.mkfifo(folder / "pipe.dcm")
    assert find_files(folder).others == 1


def test_too_many_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "MAX_FILES", 3)
    with pytest.raises(UnsuitableInputError, match="more than 3 files"):
        find_files(write(tmp_path))


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(MissingInputError, match="no such path"):
        find_files(tmp_path / "none")


@pytest.mark.parametrize("what", ["a file", "a folder", "a broken link"])
def test_what_may_not_be_read_is_refused(public: Path, what: str) -> None:
    """It may be the first or the last slice, where no gap would show."""
    series = write(public / "series")
    series.chmod(0o755)
    last = sorted(series.iterdir())[-1]
    last.unlink()
    if what == "a broken link":
        last.symlink_to("gone")
    else:
        last.mkdir() if what == "a folder" else last.touch()
        last.chmod(0)
    closed = pytest.raises(UnreadableInputError, match="1 of its files and folders cannot be read")
    with without_rights_of_root(), closed as raised:
        find_files(series)
    assert last.name not in str(raised.value)

"""Every input that is refused, by the reader and by the command line: bad_scans.py holds them."""

import gzip
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from bad_scans import TABLE, BadInput
from dicom_series import CANARIES

from dropgen_rt.errors import MissingInputError, UnreadableInputError
from dropgen_rt.volume import read_scan


@pytest.mark.parametrize("item", TABLE, ids=lambda item: item.name)
def test_a_bad_input_is_refused_in_one_line(
    item: BadInput, make: SimpleNamespace, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = item.write(tmp_path, make)
    with pytest.raises(item.error) as caught:
        read_scan(path)
    text = str(caught.value)
    assert item.message in text
    assert type(caught.value) is item.error
    assert caught.value.exit_code == item.exit_code
    assert text.startswith(f"{path.with_suffix('')}") and "; accepted: " in text and text.count("; ") >= 2
    assert text.isprintable() and len(text) < 1000
    assert not any(canary in text for canary in CANARIES)
    assert capfd.readouterr() == ("", "")


def test_the_table_is_long_and_names_each_input_once() -> None:
    assert len(TABLE) >= 60
    names = [(item.error, item.name) for item in TABLE]
    assert len(set(names)) == len(names)


@pytest.mark.usefixtures("home")
def test_the_command_line_refuses_all_of_them(make: SimpleNamespace, tmp_path: Path, model_file: Path) -> None:
    """In one process: each its line, in order, nobody else a word, and no result anywhere."""
    paths = []
    for number, item in enumerate(TABLE):
        folder = tmp_path / "bad" / f"{number:03}"
        folder.mkdir(parents=True)
        paths.append(item.write(folder, make))
    before = sorted((tmp_path / "bad").rglob("*"))
    program = Path(sys.executable).with_name("dropgen-rt")
    command = [program, "infer", *paths, "--model", model_file]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == TABLE[0].exit_code, done.stderr
    lines = done.stderr.splitlines()
    assert len(lines) == len(TABLE)
    for line, item, path in zip(lines, TABLE, paths, strict=True):
        assert line.startswith(f"error: {path.with_suffix('')}") and item.message in line
    assert sorted((tmp_path / "bad").rglob("*")) == before


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(MissingInputError, match="no such file"):
        read_scan(tmp_path / "no.nii.gz")


def test_a_folder(tmp_path: Path) -> None:
    with pytest.raises(UnreadableInputError, match="a folder"):
        read_scan(tmp_path)


def test_an_unknown_suffix(tmp_path: Path) -> None:
    path = tmp_path / "scan.tiff"
    path.write_bytes(b"x")
    with pytest.raises(UnreadableInputError, match=r"suffix '.tiff'.*\.nii\.gz"):
        read_scan(path)


def test_a_pipe_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.nii")
    with pytest.raises(UnreadableInputError, match="a pipe or device"):
        read_scan(tmp_path / "pipe.nii")


def test_a_gzip_bomb_is_left_early(tmp_path: Path, make: SimpleNamespace) -> None:
    path = tmp_path / "bomb.nii.gz"
    with gzip.open(path, "wb", 1) as file:
        file.write(make.nifti())
        for _ in range(200):
            file.write(bytes(2**20))
    with pytest.raises(UnreadableInputError, match="unpacks to more than the 832 bytes"):
        read_scan(path)


@pytest.mark.usefixtures("home")
def test_a_name_that_is_no_text(make: SimpleNamespace, tmp_path: Path, model_file: Path) -> None:
    """SimpleITK would end the whole process, whether it reads or writes."""
    program = Path(sys.executable).with_name("dropgen-rt")
    odd, plain = tmp_path / os.fsdecode(b"caf\xe9"), tmp_path / "a.nii"
    odd.mkdir()
    for path in (odd / "a.nii", plain):
        path.write_bytes(make.nifti())
    for arguments, code in (([odd / "a.nii"], 3), ([plain, "-o", odd], 6)):
        command = [program, "infer", *arguments, "--model", model_file]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == code, done.stderr
        assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
        assert "name is not UTF-8" in done.stderr or "name that is not UTF-8" in done.stderr
    assert sorted(odd.iterdir()) == [odd / "a.nii"]


@pytest.mark.parametrize("name", ["a\nb.nii", "größe.nii"])
def test_odd_names_stay_on_one_line(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(b"x" * 600)
    with pytest.raises(UnreadableInputError) as caught:
        read_scan(tmp_path / name)
    assert "\n" not in str(caught.value)

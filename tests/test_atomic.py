"""Files appear whole or not at all, on disks that are really full, read-only or absent."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from dropgen_rt.atomic import atomic_group, atomic_path, remove_unfinished
from dropgen_rt.errors import OutputError
from dropgen_rt.geometry import Geometry
from dropgen_rt.volume import LABEL_SUFFIXES, write_labels

CUBE = Geometry((64, 64, 64), (1.0, 1.0, 1.0), (0.0, 0.0, 0.0), (1, 0, 0, 0, 1, 0, 0, 0, 1))


def noise() -> np.ndarray:
    """Labels that do not compress: 256 KiB."""
    return np.random.default_rng(0).integers(0, 256, CUBE.shape, dtype=np.uint8)


def mounted(folder: Path, options: str) -> Iterator[Path]:
    command = ["mount", "-t", "tmpfs", "-o", options, "none", str(folder)]
    try:
        done = subprocess.run(command, capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        done = False
    if not done:
        pytest.skip("mounting a file system needs root")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)  # noqa: S607


@pytest.fixture
def full_disk(tmp_path: Path) -> Iterator[Path]:
    """A folder with 64 KiB of room."""
    yield from mounted(tmp_path, "size=64k")


@pytest.fixture
def read_only_disk(tmp_path: Path) -> Iterator[Path]:
    yield from mounted(tmp_path, "ro,size=64k")


def test_the_file_appears_at_the_end_only(tmp_path: Path) -> None:
    final = tmp_path / "scan.v2.nii.gz"
    with atomic_path(final) as temporary:
        assert temporary.parent == tmp_path and temporary.name.startswith(".")
        assert "".join(temporary.suffixes) == ".nii.gz"
        temporary.write_bytes(b"whole")
        assert not final.exists()
    assert final.read_bytes() == b"whole"
    assert list(tmp_path.iterdir()) == [final]


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError, MemoryError, SystemExit])
def test_nothing_is_left_and_the_old_file_stays(error: type[BaseException], tmp_path: Path) -> None:
    final = tmp_path / "a.json"
    final.write_text("old")
    with pytest.raises(error), atomic_path(final) as temporary:
        temporary.write_text("half")
        raise error
    assert final.read_text() == "old"
    assert list(tmp_path.iterdir()) == [final]


def test_what_a_kill_left_is_removed_by_its_suffix(tmp_path: Path) -> None:
    kept = [tmp_path / ".writing-0123.json", tmp_path / "last.pt"]
    for path in (tmp_path / ".writing-0123.pt", *kept):
        path.touch()
    remove_unfinished(tmp_path, ".pt")
    assert sorted(tmp_path.iterdir()) == kept
    (tmp_path / ".writing-4567.pt").mkdir()
    with pytest.raises(OutputError, match=r"cannot write .*4567\.pt: a folder of this name is in the way"):
        remove_unfinished(tmp_path, ".pt")


def test_what_another_process_may_still_write_is_left_to_it(tmp_path: Path) -> None:
    fresh, old = (tmp_path / f".writing-{age}.npy" for age in ("fresh", "old"))
    for path in (fresh, old):
        path.touch()
    os.utime(old, (time.time() - 90_000,) * 2)
    remove_unfinished(tmp_path, ".npy", 86_400)
    assert list(tmp_path.iterdir()) == [fresh]


def test_foreign_errors_are_not_taken_for_output(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), atomic_path(tmp_path / "a.json"):
        (tmp_path / "other.txt").read_text()


def test_a_group_appears_together_or_not_at_all(tmp_path: Path) -> None:
    finals = [tmp_path / name for name in ("a.nii.gz", "b.json", "c.png")]
    with pytest.raises(RuntimeError), atomic_group(finals) as temporaries:
        for temporary in temporaries:
            temporary.write_bytes(b"x")
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []
    with atomic_group(finals) as temporaries:
        for temporary in temporaries:
            temporary.write_bytes(b"x")
    assert sorted(tmp_path.iterdir()) == finals


def test_a_group_whose_last_folder_is_missing_leaves_nothing(tmp_path: Path) -> None:
    finals = [tmp_path / "a.json", tmp_path / "no" / "b.json"]
    with (
        pytest.raises(OutputError, match=r"no/b\.json: the folder does not exist; create it"),
        atomic_group(finals),
    ):
        pytest.fail("the missing folder must be found before the work")
    assert list(tmp_path.iterdir()) == []


def test_a_group_whose_last_rename_fails_leaves_nothing(tmp_path: Path) -> None:
    finals = [tmp_path / "a.json", tmp_path / "b.json"]
    with (
        pytest.raises(OutputError, match="a folder of this name is in the way"),
        atomic_group(finals) as temporaries,
    ):
        for temporary in temporaries:
            temporary.write_text("x")
        finals[1].mkdir()
    assert list(tmp_path.iterdir()) == [finals[1]]


def test_a_group_whose_last_rename_fails_gives_back_what_it_replaced(tmp_path: Path) -> None:
    finals = [tmp_path / "a.json", tmp_path / "b.json"]
    finals[0].write_text("old")
    with pytest.raises(OutputError, match="a folder of this name"), atomic_group(finals) as temporaries:
        for temporary in temporaries:
            temporary.write_text("new")
        finals[1].mkdir()
    assert finals[0].read_text() == "old"
    assert sorted(tmp_path.iterdir()) == finals


INTERRUPTED = """
import signal, sys
from pathlib import Path
from dropgen_rt.atomic import atomic_group
finals = [Path(name) for name in sys.argv[1:]]
signal.signal(signal.SIGINT, signal.default_int_handler)  # shells let what they start in the background ignore it
print("ready", flush=True)
try:
    while True:
        text = str(int(finals[0].read_text()) + 1)
        with atomic_group(finals) as temporaries:
            for temporary in temporaries:
                temporary.write_text(text)
except KeyboardInterrupt:
    sys.exit(3)
"""


@pytest.mark.parametrize("seed", range(8))
def test_ctrl_c_finds_all_of_a_group_or_none(tmp_path: Path, seed: int) -> None:
    """A real signal at some moment of a process that replaces two files again and again."""
    finals = [tmp_path / "a.json", tmp_path / "b.json"]
    for final in finals:
        final.write_text("0")
    process = subprocess.Popen([sys.executable, "-c", INTERRUPTED, *finals], stdout=subprocess.PIPE)
    assert process.stdout is not None and process.stdout.readline() == b"ready\n"
    time.sleep(np.random.default_rng(seed).uniform(0.01, 0.03))
    process.send_signal(signal.SIGINT)
    try:
        assert process.wait(60) == 3
    finally:
        process.kill()
        process.stdout.close()
    assert sorted(tmp_path.iterdir()) == finals
    assert finals[0].read_text() == finals[1].read_text() != ""


def test_labels_within_a_group(tmp_path: Path) -> None:
    finals = [tmp_path / "a_seg.nii.gz", tmp_path / "a_seg.json"]
    with atomic_group(finals) as (labels, record):
        write_labels(noise(), CUBE, labels)
        record.write_text("{}")
    assert sorted(tmp_path.iterdir()) == sorted(finals)


def test_a_file_in_place_of_the_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(OutputError, match="the parent is a file") as caught,
        atomic_path(tmp_path / "file" / "a.json"),
    ):
        pass
    assert caught.value.exit_code == 6


def test_a_folder_in_place_of_the_file(tmp_path: Path) -> None:
    (tmp_path / "a.json").mkdir()
    with pytest.raises(OutputError, match="a folder of this name"), atomic_path(tmp_path / "a.json"):
        pass


def test_a_long_name_fits(tmp_path: Path) -> None:
    with atomic_path(tmp_path / ("a" * 244 + ".nii.gz")) as temporary:
        temporary.write_bytes(b"x")


def test_a_read_only_disk(read_only_disk: Path) -> None:
    with (
        pytest.raises(OutputError, match="the file system is read-only"),
        atomic_path(read_only_disk / "a.json"),
    ):
        pass


def test_a_full_disk(full_disk: Path) -> None:
    with pytest.raises(OutputError, match="the disk is full"), atomic_path(full_disk / "a.json") as temporary:
        temporary.write_bytes(bytes(2**20))
    assert list(full_disk.iterdir()) == []


@pytest.mark.parametrize("suffix", LABEL_SUFFIXES)
def test_labels_on_a_full_disk(suffix: str, full_disk: Path) -> None:
    """The NIfTI writer reports success here and leaves 64 KiB: only reading it again shows."""
    with pytest.raises(OutputError, match=f"cannot write .*a{suffix}: .*0 MiB free"):
        write_labels(noise(), CUBE, full_disk / f"a{suffix}")
    assert list(full_disk.iterdir()) == []


def test_the_message_names_the_final_file_within_a_group(full_disk: Path) -> None:
    with (
        pytest.raises(OutputError, match=r"/a_seg\.nii\.gz: ") as caught,
        atomic_group([full_disk / "a_seg.nii.gz"]) as (a,),
    ):
        write_labels(noise(), CUBE, a)
    assert ".writing" not in str(caught.value)


LIMITED = """
import resource, signal, sys
from pathlib import Path
import numpy as np
from dropgen_rt.errors import OutputError
from dropgen_rt.geometry import Geometry
from dropgen_rt.volume import write_labels
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (2**16, 2**16))
grid = Geometry((64, 64, 64), (1.0, 1.0, 1.0), (0.0, 0.0, 0.0), (1, 0, 0, 0, 1, 0, 0, 0, 1))
labels = np.random.default_rng(0).integers(0, 256, grid.shape, dtype=np.uint8)
try:
    write_labels(labels, grid, Path(sys.argv[1]))
except OutputError as error:
    print(error)
    sys.exit(error.exit_code)
"""


@pytest.mark.parametrize("suffix", LABEL_SUFFIXES)
def test_labels_beyond_the_file_size_limit(suffix: str, tmp_path: Path) -> None:
    """Like a full disk, without root: writes fail after 64 KiB."""
    path = tmp_path / f"a{suffix}"
    done = subprocess.run([sys.executable, "-c", LIMITED, str(path)], capture_output=True, text=True, check=False)
    assert done.returncode == 6, done.stderr
    assert "incomplete" in done.stdout
    assert list(tmp_path.iterdir()) == []


def test_no_permission(nobody: Path) -> None:
    with pytest.raises(OutputError, match="no permission"), atomic_path(nobody / "a.json"):
        pass

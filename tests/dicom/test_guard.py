"""The guarded child: its answers, its limits, and what is said when it ends before its work."""

import os
import time
from pathlib import Path

import pytest

from dropgen_rt.dicom.guard import GuardError, Limits, guarded, in_parallel

LIMITS = Limits(2**28, 20, 30.0)


def square(item: int) -> int:
    return item * item


def hungry(item: int) -> int:
    return len(bytearray(2**30)) if item == 3 else item


def busy(item: int) -> int:
    while item == 3:
        pass
    return item


def asleep(item: int) -> int:
    if item == 3:
        time.sleep(60)
    return item


def crashing(item: int) -> int:
    if item == 3:
        os.abort()
    return item


def raising(item: int) -> int:
    return 1 // (item - 3)


def loud(item: int) -> int:
    print("CANARY")
    os.write(2, b"CANARY")
    return item


def test_answers_in_order() -> None:
    assert list(guarded(square, range(9), LIMITS)) == [square(item) for item in range(9)]
    assert list(in_parallel(square, list(range(200)), LIMITS)) == [square(item) for item in range(200)]


@pytest.mark.parametrize(
    ("work", "limits", "words"),
    [
        (hungry, LIMITS, "it needs more than 0.25 GiB of memory"),
        (busy, Limits(2**28, 1, 30.0), "it needs more than 1 s of processor time"),
        (asleep, Limits(2**28, 20, 0.5), "no progress in 0.5 s"),
        (crashing, LIMITS, "the DICOM library failed on it"),
        (raising, LIMITS, "the DICOM library failed on it"),
    ],
)
def test_its_end_is_one_line_and_names_the_item(work: object, limits: Limits, words: str) -> None:
    answers = []
    with pytest.raises(GuardError, match=words) as error:
        answers.extend(guarded(work, range(9), limits))  # type: ignore[arg-type]
    assert error.value.done == 3


def test_the_item_is_counted_over_all_children() -> None:
    with pytest.raises(GuardError) as error:
        list(in_parallel(lambda item: 1 // (item - 33), list(range(40)), LIMITS))
    assert error.value.done == 33


def test_it_prints_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    assert list(guarded(loud, range(3), LIMITS)) == [0, 1, 2]
    assert capfd.readouterr() == ("", "")


def children() -> set[int]:
    """This process's children, ended ones that nobody waited for too."""
    found = set()
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(stat.read_text().rsplit(")", 1)[1].split()[1])
        except OSError:  # it has gone meanwhile
            continue
        if parent == os.getpid():
            found.add(int(stat.parent.name))
    return found


def test_a_generator_that_is_dropped_leaves_no_process() -> None:
    before = children()  # other tests' helpers
    answers = guarded(square, range(10000), LIMITS)
    assert next(answers) == 0
    assert children() > before
    answers.close()
    assert children() <= before

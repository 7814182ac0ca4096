import threading

import pytest

from dropgen_rt.errors import OutputError, UnreadableInputError
from dropgen_rt.pipeline import overlapped


def test_outcomes_come_in_order_with_what_was_written():
    found = list(overlapped([1, 2, 3], lambda i: i * 10, lambda i, scan: scan + i, lambda i, result: f"{i}:{result}"))
    assert [(outcome.item, outcome.written, outcome.refusal) for outcome in found] == [
        (1, "1:11", None), (2, "2:22", None), (3, "3:33", None),
    ]  # fmt: skip
    assert list(overlapped([], None, None, None)) == []


def test_the_next_is_read_and_the_last_written_while_one_is_computed():
    """Every stage of the middle waits for its neighbours: one after another, this would never end."""
    read_of_3, written_1 = threading.Event(), threading.Event()

    def read(item):
        if item == 3:
            read_of_3.set()
        return item

    def compute(item, scan):
        if item == 2:
            assert read_of_3.wait(20) and written_1.wait(20)
        return scan

    def write(item, result):
        if item == 1:
            written_1.set()

    assert len(list(overlapped([1, 2, 3], read, compute, write))) == 3


def test_at_most_one_scan_is_read_ahead():
    read_so_far, seen = [], []

    def compute(item, scan):
        seen.append(max(read_so_far) - item)

    list(overlapped(list(range(9)), lambda i: read_so_far.append(i), compute, lambda i, result: None))
    assert max(seen) <= 1


@pytest.mark.parametrize("stage", ["read", "compute", "write"])
def test_a_refusal_does_not_stop_the_others(stage):
    def refuse(name, item):
        if name == stage and item == 2:
            raise (OutputError if stage == "write" else UnreadableInputError)("no")
        return item

    found = list(
        overlapped(
            [1, 2, 3],
            lambda i: refuse("read", i),
            lambda i, scan: refuse("compute", i),
            lambda i, r: refuse("write", i),
        )
    )
    assert [outcome.written for outcome in found] == [1, None, 3]
    assert [str(outcome.refusal) for outcome in found] == ["None", "no", "None"]


def test_another_exception_ends_everything_after_the_write_in_flight():
    written = []

    def compute(item, scan):
        if item == 2:
            raise KeyboardInterrupt
        return item

    with pytest.raises(KeyboardInterrupt):
        list(overlapped([1, 2, 3], lambda i: i, compute, lambda i, result: written.append(i)))
    assert written == [1]

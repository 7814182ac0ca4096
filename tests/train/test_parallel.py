"""What is drawn ahead by processes comes in order, and one that was killed is told of."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator

import pytest
import torch

from dropgen_rt.errors import ResourceError
from dropgen_rt.train.parallel import READY_PER_PROCESS, ahead, each


def slowly(item: int) -> tuple[int, int, int]:
    time.sleep(0.02 * (item % 3 == 0))  # some are slower than those after them
    return item, os.getpid(), torch.get_num_threads()


def end_at_five(item: int) -> int:
    if item == 5:
        os.kill(os.getpid(), signal.SIGKILL)
    return item


def refuse_three(item: int) -> int:
    if item == 3:
        raise ValueError("three")
    return item


def test_order_is_kept_and_each_process_takes_one_core() -> None:
    items, processes, threads = zip(*ahead(slowly, range(7, 30), 2), strict=True)
    assert items == tuple(range(7, 30)) and set(threads) == {1}
    assert 1 <= len(set(processes)) <= 2 and os.getpid() not in processes


def test_no_more_is_drawn_than_may_wait() -> None:
    given = []

    def items() -> Iterator[int]:
        for item in range(100):
            given.append(item)
            yield item

    started = ahead(slowly, items(), 1)
    assert next(started)[0] == 0
    started.close()
    assert len(given) == 1 + READY_PER_PROCESS


def test_fewer_items_than_may_wait() -> None:
    assert list(ahead(refuse_three, range(2), 2)) == [0, 1]
    assert list(ahead(refuse_three, [], 2)) == []


def test_an_error_comes_through() -> None:
    with pytest.raises(ValueError, match="three"):
        list(ahead(refuse_three, range(9), 1))


def test_a_process_that_was_ended_is_told_of() -> None:
    with pytest.raises(ResourceError, match=r"a process that draws crops was ended .*--resume and fewer --workers"):
        list(ahead(end_at_five, range(9), 1))


def tell(item: int) -> None:
    os.write(1, b"at work\n")  # in one piece, whoever else writes
    time.sleep(0.5)


def by_each() -> None:
    each(tell, range(99), 2)


def by_ahead() -> None:
    list(ahead(tell, range(99), 2))


@pytest.mark.parametrize("how", [by_each, by_ahead])
def test_ctrl_c_is_heard_by_one_process(how: Callable[[], None]) -> None:
    """As a terminal sends it, to the whole group: one KeyboardInterrupt, and no process is left."""
    line = [sys.executable, __file__, how.__name__]
    with subprocess.Popen(
        line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as process:  # fmt: skip
        assert process.stdout is not None
        assert process.stdout.readline() == "at work\n"
        os.killpg(process.pid, signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (1, "interrupted\n")
    deadline = time.monotonic() + 60
    with pytest.raises(ProcessLookupError):
        while time.monotonic() < deadline:  # multiprocessing's own helper ends when it sees that the others have
            os.killpg(process.pid, 0)
            time.sleep(0.05)


if __name__ == "__main__":  # the process that is interrupted
    # As from a terminal: what a shell starts in the background ignores it.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        {"by_each": by_each, "by_ahead": by_ahead}[sys.argv[1]]()
    except KeyboardInterrupt:
        sys.exit("interrupted")

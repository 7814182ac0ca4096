import os
import threading

import pytest

from dropgen_rt.chatter import heard, without_chatter


def test_standard_error_outlives_threads_that_read_at_once(capfd: pytest.CaptureFixture[str]) -> None:
    """Readers overlap as threads do: the second enters before the first leaves, and leaves after it."""
    first, second = without_chatter(), without_chatter()
    first.__enter__()
    os.write(2, b"chatter")
    second.__enter__()
    first.__exit__(None, None, None)
    os.write(2, b"chatter")
    second.__exit__(None, None, None)
    os.write(2, b"heard")
    assert capfd.readouterr().err == "heard"


def test_what_must_be_heard_waits_for_silence_to_end(capfd: pytest.CaptureFixture[str]) -> None:
    """A thread inside SimpleITK leads stderr away; an error told meanwhile by another thread must not be lost."""
    entered, leave, told = threading.Event(), threading.Event(), threading.Event()

    def silent() -> None:
        with without_chatter():
            entered.set()
            leave.wait(10)

    def tell() -> None:
        with heard():
            os.write(2, b"told")
            told.set()

    threads = [threading.Thread(target=silent), threading.Thread(target=tell)]
    threads[0].start()
    assert entered.wait(10)
    threads[1].start()
    assert not told.wait(0.1)
    leave.set()
    for thread in threads:
        thread.join(10)
    assert capfd.readouterr().err == "told"

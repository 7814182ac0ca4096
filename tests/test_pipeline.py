"""Reading ahead and writing behind: the same outcomes in the same order as in turn, and never more than one of each."""

import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dropgen_rt.errors import InputError, ModelError, OutputError
from dropgen_rt.pipeline import Stages, in_turn, overlapped


def outcomes(run, jobs, fails):
    """(what was written, what ``done`` was told, in order); ``fails`` maps a job to the stage that refuses it."""
    written, told = {}, []

    def at(stage, job, kind):
        if fails.get(job) == stage:
            raise kind(f"{stage} {job}")

    def read(job):
        at("read", job, InputError)
        return job * 10

    def compute(job, item, start_next):
        if job % 2:
            start_next()
        at("compute", job, ModelError)
        return item + 1

    def write(job, made):
        at("write", job, OutputError)
        written[job] = made

    run(jobs, Stages(read, compute, write, lambda job, error: told.append((job, error and str(error)))))
    return written, told


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 6), st.dictionaries(st.integers(0, 5), st.sampled_from(["read", "compute", "write"])))
def test_the_same_outcomes_in_the_same_order(count, fails):
    jobs = list(range(count))
    expected = outcomes(in_turn, jobs, fails)
    assert outcomes(overlapped, jobs, fails) == expected
    assert [job for job, _ in expected[1]] == jobs
    assert expected[0] == {job: job * 10 + 1 for job in jobs if job not in fails}


def test_reading_computing_and_writing_go_on_at_the_same_time():
    """Job 1 is computed while 2 is being read and 0 being written: each waits for the other two to have begun."""
    meet = threading.Barrier(3, timeout=20)

    def read(job):
        if job == 2:
            meet.wait()
        return job

    def compute(job, item, start_next):
        start_next()
        if job == 1:
            meet.wait()
        return job

    def write(job, made):
        if job == 0:
            meet.wait()

    told = []
    overlapped([0, 1, 2], Stages(read, compute, write, lambda job, error: told.append((job, error))))
    assert told == [(0, None), (1, None), (2, None)]


def test_no_more_than_one_is_read_ahead_and_one_written():
    """A job that was read and neither computed nor written yet is held in memory."""
    held, most, lock = set(), [], threading.Lock()

    def read(job):
        with lock:
            held.add(job)
            most.append(len(held))
        return job

    def compute(job, item, start_next):
        start_next()
        start_next()
        return job

    def write(job, made):
        with lock:
            held.discard(job)

    overlapped(list(range(20)), Stages(read, compute, write, lambda job, error: None))
    assert max(most) <= 3 and not held


@pytest.mark.parametrize("stage", ["read", "compute", "write"])
def test_what_is_no_refusal_ends_it(stage):
    def broken(at):
        def work(job, *_):
            if at == stage and job == 1:
                raise ZeroDivisionError
            return job

        return work

    told = []
    stages = Stages(broken("read"), broken("compute"), broken("write"), lambda job, error: told.append(job))
    with pytest.raises(ZeroDivisionError):
        overlapped([0, 1, 2, 3], stages)
    assert 1 not in told and 3 not in told

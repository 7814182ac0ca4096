"""CUDA graphs through the driver's functions, against a library that stands in for the driver."""

import ctypes
import subprocess

import pytest
from cuda_on_host import CXX
from machine import require

from dropgen_rt.errors import DeviceError
from dropgen_rt.gpu.graphs import StreamGraphs

DRIVER = """
#include <stdio.h>
static char log[4096];
static int used, refused;
#define TOLD(...) used += snprintf(log + used, sizeof log - used, __VA_ARGS__)
const char* told() { return log; }
void forget() { used = 0; log[0] = 0; refused = 0; }
void refuse() { refused = 1; }
int cuStreamBeginCapture_v2(void* stream, int mode) { TOLD("begin %ld %d;", (long)stream, mode); return 0; }
int cuStreamEndCapture(void* stream, void** graph) {
    TOLD("end %ld;", (long)stream);
    *graph = refused ? 0 : (void*)0x100000005;
    return refused ? 901 : 0;
}
int cuGraphInstantiateWithFlags(void** ready, void* graph, unsigned long long flags) {
    TOLD("instantiate %lx %llu;", (long)graph, flags);
    *ready = (void*)0x200000007;
    return 0;
}
int cuGraphDestroy(void* graph) { TOLD("destroy %lx;", (long)graph); return 0; }
int cuGraphLaunch(void* ready, void* stream) { TOLD("launch %lx %ld;", (long)ready, (long)stream); return 0; }
int cuGraphExecDestroy(void* ready) { TOLD("drop %lx;", (long)ready); return 0; }
"""


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    require(CXX, "install g++: it builds the library that stands in for the driver")
    folder = tmp_path_factory.mktemp("driver")
    (folder / "driver.c").write_text(DRIVER)
    subprocess.run([CXX, "-x", "c", "-shared", "-fPIC", folder / "driver.c", "-o", folder / "driver.so"], check=True)
    return str(folder / "driver.so")


@pytest.fixture
def graphs(library):
    ctypes.CDLL(library).forget()
    return StreamGraphs(library)


def told(library):
    function = ctypes.CDLL(library).told
    function.restype = ctypes.c_char_p
    return function().decode()


def test_records_replays_and_drops(library, graphs):
    done = []
    graph = graphs.capture(3, lambda: done.append(1))
    graphs.replay(graph, 4)
    graphs.drop(graph)
    assert done == [1]
    assert told(library) == (
        "begin 3 1;end 3;instantiate 100000005 0;destroy 100000005;launch 200000007 4;drop 200000007;"
    )


def test_work_that_no_graph_holds_is_told(library, graphs):
    ctypes.CDLL(library).refuse()
    with pytest.raises(DeviceError, match="cuStreamEndCapture failed with status 901; leave --cuda-graph out"):
        graphs.capture(3, lambda: None)
    assert "instantiate" not in told(library)


def test_a_recording_ends_when_its_work_fails(library, graphs):
    def work():
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        graphs.capture(3, work)
    assert told(library).endswith("end 3;")


def test_without_a_driver():
    with pytest.raises(DeviceError, match=r"CUDA graphs: .*; leave --cuda-graph out"):
        StreamGraphs("no-such-driver.so.1")

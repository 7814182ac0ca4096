import pytest
from host_threads import using_threads

from dropgen_rt.kernels import _host


@pytest.fixture(params=[0, 8, 16])
def most_lanes(request):
    """As on processors without AVX-512, and without AVX2; what this one does not have is not tried."""
    _host.set_most_lanes(request.param)
    if _host.lanes() != request.param:
        _host.set_most_lanes(16)
        pytest.skip(f"this processor has no {request.param} lanes")
    yield request.param
    _host.set_most_lanes(16)


@pytest.fixture(params=[1, 2, 3])
def threads(request):
    """As many threads in the host kernels."""
    with using_threads(request.param):
        yield request.param


@pytest.fixture
def small_cache():
    """As on a processor whose largest cache holds less than any result: all go past it."""
    _host.set_cache_bytes(1)
    yield
    _host.set_cache_bytes(0)

"""What the road asks of an NVIDIA GPU, and the one place that chooses the library that speaks to the driver.

Addresses, streams and events are ints, as the driver has them: a PyTorch or TensorRT network in the same process
takes them as they are, because both libraries use the device's primary context.
"""

from importlib.util import find_spec
from typing import Any, Protocol

from numpy.typing import DTypeLike, NDArray

from dropgen_rt.errors import DeviceError
from dropgen_rt.gpu.graphs import StreamGraphs
from dropgen_rt.kernels.launch import Launch


class Device(Protocol):
    """One GPU. Calls with a ``stream`` return before the work is done; 0 is the default stream.

    Every method raises DeviceError when the driver refuses, and ``allocate`` DeviceMemoryError when memory is out.
    """

    library: str
    name: str
    capability: tuple[int, int]
    driver: str
    memory_bytes: int
    l2_bytes: int

    def allocate(self, size: int) -> int:
        """The address of ``size`` bytes, aligned to 256."""
        ...

    def release(self, address: int) -> None:
        """Give back what ``allocate`` gave; work on it that is enqueued on the stream that next uses it may go on."""
        ...

    def free_bytes(self) -> int:
        """Device memory that nobody uses."""
        ...

    def pinned(self, shape: tuple[int, ...], dtype: DTypeLike) -> NDArray[Any]:
        """A host array that the GPU reads and writes directly; freed with the device."""
        ...

    def upload(self, address: int, array: NDArray[Any], stream: int = 0) -> None:
        """C-contiguous host array to device; returns at once only from ``pinned`` memory."""
        ...

    def download(self, array: NDArray[Any], address: int, stream: int = 0) -> None:
        """Device to C-contiguous host array."""
        ...

    def copy(self, to: int, source: int, size: int, stream: int = 0) -> None:
        """``size`` bytes from device to device."""
        ...

    def clear(self, address: int, size: int, stream: int = 0) -> None:
        """``size`` bytes to zero."""
        ...

    def clear_rows(self, address: int, pitch: int, width: int, height: int, stream: int = 0) -> None:
        """``height`` rows of ``width`` bytes to zero; ``pitch`` bytes lie from one row to the next."""
        ...

    def stream(self) -> int:
        """A new stream that waits for no other."""
        ...

    def synchronise(self, stream: int = 0) -> None:
        """Wait until the stream's work is done."""
        ...

    def event(self) -> int:
        """A new event, to be recorded."""
        ...

    def record(self, event: int, stream: int = 0) -> None:
        """Mark this point of the stream."""
        ...

    def wait(self, stream: int, event: int) -> None:
        """Let the stream wait for the event."""
        ...

    def elapsed_ms(self, first: int, last: int) -> float:
        """Milliseconds between two recorded events; waits for the second."""
        ...

    def load(self, image: bytes, entries: tuple[str, ...]) -> None:
        """Make the kernels of a cubin or fatbin known."""
        ...

    def launch(self, launch: Launch, stream: int = 0) -> None:
        """Start a kernel."""
        ...

    def graphs(self) -> StreamGraphs:
        """Recorders of what a stream is given."""
        ...

    def close(self) -> None:
        """Release everything; the device cannot be used afterwards."""
        ...


#: What speaks to the driver, the first choice first.
LIBRARIES = ("pycuda", "cuda-bindings")


def has_library() -> bool:
    """Whether a library that speaks to the driver is installed."""
    return any(map(is_installed, LIBRARIES))


def is_installed(library: str) -> bool:
    """Whether this one of LIBRARIES is installed."""
    if library == "pycuda":
        return find_spec("pycuda") is not None
    return find_spec("cuda") is not None and find_spec("cuda.bindings") is not None


def open_device(number: int = 0, library: str | None = None) -> Device:
    """The GPU ``cuda:number``, through pycuda, or through NVIDIA's cuda-bindings where pycuda is not installed.

    Raises DeviceError if there is no such GPU, no driver, or neither library.
    """
    if library in (None, "pycuda") and is_installed("pycuda"):
        from dropgen_rt.gpu.pycuda_device import PycudaDevice

        return PycudaDevice(number)
    if library in (None, "cuda-bindings") and is_installed("cuda-bindings"):
        from dropgen_rt.gpu.bindings_device import BindingsDevice

        return BindingsDevice(number)
    raise DeviceError(
        f"device cuda:{number}: pycuda is not installed; install it with: pip install 'dropgen-rt[tensorrt]' "
        "or, where it does not build, 'dropgen-rt[cuda]'; or use --device cpu"
    )


def address_of(array: NDArray[Any]) -> int:
    """Where the first voxel of a host array lies."""
    return int(array.ctypes.data)

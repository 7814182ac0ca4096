"""TensorRT and TensorRT for RTX at run time: one interface, two libraries; memory and stream through pycuda."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dropgen_rt import signing
from dropgen_rt.engines.contract import Kind, Precision
from dropgen_rt.engines.nvidia_build import load
from dropgen_rt.errors import EngineError, ResourceError
from dropgen_rt.model import Model

FLOAT_BYTES = 4


class NvidiaEngine:
    """A plan opened on one GPU; ``infer_device`` works on the caller's memory, ``infer`` copies in and out."""

    def __init__(
        self,
        model: Model,
        kind: Kind,
        precision: Precision,
        device: str,
        plan: bytes,
        runtime_cache: Path | None = None,
    ) -> None:
        """``runtime_cache`` is a file in which TensorRT for RTX keeps the kernels that it compiles for this GPU.

        Raises ResourceError without pycuda or a GPU, EngineError for a plan that this library or GPU refuses.
        """
        try:
            import pycuda.driver as cuda
        except ImportError as error:
            raise ResourceError(
                f"engine {kind}: pycuda is missing ({error}); pip install 'dropgen-rt[{kind}]'"
            ) from error
        self._cuda, self._trt = cuda, load(kind)
        self.name: str = kind
        self.version = str(self._trt.__version__)
        self.precision: str = precision
        self.device = device
        self._model, self._runtime_cache = model, runtime_cache
        cuda.init()
        self._context = cuda.Device(int(device.partition(":")[2] or 0)).retain_primary_context()
        self._context.push()
        try:
            self._open(plan)
        finally:
            self._context.pop()
        self._memory: dict[int, tuple[Any, Any, NDArray[np.float32]]] = {}

    def _open(self, plan: bytes) -> None:
        trt = self._trt
        self._logger = trt.Logger(trt.Logger.ERROR)
        self._engine = trt.Runtime(self._logger).deserialize_cuda_engine(plan)
        if self._engine is None:
            raise EngineError(
                f"{self.name} {self.version} refuses this engine on {self.device}: it was built for another version or "
                "GPU; run dropgen-rt build-engine here"
            )
        self._execution = self._create_execution()
        names = [self._engine.get_tensor_name(place) for place in range(self._engine.num_io_tensors)]
        inputs = [name for name in names if self._engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT]
        (self._input,), (self._output,) = inputs, [name for name in names if name not in inputs]
        self._stream = self._cuda.Stream()

    def _create_execution(self) -> Any:
        """TensorRT for RTX compiles kernels when they are first used; its cache file spares the next process that."""
        if self.name != "rtx" or self._runtime_cache is None:
            return self._engine.create_execution_context()
        self._config = self._engine.create_runtime_config()
        self._kernels = self._config.create_runtime_cache()
        if known := signing.read_signed(self._runtime_cache):
            self._kernels.deserialize(known)
        self._config.set_runtime_cache(self._kernels)
        return self._engine.create_execution_context(self._config)

    def infer_device(self, windows: int, logits: int, batch: int, stream: int) -> None:
        """Enqueue one batch; see DeviceEngine. Raises EngineError for a batch beyond what the engine was built for."""
        shape = (batch, len(self._model.manifest.channels), *self._model.manifest.window)
        if not self._execution.set_input_shape(self._input, shape):
            raise EngineError(f"{self.name}: this engine takes no batch of {batch}; build it with --batch {batch}")
        self._execution.set_tensor_address(self._input, windows)
        self._execution.set_tensor_address(self._output, logits)
        if not self._execution.execute_async_v3(stream):
            raise EngineError(f"{self.name} {self.version}: the GPU refused to run a batch of {batch} windows")

    def infer(self, windows: NDArray[np.float32]) -> NDArray[np.float32]:
        """(b, channels, z, y, x) float32 -> logits (b, classes, z, y, x) float32, valid until the next call."""
        self._context.push()
        try:
            batch = len(windows)
            source, target, logits = self._buffers(batch)
            self._cuda.memcpy_htod_async(source, np.ascontiguousarray(windows), self._stream)
            self.infer_device(int(source), int(target), batch, self._stream.handle)
            self._cuda.memcpy_dtoh_async(logits, target, self._stream)
            self._stream.synchronize()
            return logits
        finally:
            self._context.pop()

    def _buffers(self, batch: int) -> tuple[Any, Any, NDArray[np.float32]]:
        """Device memory for one batch size, and a pinned array for its logits; kept for the next call."""
        if batch not in self._memory:
            manifest = self._model.manifest
            voxels = batch * int(np.prod(manifest.window)) * FLOAT_BYTES
            source = self._cuda.mem_alloc(voxels * len(manifest.channels))
            target = self._cuda.mem_alloc(voxels * manifest.classes)
            shape = (batch, manifest.classes, *manifest.window)
            self._memory[batch] = source, target, self._cuda.pagelocked_empty(shape, np.float32)
        return self._memory[batch]

    def close(self) -> None:
        self._context.push()
        if self.name == "rtx" and self._runtime_cache is not None:
            signing.write_signed(self._runtime_cache, bytes(self._kernels.serialize()))
        self._memory.clear()
        del self._execution, self._engine, self._stream
        self._context.pop()
        self._context.detach()

    def __enter__(self) -> "NvidiaEngine":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

"""The command line's whole GPU road with ONNX Runtime: the emulated device, and its CPU provider in CUDA's place.

The provider reads and writes the emulated device's memory by address, as CUDA's does a GPU's.
"""

import numpy as np
import pytest
from click.testing import CliRunner
from cuda_on_host import CXX, HostDevice, build

from dropgen_rt.cli import main
from dropgen_rt.engines.choose import create
from dropgen_rt.engines.onnxruntime_engine import OnnxRuntimeEngine, OnnxRuntimeGpuEngine
from dropgen_rt.errors import DeviceError, DeviceMemoryError
from dropgen_rt.gpu import scan
from dropgen_rt.model import read_model
from dropgen_rt.survey import Gpu, Survey
from dropgen_rt.volume import read_label_map

pytestmark = pytest.mark.skipif(CXX is None, reason="no g++ to run the CUDA files on the CPU")


@pytest.fixture(scope="module")
def device(tmp_path_factory):
    return HostDevice(build(tmp_path_factory.mktemp("cuda_on_host")))


@pytest.fixture
def gpu(home, monkeypatch, device):
    """A GPU that a survey finds, the emulated device behind it, and the CPU's memory in the place of CUDA's."""
    found = Survey((Gpu(0, "Made-up GPU", "90", 2**36),), "13.0", "", "580.1")
    for module in ("survey", "build", "engines.choose"):
        monkeypatch.setattr(f"dropgen_rt.{module}.survey", lambda: found)
    monkeypatch.setattr("dropgen_rt.engines.choose.has_cuda_provider", lambda: True)
    monkeypatch.setattr("dropgen_rt.engines.choose.other_version", lambda library: "13.0")
    engine = "dropgen_rt.engines.onnxruntime_engine"
    monkeypatch.setattr(f"{engine}._PROVIDERS", dict.fromkeys(("cpu", "cuda"), "CPUExecutionProvider"))
    monkeypatch.setattr(f"{engine}._MEMORY", dict.fromkeys(("cpu", "cuda"), "cpu"))
    monkeypatch.setattr(f"{engine}._then_cpu", lambda kind: [])
    monkeypatch.setattr(scan, "_ROADS", {})
    monkeypatch.setattr(scan, "open_device", lambda number: device)
    monkeypatch.setattr("dropgen_rt.gpu.road.load_kernels", lambda device: None)
    device.launched.clear()
    return device


def run(*arguments):
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


@pytest.mark.parametrize("largest_batch", [0, 1, 3])
def test_infer_finds_what_it_finds_on_the_cpu(gpu, tiny, make, tmp_path, largest_batch):
    model = tiny.write(tmp_path / "tiny.onnx", largest_batch=largest_batch)
    (tmp_path / "scan.nii").write_bytes(make.nifti())
    build_engine(model, "openvino", "cpu")
    build_engine(model, "onnxruntime", "cuda:0")
    labels = {}
    for where in ("cpu", "cuda:0"):
        result = run("infer", tmp_path / "scan.nii", "--device", where, "-o", folder(tmp_path / where))
        assert result.exit_code == 0, result.output
        (path,) = (tmp_path / where).glob("*.nii*")
        assert result.stdout.splitlines()[-1].startswith(f"wrote {path}")
        labels[where], _ = read_label_map(path)
    assert np.array_equal(labels["cpu"], labels["cuda:0"]) and len(np.unique(labels["cpu"])) == 3
    # Every kernel of the road ran, and nothing stayed behind.
    stems = {entry.split("_")[0] for entry in gpu.launched}
    assert stems >= {"resample", "extremes", "gather", "accumulate", "finalise"} and not gpu.held


def build_engine(model, engine, device):
    result = run("build-engine", model, "--engine", engine, "--device", device, "--precision", "fp32")
    assert result.exit_code == 0, result.output


def folder(path):
    path.mkdir()
    return path


def test_a_cuda_graph_is_refused(gpu, model_file, make, tmp_path):
    (tmp_path / "scan.nii").write_bytes(make.nifti())
    build_engine(model_file, "onnxruntime", "cuda:0")
    out = folder(tmp_path / "out")
    result = run("infer", tmp_path / "scan.nii", "--device", "cuda:0", "--cuda-graph", "-o", out)
    assert result.exit_code == 2 and not list(out.iterdir()), result.output
    expected = "error: --cuda-graph: onnxruntime computes on its own stream, which no graph holds; leave it out"
    assert result.stderr.splitlines()[-1].endswith(expected.removeprefix("error: "))


@pytest.mark.parametrize(
    ("message", "kind"),
    [
        ("BFCArena::AllocateRawInternal Failed to allocate memory for requested buffer of size 7", DeviceMemoryError),
        ("CUDA failure 2: out of memory ; GPU=0", DeviceMemoryError),
        ("CUDNN failure 5000: CUDNN_STATUS_ALLOC_FAILED", DeviceMemoryError),
        ("first line\nCUDA failure 719: unspecified launch failure", DeviceError),
        ("", DeviceError),
    ],
)
def test_what_fails_on_the_gpu_says_whether_memory_was_out(gpu, model_file, message, kind):
    class Session:
        def io_binding(self):
            return self

        def bind_input(self, *arguments):
            assert len(arguments) == 6

        bind_output = bind_input

        def run_with_iobinding(self, binding):
            raise RuntimeError(message)

    with create(read_model(model_file), "onnxruntime", "fp32", "cuda:0") as engine:
        engine._session = Session()
        with pytest.raises(kind) as caught:
            engine.infer_device(0, 0, 2, 1)
        assert (type(caught.value), "\n" in str(caught.value)) == (kind, False)


@pytest.mark.parametrize(("library", "kind"), [(None, OnnxRuntimeEngine), ("13.0", OnnxRuntimeGpuEngine)])
def test_without_a_library_for_the_driver_windows_pass_through_the_host(gpu, model_file, monkeypatch, library, kind):
    monkeypatch.setattr("dropgen_rt.engines.choose.other_version", lambda name: library)
    with create(read_model(model_file), "onnxruntime", "fp32", "cuda:0") as engine:
        assert type(engine) is kind and hasattr(engine, "infer_device") == (library is not None)

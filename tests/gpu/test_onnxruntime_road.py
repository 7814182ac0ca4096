"""The command line's whole GPU road with ONNX Runtime: the emulated device, and its CPU provider in CUDA's place.

The provider reads and writes the emulated device's memory by address, as CUDA's does a GPU's.
"""

import made_up_gpu
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813  it is sitk everywhere
from click.testing import CliRunner
from cuda_on_host import CXX, HostDevice, build

from dropgen_rt.cli import main
from dropgen_rt.engines.choose import create
from dropgen_rt.engines.onnxruntime_engine import OnnxRuntimeEngine, OnnxRuntimeGpuEngine
from dropgen_rt.errors import DeviceError, DeviceMemoryError
from dropgen_rt.gpu import scan
from dropgen_rt.gpu.images import has_kernels
from dropgen_rt.manifest import METADATA_KEY
from dropgen_rt.model import read_model
from dropgen_rt.volume import read_label_map

pytestmark = pytest.mark.skipif(CXX is None, reason="no g++ to run the CUDA files on the CPU")


@pytest.fixture(scope="module")
def device(tmp_path_factory):
    return HostDevice(build(tmp_path_factory.mktemp("cuda_on_host")))


@pytest.fixture
def gpu(home, monkeypatch, device):
    """The made-up GPU, whose driver's library and kernels count as installed, and the emulated device behind it."""
    made_up_gpu.put_in_place(monkeypatch)
    monkeypatch.setattr("dropgen_rt.gpu.device.has_library", lambda: True)
    monkeypatch.setattr("dropgen_rt.gpu.images.has_kernels", lambda capability: True)
    monkeypatch.setattr(scan, "_ROADS", {})
    monkeypatch.setattr(scan, "open_device", lambda number: device)
    monkeypatch.setattr("dropgen_rt.gpu.road.load_kernels", lambda device: None)
    device.launched.clear()
    return device


def run(*arguments):
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


@pytest.fixture
def scan_file(tmp_path):
    """40 x 44 x 36 voxels of noise: two windows along each axis and more, no two of them alike."""
    path = tmp_path / "scan.nii"
    sitk.WriteImage(sitk.GetImageFromArray(np.random.default_rng(0).random((36, 44, 40), np.float32) * 100), path)
    return path


@pytest.mark.parametrize("largest_batch", [0, 1, 3])
def test_infer_finds_what_it_finds_on_the_cpu(gpu, tiny, scan_file, tmp_path, monkeypatch, largest_batch):
    model = tiny.write(tmp_path / "tiny.onnx", largest_batch=largest_batch)
    build_engine(model, "openvino", "cpu")
    build_engine(model, "onnxruntime", "cuda:0")
    batches = recorded_batches(monkeypatch, gpu)
    labels = {}
    for where in ("cpu", "cuda:0"):
        result = run("infer", scan_file, "--device", where, "-o", folder(tmp_path / where))
        assert result.exit_code == 0, result.output
        (path,) = (tmp_path / where).glob("*.nii*")
        assert result.stdout.splitlines()[-1].startswith(f"wrote {path}")
        labels[where], _ = read_label_map(path)
    assert np.array_equal(labels["cpu"], labels["cuda:0"]) and len(np.unique(labels["cpu"])) == 3
    assert max(batches) == (largest_batch or 4)
    # Every kernel of the road ran, and nothing stayed behind.
    stems = {entry.split("_")[0] for entry in gpu.launched}
    assert stems >= {"resample", "extremes", "gather", "accumulate", "finalise"} and not gpu.held


def recorded_batches(monkeypatch, device):
    """Windows in each call of the session; what was enqueued before must have been waited for."""
    plain, batches = OnnxRuntimeGpuEngine._run_on_device, []

    def run_on_device(self, windows, logits, count):
        assert not device.unawaited
        batches.append(count)
        plain(self, windows, logits, count)

    monkeypatch.setattr(OnnxRuntimeGpuEngine, "_run_on_device", run_on_device)
    return batches


def test_another_window_is_taken_from_the_host(gpu, tiny, scan_file, tmp_path):
    model = dynamic(tiny, tmp_path / "tiny.onnx")
    build_engine(model, "onnxruntime", "cuda:0")
    result = run("infer", scan_file, "--device", "cuda:0", "--window", "24", "-o", folder(tmp_path / "out"))
    assert result.exit_code == 0, result.output
    assert not gpu.launched and list((tmp_path / "out").iterdir())


def dynamic(tiny, path):
    """The tiny model for windows of any size."""
    manifest = tiny.manifest(dynamic_window=True)
    path.write_bytes(tiny.onnx({METADATA_KEY: manifest.to_json()}, window=("z", "y", "x")))
    return path


def build_engine(model, engine, device):
    result = run("build-engine", model, "--engine", engine, "--device", device, "--precision", "fp32")
    assert result.exit_code == 0, result.output


def folder(path):
    path.mkdir()
    return path


@pytest.mark.parametrize("window", [[], ["--window", "24"]])
def test_a_cuda_graph_is_refused(gpu, tiny, scan_file, tmp_path, window):
    """Where windows stay on the GPU, and where another window takes them to the host."""
    build_engine(dynamic(tiny, tmp_path / "tiny.onnx"), "onnxruntime", "cuda:0")
    out = folder(tmp_path / "out")
    result = run("infer", scan_file, "--device", "cuda:0", "--cuda-graph", *window, "-o", out)
    assert result.exit_code == 2 and not list(out.iterdir()), result.output
    expected = "error: --cuda-graph: onnxruntime computes on its own stream, which no graph holds; leave it out"
    assert result.stderr.splitlines()[-1].endswith(expected.removeprefix("error: "))


@pytest.mark.parametrize(
    ("message", "kind"),
    [
        ("BFCArena::AllocateRawInternal Failed to allocate memory for requested buffer of size 7", DeviceMemoryError),
        ("CUDA failure 2: out of memory ; GPU=0", DeviceMemoryError),
        ("CUDNN failure 2: CUDNN_STATUS_ALLOC_FAILED", DeviceMemoryError),
        ("CUDNN failure 4004: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED", DeviceMemoryError),
        ("first line\nCUDA failure 719: unspecified launch failure", DeviceError),
        ("", DeviceError),
    ],
)
def test_what_fails_on_the_gpu_says_whether_memory_was_out(gpu, model_file, message, kind):
    class Session:  # stands for one that a GPU has failed
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


@pytest.mark.parametrize(
    ("library", "kernels", "kind"),
    [(True, True, OnnxRuntimeGpuEngine), (False, True, OnnxRuntimeEngine), (True, False, OnnxRuntimeEngine)],
)
def test_without_library_or_kernels_windows_pass_through_the_host(gpu, model_file, monkeypatch, library, kernels, kind):
    monkeypatch.setattr("dropgen_rt.gpu.device.has_library", lambda: library)
    monkeypatch.setattr("dropgen_rt.gpu.images.has_kernels", lambda capability: kernels)
    with create(read_model(model_file), "onnxruntime", "fp32", "cuda:0") as engine:
        assert type(engine) is kind and hasattr(engine, "infer_device") == (library and kernels)


def test_kernels_are_for_gpus_from_turing_on(monkeypatch):
    """nvcc counts as installed, so that every GPU it compiles for has kernels."""
    monkeypatch.setattr("dropgen_rt.gpu.images.shutil.which", lambda name: "/usr/bin/nvcc")
    assert has_kernels("75") and has_kernels("120") and not has_kernels("70")

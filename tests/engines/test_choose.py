"""Every "auto" resolved, every wish obeyed or refused with the reason."""

import pytest

from dropgen_rt.engines import choose as module
from dropgen_rt.engines.choose import choose, open_engine
from dropgen_rt.engines.openvino_engine import supported_precisions
from dropgen_rt.errors import DropgenError, PrecisionError, ResourceError, UsageError
from dropgen_rt.survey import RTX_CAPABILITIES, Gpu, Survey

NONE = Survey((), "", "no NVIDIA driver is installed")
ONE = Survey((Gpu(0, "RTX 4000", "89", 2**34),), "13.0", "")


@pytest.fixture
def has(monkeypatch):
    """Pretend that exactly these libraries are installed."""

    def only(*kinds, pycuda=True, provider=False):
        monkeypatch.setattr(module, "library_version", lambda kind: "9.9" if kind in kinds else None)
        monkeypatch.setattr(module, "other_version", lambda name: "2026.1" if pycuda else None)
        monkeypatch.setattr(module, "has_cuda_provider", lambda: provider)

    return only


def test_without_a_gpu_it_is_openvino():
    choice = choose(found=NONE)
    assert (choice.kind, choice.device) == ("openvino", "cpu")
    assert choice.precisions == supported_precisions() and choice.precisions[-1] == "fp32"
    assert choice.reason.startswith("no NVIDIA driver is installed; precision auto: this CPU ")


def test_a_gpu_without_libraries_says_what_to_install(has):
    has("openvino")
    assert choose(found=ONE).reason.startswith(
        "RTX 4000 is here but no engine for it is installed (tensorrt: not installed, pip install "
        "'dropgen-rt[tensorrt]'; rtx: not installed, pip install 'dropgen-rt[rtx]'; onnxruntime: not installed, "
    )
    with pytest.raises(ResourceError, match=r"device cuda:0: no engine for RTX 4000 is installed .*dropgen-rt\[rtx\]"):
        choose(device="cuda:0", found=ONE)
    has("openvino", "tensorrt", "rtx", "onnxruntime", pycuda=False)
    choice = choose(found=ONE)
    assert choice.kind == "openvino" and "rtx: pycuda is missing, pip install 'dropgen-rt[rtx]'" in choice.reason
    assert "onnxruntime: its GPU wheel is not installed, pip uninstall onnxruntime" in choice.reason
    with pytest.raises(ResourceError, match="engine tensorrt on RTX 4000: pycuda is missing, pip install"):
        choose("tensorrt", found=ONE)


@pytest.mark.parametrize("capability", ["61", "70", "87", "90", "100", "103", "110"])
def test_auto_leaves_rtx_out_where_it_has_no_kernels(has, capability):
    gpu = Survey((Gpu(0, "H100", capability, 2**36),), "13.0", "")
    has("openvino", "rtx")
    choice = choose(found=gpu)
    assert choice.kind == "openvino" and f"rtx: it has no kernels for sm_{capability}" in choice.reason
    with pytest.raises(
        ResourceError, match=rf"engine rtx on H100: it has no kernels for sm_{capability}; it runs on sm"
    ):
        choose("rtx", found=gpu)
    has("openvino", "rtx", "onnxruntime", provider=True)
    assert choose(found=gpu).kind == "onnxruntime"
    has("openvino", "rtx", "tensorrt")
    assert choose(found=gpu).kind == ("tensorrt" if int(capability) >= 75 else "openvino")


@pytest.mark.parametrize("capability", RTX_CAPABILITIES)
def test_auto_takes_rtx_where_it_runs(has, capability):
    has("openvino", "rtx")
    assert choose(found=Survey((Gpu(0, "RTX", capability, 2**34),), "13.0", "")).kind == "rtx"


def test_of_two_gpus_the_one_that_is_asked_for_counts(has):
    two = Survey((Gpu(0, "RTX", "89", 2**34), Gpu(1, "H100", "90", 2**36)), "13.0", "")
    has("openvino", "rtx", "tensorrt")
    assert choose(device="cuda:0", found=two).kind == choose(device="cuda:1", found=two).kind == "tensorrt"
    has("openvino", "rtx")
    assert choose(device="cuda:0", found=two).device == "cuda:0"
    with pytest.raises(ResourceError, match=r"device cuda:1: no engine for H100 is installed .*rtx: it has no kernels"):
        choose(device="cuda:1", found=two)


def test_onnxruntime_on_a_gpu(has):
    has("openvino", "onnxruntime", provider=True)
    for wish in ({"kind": "onnxruntime"}, {"kind": "onnxruntime", "device": "cuda:0"}, {"device": "cuda"}, {}):
        choice = choose(**wish, found=ONE)
        assert (choice.kind, choice.device, choice.precisions) == ("onnxruntime", "cuda:0", ("fp32",))
    assert choose("onnxruntime", device="cpu", found=ONE).device == "cpu"
    has("openvino", "onnxruntime")
    assert choose("onnxruntime", found=ONE).device == "cpu"
    with pytest.raises(ResourceError, match="engine onnxruntime on RTX 4000: its GPU wheel is not installed, pip unin"):
        choose("onnxruntime", device="cuda:0", found=ONE)


def test_tensorrt_comes_before_rtx(has):
    has("openvino", "tensorrt", "rtx")
    assert choose(found=ONE).kind == "tensorrt"
    has("openvino", "rtx")
    choice = choose(found=ONE)
    assert (choice.kind, choice.device, choice.precisions) == ("rtx", "cuda:0", ("fp16", "bf16", "fp32"))
    assert choice.reason.startswith("RTX 4000 and rtx 9.9 are here")
    assert choose(device="cpu", found=ONE).kind == "openvino"


def test_an_explicit_precision_is_the_only_one():
    assert choose("openvino", "fp32", found=NONE).precisions == ("fp32",)
    assert choose("onnxruntime", found=NONE).precisions == ("fp32",)


@pytest.mark.parametrize(
    ("wish", "error", "message"),
    [
        ({"kind": "caffe"}, UsageError, "engine 'caffe': accepted are auto, openvino"),
        ({"precision": "int4"}, UsageError, "precision 'int4': accepted are auto, fp32"),
        ({"device": "tpu"}, UsageError, "device 'tpu': accepted are auto, cpu, cuda and cuda:N"),
        ({"device": "cuda:x"}, UsageError, "device 'cuda:x'"),
        ({"device": "cuda:²"}, UsageError, "device 'cuda:²'"),
        ({"device": "cuda:"}, UsageError, "device 'cuda:'"),
        ({"device": "cpu:0"}, UsageError, "device 'cpu:0'"),
        ({"device": "cuda:" + "9" * 9999}, UsageError, "accepted are auto, cpu, cuda and cuda:N"),
        ({"kind": "onnxruntime", "device": "cuda:0"}, ResourceError, "device cuda:0: no NVIDIA driver is installed"),
        ({"device": "cuda:0"}, ResourceError, "no NVIDIA driver is installed; use --device cpu"),
        ({"kind": "onnxruntime", "precision": "bf16"}, PrecisionError, "onnxruntime on cpu has no bf16"),
        ({"kind": "onnxruntime", "precision": "fp16"}, PrecisionError, "accepted are fp32, or auto"),
        ({"kind": "openvino", "device": "cuda:0"}, UsageError, "openvino runs on the CPU only"),
        ({"kind": "rtx", "device": "cpu"}, UsageError, "engine rtx runs on NVIDIA GPUs only"),
        ({"kind": "rtx"}, ResourceError, "no NVIDIA driver is installed"),
    ],
)
def test_what_is_refused(wish, error, message):
    with pytest.raises(error, match=message):
        choose(**wish, found=NONE)


def test_a_gpu_that_is_not_there(has):
    has("rtx")
    with pytest.raises(ResourceError, match=r"device cuda:3: this machine has 1 GPU\(s\)"):
        choose(device="cuda:3", found=ONE)


def test_a_missing_library_is_named(has):
    has("openvino")
    with pytest.raises(ResourceError, match=r"engine tensorrt: tensorrt is not installed; pip install"):
        choose("tensorrt", found=ONE)


def test_bf16_where_the_cpu_has_none_is_refused_with_the_reason(model, monkeypatch):
    from dropgen_rt.engines import openvino_engine

    monkeypatch.setattr(openvino_engine, "supported_precisions", lambda: ("fp32",))
    assert choose(found=NONE).reason.endswith("this CPU has neither AVX512-BF16 nor AMX")
    with pytest.raises(PrecisionError, match=r"has no bf16 here .this CPU has neither AVX512-BF16 nor AMX.; accepted"):
        choose("openvino", "bf16", found=NONE)
    with pytest.raises(PrecisionError, match=r"precision bf16: this CPU .* has no AVX512-BF16 or AMX-BF16"):
        openvino_engine.OpenVinoEngine(model, precision="bf16")


@pytest.mark.parametrize("kind", ["openvino", "onnxruntime"])
def test_an_engine_says_what_it_is(model, kind):
    with open_engine(model, engine=kind, precision="fp32") as engine:
        assert (engine.name, engine.precision, engine.device) == (kind, "fp32", "cpu")
        assert engine.version[0].isdigit()


def test_a_gpu_engine_is_built_before_it_is_opened(model, home, has):
    with pytest.raises(DropgenError, match="no NVIDIA driver"):
        open_engine(model, "cuda")

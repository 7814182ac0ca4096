"""CPU engines against the tiny network's own arithmetic and each other; precision obeyed; the caller left alone."""

import numpy as np
import onnx
import pytest
from tolerances import EIGHT_BIT_LOGITS

from dropgen_rt import open_engine, open_named
from dropgen_rt.engines import openvino_engine
from dropgen_rt.engines.choose import create
from dropgen_rt.engines.contract import in_batches
from dropgen_rt.engines.onnxruntime_engine import OnnxRuntimeEngine
from dropgen_rt.engines.openvino_engine import EIGHT_BITS, OpenVinoEngine, hint, supported_precisions
from dropgen_rt.errors import EngineError, ModelError, PrecisionError, ResourceError
from dropgen_rt.gate import judge
from dropgen_rt.manifest import METADATA_KEY
from dropgen_rt.model import model_of, read_model
from dropgen_rt.verify import golden_of

KINDS = ("openvino", "onnxruntime")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("batch", [1, 3])
def test_the_tiny_network(model, kind, batch):
    windows = np.random.default_rng(0).random((batch, 1, 16, 16, 16), dtype=np.float32)
    with create(model, kind, "fp32", "cpu", threads=1) as engine:
        logits = engine.infer(windows)
    expected = np.concatenate([np.zeros_like(windows), windows - 0.3, 3 * windows - 1.7], axis=1)
    assert logits.dtype == np.float32
    assert np.abs(logits - expected).max() < 1e-5  # a product and a sum of numbers below 3


@pytest.mark.parametrize("kind", KINDS)
def test_denormal_numbers_of_the_caller_survive(kind):
    """1e-40 is denormal in float32: a thread that flushes denormals makes half of it zero."""
    denormal = np.full(1, 1e-40, np.float32)
    packaged = open_named("brain9")
    with create(packaged, kind, "fp32", "cpu") as engine:
        assert (denormal * np.float32(0.5))[0] > 0
        engine.infer(np.zeros((1, 1, *packaged.manifest.window), np.float32))
        assert (denormal * np.float32(0.5))[0] > 0


@pytest.mark.parametrize("precision", supported_precisions())
def test_openvino_runs_every_convolution_in_the_precision_it_was_told(precision):
    packaged = open_named("brain9")
    with OpenVinoEngine(packaged, precision=precision) as engine:
        assert engine.precision == precision
        found = engine.convolution_precisions()
        assert bool(found & EIGHT_BITS) == (precision == "int8") and found - EIGHT_BITS == {hint(precision)}
        kept = engine.serialised()
    with OpenVinoEngine(packaged, precision=precision, compiled=kept) as engine:
        assert engine.convolution_precisions() == found


@pytest.mark.parametrize("precision", [item for item in supported_precisions() if item == "int8"])
def test_eight_bits_give_the_logits_of_a_real_head(precision):
    """Runs where the CPU has VNNI; elsewhere tests/engines/test_openvino_int8.py holds the same steps in float32."""
    packaged = open_named("brain9")
    golden = golden_of(packaged)
    with OpenVinoEngine(packaged, precision=precision) as engine:
        assert 0 < judge(engine, golden, packaged.manifest).rms_error < EIGHT_BIT_LOGITS


def test_eight_bits_are_not_taken_without_being_judged_or_named(model):
    with open_engine(model, engine="openvino", precision="auto") as engine:
        assert engine.precision == next(item for item in supported_precisions() if item != "int8")


def test_openvino_that_runs_another_precision_is_refused(monkeypatch):
    monkeypatch.setattr(OpenVinoEngine, "convolution_precisions", lambda self: {"f32", "i8"})
    with pytest.raises(PrecisionError, match=r"precision fp32: OpenVINO .* runs convolutions in f32, i8"):
        OpenVinoEngine(open_named("brain9"))


def test_eight_bits_where_no_convolution_takes_them_are_refused(model, monkeypatch):
    monkeypatch.setattr(openvino_engine, "supported_precisions", lambda: ("int8", "fp32"))  # any CPU can run this test
    with pytest.raises(PrecisionError, match="runs none of this network's convolutions in eight bits; choose another"):
        OpenVinoEngine(model, precision="int8")


def test_eight_bits_where_the_cpu_has_none_are_refused(model, monkeypatch):
    monkeypatch.setattr(openvino_engine, "cpu_has", lambda *instructions: False)
    assert "int8" not in supported_precisions()
    with pytest.raises(PrecisionError, match=r"precision int8: this CPU .* has no AVX512-VNNI or AVX-VNNI"):
        OpenVinoEngine(model, precision="int8")


def test_fp16_is_not_for_cpus(model):
    """OpenVINO offers it on some, where it is slower than fp32."""
    with pytest.raises(PrecisionError, match=r"precision fp16: this CPU .* has no fast fp16, .*accepted here are"):
        OpenVinoEngine(model, precision="fp16")


def test_a_compiled_network_that_is_none(model):
    with pytest.raises(EngineError, match="cannot read its engine"):
        OpenVinoEngine(model, compiled=b"nonsense" * 100)


def test_onnxruntime_refuses_what_it_does_not_have(model):
    with pytest.raises(PrecisionError, match="ONNX Runtime on cpu runs 3D convolutions in fp32"):
        OnnxRuntimeEngine(model, precision="fp16")
    with pytest.raises(ResourceError, match="is the CPU wheel; pip uninstall onnxruntime"):
        OnnxRuntimeEngine(model, device="cuda:0")


@pytest.mark.parametrize("kind", KINDS)
def test_a_graph_that_no_engine_can_compile(tiny, tmp_path, kind):
    """Weights of two axes too few: well-formed ONNX in every field that is checked on reading."""
    proto = onnx.load_model_from_string(tiny.onnx({METADATA_KEY: tiny.manifest(channels=("a", "b")).to_json()}, 2))
    weights = np.zeros((3, 2, 1), np.float32)
    proto.graph.initializer[0].CopyFrom(onnx.numpy_helper.from_array(weights, "weights"))
    model = model_of(tmp_path / "bad.onnx", proto.SerializeToString())
    with pytest.raises(ModelError, match=r"bad\.onnx: (OpenVINO|ONNX Runtime) .* cannot (compile|open) it"):
        create(model, kind, "fp32", "cpu")


@pytest.mark.parametrize("kind", KINDS)
def test_a_graph_for_one_window_at_a_time(tiny, tmp_path, kind):
    proto = onnx.load_model_from_string(tiny.onnx({METADATA_KEY: tiny.manifest(largest_batch=1).to_json()}))
    for value in (*proto.graph.input, *proto.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = 1
    path = tmp_path / "one.onnx"
    path.write_bytes(proto.SerializeToString())
    windows = np.random.default_rng(0).random((3, 1, 16, 16, 16), dtype=np.float32)
    with create(read_model(path), kind, "fp32", "cpu") as engine:
        assert np.allclose(engine.infer(windows)[:, 1:2], windows - 0.3, atol=1e-5)


def test_batches_keep_their_order():
    windows = np.arange(7, dtype=np.float32)[:, None]
    for largest in (0, 1, 3, 7, 9):
        assert np.array_equal(in_batches(lambda part: part * 2, windows, largest), windows * 2)

"""TensorRT for RTX ahead of time: really built, without a GPU; what needs one is refused with the reason."""

import sys
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from dropgen_rt.cli import main
from dropgen_rt.engine_files import read_content, records
from dropgen_rt.engines.choose import create
from dropgen_rt.engines.nvidia_build import ARCHITECTURES, build_plan, check_arch
from dropgen_rt.errors import ModelError, ResourceError, UsageError
from dropgen_rt.store import find_model, open_named
from dropgen_rt.survey import survey

pytestmark = pytest.mark.usefixtures("home")
WITHOUT_GPU = pytest.mark.skipif(bool(survey().gpus), reason="this machine has an NVIDIA GPU")


def run(*arguments):
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def test_the_demo_model_for_three_generations_of_gpus(home):
    """What CI shows: built on a machine without a GPU, recorded, and shown."""
    path = find_model("brain9")
    result = run("build-engine", path, "--engine", "rtx", "--arch", "sm_86,sm_89,sm_120", "--precision", "fp16")
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert lines[0] == "engine rtx ahead of time for sm_86, sm_89, sm_120, fp16"
    assert lines[-1] == f"installed brain9 in {home}/models/brain9.json, the default model"
    (record,) = records()
    assert (record.engine, record.precision, record.arch) == ("rtx", "fp16", ("86", "89", "120"))
    assert record.gate is None and record.host == {} and record.batch == (1, 4, 4)
    content = read_content(record)
    # Half of the weights' float32 size and kernels for three architectures; an empty shell would be far smaller.
    assert len(content) == record.bytes > 0.45 * len(open_named("brain9").content)
    shown = run("models", "show", "brain9").stdout.splitlines()
    assert "engine rtx fp16 (sm_86 sm_89 sm_120)" in shown
    assert shown[-1] == "  gate       not yet: it runs when the engine is first loaded"
    assert any(line.startswith(f"  library    rtx {record.version}, built 20") for line in shown)


@WITHOUT_GPU
def test_without_a_gpu_infer_goes_on_on_the_cpu(home, model_file, model):
    assert run("build-engine", model_file, "--engine", "rtx", "--arch", "86").exit_code == 0
    from dropgen_rt import open_engine

    with open_engine(model) as engine:
        assert (engine.name, engine.precision) == ("openvino", "fp32")
    with pytest.raises(ResourceError, match=r"no NVIDIA driver|finds no GPU"):
        open_engine(model, "cuda:0")


def test_each_precision_is_another_engine():
    model = open_named("brain9")
    plans = {
        precision: build_plan(model, "rtx", precision, (1, 1, 1), ("89",), lambda line: None)
        for precision in ("fp32", "fp16", "bf16")
    }
    wide, *narrow = (len(plan) for plan in plans.values())
    assert all(0.4 * wide < size < 0.9 * wide for size in narrow) and plans["fp16"] != plans["bf16"]


@pytest.mark.parametrize(
    ("given", "expected"),
    [(("sm_86",), ("86",)), (("120", "sm_75", "sm_120"), ("75", "120")), (ARCHITECTURES, ARCHITECTURES)],
)
def test_architectures(given, expected):
    assert check_arch(given) == expected


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ((), "no NVIDIA GPU, so name the GPUs to build for with --arch"),
        (("sm_90",), "--arch 90: no GPU that TensorRT for RTX builds for"),
        (("ampere",), "--arch ampere: no GPU that"),
        (("sm_86", "sm_50"), "--arch 50: no GPU that"),
        (("sm_8²",), "--arch 8²: no GPU that"),
    ],
)
def test_architectures_that_are_refused(given, message):
    with pytest.raises(UsageError, match=rf"{message}.*accepted are sm_75, sm_80, sm_86"):
        check_arch(given)


def test_bf16_on_turing_is_refused(model_file, home):
    result = run("build-engine", model_file, "--engine", "rtx", "--arch", "sm_75,sm_86", "--precision", "bf16")
    assert result.exit_code == 2 and "precision bf16: sm_75 has none" in result.stderr
    assert not (home / "models").exists()


def test_a_graph_that_it_cannot_read(tiny, home):
    """Sequence operators are ONNX, and not TensorRT's."""
    import onnx

    from dropgen_rt.manifest import METADATA_KEY
    from dropgen_rt.model import model_of

    proto = onnx.load_model_from_string(tiny.onnx({METADATA_KEY: tiny.manifest().to_json()}))
    proto.graph.node[0].output[0] = "before"
    proto.graph.node.append(onnx.helper.make_node("SequenceConstruct", ["before"], ["list"]))
    zero = onnx.numpy_helper.from_array(np.array(0), "zero")
    proto.graph.initializer.append(zero)
    proto.graph.node.append(onnx.helper.make_node("SequenceAt", ["list", "zero"], ["logits"]))
    model = model_of(Path("list.onnx"), proto.SerializeToString())
    with pytest.raises(ModelError, match=r"list\.onnx: rtx .* cannot read its graph"):
        build_plan(model, "rtx", "fp32", (1, 1, 1), ("86",), lambda line: None)


@WITHOUT_GPU
@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (["--engine", "tensorrt"], 6, "engine tensorrt: tensorrt is not installed; pip install"),
        (["--engine", "rtx"], 2, "this machine has no NVIDIA GPU, so name the GPUs to build for"),
        (["--engine", "openvino", "--arch", "86"], 2, "--arch names GPUs to build for ahead of time"),
        (["--engine", "rtx", "--arch", "sm_99"], 2, "--arch 99: no GPU that TensorRT for RTX builds for; accepted are"),
        (
            ["--engine", "rtx", "--arch", "86", "--device", "cuda:0"],
            2,
            "--device cuda:0: with --arch an engine is built",
        ),
        (
            ["--engine", "rtx", "--device", "cuda:0"],
            6,
            "device cuda:0: no NVIDIA driver is installed; use --device cpu",
        ),
        (["--engine", "rtx", "--arch", "86", "--threads", "3"], 2, "--threads 3: for engines on the CPU; this one is"),
        (["--engine", "rtx", "--device", "cpu"], 2, "engine rtx runs on NVIDIA GPUs only"),
        (["--engine", "onnxruntime", "--device", "cuda:0"], 6, "device cuda:0: no NVIDIA driver is installed"),
        (["--device", "cuda:1"], 6, "device cuda:1: no NVIDIA driver is installed; use --device cpu"),
        (["--device", "foo"], 2, "device 'foo': accepted are auto, cpu, cuda and cuda:N"),
    ],
)
def test_what_needs_a_gpu(model_file, home, options, code, message):
    result = run("build-engine", model_file, *options)
    assert result.exit_code == code
    assert message in result.stderr and result.stderr.count("\n") == 1
    assert not (home / "models").exists()


@pytest.mark.parametrize("kind", ["rtx", "tensorrt"])
def test_running_needs_pycuda(model, monkeypatch, kind):
    monkeypatch.setitem(sys.modules, "pycuda", None)  # as if it were not installed
    with pytest.raises(ResourceError, match=rf"engine {kind}: pycuda is missing .*pip install 'dropgen-rt\[{kind}\]'"):
        create(model, kind, "fp16", "cuda:0", compiled=b"plan")


def test_a_plan_is_built_before_it_is_opened(model):
    with pytest.raises(UsageError, match="engine rtx: build it first with dropgen-rt build-engine --engine rtx"):
        create(model, "rtx", "fp16", "cuda:0")

"""ONNX Runtime on a GPU through build-engine, verify and the store, with its CPU provider in the GPU's place.

Everything that the command line does for such an engine runs, but the provider itself: docs/gpu.md has the commands
that run it on a GPU.
"""

from functools import partial

import made_up_gpu
import pytest
from click.testing import CliRunner

from dropgen_rt.cli import main
from dropgen_rt.engine_files import records
from dropgen_rt.engines import open_engine
from dropgen_rt.store import open_named


@pytest.fixture
def gpu(home, monkeypatch):
    """The made-up GPU; a function that changes its driver."""
    made_up_gpu.put_in_place(monkeypatch)
    return partial(made_up_gpu.put_in_place, monkeypatch)


def run(*arguments):
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


@pytest.mark.parametrize("words", [["--engine", "onnxruntime", "--device", "cuda:0"], ["--engine", "auto"]])
def test_built_judged_and_opened_again(gpu, model_file, words):
    result = run("build-engine", model_file, *words, "--precision", "fp32")
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith("engine onnxruntime on cuda:0: ")
    (record,) = records()
    assert (record.engine, record.precision, record.device) == ("onnxruntime", "fp32", "cuda:0")
    assert record.flags == {"tf32": "off"} and record.gate["agreement"] == 1
    assert record.host == {"gpu": "Made-up GPU", "capability": "90", "driver": "580.1", "driver_cuda": "13.0"}
    with open_engine(open_named("tiny")) as engine:
        assert (engine.name, engine.device) == ("onnxruntime", "cuda:0")
    for device in ("auto", "cuda", "cuda:0"):
        done = run("verify", "tiny", "--device", device)
        assert done.exit_code == 0 and done.stdout.splitlines()[-1] == "verified tiny: onnxruntime fp32"
    assert run("verify", "tiny", "--device", "cpu").stdout.splitlines()[-1] == "verified tiny: openvino fp32"
    shown = run("models", "show").stdout.splitlines()
    assert "engine onnxruntime fp32 (cuda:0)" in shown
    assert "  host       capability 90, driver 580.1, driver_cuda 13.0, gpu Made-up GPU" in shown


def test_auto_takes_fp32_which_is_the_faster_there(gpu, model_file):
    result = run("build-engine", model_file, "--engine", "onnxruntime", "--device", "cuda")
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert any(line.startswith("gate: onnxruntime fp32 against ") for line in lines)
    assert not any("fp16 against" in line for line in lines)


def test_another_driver_is_another_engine(gpu, model_file, caplog):
    assert run("build-engine", model_file, "--device", "cuda:0", "--precision", "fp32").exit_code == 0
    gpu("590.2")
    open_engine(open_named("tiny")).close()
    (record,) = records()
    assert record.host["driver"] == "590.2" and "was built again: 580.1 is now 590.2" in caplog.text


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["--precision", "bf16"], 4, "precision bf16: onnxruntime on cuda:0 has no bf16 here"),
        (["--threads", "2"], 2, "--threads 2: for engines on the CPU; this one runs on cuda:0"),
        (["--device", "cuda:3"], 6, "device cuda:3: this machine has 1 GPU(s)"),
    ],
)
def test_what_is_refused(gpu, model_file, home, words, code, message):
    result = run("build-engine", model_file, "--engine", "onnxruntime", "--device", "cuda:0", *words)
    assert result.exit_code == code and result.stderr.startswith(f"error: {message}")
    assert result.stderr.count("\n") == 1 and not (home / "models").exists()

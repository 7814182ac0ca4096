"""``verify`` and ``doctor``: the gate again at any time, a scan beside fp32, and a page on the machine."""

import gzip
import sys

import numpy as np
import pytest
from click.testing import CliRunner
from shared_data import DATA, needs

from dropgen_rt import open_named, segment
from dropgen_rt.build import BuildOptions, build
from dropgen_rt.cli import main
from dropgen_rt.engines.openvino_engine import OpenVinoEngine
from dropgen_rt.errors import VerificationError
from dropgen_rt.settings import Settings
from dropgen_rt.verify import golden_of, live_golden, verify
from dropgen_rt.verify_scan import AS_INFER_RUNS_IT, PRECISION_ONLY

pytestmark = pytest.mark.usefixtures("home")


def run(*arguments):
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


@pytest.fixture
def scan(make, tmp_path):
    array = np.random.default_rng(0).uniform(0, 100, (18, 20, 22)).astype(np.float32)
    path = tmp_path / "scan.nii.gz"
    data = make.nifti(dim=(3, 22, 20, 18), pixdim=(1, 1, 1, 1), rows=np.eye(3, 4).tolist(), data=array.tobytes())
    path.write_bytes(gzip.compress(data))
    return path


def test_an_installed_engine(model_file):
    build(model_file, BuildOptions(engine="openvino", precision="fp32"), lambda line: None)
    result = run("verify")
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines()[-2:] == ["gate: passed", "verified tiny: openvino fp32"]


def test_a_scan_beside_fp32_reference_mode(model_file, scan):
    result = run("verify", model_file, "--scan", scan)
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    compared = "scan.nii.gz: openvino fp32 against openvino fp32 in reference mode: "
    at = lines.index(compared + PRECISION_ONLY)
    assert lines[at + 1 : at + 4] == [
        "  label agreement  1.000000",
        "  Dice 1.000000  medium",
        "  Dice 1.000000  bright",
    ]
    assert compared + AS_INFER_RUNS_IT in lines


def test_an_engine_that_errs_is_found(model, monkeypatch):
    original = OpenVinoEngine.infer
    golden = golden_of(model)
    monkeypatch.setattr("dropgen_rt.verify.golden_of", lambda model: golden)
    monkeypatch.setattr(OpenVinoEngine, "infer", lambda self, windows: original(self, windows)[:, ::-1])
    with pytest.raises(VerificationError, match=r"openvino fp32 of tiny: label agreement .* is below"):
        verify(model, "cpu", lambda line: None)
    monkeypatch.undo()


def test_the_exit_code_of_an_engine_that_errs(model_file, monkeypatch):
    monkeypatch.setattr(OpenVinoEngine, "infer", lambda self, windows: np.zeros((1, 3, 16, 16, 16), np.float32))
    result = run("verify", model_file)
    assert result.exit_code == 5 and result.stderr.startswith("error: openvino fp32 of tiny: ")


def test_a_live_referee_answers_the_stored_windows(model):
    stored = golden_of(model)
    live = live_golden(model, stored)
    assert np.array_equal(live.windows, stored.windows) and np.array_equal(live.labels, stored.labels)


@pytest.mark.parametrize(
    ("device", "code", "message"),
    [("foo", 2, "device 'foo': accepted are"), ("cuda:²", 2, "device 'cuda:²'"), ("cuda:0", 6, "device cuda:0: ")],
)
def test_a_device_that_is_none_is_told_before_any_work(model_file, monkeypatch, device, code, message):
    monkeypatch.setattr("dropgen_rt.verify.create", lambda *_: pytest.fail("the referee was opened"))
    result = run("verify", model_file, "--device", device)
    assert result.exit_code == code and result.stderr.startswith(f"error: {message}")
    assert result.stderr.count("\n") == 1 and result.stdout == ""


def test_a_missing_model_and_scan(model_file, tmp_path):
    assert run("verify", "nobody").exit_code == 4
    assert run("verify", model_file, "--scan", tmp_path / "none.nii").exit_code == 3


def test_reference_mode_is_fp32_whatever_is_installed(model, scan, monkeypatch):
    seen = []
    module = sys.modules["dropgen_rt.segment"]  # the package's own name of it is the function
    monkeypatch.setattr(module, "open_engine", lambda *a, **k: seen.append(k) or OpenVinoEngine(model))
    segment(scan, model, Settings(reference=True))
    segment(scan, model)
    assert seen == [{"precision": "fp32"}, {"precision": None}]


def test_doctor_tells_what_there_is(home):
    result = run("doctor")
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert lines[-1] == "self-test: passed"
    for start in ("dropgen-rt ", "CPU: ", "NVIDIA", "NVIDIA driver's parts: libcuda.so.1 ", "engine openvino: 2",
                  "engine rtx: ", "engine onnxruntime, CUDA provider: ", "library pycuda: ", "library cuda-bindings: ",
                  "library onnx: 1", "library torch: 2", "compiler nvcc: ", "compiler c++: ",
                  "build-engine would try: openvino on cpu, ",
                  f"models in {home}:", "  * brain9  10 labels, "):  # fmt: skip
        assert any(line.startswith(start) for line in lines), start


@needs("data/brain_t1")
@pytest.mark.slow
def test_the_demo_model_on_a_real_scan_in_its_fastest_precision():
    """Whatever precision the gate lets through here, a real scan must agree with fp32 to that precision's limit."""
    from dropgen_rt.engines import open_engine
    from dropgen_rt.gate import LIMITS
    from dropgen_rt.verify_scan import compare_scan

    let_through = build("brain9", BuildOptions(engine="openvino"), lambda line: None).precision
    model, lines = open_named("brain9"), []
    with open_engine(model, engine="openvino", precision=let_through) as engine:
        agreement = compare_scan(DATA / "brain_t1" / "fs_subject_T1norm.nii.gz", model, engine, lines.append)
    assert agreement >= LIMITS[let_through].agreement
    assert len(lines) == 2 * (2 + len(model.manifest.labels))

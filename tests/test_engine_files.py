"""Engines in the store: found again, refused when foreign or altered, built again when they no longer fit."""

import json
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

from dropgen_rt import build as build_module
from dropgen_rt import engine_files
from dropgen_rt.build import BuildOptions, build
from dropgen_rt.engine_files import open_installed, read_record, records
from dropgen_rt.engines import open_engine
from dropgen_rt.engines.openvino_engine import OpenVinoEngine
from dropgen_rt.errors import EngineError, ModelError, PrecisionError, UsageError, VerificationError
from dropgen_rt.model import read_model
from dropgen_rt.store import default_name, object_path, open_named, remove

pytestmark = pytest.mark.usefixtures("home")


def run(path, lines=None, **options):
    """Build in fp32 with OpenVINO unless told otherwise; returns the record."""
    options = {"engine": "openvino", "precision": "fp32", **options}
    return build(path, BuildOptions(**options), (lines if lines is not None else []).append)


@pytest.fixture
def built(model_file):
    return run(model_file)


def test_what_is_built_is_what_is_opened(model, built):
    assert built.gate["agreement"] == 1 and built.engine_sha256 == object_path(built.engine_sha256).name
    assert records() == records(model.sha256) == [built]
    windows = np.random.default_rng(0).random((2, 1, 16, 16, 16), dtype=np.float32)
    with open_engine(model) as kept, open_engine(model, engine="openvino", precision="fp32") as fresh:
        assert np.array_equal(kept.infer(windows), fresh.infer(windows))


def test_a_kept_engine_is_not_compiled_again(model, built, monkeypatch):
    given = []
    original = OpenVinoEngine.__init__

    def spy(self, *args, compiled=None, **options):
        given.append(compiled)
        original(self, *args, compiled=compiled, **options)

    monkeypatch.setattr(OpenVinoEngine, "__init__", spy)
    open_engine(model).close()
    assert [len(content) for content in given] == [built.bytes]


def test_the_lines_that_are_printed(model_file, home):
    lines = []
    run(model_file, lines, name="mine")
    assert lines[0].startswith("engine openvino on cpu: ") and lines[0].endswith("; precision fp32 as asked")
    entry = f"{home}/models/mine.json"
    assert lines[-2:] == ["gate: passed", f"installed mine in {entry}, the default model in place of brain9"]


def test_the_number_of_threads_is_kept(model_file, model, monkeypatch):
    record = run(model_file, threads=1)
    assert record.flags == {"means": "axis by axis", "upsampling": "taps joined", "threads": "1"}
    seen = []
    original = OpenVinoEngine.__init__
    monkeypatch.setattr(
        OpenVinoEngine, "__init__", lambda self, *a, **k: seen.append(k["threads"]) or original(self, *a, **k)
    )
    open_engine(model).close()
    open_engine(model, threads=2).close()
    assert seen == [1, 2]


@pytest.mark.parametrize("kind", ["openvino", "onnxruntime"])
def test_a_batch_changes_nothing_on_a_cpu_and_that_is_said(model_file, kind):
    lines = []
    plain, given = run(model_file, engine=kind), run(model_file, lines, engine=kind, batch="8")
    assert plain.key == given.key and records() == [given]
    assert f"--batch 8 changes nothing: {kind} takes any number of windows at once" in lines


def test_an_engine_of_another_model_is_not_taken(built, tiny, tmp_path):
    other = read_model(tiny.write(tmp_path / "other.onnx", notice="another"))
    assert open_installed(other, "auto") is None


def test_an_altered_engine_is_refused_before_it_is_loaded(model, built, monkeypatch):
    path = object_path(built.engine_sha256)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    monkeypatch.setattr(OpenVinoEngine, "__init__", lambda *_, **__: pytest.fail("it was loaded"))
    with pytest.raises(EngineError, match="was altered after it was built and is not loaded"):
        open_engine(model)


def test_an_engine_whose_file_is_gone(model, built):
    object_path(built.engine_sha256).unlink()
    with pytest.raises(EngineError, match="engine's file is gone; build it again with build-engine"):
        open_engine(model)


def test_a_record_that_this_installation_did_not_sign(model, built, home, tmp_path, monkeypatch, model_file):
    """Both the record and the file are another installation's: well-formed, and not ours."""
    monkeypatch.setenv("DROPGEN_RT_HOME", str(tmp_path / "elsewhere"))
    foreign = run(model_file)
    text, name = foreign.path.read_text(), foreign.path.name
    monkeypatch.setenv("DROPGEN_RT_HOME", str(home))
    (home / "engines" / name).write_text(text)
    with pytest.raises(EngineError, match="did not write this engine's record"):
        open_engine(model)


def test_another_models_foreign_record_is_no_concern_of_this_one(model, built, home, tmp_path, monkeypatch, tiny):
    monkeypatch.setenv("DROPGEN_RT_HOME", str(tmp_path / "elsewhere"))
    foreign = run(tiny.write(tmp_path / "other.onnx", notice="another"))
    text = foreign.path.read_text()
    monkeypatch.setenv("DROPGEN_RT_HOME", str(home))
    foreign.path.write_text(text)
    open_engine(model).close()
    with pytest.raises(EngineError, match="did not write this engine's record"):
        records()


def test_a_record_changed_by_hand(model, built):
    outer = json.loads(built.path.read_text())
    outer["record"] = outer["record"].replace('"fp32"', '"bf16"')
    built.path.write_text(json.dumps(outer))
    with pytest.raises(EngineError, match="did not write this engine's record"):
        open_engine(model)


@pytest.mark.parametrize("text", ["", "[]", "{}", "null", '{"record": 3, "signature": "x"}'])
def test_what_is_no_record(model, built, text):
    built.path.write_text(text)
    with pytest.raises(EngineError, match="remove it and build the engine again"):
        read_record(built.path)


@pytest.mark.parametrize("change", [{"version": "1999.1"}, {"host": {"cpu": "another CPU"}}])
def test_an_engine_that_no_longer_fits_is_built_again(model, built, change, caplog):
    """As after an update of the library, or on another CPU."""
    stale = replace(built, **change)
    built.path.unlink()
    engine_files.save_record(stale)
    open_engine(model).close()
    (fresh,) = records(model.sha256)
    assert fresh.key == built.key and fresh.gate["agreement"] == 1
    assert "engine openvino fp32 of tiny was built again: " in caplog.text and " is now " in caplog.text


def test_one_that_cannot_be_built_here_is_refused_with_the_reason(model, built):
    gpu = replace(built, engine="rtx", device="cuda", arch=("86", "89"), host={}, version="1.0")
    with pytest.raises(EngineError, match=r"rtx 1.0 is now .*; build it again where it was built, with --arch 86,89"):
        build_module.rebuild(model, gpu, build_module.current(gpu, "cuda:0"), "cuda:0", None)


def test_an_engine_for_a_gpu_is_left_alone_on_a_cpu(model, built):
    engine_files.save_record(replace(built, engine="rtx", device="cuda", arch=("86",), built_utc="2999"))
    with open_engine(model) as engine:
        assert engine.name == "openvino"


class Wrong(OpenVinoEngine):
    """An engine whose bf16 (and only that) is far off."""

    def infer(self, windows):
        logits = super().infer(windows).copy()
        return logits[:, ::-1] if self.precision in self.bad else logits

    bad = ("bf16",)


@pytest.fixture
def wrong(monkeypatch):
    from dropgen_rt.engines import choose, openvino_engine

    monkeypatch.setattr(choose, "_precisions", lambda kind, device: ("bf16", "fp32"))
    monkeypatch.setattr(openvino_engine, "supported_precisions", lambda: ("bf16", "fp32"))
    monkeypatch.setattr(openvino_engine, "HINTS", {"fp32": "f32", "bf16": "f32"})  # any CPU can run this test
    monkeypatch.setattr(openvino_engine, "OpenVinoEngine", Wrong)


def test_one_built_elsewhere_meets_the_gate_when_it_is_first_loaded(model, built):
    engine_files.save_record(replace(built, gate=None))
    open_engine(model).close()
    assert read_record(built.path).gate["agreement"] == 1


def test_one_that_fails_its_first_gate_is_refused_each_time(model, built, wrong, monkeypatch):
    engine_files.save_record(replace(built, gate=None))
    monkeypatch.setattr(Wrong, "bad", ("fp32",))
    for _ in range(2):
        with pytest.raises(VerificationError, match=r"openvino fp32 of tiny: label agreement .*in another precision"):
            open_engine(model)
    assert read_record(built.path).gate is None


def test_auto_climbs_to_the_next_precision_and_says_so(model_file, wrong):
    lines = []
    record = run(model_file, lines, precision="auto")
    assert record.precision == "fp32"
    assert "precision bf16 fails the gate; trying fp32" in lines
    assert any(line.startswith("gate: FAILED: label agreement") for line in lines)
    assert [item.precision for item in records()] == ["fp32"]


def test_auto_passes_over_eight_bits_where_no_convolution_takes_them(model_file, monkeypatch):
    from dropgen_rt.engines import choose, openvino_engine

    monkeypatch.setattr(choose, "_precisions", lambda kind, device: ("int8", "fp32"))
    monkeypatch.setattr(openvino_engine, "supported_precisions", lambda: ("int8", "fp32"))  # any CPU can run this test
    lines = []
    assert run(model_file, lines, precision="auto").precision == "fp32"
    assert any(
        line.startswith("precision int8: ") and line.endswith("another --precision; trying fp32") for line in lines
    )
    with pytest.raises(PrecisionError, match="none of this network's convolutions in eight bits"):
        run(model_file, precision="int8")


def test_auto_takes_no_narrow_precision_that_was_not_judged_for_every_label(model_file, wrong, monkeypatch):
    monkeypatch.setattr(Wrong, "bad", ())
    monkeypatch.setattr("dropgen_rt.gate.JUDGED_VOXELS", 10**9)
    lines = []
    assert run(model_file, lines, precision="auto").precision == "fp32"
    assert "precision bf16 is not judged for every label; trying fp32" in lines
    assert run(model_file, [], precision="bf16").precision == "bf16"  # who asks for it gets it, with the table


def test_an_explicit_precision_that_fails_installs_nothing(model_file, wrong, home):
    with pytest.raises(VerificationError, match=r"openvino bf16 fails the gate .*nothing was installed; try a wider"):
        run(model_file, precision="bf16")
    assert not (home / "models").exists() and not (home / "engines").exists() and not (home / "objects").exists()


def test_auto_that_fails_altogether_installs_nothing(model_file, wrong, home, monkeypatch):
    monkeypatch.setattr(Wrong, "bad", ("bf16", "fp32"))
    with pytest.raises(VerificationError, match="openvino fp32 fails the gate"):
        run(model_file, precision="auto")
    assert not (home / "models").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"arch": ("86",)}, "--arch names GPUs to build for ahead of time, which --engine rtx alone can do"),
        ({"batch": "0"}, "--batch 0: accepted are auto and 1 to 64"),
        ({"batch": "many"}, "--batch many"),
        ({"batch": "²"}, "--batch ²: accepted are auto and 1 to 64"),
        ({"batch": "٣"}, "--batch ٣: accepted are auto and 1 to 64"),
        ({"batch": "9" * 9999}, "accepted are auto and 1 to 64"),
        ({"name": "../x"}, "accepted are letters"),
    ],
)
def test_options_that_are_refused(model_file, options, message):
    with pytest.raises(UsageError, match=message):
        run(model_file, **options)


@pytest.mark.parametrize("name", ["../x", "a b", "-x", "ü", "x" * 65])
def test_a_manifest_whose_name_is_no_files_name(tiny, tmp_path, home, name):
    path = tiny.write(tmp_path / "other.onnx", name=name)
    with pytest.raises(ModelError, match=r"its manifest gives the model name .*choose another with --name") as caught:
        run(path)
    assert caught.value.exit_code == 4 and list(home.iterdir()) == []
    assert run(path, name="mine").path.is_file()


def test_removing_takes_the_engines_along(model, built, home):
    run(model.path, name="second")
    assert remove("tiny") == ["model tiny"]  # the second name still stands for the same model
    assert len(records()) == 1
    assert remove("second") == ["model second", f"the default, which is now {default_name()}", "engine openvino fp32"]
    assert list((home / "objects").iterdir()) == [] and records() == []


def test_an_altered_model_is_refused(model, built):
    path = object_path(model.sha256)
    path.write_bytes(path.read_bytes().replace(b"medium", b"MEDIUM"))
    with pytest.raises(ModelError, match="altered after it was installed"):
        open_named("tiny")


@pytest.mark.slow
def test_two_builds_at_once_are_safe(model_file, tiny, tmp_path):
    other = tiny.write(tmp_path / "other.onnx", name="other")
    code = "import sys; from dropgen_rt.cli import main; main()"
    line = [sys.executable, "-c", code, "build-engine", "--precision", "fp32"]
    running = [
        subprocess.Popen([*line, str(path)], stdout=subprocess.PIPE, text=True) for path in (model_file, other) * 2
    ]
    assert [process.wait() for process in running] == [0] * 4
    assert all(process.stdout.read().splitlines()[-1].startswith("installed ") for process in running)
    assert {open_named(name).manifest.name for name in ("tiny", "other")} == {"tiny", "other"}
    assert len(records()) == 2 and default_name() in ("tiny", "other")

"""Names: each keeps the engines that were built under it, whatever is built of the same model under another."""

import json

import pytest
from click.testing import CliRunner

from dropgen_rt.build import BuildOptions, build
from dropgen_rt.cli import main
from dropgen_rt.engine_files import open_installed, record_path, records
from dropgen_rt.engines import open_engine
from dropgen_rt.errors import EngineError, MissingModelError, ModelError
from dropgen_rt.store import engine_keys, install, open_named, replace_engine

pytestmark = pytest.mark.usefixtures("home")


def run(path, name, **options):
    options = {"engine": "openvino", "precision": "fp32", "make_default": False, **options}
    return build(path, BuildOptions(name=name, **options), lambda line: None)


def command(*arguments):
    return CliRunner().invoke(main, ["models", *map(str, arguments)])


def opened(name):
    with open_engine(open_named(name)) as engine:
        return engine.name


def test_another_name_of_the_same_model_changes_nothing(model_file):
    first = run(model_file, "first", make_default=True)
    second = run(model_file, "second", engine="onnxruntime")
    assert (engine_keys("first"), engine_keys("second")) == ((first.key,), (second.key,))
    assert [opened(name) for name in (None, "first", "second")] == ["openvino", "openvino", "onnxruntime"]
    assert command("list").stdout.splitlines()[-2:] == [
        "* first  2 labels, 1 x 1 x 1 mm  openvino fp32 (cpu)",
        "  second  2 labels, 1 x 1 x 1 mm  onnxruntime fp32 (cpu)",
    ]
    shown = [line for line in command("show", "second").stdout.splitlines() if line.startswith("engine ")]
    assert shown == ["engine onnxruntime fp32 (cpu)"]


def test_the_demo_model_keeps_its_own_too():
    packaged = open_named("brain9")
    install(packaged, "mine", make_default=False, engines=("3" * 64,))
    assert packaged.name == "brain9" and engine_keys("brain9") == () and engine_keys("mine") == ("3" * 64,)
    assert open_installed(packaged, "auto") is None


def test_the_last_one_built_under_a_name_is_its_choice(model_file):
    keys = [run(model_file, "mine", engine=kind).key for kind in ("openvino", "onnxruntime", "openvino")]
    assert engine_keys("mine") == (keys[2], keys[1]) and keys[0] == keys[2]
    assert opened("mine") == "openvino"


def test_names_share_one_engine_and_one_file(model_file, home):
    assert run(model_file, "first").key == run(model_file, "second").key
    assert len(records()) == 1 and len(list((home / "objects").iterdir())) == 2


def test_a_file_takes_the_newest_engine_of_any_name(model_file, model, monkeypatch):
    run(model_file, "first")
    monkeypatch.setattr("dropgen_rt.build.now", lambda: "2999-01-01T00:00:00+00:00")
    run(model_file, "second", engine="onnxruntime")
    assert model.name == ""
    with open_engine(model) as engine:
        assert engine.name == "onnxruntime"


def test_another_model_under_the_name_takes_its_engines_away(model_file, tiny, tmp_path):
    run(model_file, "mine")
    kept = run(tiny.write(tmp_path / "other.onnx", notice="another"), "mine", engine="onnxruntime")
    assert engine_keys("mine") == (kept.key,) and records() == [kept]


def test_removing_a_name_leaves_the_engines_of_others(model_file):
    shared, own = run(model_file, "first"), run(model_file, "second", engine="onnxruntime")
    run(model_file, "second")
    assert command("remove", "first").stdout == "removed model first\n"
    assert {record.key for record in records()} == {shared.key, own.key}
    assert command("remove", "second").stdout.splitlines()[0] == "removed model second" and records() == []


def test_an_engine_built_again_is_so_for_every_name(model_file):
    record = run(model_file, "first")
    run(model_file, "second")
    new = "1" * 64
    replace_engine(record.key, new)
    assert engine_keys("first") == engine_keys("second") == (new,)
    assert opened("first") == "openvino"  # a record that is gone: back to where no engine is built


def test_a_bundle_carries_every_engine_of_the_name_and_their_order(model_file, tmp_path, monkeypatch):
    """The first two keep the same bytes, a word that there is nothing to keep, and are two engines all the same."""
    keys = [run(model_file, "mine", engine="onnxruntime", threads=threads).key for threads in (1, 2)]
    keys.append(run(model_file, "mine").key)
    run(model_file, "another", engine="onnxruntime")
    out = tmp_path / "mine.dropgen"
    fingerprint = command("export", "mine", "-o", out).stdout.splitlines()[0].split()[-1]
    monkeypatch.setenv("DROPGEN_RT_HOME", str(tmp_path / "workstation"))
    lines = command("import", out, "--trust", fingerprint).stdout.splitlines()
    assert [line.split()[1] for line in lines[:3]] == ["openvino", "onnxruntime", "onnxruntime"]
    assert engine_keys("mine") == tuple(reversed(keys)) and len(records()) == 3


@pytest.mark.parametrize("content", [b"", b"[]", b'{"record": "{}"}', b"\xff\xfe", b"[" * 100_000, b'{"record": 3}'])
def test_one_damaged_record_is_one_warning(model_file, content):
    """Of another name; list, show and doctor tell of all the rest, and the name's own engine opens."""
    run(model_file, "mine", make_default=True)
    other = run(model_file, "other", engine="onnxruntime")
    other.path.write_bytes(content)
    for result in (command("list"), command("show", "mine"), CliRunner().invoke(main, ["doctor"])):
        assert result.exit_code == 0, result.output
        warnings = [line for line in result.stdout.splitlines() if line.lstrip().startswith("warning: ")]
        assert len(warnings) == 1 and f"{other.path}: " in warnings[0] and "build the engine again" in warnings[0]
        assert "openvino fp32 (cpu)" in result.stdout
    assert opened("mine") == "openvino"
    with pytest.raises(EngineError, match="remove it and build the engine again"):
        opened("other")
    with open_engine(open_named(str(model_file))) as engine:  # by its path: the one that can be read
        assert engine.name == "openvino"


def test_a_damaged_second_choice_is_met_only_by_who_needs_it(model_file, tmp_path):
    second = run(model_file, "mine", engine="onnxruntime")
    run(model_file, "mine")
    second.path.write_text("garbage")
    assert opened("mine") == "openvino"
    refused = command("export", "mine", "-o", tmp_path / "x.dropgen")
    assert refused.exit_code == 4 and "not an engine's record" in refused.stderr
    assert not (tmp_path / "x.dropgen").exists()


@pytest.mark.parametrize(
    "content",
    [b"", b"{}", b"[" * 100_000, b'{"model_sha256": 5}', b'{"model_sha256": "../x"}', b"\xff",
     json.dumps({"model_sha256": "0" * 64, "engines": ["../../x"]}).encode(),
     json.dumps({"model_sha256": "0" * 64, "engines": 7}).encode()],
)  # fmt: skip
def test_a_damaged_entry_is_told_and_can_be_removed(model_file, home, content):
    run(model_file, "mine")
    run(model_file, "other", engine="onnxruntime")
    entry = home / "models" / "mine.json"
    entry.write_bytes(content)
    listed = command("list")
    assert listed.exit_code == 0 and f"  mine  {entry}: not a model's entry; install" in listed.stdout
    with pytest.raises(ModelError, match="not a model's entry; install the model again"):
        open_named("mine")
    assert command("remove", "mine").stdout.splitlines()[0] == "removed model mine"
    assert opened("other") == "onnxruntime" and len(records()) == 1


def test_a_damaged_entry_is_replaced_by_installing(model, home):
    install(model, "mine", make_default=False)
    (home / "models" / "mine.json").write_text("{")
    install(model, "mine", make_default=False, engines=("2" * 64,))
    assert engine_keys("mine") == ("2" * 64,) and not record_path("2" * 64).exists()


def test_an_engine_is_built_by_name_and_stays_under_it(model_file):
    run(model_file, "mine")
    arguments = ["build-engine", "mine", "--engine", "onnxruntime", "--precision", "fp32", "--no-default"]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0 and result.stdout.splitlines()[-1].startswith("installed mine in ")
    assert opened("mine") == "onnxruntime" and len(engine_keys("mine")) == 2
    assert run("mine", None).engine == "openvino" and opened("mine") == "openvino"
    missing = CliRunner().invoke(main, ["build-engine", "nothing"])
    assert missing.exit_code == MissingModelError.exit_code
    assert missing.stderr.splitlines()[-1] == "error: no model named 'nothing'; installed are: brain9, mine"


def test_a_file_that_looks_like_a_name_is_pointed_out(model_file, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").write_bytes(model_file.read_bytes())
    with pytest.raises(MissingModelError, match=r"installed are: brain9; for the file of that name give \./mine$"):
        run("mine", None)
    assert run("./mine", "other").engine == "openvino"

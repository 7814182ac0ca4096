"""Bundles: carried whole to another installation, or refused with nothing installed."""

import base64
import json
import zipfile

import pytest
from click.testing import CliRunner

from dropgen_rt import bundle, signing
from dropgen_rt.build import BuildOptions, build
from dropgen_rt.cli import main
from dropgen_rt.engine_files import records
from dropgen_rt.engines import open_engine
from dropgen_rt.errors import EngineError, MissingModelError, ModelError
from dropgen_rt.store import installed, open_named


@pytest.fixture
def sender(home, model_file):
    """An installation with the model, and its bundle."""
    build(model_file, BuildOptions(engine="openvino", precision="fp32"), lambda line: None)
    path = home.parent / "tiny.dropgen"
    return path, bundle.write("tiny", path)


@pytest.fixture
def receiver(sender, tmp_path, monkeypatch):
    """From here on everything happens in another installation."""
    monkeypatch.setenv("DROPGEN_RT_HOME", str(tmp_path / "workstation"))
    return sender


def take(path, **options):
    return list(bundle.read(path, options.get("name"), options.get("trust"), True))


def rewritten(path, changes, compression=zipfile.ZIP_STORED, extra=()):
    """The bundle with entries replaced (None drops one), packed anew."""
    with zipfile.ZipFile(path) as archive:
        contents = {name: archive.read(name) for name in archive.namelist()}
    contents |= changes
    out = path.with_name("changed.dropgen")
    with zipfile.ZipFile(out, "w", compression) as archive:
        for name, data in contents.items():
            if data is not None:
                archive.writestr(name, data)
        for name, data in extra:
            archive.writestr(name, data)
    return out


def test_it_carries_model_and_engine(receiver, model, home):
    path, fingerprint = receiver
    lines = take(path, trust=fingerprint)
    assert lines[0].startswith("engine openvino fp32, built ")
    assert lines[-1].endswith("workstation/models/tiny.json, the default model")
    assert open_named(None).content == model.content
    (record,) = records(model.sha256)
    with open_engine(open_named("tiny")) as engine:
        assert (engine.name, engine.precision) == (record.engine, record.precision)
    assert take(path, name="again")[-1].endswith("models/again.json, the default model")  # now trusted


def test_an_unknown_key_is_refused_and_named(receiver):
    path, fingerprint = receiver
    with pytest.raises(EngineError, match=f"signed by {fingerprint}, which is not trusted here.*--trust {fingerprint}"):
        take(path)
    with pytest.raises(EngineError, match=f"signed by {fingerprint}, not by 0000"):
        take(path, trust="0000")
    assert installed() == ["brain9"] and records() == []


def test_ones_own_bundle_is_trusted(sender):
    assert take(sender[0], name="copy")[-1].endswith("models/copy.json, the default model")


def test_its_entries_are_stored_and_carry_no_paths(sender):
    with zipfile.ZipFile(sender[0]) as archive:
        assert all(item.compress_type == zipfile.ZIP_STORED for item in archive.infolist())
        assert all(".." not in name and not name.startswith("/") for name in archive.namelist())


def listing(path):
    with zipfile.ZipFile(path) as archive:
        return json.loads(archive.read("bundle.json"))


def signed(text):
    public = base64.b64encode(signing.own_public_key()).decode()
    return {
        "bundle.json": text,
        "signature.json": json.dumps({"public_key": public, "signature": signing.sign(text)}).encode(),
    }


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model.onnx": b"another"}, "another size than its list says"),
        ({"bundle.json": b"{}"}, "its signature does not fit its content"),
        ({"signature.json": b"{}"}, "not a whole bundle"),
        ({"signature.json": None}, "not a whole bundle"),
        ({"model.onnx": None}, "other entries than its list names"),
        ({"../../evil": b"x"}, "other entries than its list names"),
        ({"/etc/evil": b"x"}, "other entries than its list names"),
    ],
)
def test_altered_bundles_are_refused(sender, tmp_path, change, message):
    path = rewritten(sender[0], change)
    before = installed(), len(records())
    with pytest.raises(ModelError, match=message):
        take(path, name="evil")
    assert (installed(), len(records())) == before
    assert not list(tmp_path.parent.rglob("evil"))


def test_the_same_size_with_another_content(sender):
    with zipfile.ZipFile(sender[0]) as archive:
        data = bytearray(archive.read("model.onnx"))
    data[100] ^= 1
    with pytest.raises(ModelError, match=r"model\.onnx has another digest"):
        take(rewritten(sender[0], {"model.onnx": bytes(data)}))


def test_compressed_entries_are_refused_unread(sender):
    """What a bomb would need."""
    with pytest.raises(ModelError, match="is compressed, which no bundle is"):
        take(rewritten(sender[0], {}, zipfile.ZIP_DEFLATED))


def test_a_huge_list_is_refused_unread(sender):
    with pytest.raises(ModelError, match=r"bundle\.json is larger than"):
        take(rewritten(sender[0], {"bundle.json": b" " * 2_000_000}))


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_an_entry_that_comes_twice(sender):
    with pytest.raises(ModelError, match="other entries than its list names"):
        take(rewritten(sender[0], {}, extra=[("model.onnx", b"second")]))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema": "2.0"}, r"bundle schema 2\.0, this version reads 1\.0"),
        ({"records": []}, None),
        ({"name": "../evil"}, "model name '../evil'"),
        ({"entries": 3}, "not a whole bundle"),
        ({"records": ["{}"]}, "not a whole bundle"),
        ({"records": [5]}, "not a whole bundle"),
        ({"records": ["[" * 100_000]}, "not a whole bundle"),
        ({"entries": {"model.onnx": 5}}, "not a whole bundle|other entries"),
        ({"name": 5, "schema": None}, "bundle schema None"),
    ],
)
def test_lists_of_our_own_signature_are_checked_too(sender, change, message):
    text = json.dumps(listing(sender[0]) | change).encode()
    path = rewritten(sender[0], signed(text))
    if message is None:
        assert take(path, name="bare")[-1].endswith("models/bare.json, the default model")
    else:
        with pytest.raises(Exception, match=message) as caught:
            take(path)
        assert caught.value.exit_code == 4


@pytest.mark.parametrize(
    ("field", "wrong", "message"),
    [
        ("engine_sha256", "0" * 64, "is not the one that its record names"),
        ("engine", "caffe", "not a whole bundle .engine: 'caffe' is not one of"),
        ("window", ["16", 16, 16], "not a whole bundle .window.0.: '16' is not a whole number"),
        ("gate", {"agreement": "high"}, "not a whole bundle .gate"),
    ],
)
def test_a_record_in_it_that_says_something_else(sender, field, wrong, message):
    given = listing(sender[0])
    record = json.loads(given["records"][0]) | {field: wrong}
    text = json.dumps(given | {"records": [json.dumps(record)]}).encode()
    with pytest.raises(ModelError, match=message):
        take(rewritten(sender[0], signed(text)), name="evil")
    assert "evil" not in installed()


def test_an_engine_of_another_model_in_it(sender):
    given = listing(sender[0])
    record = json.loads(given["records"][0]) | {"model_sha256": "0" * 64}
    text = json.dumps(given | {"records": [json.dumps(record)]}).encode()
    with pytest.raises(ModelError, match="belongs to another model"):
        take(rewritten(sender[0], signed(text)))


@pytest.mark.parametrize("content", [b"", b"text", b"PK\3\4" + b"\0" * 40])
def test_what_is_no_bundle(home, tmp_path, content):
    (tmp_path / "x.dropgen").write_bytes(content)
    with pytest.raises(ModelError, match="not a whole bundle"):
        take(tmp_path / "x.dropgen")
    with pytest.raises(MissingModelError, match="no such bundle"):
        take(tmp_path / "absent.dropgen")


def test_half_a_bundle(sender):
    sender[0].write_bytes(sender[0].read_bytes()[:-100])
    with pytest.raises(ModelError, match="not a whole bundle"):
        take(sender[0])


def test_the_private_key_is_its_owners_alone(sender, home):
    key = home / "keys" / "own.key"
    assert key.stat().st_mode & 0o777 == 0o600
    key.chmod(0o644)
    with pytest.raises(EngineError, match="not a key that only its owner can read"):
        signing.sign(b"x")


def test_the_commands(sender, tmp_path, monkeypatch):
    def run(*arguments):
        return CliRunner().invoke(main, ["models", *map(str, arguments)])

    out = tmp_path / "again.dropgen"
    result = run("export", "tiny", "-o", out)
    assert result.stdout.splitlines() == [f"signed with key {sender[1]}", f"wrote {out}"]
    monkeypatch.setenv("DROPGEN_RT_HOME", str(tmp_path / "new"))
    refused = run("import", out)
    assert (refused.exit_code, refused.stdout) == (4, "") and refused.stderr.startswith(f"error: {out}: signed by ")
    taken = run("import", out, "--trust", sender[1], "--no-default")
    assert (
        taken.exit_code == 0 and taken.stdout.splitlines()[-1] == f"installed tiny in {tmp_path}/new/models/tiny.json"
    )
    assert [line.split()[0] for line in run("list").stdout.splitlines()] == ["*", "tiny"]
    assert run("default", "tiny").stdout == "the default model is tiny\n"
    shown = run("show").stdout.splitlines()
    assert shown[0] == "tiny: tiny, schema 1.4" and "engine openvino fp32 (cpu)" in shown
    assert run("remove", "tiny").stdout.splitlines()[0] == "removed model tiny"
    for arguments, code in ((("remove", "tiny"), 4), (("remove", "brain9"), 2), (("default", "nobody"), 4)):
        refused = run(*arguments)
        assert refused.exit_code == code and refused.stderr.startswith("error: ") and refused.stderr.count("\n") == 1


def test_signed_files_are_read_back_or_not_at_all(home, tmp_path, monkeypatch):
    path = tmp_path / "kernels"
    signing.write_signed(path, b"kernels\nof a GPU")
    assert signing.read_signed(path) == b"kernels\nof a GPU"
    assert signing.read_signed(tmp_path / "absent") == b""
    good = path.read_bytes()
    for wrong in (b"", b"kernels", good[:-1] + b"V", good.replace(b"=", b"A"), b"\xff" + good):
        path.write_bytes(wrong)
        assert signing.read_signed(path) == b""
    path.write_bytes(good)
    monkeypatch.setenv("DROPGEN_RT_HOME", str(tmp_path / "another"))
    assert signing.read_signed(path) == b""

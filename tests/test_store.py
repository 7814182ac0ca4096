"""Models by name: installed, found, made the default, and names that could leave the folder."""

from pathlib import Path

import pytest
from machine import without_rights_of_root

from dropgen_rt.errors import MissingModelError, ModelError, OutputError, UsageError
from dropgen_rt.model import read_model
from dropgen_rt.show import table
from dropgen_rt.store import (
    DEMO_MODEL,
    cache_folder,
    check_name,
    default_name,
    find_model,
    install,
    installed,
    make_default,
    open_named,
    superseded,
)
from dropgen_rt.store import home as data_folder

pytestmark = pytest.mark.usefixtures("home")

BAD_NAMES = ["", ".", "..", "../x", "a/b", "/abs", ".hidden", "-x", "a b", "a\n", "ü", "x" * 65, "a\0b", "a\\b", "~"]


def test_the_data_folder_follows_the_variable(home, monkeypatch):
    assert data_folder() == home
    assert cache_folder() == home / "cache"
    assert cache_folder().is_dir()
    monkeypatch.delenv("DROPGEN_RT_HOME")
    assert data_folder().name == "dropgen-rt"
    assert data_folder().is_absolute()


@pytest.mark.parametrize("name", ["a", "brain9", "ct_v1.2-final", "9", "x" * 64])
def test_good_names(name):
    assert check_name(name) == name


@pytest.mark.parametrize("name", BAD_NAMES)
def test_names_that_could_leave_the_folder_are_refused(name, model, home):
    with pytest.raises(UsageError, match="accepted are letters, digits"):
        check_name(name)
    with pytest.raises(UsageError):
        install(model, name, make_default=True)
    assert list(home.rglob("*")) == []


def test_install_then_open(model, home):
    entry = install(model, "mine", make_default=False)
    assert entry == home / "models" / "mine.json"
    assert [path.name for path in (home / "objects").iterdir()] == [model.sha256]
    opened = open_named("mine")
    assert (opened.content, opened.sha256, opened.manifest) == (model.content, model.sha256, model.manifest)
    assert default_name() == DEMO_MODEL
    assert "mine" in installed()


def test_installing_again_repairs_what_was_altered(model, home):
    install(model, "mine", make_default=False)
    path = home / "objects" / model.sha256
    path.write_bytes(model.content.replace(b"weights", b"weighty"))  # as long, and a model still
    with pytest.raises(ModelError, match="install the model again"):
        open_named("mine")
    install(model, "mine", make_default=False)
    assert open_named("mine").content == model.content


def test_the_default_is_the_one_installed_so(model):
    install(model, "first", make_default=True)
    install(model, "second", make_default=True)
    install(model, "third", make_default=False)
    assert default_name() == "second"
    assert find_model(None) == find_model("second")
    assert set(installed()) - {DEMO_MODEL} == {"first", "second", "third"}
    assert installed() == sorted(installed())


def test_installing_again_replaces(model, tiny, tmp_path):
    install(model, "mine", make_default=False)
    other = read_model(tiny.write(tmp_path / "other.onnx", notice="another"))
    install(other, "mine", make_default=False)
    assert open_named("mine").manifest.notice == "another"


def test_a_path_is_taken_as_it_is(model_file, monkeypatch):
    assert find_model(str(model_file)) == model_file
    assert find_model("beside.onnx") == Path("beside.onnx")
    monkeypatch.chdir(model_file.parent)
    assert open_named("tiny.onnx").manifest.name == "tiny"


def test_an_unknown_name_lists_the_known(model):
    install(model, "mine", make_default=False)
    with pytest.raises(MissingModelError, match=r"no model named 'theirs'; installed are: .*mine"):
        find_model("theirs")


def test_a_default_that_is_gone(home):
    (home / "default").write_text("gone\n")
    with pytest.raises(MissingModelError, match="'gone'"):
        open_named(None)


def test_an_upgraded_package_does_not_change_a_built_model_and_says_so(model):
    note = "  brain9 is kept as it was built; for the package's newer one: dropgen-rt models remove brain9"
    assert not superseded(DEMO_MODEL)
    install(open_named(DEMO_MODEL), DEMO_MODEL, make_default=False)
    assert not superseded(DEMO_MODEL) and note not in table()
    install(model, DEMO_MODEL, make_default=False)
    assert superseded(DEMO_MODEL) and note in table()
    assert open_named(DEMO_MODEL).sha256 == model.sha256
    install(model, "mine", make_default=False)
    assert not superseded("mine")


def test_a_default_that_leaves_the_folder(home):
    (home / "default").write_text("../../etc\n")
    with pytest.raises((UsageError, MissingModelError)):
        open_named(None)


def test_a_data_folder_that_cannot_be_made(model, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("DROPGEN_RT_HOME", str(tmp_path / "file"))
    with pytest.raises(OutputError, match=r"cannot write .*file/models"):
        install(model, "mine", make_default=True)
    assert cache_folder() is None


def test_a_data_folder_without_permission(nobody, monkeypatch):
    """The default's name lies there; a name is looked for there; a path need not."""
    monkeypatch.setenv("DROPGEN_RT_HOME", str(nobody))
    for name in (None, "brain9"):
        with pytest.raises(ModelError, match=r"closed: Permission denied; check .* or set DROPGEN_RT_HOME"):
            open_named(name)
    with pytest.raises(ModelError, match=r"a\.onnx: Permission denied; check the permissions"):
        open_named(str(nobody / "a.onnx"))


def test_a_data_folder_that_may_only_be_read(public, model, monkeypatch):
    """filelock would wait a minute for another process there."""
    monkeypatch.setenv("DROPGEN_RT_HOME", str(public))
    install(model, "mine", make_default=False)
    for path in (public, *public.rglob("*")):
        path.chmod(0o555 if path.is_dir() else 0o444)
    with without_rights_of_root():
        assert open_named("mine").sha256 == model.sha256
        with pytest.raises(OutputError, match=r"Permission denied; check .* or set DROPGEN_RT_HOME"):
            make_default("mine")
    assert default_name() == DEMO_MODEL

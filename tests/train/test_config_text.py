"""Options as text: TOML in and out, assignments, and what is neither."""

from pathlib import Path

import pytest

from dropgen_rt.errors import MissingInputError, UsageError
from dropgen_rt.manifest import Intensity
from dropgen_rt.train.config import PRESETS, build_config
from dropgen_rt.train.config_text import parse_assignments, read_toml


@pytest.mark.parametrize("preset", PRESETS)
def test_toml_gives_back_the_config(preset: str, tmp_path: Path) -> None:
    config = build_config(
        PRESETS[preset],
        {"intensity": {"kind": "range", "lower": -1024.0, "upper": 1024.0}, "augment": {"flip_axes": ["x", "y"]}},
    )
    config.save(tmp_path / "config.toml")
    again = build_config(read_toml(tmp_path / "config.toml"))
    assert again == config
    assert again.intensity == (Intensity("range", -1024.0, 1024.0),)
    assert again.augment.flip_axes == ("x", "y")


def test_toml_gives_back_an_intensity_of_each_channel(tmp_path: Path) -> None:
    config = build_config(parse_assignments(['intensity=[{kind = "range", lower = 0, upper = 80}, {}]']))
    assert config.intensity == (Intensity("range", 0.0, 80.0), Intensity())
    config.save(tmp_path / "config.toml")
    assert build_config(read_toml(tmp_path / "config.toml")) == config


@pytest.mark.parametrize("value", [[], "CT", 3, [{}, "CT"], [{"unit": "HU"}], [{"kind": "range"}]])
def test_what_are_no_intensities_is_refused(value: object) -> None:
    with pytest.raises(UsageError, match=r"^intensity"):
        build_config({"intensity": value})


@pytest.mark.parametrize("name", ['a "b"', "back\\slash", "line\nbreak", "é, \t and \x01"])
def test_any_files_name_comes_back(name: str, tmp_path: Path) -> None:
    build_config({"encoder": name}).save(tmp_path / "config.toml")
    assert read_toml(tmp_path / "config.toml")["encoder"] == name


def test_assignments() -> None:
    options = parse_assignments(["augment.noise=0.1", "augment.flip_axes=['x']", "method=erm", "window=[16, 16, 16]"])
    config = build_config(options, {"levels": 2})
    assert (config.augment.noise, config.augment.flip_axes, config.method) == (0.1, ("x",), "erm")
    assert config.window == (16, 16, 16)


def test_files_and_assignments_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(MissingInputError, match="no such file"):
        read_toml(tmp_path / "none.toml")
    with pytest.raises(MissingInputError, match=r"a folder; give a config\.toml"):
        read_toml(tmp_path)
    (tmp_path / "bad.toml").write_text("steps = = 3")
    with pytest.raises(UsageError, match="not TOML"):
        read_toml(tmp_path / "bad.toml")
    for text in ("steps", "a b=3", "=3"):
        with pytest.raises(UsageError, match="accepted is NAME=VALUE"):
            parse_assignments([text])

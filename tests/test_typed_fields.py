"""What files say of themselves: every field of a real manifest with every wrong kind of value, refused in one line."""

import copy
import json
import math
from dataclasses import dataclass

import numpy as np
import pytest
from click.testing import CliRunner

from dropgen_rt.cli import main
from dropgen_rt.engine_files import EngineRecord
from dropgen_rt.errors import ModelError
from dropgen_rt.manifest import METADATA_KEY, Manifest
from dropgen_rt.store import open_named
from dropgen_rt.typed_fields import MAX_DEPTH, FieldError, parse_json, read_fields

HUGE = 10**400
# What is never right where JSON holds a value of the key's type.
WRONG = {
    str: (5, 1.5, True, None, [], {}, ["a"], "a\nb", "\ud800", "x" * 20_000),
    bool: (0, 1, "true", None, [], {}),
    int: ("x", "5", "²", 1.5, True, None, [], {}, HUGE, -HUGE, math.nan),
    float: ("0.5", True, None, [], {}, math.nan, math.inf, -math.inf, HUGE),
    list: (5, "x", True, None, {}, [None], [[]], [{}], "xyz"),
    dict: (5, "x", True, None, [], [{}]),
}
# Labels need no DICOM codes; an engine built ahead of time has not met the gate.
MAY_BE_NONE = (("code",), ("category",), ("gate",))


def places(value, path=()):
    """Every value inside, itself included, by its path; what was trained with is free text and is left out."""
    yield path, value
    if path != ("training",) and isinstance(value, (dict, list)):
        for key, item in value.items() if isinstance(value, dict) else enumerate(value):
            yield from places(item, (*path, key))


def changed(data, path, value):
    if not path:
        return value
    data = copy.deepcopy(data)
    inner = data
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    return data


def without(data, path):
    data = changed(data, path, None)
    inner = data
    for key in path[:-1]:
        inner = inner[key]
    del inner[path[-1]]
    return data


def mutations(data):
    """(path, wrong value, whole data) for every place and every wrong value."""
    for path, value in places(data):
        for wrong in WRONG.get(type(value), ()):
            if wrong is not None or path[-1:] not in MAY_BE_NONE:
                yield path, wrong, changed(data, path, wrong)
        if value is None and path[-1:] in MAY_BE_NONE:
            for wrong in (5, "SCT", ["a", "b"], ["a", "b", 3], {}, ["", "", ""]):
                yield path, wrong, changed(data, path, wrong)


@pytest.fixture(scope="module")
def real():
    """The demo model's manifest, and one label with codes."""
    data = json.loads(open_named("brain9").manifest.to_json())
    data["labels"] = data["labels"][:2]
    data["labels"][0]["code"] = ["10200004", "SCT", "Liver"]
    data["source"]["modality"] = ["MR"]
    return data


def test_the_unchanged_one_is_read(real):
    assert json.loads(Manifest.from_json(json.dumps(real)).to_json()) == real


def test_every_field_with_every_wrong_value(real):
    tried = list(mutations(real))
    assert len(tried) > 300
    for path, wrong, data in tried:
        shown = f"{path} {str(wrong)[:30]!r}"
        with pytest.raises(ModelError) as caught:
            print("not refused:", shown, Manifest.from_json(json.dumps(data)))
        text = str(caught.value)
        assert text.isprintable() and len(text) < 600, shown
        assert path == () or path == ("schema",) or str(path[0]).rstrip("s") in text, (shown, text)


@pytest.mark.parametrize("name", ["name", "labels", "spacing_mm", "window", "stride", "intensity", "schema"])
def test_a_field_that_is_missing(real, name):
    with pytest.raises(ModelError, match=r"is missing|not a dropgen-rt manifest"):
        Manifest.from_json(json.dumps(without(real, (name,))))


VALUES = [
    ({"name": ""}, "accepted are a name"),
    ({"largest_batch": -1}, "largest_batch -1"),
    ({"golden_sha256": "../../x"}, r"golden_sha256 '\.\./\.\./x'"),
    ({"window": [8192, 8192, 8192]}, "has more than 134217728 voxels"),
    ({"spacing_mm": [1e-300, 1, 1]}, "is not three lengths in mm"),
    ({"spacing_mm": [1e300, 1, 1]}, "is not three lengths in mm"),
    ({"intensity": {"kind": "percentile", "lower": -1, "upper": 99}}, "accepted are 0 to 100"),
    ({"intensity": {"kind": "range", "lower": "0", "upper": "1"}}, r"intensity\.lower: '0' is not a finite number"),
    ({"intensity": {"kind": "range", "lower": -1e308, "upper": 1e308}}, r"accepted are -1e\+30 to 1e\+30"),
    ({"intensity": {"kind": "range", "lower": 0, "upper": 1e-300}}, "1e-30 apart or more"),
    ({"intensity": {"kind": "range", "lower": 0}}, r"intensity\.upper: is missing"),
    ({"intensity": [{"lower": 0, "upper": 9}]}, r"intensity\.kind: is missing"),
    ({"schema": "1.1\n"}, "not a dropgen-rt manifest"),
    ({"schema": "²"}, "not a dropgen-rt manifest"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "message"), VALUES, ids=[str(change) for change, _ in VALUES])
def test_values_that_no_model_has(real, change, message):
    with pytest.raises(ModelError, match=message):
        Manifest.from_json(json.dumps(real | change))


@pytest.mark.parametrize("opening", ["[", '{"a":'])
def test_deep_nesting(tiny, opening):
    closing = "]" if opening == "[" else "}"
    for text in (opening * 100_000, opening * 400 + "0" + closing * 400):
        with pytest.raises(ModelError):
            Manifest.from_json(text)
        whole = tiny.manifest().to_json().replace('"training": {}', f'"training": {{"x": {text}}}')
        with pytest.raises(ModelError, match=f"nested deeper than {MAX_DEPTH}|not a dropgen-rt manifest"):
            Manifest.from_json(whole)


def test_each_is_one_line_and_exit_code_4_on_the_command_line(tiny, tmp_path, home):
    """A sample of the same: opened by the command that a user would give the file to."""
    path, data = tmp_path / "bad.onnx", json.loads(tiny.manifest().to_json())
    tried = list(mutations(data))
    for place, wrong, mutant in tried[:: len(tried) // 60]:
        path.write_bytes(tiny.onnx({METADATA_KEY: json.dumps(mutant)}))
        result = CliRunner().invoke(main, ["build-engine", str(path)])
        assert result.exit_code == 4, (place, wrong, result.output, result.exception)
        assert result.stderr.startswith(f"error: {path}: ") and result.stderr.count("\n") == 1
        assert not (home / "models").exists()


def test_a_thousand_damaged_texts(tiny):
    """Bytes changed at random: a ModelError of one line, or a manifest that means what its own text says."""
    text, rng = tiny.manifest().to_json(), np.random.default_rng(20261123)
    pieces = ['"', "{", "}", "[", "]", "0", "9" * 30, "-", "null", "true", "\\u0000", "NaN", ",", ":", "1e999", "é"]
    refused = 0
    for _ in range(1000):
        damaged = text
        for _ in range(rng.integers(1, 4)):
            at, length = int(rng.integers(len(damaged))), int(rng.integers(0, 9))
            damaged = damaged[:at] + str(rng.choice(pieces)) + damaged[at + length :]
        try:
            manifest = Manifest.from_json(damaged)
        except ModelError as error:
            refused += 1
            assert str(error).isprintable()
        else:
            assert Manifest.from_json(manifest.to_json()) == manifest
    assert 500 < refused < 1000


@dataclass(frozen=True)
class Sample:
    size: tuple[int, int]
    note: str = "none"


def test_strangers_are_ignored_or_refused():
    data = {"size": [1, 2], "sise": 3}
    assert read_fields(Sample, data, unknown="ignore") == Sample((1, 2))
    with pytest.raises(FieldError, match=r"it\.sise: no such field; accepted are size, note"):
        read_fields(Sample, data, "it", unknown="refuse")


@pytest.mark.parametrize("text", ["", "[" * 100_000, "{", "\0", "9" * 5000])
def test_json_that_cannot_be_parsed(text):
    with pytest.raises(ValueError, match=r"."):
        parse_json(text)


def test_records_of_engines_are_checked_by_the_same(built_record):
    data = json.loads(built_record.to_json())
    assert EngineRecord.from_json(json.dumps(data)) == built_record
    for path, wrong, mutant in mutations(data):
        if path[:2] == ("gate", "dice") and wrong in (None, [None]):
            continue  # a label that no window has
        with pytest.raises(ValueError, match=r"."):
            print("not refused:", path, wrong, EngineRecord.from_json(json.dumps(mutant)))


@pytest.fixture
def built_record(model_file, home):
    from dropgen_rt.build import BuildOptions, build

    return build(model_file, BuildOptions(engine="openvino", precision="fp32"), lambda line: None)

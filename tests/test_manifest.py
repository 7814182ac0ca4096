"""The manifest: through JSON and back, across minor versions, and what it refuses."""

import json
import math

import pytest

from dropgen_rt.errors import ModelError
from dropgen_rt.manifest import SCHEMA, Intensity, Label, Manifest, each_channel


def test_it_survives_json(tiny):
    manifest = tiny.manifest(
        channels=("T1", "T2"), overlap=0.25, blend="constant", placement="body", components="largest",
        orientation="RAS", notice="of its data", training={"steps": 5, "config": {"seed": 0}},
        intensity=(Intensity("percentile", 1.0, 99.0),),
    )  # fmt: skip
    assert Manifest.from_json(manifest.to_json()) == manifest


def test_each_channel_may_have_an_intensity_of_its_own(tiny):
    each = (Intensity("range", -1024.0, 1024.0), Intensity())
    manifest = tiny.manifest(channels=("CT", "PET"), intensity=each)
    assert [table["kind"] for table in json.loads(manifest.to_json())["intensity"]] == ["range", "percentile"]
    assert Manifest.from_json(manifest.to_json()) == manifest
    assert each_channel(manifest.intensity, 2) == each
    with pytest.raises(ModelError, match="intensity has 2 tables for 3 channels; accepted are one for all"):
        tiny.manifest(channels=("CT", "PET", "T1"), intensity=each)
    with pytest.raises(ModelError, match="intensity has 0 tables for 1 channels"):
        tiny.manifest(intensity=())


def test_one_intensity_is_a_table_as_older_versions_read_it(tiny):
    manifest = tiny.manifest(channels=("T1", "T2"), intensity=(Intensity("percentile", 1.0, 99.0),))
    assert json.loads(manifest.to_json())["intensity"] == {"kind": "percentile", "lower": 1.0, "upper": 99.0}
    assert each_channel(manifest.intensity, 2) == manifest.intensity * 2


def test_classes_count_the_background(tiny):
    assert tiny.manifest().classes == 3


def changed(tiny, **changes):
    """The tiny manifest's JSON with fields changed; a change of None drops the field."""
    data = json.loads(tiny.manifest().to_json()) | changes
    return json.dumps({key: value for key, value in data.items() if value is not None})


def test_a_newer_minor_version_may_know_more(tiny):
    label = {"value": 1, "name": "a", "colour": [1, 2, 3], "weight": 7}
    intensity = {"kind": "range", "lower": 0, "upper": 1, "unit": "HU"}
    text = changed(tiny, schema="1.99", invention=[1, 2], labels=[label], intensity=intensity)
    manifest = Manifest.from_json(text)
    assert manifest.labels == (Label(1, "a", (1, 2, 3)),)
    assert manifest.schema == "1.99"


@pytest.mark.parametrize("schema", ["2.0", "0.9", "10.0", 2])
def test_another_major_version_is_refused(tiny, schema):
    with pytest.raises(ModelError, match=rf"schema {schema}, this version reads 1\.x; export the model again"):
        Manifest.from_json(changed(tiny, schema=schema))


@pytest.mark.parametrize(
    "text", ["", "not json", "[]", "3", '"text"', "null", "{}", '{"schema": "new"}', '{"schema": null}']
)
def test_what_is_no_manifest_is_refused(text):
    with pytest.raises(ModelError, match="not a dropgen-rt manifest; export it again"):
        Manifest.from_json(text)


@pytest.mark.parametrize("field", ["name", "labels", "spacing_mm", "window", "stride", "intensity"])
def test_a_missing_field_is_refused(tiny, field):
    with pytest.raises(ModelError, match=f"lacks or garbles a field.*{field}"):
        Manifest.from_json(changed(tiny, **{field: None}))


@pytest.mark.parametrize(
    "change",
    [
        {"labels": 5},
        {"labels": ["a"]},
        {"labels": [{"value": 1, "name": "a", "colour": ["red", 0, 0]}]},
        {"labels": [{"value": 1, "name": "a"}]},
        {"labels": [{"value": "1", "name": "a", "colour": [0, 0, 0]}]},
        {"labels": []},
        {"intensity": "CT"},
        {"intensity": {"kind": "window", "lower": 0, "upper": 1}},
        {"spacing_mm": ["a", 1, 1]},
        {"spacing_mm": [math.nan, 1, 1]},
        {"spacing_mm": [1, math.inf, 1]},
        {"spacing_mm": [1, 1]},
        {"spacing_mm": 1},
        {"window": [16, 16]},
        {"stride": 0},
        {"stride": "one"},
        {"orientation": "LPX"},
        {"orientation": 3},
        {"overlap": 1.0},
        {"overlap": "half"},
        {"placement": "head"},
        {"blend": "median"},
        {"components": "each"},
        {"channels": []},
    ],
    ids=str,
)
def test_a_garbled_field_is_refused(tiny, change):
    with pytest.raises(ModelError) as caught:
        Manifest.from_json(changed(tiny, **change))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("values", [(), (2,), (1, 3), (2, 1), (1, 1)])
def test_label_values_count_from_one(tiny, values):
    labels = tuple(Label(value, f"label {value}", (0, 0, 0)) for value in values)
    with pytest.raises(ModelError, match="label values must count 1, 2, 3"):
        tiny.manifest(labels=labels)


@pytest.mark.parametrize("label", [(0, "a", (0, 0, 0)), (1, "", (0, 0, 0)), (1, "a", (0, 0)), (1, "a", (0, 0, 256))])
def test_a_label_is_checked(label):
    with pytest.raises(ModelError, match="value >= 1, a name, colour 0-255"):
        Label(*label)


@pytest.mark.parametrize("spacing_mm", [(1.0, 1.0), (0.0, 1.0, 1.0), (1.0, -1.0, 1.0)])
def test_spacing_is_three_lengths(tiny, spacing_mm):
    with pytest.raises(ModelError, match="is not three lengths in mm"):
        tiny.manifest(spacing_mm=spacing_mm)


@pytest.mark.parametrize(("window", "stride"), [((16, 16), 1), ((0, 16, 16), 1), ((16, 20, 16), 16)])
def test_a_window_is_three_multiples_of_the_stride(tiny, window, stride):
    with pytest.raises(ModelError, match=f"is not three multiples of the stride {stride}"):
        tiny.manifest(window=window, stride=stride)


@pytest.mark.parametrize("bounds", [(1.0, 1.0), (2.0, 1.0), (math.nan, 1.0)])
def test_intensity_bounds_have_an_order(bounds):
    with pytest.raises(ModelError, match="the first must be the smaller"):
        Intensity("range", *bounds)


def test_an_unknown_kind_of_intensity_is_refused():
    with pytest.raises(ModelError, match="accepted are 'percentile' and 'range'"):
        Intensity("z-score")  # type: ignore[arg-type]


def test_this_version_writes_its_own_schema(tiny):
    assert json.loads(tiny.manifest().to_json())["schema"] == SCHEMA == "1.4"

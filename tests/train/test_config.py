"""One config: presets, layers, and what is refused."""

import pytest

from dropgen_rt.errors import UsageError
from dropgen_rt.train.config import IMAGE_FIRST, PRESETS, TrainConfig, build_config, preset_for


def test_later_layers_win_and_tables_merge() -> None:
    config = build_config(
        PRESETS["tiny"], {"steps": 10, "augment": {"noise": 0.2, "shear": 0.1}}, {"augment": {"shear": 0.0}}
    )
    assert (config.steps, config.width) == (10, PRESETS["tiny"]["width"])
    assert (config.augment.noise, config.augment.shear, config.augment.gibbs) == (0.2, 0.0, (0.0, 0.33))


@pytest.mark.parametrize("method", ["dropgen", "concat", "erm", "features"])
def test_the_tiny_preset_suits_every_method(method: str) -> None:
    """The image comes first for those that see it beside features; the last layer that names a method decides."""
    given = [{"method": "erm"}, {"steps": 10}, {"method": method}]
    config = build_config(preset_for("tiny", given), *given)
    both = method in ("dropgen", "concat")
    expected = tuple(IMAGE_FIRST.values()) if both else (0.0, 1.0, 0.0)
    assert (config.image_first, config.feature_scale, config.settle) == expected
    assert (config.method, config.steps, config.width, config.norm) == (method, 10, 8, "instance")


def test_the_method_is_dropgen_unless_named() -> None:
    assert preset_for("tiny", [{"steps": 10}]) == PRESETS["tiny"]


def test_weights_to_start_from_know_features_already() -> None:
    config = build_config(preset_for("tiny", [], trained={"feature_scale": 0.3, "norm": "batch", "padding": "reflect"}))
    assert (config.image_first, config.feature_scale, config.settle) == (0.0, 0.3, 0.0)
    assert (config.norm, config.padding) == ("batch", "reflect")
    image_alone = preset_for("tiny", [{"method": "erm"}], {"feature_scale": 1.0, "norm": "instance"})
    assert build_config({"method": "erm"}, image_alone).norm == "instance"


def test_norms_and_borders_of_monais_segmentors_are_their_own() -> None:
    given = [{"segmentor": "unet"}, {"segmentor": "dynunet"}]  # a file's, and an option over it
    config = build_config(preset_for("tiny", given), *given)
    assert (config.segmentor, config.norm, config.width) == ("dynunet", "batch", PRESETS["tiny"]["width"])
    assert "norm" in preset_for("tiny", given[::-1])
    with pytest.raises(UsageError, match="norm 'instance': dynunet has norms of its own; give --norm batch"):
        TrainConfig(norm="instance", segmentor="dynunet")
    assert build_config(preset_for("paper", given), *given).padding == "zeros"  # the word for none of ours
    with pytest.raises(UsageError, match="padding 'reflect': dynunet has paddings of its own; give --padding zeros"):
        TrainConfig(padding="reflect", segmentor="dynunet")


def test_the_paper_preset_is_the_papers() -> None:
    config = build_config(PRESETS["paper"])
    assert (config.steps, config.batch, config.width, config.levels, config.learning_rate) == (250_000, 4, 20, 5, 2e-4)
    assert (config.drop, config.weight_decay, config.precision, config.validate_every) == (0.75, 1e-5, "bf16", 1000)
    assert (config.norm, config.padding, config.image_first, config.feature_scale) == ("batch", "reflect", 0.0, 1.0)
    assert (config.augment.probability, config.augment.rotation_degrees) == (0.33, 45.0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"drop": 1.0}, "drop 1.0"),
        ({"image_first": 1.0}, "image_first 1.0: accepted is a share from 0"),
        (
            {"settle": 0.6, "image_first": 0.5},
            "image_first 0.5 and settle 0.6: accepted are shares from 0 that add up",
        ),
        ({"feature_scale": 0.0}, "feature_scale 0.0: accepted is a number above 0"),
        ({"image_first": 0.5, "method": "erm"}, "with method 'erm': they are for"),
        ({"feature_scale": 0.1, "method": "features"}, "with method 'features'"),
        ({"method": "magic"}, "method 'magic': accepted are dropgen, erm, features, concat"),
        ({"segmentor": "magic"}, "segmentor 'magic'"),
        ({"loss": "magic"}, "loss 'magic'"),
        ({"precision": "int8"}, "precision 'int8'"),
        ({"steps": 0}, "at least 1"),
        ({"steps": 1.5}, "steps 1.5: accepted is a value such as 1000"),
        ({"steps": True}, "steps True"),
        ({"coverage": 1.5}, "coverage 1.5: accepted is a share from 0"),
        ({"subjects": -1}, "subjects -1"),
        ({"window": (48, 48, 40)}, "multiples of 16"),
        ({"window": (48, 48)}, "window"),
        ({"learning_rate": float("nan")}, "learning_rate nan: accepted is a number above 0"),
        ({"gradient_clip": 0.0}, "gradient_clip 0.0: accepted is a number above 0"),
        ({"weight_decay": -1.0}, "weight_decay -1.0: accepted is a number from 0"),
        ({"learning_rate": 1e38}, "learning_rate 1e+38 with weight_decay 1e-05: a step would pass what float32"),
        ({"weight_decay": 1e42}, "learning_rate 0.001 with weight_decay 1e+42: a step would pass what float32"),
        ({"seed": 2**40}, "seed 1099511627776: accepted is a whole number from 0"),
        ({"settle": float("nan")}, "settle nan"),
        ({"spacing_mm": (float("nan"), 1.0, 1.0)}, "accepted are three lengths above 0"),
        ({"steps": {"a": 1}}, "steps {'a': 1}: accepted is a value such as"),
        ({"augment": {"gibbs": (0.0, 3.0)}}, "accepted are two numbers from 0 to 1, the smaller first"),
        ({"augment": {"noise": float("nan")}}, "noise nan: accepted is a number from 0"),
        ({"window": (32, 32, 48), "augment": {"quarter_turns": True}}, "x and y are to be equal"),
        ({"window": (48, 48, 48), "levels": 5}, "multiples of 32"),
        ({"spacing_mm": (0.0, 1.0, 1.0)}, "three lengths"),
        ({"stepps": 1}, "stepps: no such option; accepted are steps, batch"),
        ({"augment": {"nois": 1}}, "augment.nois: no such option; accepted are augment.probability"),
        ({"augment": {"probability": 2}}, "augment.probability 2.0"),
        ({"augment": {"intensity_curve": -0.1}}, "augment.intensity_curve -0.1: accepted is a number from 0 to 1"),
        ({"augment": {"flip_axes": ["q"]}}, "augment.flip_axes"),
        ({"augment": {"gamma": [2.0, 0.5]}}, "augment.gamma"),
        ({"augment": 3}, "augment 3: accepted is a table"),
        ({"intensity": {"kind": "magic"}}, "intensity kind 'magic'"),
    ],
)
def test_options_out_of_range(options: dict, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        build_config(options)
    assert message in str(caught.value)


def test_first_and_last_steps() -> None:
    config = TrainConfig(steps=10, image_first=0.5, settle=0.2)
    assert [config.image_alone(step) for step in range(10)] == 5 * [True] + 5 * [False]
    assert [config.settling(step) for step in range(10)] == 8 * [False] + 2 * [True]
    assert TrainConfig(steps=10, image_first=0.9, settle=0.1).settling(9)
    assert not any(
        TrainConfig(steps=10).image_alone(step) or TrainConfig(steps=10).settling(step) for step in range(10)
    )


def test_only_dropgen_drops() -> None:
    assert TrainConfig(method="dropgen", drop=0.5).channel_drop == 0.5
    assert TrainConfig(method="concat", drop=0.5).channel_drop == 0.0

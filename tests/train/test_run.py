"""What is chosen for a data set, and what a person is told of it."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import SimpleITK as sitk  # noqa: N813  the name its users know
import torch

from dropgen_rt.console import Console
from dropgen_rt.errors import UsageError
from dropgen_rt.manifest import Intensity
from dropgen_rt.train.assemble import make_network
from dropgen_rt.train.config import TrainConfig
from dropgen_rt.train.dataset import read_dataset
from dropgen_rt.train.loop import train
from dropgen_rt.train.run import configure

CPU = torch.device("cpu")


def chosen(balls: Path, tmp_path: Path, assignments: list[str], **options: Any) -> TrainConfig:
    return configure(
        balls, tmp_path / "run", preset="tiny", file=None, options={"window": (16, 16, 16)} | options,
        assignments=assignments, split=None, cache=tmp_path / "cache", workers=1, console=Console(False), device=CPU,
    )  # fmt: skip


def test_voxels_that_are_made_larger_are_told(balls: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = chosen(balls, tmp_path, ["coverage=0.6"])  # scans of 24 x 22 x 20 voxels of 1 mm
    lines = capsys.readouterr().out.splitlines()
    assert min(config.spacing_mm) > 1 and max(config.spacing_mm) < 1.25
    assert config.coverage == 0.6
    assert lines[-1] == (
        "the data's own spacing is 1 x 1 x 1 mm, at which a window would be mostly padding or see too little of "
        "a scan; --spacing-mm X Y Z takes another"
    )


def test_coverage_beside_a_spacing_is_told(balls: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    told = "coverage 0.5: of no use beside spacing_mm, which is taken as it is given"
    chosen(balls, tmp_path, ["coverage=0.5"], spacing_mm=(1.0, 1.0, 1.0))
    assert told in capsys.readouterr().out.splitlines()
    chosen(balls, tmp_path / "other", [], spacing_mm=(1.0, 1.0, 1.0))
    assert "coverage" not in capsys.readouterr().out


@pytest.mark.parametrize(("method", "told"), [("concat", True), ("features", True), ("erm", True), ("dropgen", False)])
def test_dropout_that_a_method_does_without_is_told(
    balls: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], method: str, told: bool
) -> None:
    config = chosen(balls, tmp_path, ["drop=0.5"], method=method)
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("drop")]
    assert lines == ([f"drop 0.5: method {method} drops no channels, only dropgen does"] if told else [])
    assert config.channel_drop == (0.0 if told else 0.5)
    chosen(balls, tmp_path / "other", [], method=method)  # the preset's own is nothing that anyone asked for
    assert "drops no channels" not in capsys.readouterr().out


@pytest.mark.parametrize(("kind", "width", "made"), [("segresnet", 20, 16), ("swinunetr", 8, 12), ("unet", 20, None)])
def test_a_width_that_a_segmentor_does_not_take_is_told(
    balls: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str, width: int, made: int | None
) -> None:
    config = chosen(balls, tmp_path, [], method="erm", segmentor=kind, width=width, window=(64, 64, 64))
    told = [line for line in capsys.readouterr().out.splitlines() if line.startswith("width")]
    step = {16: 8, 12: 12}.get(made or 0)
    assert told == (
        [f"width {width}: {kind} takes multiples of {step}; it is made {made} channels wide"] if made else []
    )
    network = make_network(read_dataset(balls), config, None)
    first = next(layer for layer in network.segmentor.modules() if isinstance(layer, torch.nn.Conv3d))
    assert first.out_channels == (made or width)


@pytest.mark.parametrize("share", [0.0, 0.5])
def test_a_training_on_the_image_first_begins_as_the_images_own(balls: Path, encoder: Path, share: float) -> None:
    """Any other begins as published: with features as large as the image."""
    config = TrainConfig(window=(16,) * 3, levels=2, image_first=share)
    first = make_network(read_dataset(balls), config, encoder).segmentor.input_layers[0].weight
    assert bool((first[:, 1:] == 0).all()) == (share > 0) == (not (first != 0).all())


@pytest.mark.parametrize(("kind", "told"), [("swinunetr", True), ("segresnet", False)])
def test_levels_that_a_segmentor_does_not_take_are_told(
    balls: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str, told: bool
) -> None:
    chosen(balls, tmp_path, [], method="erm", segmentor=kind, levels=3, window=(64, 64, 64))
    assert ("levels 3: swinunetr has a depth of its own" in capsys.readouterr().out) == told


@pytest.mark.parametrize(
    ("assignments", "options"), [(["coverage=0"], {}), ([], {}), (["coverage=0.6"], {"spacing_mm": (2.0, 1.0, 1.0)})]
)
def test_the_own_spacing_and_a_given_one_are_not(
    balls: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], assignments: list[str], options: dict[str, Any]
) -> None:
    config = chosen(balls, tmp_path, assignments, **options)
    assert config.spacing_mm == options.get("spacing_mm", (1.0, 1.0, 1.0))
    assert "own spacing" not in capsys.readouterr().out


def test_scans_of_one_patient_are_told(balls: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for index in range(6):
        for folder, end in (("imagesTr", "_0000.nii.gz"), ("labelsTr", ".nii.gz")):
            path = balls / folder / f"case{index}{end}"
            path.rename(path.with_name(f"p{index // 2}_frame{index % 2}{end}"))
    chosen(balls, tmp_path, [])
    told = "by their names, 6 cases of 3 patients; each is on one side of the split"
    assert told in capsys.readouterr().out.splitlines()


def test_one_image_on_two_sides_and_a_label_that_no_training_case_has_are_told(
    balls: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for index in (0, 1, 2, 3, 5):  # case4 validates
        path = balls / "labelsTr" / f"case{index}.nii.gz"
        image = sitk.ReadImage(str(path))
        sitk.WriteImage(image * sitk.Cast(image == 1, sitk.sitkUInt8), str(path))
    images = balls / "imagesTr"
    (images / "case4_0000.nii.gz").write_bytes((images / "case1_0000.nii.gz").read_bytes())
    chosen(balls, tmp_path, [])
    told = [line for line in capsys.readouterr().out.splitlines() if line.startswith("warning")]
    assert [line.split(";")[0] for line in told] == [
        "warning: label 'bright': in no training case, so it cannot be learnt",
        "warning: case1 and case4 are one image on two sides of the split",
    ]


def test_precision_that_is_refused_is_refused_before_files_are_read(balls: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="bf16 on a CPU with segmentor dynunet"):
        chosen(balls, tmp_path, [], precision="bf16", segmentor="dynunet")
    assert not (tmp_path / "cache").exists() and not (tmp_path / "run").exists()


def test_fp16_on_a_cpu_is_told(balls: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    chosen(balls, tmp_path, [], precision="fp16", method="erm")
    assert "precision fp16: PyTorch computes it many times more slowly" in capsys.readouterr().out


@pytest.mark.parametrize("levels", [3, 5, 6])
def test_a_presets_window_fits_other_levels(balls: Path, tmp_path: Path, levels: int) -> None:
    config = configure(
        balls, tmp_path / "run", preset="tiny", file=None, options={"levels": levels}, assignments=[], split=None,
        cache=tmp_path / "cache", workers=1, console=Console(True), device=CPU,
    )  # fmt: skip
    assert all(edge % 2**levels == 0 for edge in config.window)


@pytest.mark.parametrize(
    ("norm", "padding", "smallest"), [("batch", "zeros", 32), ("batch", "reflect", 64), ("instance", "zeros", 64)]
)
def test_suggested_windows_suit_norms_and_borders(
    balls: Path, tmp_path: Path, norm: str, padding: str, smallest: int
) -> None:
    """Five levels, scans of 24 x 22 x 20: one voxel at the bottleneck is too few for instance norms or to reflect."""
    config = configure(
        balls, tmp_path / "run", preset="paper", file=None, options={"norm": norm, "padding": padding}, assignments=[],
        split=None, cache=tmp_path / "cache", workers=1, console=Console(True), device=CPU,
    )  # fmt: skip
    assert config.window == (smallest,) * 3


@pytest.mark.parametrize(
    ("scale", "offset", "told"), [(20.0, -1000.0, False), (2.0, 2000.0, True), (0.01, 0.0, True), (10.0, 1024.0, True)]
)
def test_ct_that_is_no_hounsfield_is_told(
    balls: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], scale: float, offset: float, told: bool
) -> None:
    """As it is, shifted past the range, scaled to 0 to 1, and with the 1024 that some files add."""
    for path in (balls / "imagesTr").iterdir():
        image = sitk.ReadImage(str(path))
        sitk.WriteImage(image * scale + offset, str(path))
    description = json.loads((balls / "dataset.json").read_text()) | {"channel_names": {"0": "CT"}}
    (balls / "dataset.json").write_text(json.dumps(description))
    config = chosen(balls, tmp_path, [])
    assert config.intensity == (Intensity("range", -1024.0, 1024.0),)
    assert ("warning: CT: of intensities from" in capsys.readouterr().out) == told
    config = chosen(balls, tmp_path, ["intensity.kind=percentile"])
    assert config.intensity == (Intensity(),)
    assert "warning: CT" not in capsys.readouterr().out


def test_a_range_is_asked_for_with_its_bounds(balls: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"intensity\.kind 'range': give its bounds, too"):
        chosen(balls, tmp_path, ["intensity.kind=range"])
    config = chosen(balls, tmp_path, ["intensity.kind=range", "intensity.lower=0", "intensity.upper=120"])
    assert config.intensity == (Intensity("range", 0.0, 120.0),)


@pytest.fixture
def ct_beside_pet(balls: Path) -> Path:
    """The balls as PET, and as CT from air to soft tissue beside it."""
    for path in sorted((balls / "imagesTr").iterdir()):
        pet = sitk.ReadImage(str(path))
        sitk.WriteImage(pet, str(path).replace("_0000", "_0001"))
        sitk.WriteImage(sitk.Round(pet * 10.0 - 1000.0), str(path))
    describe_as(balls, {"0": "CT", "1": "PET"})
    return balls


def describe_as(folder: Path, channels: dict[str, str]) -> None:
    description = json.loads((folder / "dataset.json").read_text())
    (folder / "dataset.json").write_text(json.dumps(description | {"channel_names": channels}))


CT_THEN_PET = (Intensity("range", -1024.0, 1024.0), Intensity())


def test_ct_beside_another_kind_keeps_its_range(
    ct_beside_pet: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert chosen(ct_beside_pet, tmp_path, []).intensity == CT_THEN_PET
    said = capsys.readouterr().out
    assert "5 training cases, CT and other, channels CT, PET" in said
    assert "intensities by range -1024 to 1024 (CT), percentile 0.5 to 99.5 (PET)" in said
    assert chosen(ct_beside_pet, tmp_path, ["intensity.kind=percentile"]).intensity == (Intensity(),)
    assert chosen(ct_beside_pet, tmp_path, ["intensity=[{}]"]).intensity == (Intensity(),)
    narrow = chosen(ct_beside_pet, tmp_path, ["intensity=[{kind='range', lower=-200, upper=300}, {upper=99}]"])
    assert narrow.intensity == (Intensity("range", -200.0, 300.0), Intensity("percentile", 0.5, 99.0))


def test_intensities_of_another_number_of_channels_are_refused(ct_beside_pet: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="3 tables, channels of the data set: CT, PET; give one table for all"):
        chosen(ct_beside_pet, tmp_path, ["intensity=[{}, {}, {}]"])


@pytest.mark.parametrize(
    ("assignments", "message"),
    [
        (["intensity.lower=1"], "intensity: a list here, of which no part is set by name; give it whole"),
        (["intensity={}"], "intensity: a list here"),
        (["intensity=[{kind='range', lower=0, upper=9}, {}]", "intensity.upper=99"], "intensity: a list here"),
        (["intensity=[{kind='range'}, {}]"], r"intensity\[0\] of kind 'range': give its bounds, too"),
        (["intensity=[{}, 'CT']"], r"intensity\[1\] 'CT': accepted is a table"),
        (["intensity.kind=range"], r"intensity\.kind 'range': give its bounds, too"),
    ],
)
def test_parts_of_intensities_that_would_lose_the_rest(
    ct_beside_pet: Path, tmp_path: Path, assignments: list[str], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        chosen(ct_beside_pet, tmp_path, assignments)


def test_bounds_alone_are_of_the_kind_that_the_data_have(balls: Path, tmp_path: Path) -> None:
    describe_as(balls, {"0": "CT"})
    bounds = ["intensity.lower=-200", "intensity.upper=300"]
    assert chosen(balls, tmp_path, bounds).intensity == (Intensity("range", -200.0, 300.0),)
    describe_as(balls, {"0": "MRI"})
    with pytest.raises(UsageError, match="intensity percentiles -200"):
        chosen(balls, tmp_path, bounds)


def test_other_intensities_than_those_of_init_are_told(
    balls: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = TrainConfig(steps=1, window=(16, 16, 16), width=4, levels=2, method="erm", validate_every=1)
    train(balls, tmp_path / "first", config, None, False, lambda row: None)
    for assignments, told in (([], False), (["intensity.upper=98"], True)):
        configure(
            balls, tmp_path / "run", preset="tiny", file=None, options={"window": (16, 16, 16), "method": "erm"},
            split=None, cache=tmp_path / "cache", workers=1, console=Console(False), device=CPU,
            assignments=assignments, init=tmp_path / "first" / "best.pt",
        )  # fmt: skip
        warning = "--init was trained on intensities by percentile 0.5 to 99.5; to keep them, give --set 'intensity=[{"
        assert (warning in capsys.readouterr().out) == told


def test_a_copied_config_of_other_channels_is_refused(ct_beside_pet: Path, tmp_path: Path) -> None:
    """No run is there yet, so that the data set has not been held against it."""
    config = replace(
        chosen(ct_beside_pet, tmp_path, []), method="erm", image_first=0.0, feature_scale=1.0, levels=2, norm="batch"
    )
    describe_as(ct_beside_pet, {"0": "CT"})
    for path in (ct_beside_pet / "imagesTr").glob("*_0001.nii.gz"):
        path.unlink()
    with pytest.raises(UsageError, match="2 tables, channels of the data set: CT; give one table for all"):
        train(ct_beside_pet, tmp_path / "run", config, None, False, lambda row: None)


def test_a_run_of_several_kinds_is_begun_again_from_its_own_file(ct_beside_pet: Path, tmp_path: Path) -> None:
    config = chosen(ct_beside_pet, tmp_path, [])
    config.save(tmp_path / "config.toml")
    again = configure(
        ct_beside_pet, tmp_path / "again", preset="tiny", file=tmp_path / "config.toml", options={}, assignments=[],
        split=None, cache=tmp_path / "cache", workers=1, console=Console(False), device=CPU,
    )  # fmt: skip
    assert again == config

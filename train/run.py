"""A run from a person's options: the data set is looked at, what was not given is chosen, then it trains."""

from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from dropgen_rt.atomic import check_writable
from dropgen_rt.console import Console
from dropgen_rt.errors import ModelError, UsageError
from dropgen_rt.manifest import Intensity, intensity_told, plain_intensity
from dropgen_rt.store import make_folder
from dropgen_rt.train.assemble import trained_choices, trained_on, trained_steps
from dropgen_rt.train.config import MOST_LEVELS, TrainConfig, build_config, preset_for
from dropgen_rt.train.config_text import parse_assignments, read_toml, to_toml_value
from dropgen_rt.train.dataset import Dataset, read_dataset, refuse_other_channels
from dropgen_rt.train.device import require_sound_gradients
from dropgen_rt.train.distributed import Ranks
from dropgen_rt.train.fingerprint import Fingerprint
from dropgen_rt.train.patients import told
from dropgen_rt.train.prepare import default_cache
from dropgen_rt.train.segmentors import SWIN_STRIDE, WIDTH_STEPS, taken_width
from dropgen_rt.train.survey import Finding, absent, refuse_faults, survey
from dropgen_rt.words import by

# The default encoder halves four times; the published ones reflect at their bottleneck, which takes two voxels there. A
# segmentor may ask for more.
ENCODER_STRIDE, SMALLEST_EDGE = 16, 32
# The one where none is given.
DEFAULT_PRESET = "tiny"


def configure(
    data: Path,
    out: Path,
    *,
    preset: str | None,
    file: Path | None,
    options: Mapping[str, Any],
    assignments: Sequence[str],
    split: Path | None,
    cache: Path | None,
    workers: int | None,
    console: Console,
    device: torch.device,
    resume: bool = False,
    init: Path | None = None,
    ranks: Ranks | None = None,
) -> TrainConfig:
    """The config of a run: preset, then the data set's fingerprint, then file, options and assignments.

    With ``init``, the checkpoint that it starts from, features are scaled and norms and padding are as they are there,
    unless told otherwise. Writes ``fingerprint.json`` into ``out``. A resumed run starts from its own config.toml. Of
    several processes, ``ranks``, the first one looks at the data set. Raises InputError with every fault of the data
    set, ModelError for a broken checkpoint, or UsageError.
    """
    if not resume and _holds_a_run(out):
        raise UsageError(f"{out}: holds a run already; go on with it by --resume, or give another --out")
    given: list[Mapping[str, Any]] = [options, parse_assignments(assignments)]
    if file is not None:
        given.insert(0, read_toml(file))
    goes_on = resume and (out / "last.pt").is_file()
    if resume and not goes_on:
        console.line(f"{out}: no run there to go on with; one begins")
    below = preset_for(preset or DEFAULT_PRESET, given, None if init is None or goes_on else trained_choices(init))
    if resume and (out / "config.toml").is_file():
        if preset is not None:
            console.line(f"preset {preset}: not looked at, the run goes on with its own config.toml")
        check_writable(out / "config.toml")
        return build_config(read_toml(out / "config.toml"), *given)
    wanted = build_config(_fitting(below, given), *map(_without_bounds, given))
    for line in _not_as_asked(wanted, _named(given[-2:]), device):  # a file's are those of another run
        console.line(line)
    dataset, ranks = read_dataset(data, split), ranks or Ranks()
    _refuse_early(wanted, dataset, ranks, device)
    check_writable(make_folder(out) / "config.toml")
    if dataset.synthesis is not None:  # nothing to measure: images are made on the grid that is asked for
        for name in sorted(_named(given[-2:]) & {"augment", "coverage"}):
            console.line(f"{name}: of no use here, images are synthesised as synthesis.toml says")
        return wanted
    with ranks.first_before_others():
        found = fingerprint(data, dataset, cache, workers, console)
    found.save(make_folder(out) / "fingerprint.json")
    for line in (*found.lines(), *told(dataset.training, dataset.validation, dataset.testing)):
        console.line(line)
    config = build_config(below, suggest(found, wanted, given), *given)
    for line in _chosen(config, found, "spacing_mm" in _named(given), None if init is None else trained_on(init)):
        console.line(line)
    return config


def _chosen(
    config: TrainConfig, found: Fingerprint, spacing_given: bool, trained: tuple[Intensity, ...] | None
) -> Iterator[str]:
    """What a data set's fingerprint led to, for a person; ``trained`` are the intensities of --init."""
    yield (
        f"spacing {by(config.spacing_mm)} mm (x, y, z), window {by(config.window)} voxels (z, y, x), "
        f"intensities by {intensity_told(config.intensity, found.channels)}"
    )
    if trained and len(trained) in (1, len(found.channels)) and trained != config.intensity:
        yield (
            f"warning: --init was trained on intensities by {intensity_told(trained, found.channels)}; to keep them, "
            f"give --set 'intensity={to_toml_value([asdict(own) for own in trained])}'"
        )
    yield from found.doubts(config.intensity)
    if not spacing_given and config.spacing_mm != found.target_spacing_mm:
        yield (
            f"the data's own spacing is {by(found.target_spacing_mm)} mm, at which a window would be mostly padding "
            "or see too little of a scan; --spacing-mm X Y Z takes another"
        )


def _holds_a_run(out: Path) -> bool:
    """Whether a folder has one that made steps: one that memory did not hold is begun anew, with what was advised."""
    try:
        return (out / "last.pt").is_file() and trained_steps(out / "last.pt") > 0
    except ModelError:
        return True


def _without_bounds(layer: Mapping[str, Any]) -> Mapping[str, Any]:
    """Without bounds of intensities of a kind that is not told: the data have yet to tell which."""
    given = layer.get("intensity")
    if not isinstance(given, Mapping) or "kind" in given:
        return layer
    return {name: value for name, value in layer.items() if name != "intensity"}


def _refuse_early(wanted: TrainConfig, dataset: Dataset, ranks: Ranks, device: torch.device) -> None:
    """What can be told before every file is read."""
    dataset.few(wanted.subjects, wanted.seed)
    ranks.share(wanted.batch)
    require_sound_gradients(wanted, device)
    refuse_other_channels(dataset, wanted)


def _not_as_asked(wanted: TrainConfig, named: Set[str], device: torch.device) -> Iterator[str]:
    """A line for each choice that is taken otherwise than it was given, not at all, or to no good."""
    width = taken_width(wanted.segmentor, wanted.width)
    if width != wanted.width:
        yield (
            f"width {wanted.width}: {wanted.segmentor} takes multiples of {WIDTH_STEPS[wanted.segmentor]}; "
            f"it is made {width} channels wide"
        )
    if "levels" in named and wanted.segmentor == "swinunetr":
        yield f"levels {wanted.levels}: swinunetr has a depth of its own; only the window is made to fit them"
    if wanted.precision == "fp16" and device.type == "cpu":
        yield "precision fp16: PyTorch computes it many times more slowly than fp32 on a CPU; fp32 is advised"
    if {"coverage", "spacing_mm"} <= named:
        yield f"coverage {wanted.coverage:g}: of no use beside spacing_mm, which is taken as it is given"
    for name in ("drop", "settle"):
        if name in named and wanted.method != "dropgen":
            yield f"{name} {getattr(wanted, name):g}: method {wanted.method} drops no channels, only dropgen does"


def _fitting(below: Mapping[str, Any], given: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """A preset whose window, the largest that will be chosen, fits the number of levels that was asked for."""
    levels = {key: value for layer in (below, *given) for key, value in layer.items()}["levels"]
    if not isinstance(levels, int) or not 1 <= levels <= MOST_LEVELS:
        return dict(below)  # refused by the config's own check
    return {**below, "window": tuple(-(-edge // 2**levels) * 2**levels for edge in below["window"])}


def fingerprint(data: Path, dataset: Dataset, cache: Path | None, workers: int | None, console: Console) -> Fingerprint:
    """Of the training cases, once every file has been found sound. Raises FaultyDatasetError."""
    with console.progress("checking files", "cases") as progress:
        findings = survey(dataset.cases, dataset.table, make_folder(cache or default_cache()), workers, progress)
    refuse_faults(data, dataset.faults, findings, dataset.table)
    for line in _warnings(dataset, findings):
        console.line(f"warning: {line}")
    return Fingerprint.of(findings[: len(dataset.training)], dataset.channels)


def _warnings(dataset: Dataset, findings: Sequence[Finding]) -> list[str]:
    """What is no fault of a file, but of the whole: labels that cannot be learnt, images on two sides of the split."""
    training = findings[: len(dataset.training)]
    lines = [
        f"label {name!r}: in no training case, so it cannot be learnt; divide the cases otherwise by --split CSV"
        for name in absent(training, dataset.table)
    ]
    sides = (dataset.training, dataset.validation, dataset.testing)
    of = [side for side, cases in enumerate(sides) for _ in cases]
    first: dict[tuple[str, ...], int] = {}
    for index, finding in enumerate(findings):
        images = finding.digests[:-1]  # the last is the label map's
        earlier = first.setdefault(images, index)
        if of[earlier] != of[index]:
            lines.append(
                f"{findings[earlier].case} and {finding.case} are one image on two sides of the split; remove one, or "
                "scores tell nothing"
            )
    return lines


def suggest(found: Fingerprint, wanted: TrainConfig, given: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Spacing, window and intensities that follow from the data set, where they were not given.

    ``wanted.window``, the preset's, is the most voxels that a window may have.
    """
    named = _named(given)
    stride = max(2**wanted.levels, SWIN_STRIDE if wanted.segmentor == "swinunetr" else 0, ENCODER_STRIDE)
    voxels = wanted.window[0] * wanted.window[1] * wanted.window[2]
    given_window = wanted.window if "window" in named else None
    # Norms that see one crop, and reflected borders, need two voxels along each axis at the bottleneck.
    one_will_do = (wanted.segmentor, wanted.norm, wanted.padding) == ("unet", "batch", "zeros")
    smallest = stride if one_will_do else 2 * stride
    bounds = voxels, stride, max(SMALLEST_EDGE, smallest)
    spacing = wanted.spacing_mm if "spacing_mm" in named else found.spacing(*bounds, wanted.coverage, given_window)
    return {
        "spacing_mm": spacing,
        "window": found.window(*bounds, spacing),
        "intensity": plain_intensity(_intensity(found, given)),
    }


def _intensity(found: Fingerprint, given: Sequence[Mapping[str, Any]]) -> tuple[Intensity, ...]:
    """As the data suggest, unless another kind was asked for. Raises UsageError for a range without its bounds."""
    tables = [layer["intensity"] for layer in given if isinstance(layer.get("intensity"), Mapping)]
    asked = {name: value for table in tables for name, value in table.items()}
    suggested = found.intensity()
    if "kind" not in asked or [own.kind for own in suggested] == [asked["kind"]]:
        return suggested
    if asked["kind"] == "range" and not {"lower", "upper"} <= asked.keys():
        raise UsageError("intensity.kind 'range': give its bounds, too, --set intensity.lower=… and intensity.upper=…")
    return (Intensity(),)


def _named(given: Sequence[Mapping[str, Any]]) -> set[str]:
    return {name for layer in given for name in layer}

"""The parts of a run, made from its config: network, prepared cases, samplers, validation set."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dropgen_rt.console import Console
from dropgen_rt.errors import UnsuitableInputError, UsageError
from dropgen_rt.inspect_file import files_of
from dropgen_rt.manifest import Intensity
from dropgen_rt.store import make_folder
from dropgen_rt.train import checkpoint
from dropgen_rt.train.config import TrainConfig, build_config
from dropgen_rt.train.dataset import Dataset, grid_of, refuse_other_channels
from dropgen_rt.train.distributed import Ranks
from dropgen_rt.train.network import DropGen, UNet, UNetConfig, rebuild, segmentor_config
from dropgen_rt.train.prepare import Prepared, default_cache, lost_labels, prepare
from dropgen_rt.train.samples import Sampler, ScanSampler, SyntheticSampler
from dropgen_rt.train.segmentors import MonaiConfig
from dropgen_rt.train.survey import absent, refuse_faults, survey
from dropgen_rt.train.synthesis import RandomSource
from dropgen_rt.volume import sha256_of
from dropgen_rt.words import by

# Validation of synthetic data: this many fixed crops of the held-out label maps.
SYNTHETIC_VALIDATION_CROPS = 12
# Differences of two networks that a message names.
MOST_SHOWN = 4


def make_network(dataset: Dataset, config: TrainConfig, encoder_path: Path | None) -> DropGen:
    """The network that the config describes, its encoder loaded. Raises UsageError, ModelError."""
    channels = len(dataset.channels)
    encoder = _encoder(config, encoder_path)
    features = encoder.config.out_channels * channels if encoder is not None else 0
    inputs = features if config.method == "features" else channels + features
    classes = len(dataset.labels) + 1
    segmentor: UNetConfig | MonaiConfig
    if config.segmentor == "unet":
        segmentor = segmentor_config(inputs, classes, config.width, config.levels, config.norm, config.padding)
    else:
        segmentor = MonaiConfig(config.segmentor, inputs, classes, config.width, config.levels)
    network = DropGen(
        segmentor, encoder.config if encoder else None, config.channel_drop, config.method, config.feature_scale
    )
    network.check_window(config.window)
    if config.image_first:
        network.start_from_the_image()
    if network.encoder is not None and encoder is not None:
        network.encoder.load_state_dict(encoder.state_dict())
    return network


def _encoder(config: TrainConfig, path: Path | None) -> UNet | None:
    if config.method == "erm":
        if path is not None:
            raise UsageError("method 'erm' takes no encoder; leave --encoder out or choose --method dropgen")
        return None
    if path is None:
        raise UsageError(f"method {config.method!r} needs an encoder; name its file with --encoder")
    return checkpoint.load_encoder(path)


def trained_choices(path: Path) -> dict[str, Any]:
    """Of a checkpoint's network what a preset chooses, too: the features' scale, our own segmentor's norm and padding.

    Raises MissingModelError or ModelError.
    """
    network, _ = load_network(path)
    segmentor = network.segmentor.config
    own = {"norm": segmentor.norm, "padding": segmentor.padding_mode} if isinstance(segmentor, UNetConfig) else {}
    return {"feature_scale": network.feature_scale} | own


def trained_on(path: Path) -> tuple[Intensity, ...]:
    """The intensities of a checkpoint. Raises MissingModelError or ModelError."""
    content = checkpoint.load(path)
    with checkpoint.rebuilding(path, "train again"):
        return build_config({"intensity": content["intensity"]}).intensity


def trained_steps(path: Path) -> int:
    """Of a checkpoint. Raises MissingModelError or ModelError."""
    content = checkpoint.load(path)
    with checkpoint.rebuilding(path, "remove it, or give another --out"):
        return int(content["progress"]["step"])


def start_from(path: Path, network: DropGen, encoder: str = "") -> None:
    """Take the weights of a checkpoint of a like network, its encoder's too.

    ``encoder`` is the one that was asked for by name. Raises MissingModelError, ModelError, or UsageError for another
    network's, or another encoder's than that.
    """
    trained, _ = load_network(path)  # rebuilt, because older checkpoints do not tell all
    its_own, wanted = (_flat(net.description() | {"drop": 0}) for net in (trained, network))
    unlike = [name for name in {**its_own, **wanted} if its_own.get(name) != wanted.get(name)]
    if unlike:
        shown = ", ".join(f"{name} {its_own.get(name)}, here {wanted.get(name)}" for name in unlike[:MOST_SHOWN])
        raise UsageError(
            f"{path}: a network of another layout ({shown}); give the same method, encoder, segmentor, width, levels, "
            "norm, padding, feature scale, channels and labels"
        )
    own, its = network.encoder, trained.encoder
    if encoder and own is not None and its is not None and not same_weights(own.state_dict(), its.state_dict()):
        raise UsageError(f"{path}: was trained with another encoder than {encoder}; leave --encoder out to keep it")
    network.load_state_dict(trained.state_dict())


def _flat(description: Mapping[str, Any]) -> dict[str, Any]:
    """A network's description without nesting: "segmentor in_channels" and so on."""
    parts = {name: part if isinstance(part, dict) else {"": part} for name, part in description.items()}
    return {f"{name} {key}".strip(): value for name, part in parts.items() for key, value in part.items()}


def same_weights(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    """Whether two states hold the same tensors, wherever they lie."""
    return one.keys() == other.keys() and all(torch.equal(one[key].cpu(), other[key].cpu()) for key in one)


def load_network(path: Path) -> tuple[DropGen, dict]:
    """The trained network in evaluation mode and the checkpoint's other content. Raises ModelError."""
    content = checkpoint.load(path)
    with checkpoint.rebuilding(path, "train again"):
        network = rebuild(content["network"])
        network.load_state_dict(content["state"])
    return network.eval(), content


def prepared_cases(
    data: Path, dataset: Dataset, config: TrainConfig, cache: Path | None, workers: int | None, ranks: Ranks,
    console: Console,
) -> tuple[list[Prepared], list[Prepared]]:  # fmt: skip
    """Training and validation cases on the working grid; none where images are synthesised.

    The first process prepares, the others find everything in the cache. Raises FaultyDatasetError, OutputError, or
    UsageError as ``refuse_other_channels``.
    """
    refuse_other_channels(dataset, config)
    if dataset.synthesis is not None:
        refuse_faults(data, dataset.faults, (), dataset.table)
        return [], []
    folder = make_folder(cache or default_cache())
    training = dataset.few(config.subjects, config.seed)
    cases = (*training, *dataset.validation)
    with ranks.first_before_others():
        with console.progress("checking files", "cases") as progress:
            findings = survey(dataset.cases, dataset.table, folder, workers, progress)
        refuse_faults(data, dataset.faults, findings, dataset.table)
        by_case = dict(zip(dataset.cases, findings, strict=True))
        with console.progress("preparing", "cases") as progress:
            grid = grid_of(dataset, config)
            made = prepare(cases, [by_case[case] for case in cases], grid, folder, workers, progress)
    for name, lost, of in lost_labels(made, [by_case[case] for case in cases], dataset.table):
        console.line(
            f"warning: label {name!r}: voxels of {by(config.spacing_mm)} mm are too large "
            f"for it in {lost} of {of} cases, which lose it; --spacing-mm X Y Z takes smaller ones"
        )
    # Where all cases are taken, ``run`` has told what they lack.
    some = len(training) < len(dataset.training)
    undrawn = absent([by_case[case] for case in training], dataset.table) if some else []
    for label in undrawn:
        console.line(_undrawn(label, len(training)))
    return made[: len(training)], made[len(training) :]


def _undrawn(label: str, cases: int) -> str:
    """A warning of a label that few-shot training cannot learn."""
    return (
        f"warning: label {label!r}: in none of the {cases} training cases that were drawn, so it cannot be learnt; "
        "draw others by --seed, or more by --subjects"
    )


def label_map_digests(dataset: Dataset) -> list[str]:
    """Digests of what images are synthesised from: label maps, how their values are merged, synthesis.toml."""
    described = repr((dataset.synthesis, dataset.table.sources))
    maps = [sha256_of(files_of(case.label)) for case in (*dataset.training, *dataset.validation)]
    return [hashlib.sha256(described.encode()).hexdigest(), *maps]


def make_sampler(
    dataset: Dataset, config: TrainConfig, cases: list[Prepared], device: torch.device, console: Console
) -> Sampler:
    """Crops of the prepared cases, or synthesised ones, drawn on ``device``."""
    if dataset.synthesis is not None:
        sampler = SyntheticSampler(dataset.few(config.subjects, config.seed), dataset, config, device)
        lacking = [label.name for label in dataset.labels if label.value not in sampler.labels]
        if config.subjects:
            for label in lacking:
                console.line(_undrawn(label, len(sampler.heads)))
        elif lacking:
            raise UnsuitableInputError(
                f"label {lacking[0]!r}: in no label map that is trained on; remove it from dataset.json, or add a map"
            )
        return sampler
    return ScanSampler(cases, config)


def validation_set(dataset: Dataset, config: TrainConfig, cases: list[Prepared]) -> list[tuple[NDArray, NDArray]]:
    """Images (c, z, y, x) and labels (z, y, x): whole cases, or fixed synthetic crops."""
    if dataset.synthesis is None:
        return [(case.image, case.label) for case in cases]
    sampler = SyntheticSampler(dataset.validation, dataset, config)
    draws = (sampler.draw(RandomSource.seeded(config.seed, 1 << 40, i)) for i in range(SYNTHETIC_VALIDATION_CROPS))
    return [(np.asarray(image), np.asarray(target)) for image, target in draws]

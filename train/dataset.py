"""Data sets on disk: the nnU-Net / Decathlon layout, a table of splits, or label maps alone with a ``synthesis.toml``.

DATA/dataset.json            "labels": name -> value, or name -> [values] to be merged into one
DATA/imagesTr/<id>_0000.nii.gz, <id>_0001 … one file per channel      DATA/labelsTr/<id>.nii.gz
DATA/imagesVal, labelsVal    optional; without them every fifth patient of imagesTr validates
DATA/imagesTs, labelsTs      optional; tested when the run ends
DATA/synthesis.toml          optional; then images are synthesised from labelsTr and none are read
"""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dropgen_rt.dataset_labels import LabelTable, read_description, read_label_table, read_source_rule
from dropgen_rt.errors import MissingInputError, UnreadableInputError, UnsuitableInputError, UsageError
from dropgen_rt.manifest import Label, SourceRule
from dropgen_rt.train.config import TrainConfig
from dropgen_rt.train.layout import Case, find_in_folders, find_in_table
from dropgen_rt.train.patients import VALIDATION_SHARE, divided
from dropgen_rt.train.prepare import Grid, on_working_grid
from dropgen_rt.train.synthesis import SynthesisConfig
from dropgen_rt.typed_fields import is_line

__all__ = ["Case", "Dataset", "grid_of", "read_case", "read_dataset"]


@dataclass(frozen=True)
class Dataset:
    """What ``DATA`` holds: the label table, the lists of cases, and what is wrong with the files' names."""

    name: str
    table: LabelTable
    channels: tuple[str, ...]
    training: tuple[Case, ...]
    validation: tuple[Case, ...]
    synthesis: SynthesisConfig | None
    notice: str = ""
    testing: tuple[Case, ...] = ()
    faults: tuple[str, ...] = ()
    source: SourceRule = field(default_factory=SourceRule)

    @property
    def labels(self) -> tuple[Label, ...]:
        return self.table.labels

    @property
    def cases(self) -> tuple[Case, ...]:
        return (*self.training, *self.validation, *self.testing)

    def merge(self, raw: NDArray[np.integer]) -> NDArray[np.unsignedinteger]:
        """Source label values to 1, 2, 3 …; see LabelTable."""
        return self.table.merge(raw)

    def few(self, subjects: int, seed: int) -> tuple[Case, ...]:
        """``subjects`` training cases drawn by ``seed``, in their order; all of them for 0.

        Raises MissingInputError if there are fewer.
        """
        if not subjects:
            return self.training
        if subjects > len(self.training):
            raise MissingInputError(
                f"{subjects} subjects were asked for, the data set has {len(self.training)} to train on; "
                "give fewer with --subjects"
            )
        drawn = np.random.default_rng(seed).permutation(len(self.training))[:subjects]
        return tuple(self.training[index] for index in sorted(drawn))


def read_dataset(folder: Path, split: Path | None = None) -> Dataset:
    """Read a data folder, its cases from its folders or from the table ``split``.

    Cases with missing files are left out and named in ``faults``. Raises an InputError where there is no
    description or no case at all.
    """
    data = read_description(folder / "dataset.json")
    table = read_label_table(folder / "dataset.json")
    synthesis_file = folder / "synthesis.toml"
    synthesis = SynthesisConfig.read(synthesis_file) if synthesis_file.is_file() else None
    channels = _channels(folder / "dataset.json", data)
    find = find_in_table if split is not None else find_in_folders
    found = find(split or folder, len(channels), synthesis is not None)
    training, validation = tuple(found.training), tuple(found.validation)
    if not validation:
        training, validation = divided(training)
    if not found.faults and not (training and validation):
        counted = f"{len(training)} cases to train on and {len(validation)} to validate"
        raise MissingInputError(
            f"{split or folder}: {counted}; accepted are some of each, or {VALIDATION_SHARE} and more to train on, a "
            "fifth of which then validate; add cases, or divide them by --split CSV"
        )
    notice = " ".join(str(data.get("licence", data.get("license", ""))).split())
    if not is_line(notice):
        raise UnreadableInputError(
            f'{folder / "dataset.json"}: "licence" travels in the model file, and is too long or holds a character '
            "that does not print; shorten it, or name where it can be read"
        )
    name = str(data.get("name") or folder.resolve().name)
    return Dataset(
        name=name,
        table=table,
        channels=channels,
        training=training,
        validation=validation,
        synthesis=synthesis,
        notice=notice,
        testing=tuple(found.testing),
        faults=tuple(found.faults),
        source=read_source_rule(folder / "dataset.json"),
    )


def _channels(path: Path, data: dict) -> tuple[str, ...]:
    """The names of the channels, in the order of their numbers. Raises UnreadableInputError."""
    names = data.get("channel_names") or data.get("modality") or {"0": "image"}
    if not isinstance(names, dict) or not all(
        key.isascii() and key.isdigit() and isinstance(name, str) and name and is_line(name)
        for key, name in names.items()
    ):
        raise UnreadableInputError(
            f'{path}: "channel_names" (or "modality") is not {{"0": "MRI", …}}, number: name, each of one line of '
            "characters that print"
        )
    return tuple(names[key] for key in sorted(names, key=int))


def refuse_other_channels(dataset: Dataset, config: TrainConfig) -> None:
    """Raises UsageError where intensities are of another number of channels than the data set has."""
    if len(config.intensity) not in (1, len(dataset.channels)):
        raise UsageError(
            f"intensity: {len(config.intensity)} tables, channels of the data set: {', '.join(dataset.channels)}; give "
            "one table for all, or a list with one for each in this order"
        )


def grid_of(dataset: Dataset, config: TrainConfig) -> Grid:
    """The settings that decide what a prepared case looks like."""
    return Grid(config.orientation, config.spacing_mm, config.intensity, dataset.table)


def read_case(case: Case, dataset: Dataset, config: TrainConfig) -> tuple[NDArray, NDArray]:
    """Image (channels, z, y, x) float32 in [0, 1] and labels (z, y, x) uint8, both on the working grid."""
    if not case.images:
        raise UnsuitableInputError(f"{case.name}: a label map alone; its image is synthesised, not read")
    return on_working_grid(case, grid_of(dataset, config))

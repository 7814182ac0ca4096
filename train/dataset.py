"""Data sets on disk: the nnU-Net / Decathlon layout, or label maps alone with a ``synthesis.toml``.

DATA/dataset.json            "labels": name -> value, or name -> [values] to be merged into one
DATA/imagesTr/<id>_0000.nii.gz  (or <id>.nii.gz)      DATA/labelsTr/<id>.nii.gz
DATA/imagesVal, labelsVal    optional; without them every fifth case of imagesTr validates
DATA/synthesis.toml          optional; then images are synthesised from labelsTr and none are read
"""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dropgen_rt.dataset_labels import LabelTable, read_description, read_label_table, read_source_rule
from dropgen_rt.errors import GeometryError, MissingInputError, UnsuitableInputError
from dropgen_rt.manifest import Intensity, Label, SourceRule
from dropgen_rt.preprocess import labels_to_working_grid, normalisation, to_working_grid
from dropgen_rt.train.config import TrainConfig
from dropgen_rt.train.synthesis import SynthesisConfig
from dropgen_rt.volume import read_label_map, read_scan

VALIDATION_SHARE = 5


@dataclass(frozen=True)
class Case:
    """One subject on disk; ``image`` is None where images are synthesised."""

    name: str
    image: Path | None
    label: Path


@dataclass(frozen=True)
class Dataset:
    """What ``DATA`` holds: the label table and the two lists of cases."""

    name: str
    table: LabelTable
    channels: tuple[str, ...]
    training: tuple[Case, ...]
    validation: tuple[Case, ...]
    synthesis: SynthesisConfig | None
    notice: str = ""
    source: SourceRule = field(default_factory=SourceRule)

    @property
    def labels(self) -> tuple[Label, ...]:
        return self.table.labels

    def merge(self, raw: NDArray[np.integer]) -> NDArray[np.unsignedinteger]:
        """Source label values to 1, 2, 3 …; see LabelTable."""
        return self.table.merge(raw)


def read_dataset(folder: Path) -> Dataset:
    """Read and check a data folder. Raises an InputError that says what is missing."""
    data = read_description(folder / "dataset.json")
    table = read_label_table(folder / "dataset.json")
    synthesis_file = folder / "synthesis.toml"
    synthesis = SynthesisConfig.read(synthesis_file) if synthesis_file.is_file() else None
    training = _cases(folder, "Tr", synthesis is not None)
    validation = _cases(folder, "Val", synthesis is not None) if (folder / "labelsVal").is_dir() else ()
    if not validation:
        validation = training[VALIDATION_SHARE - 1 :: VALIDATION_SHARE]
        training = tuple(case for case in training if case not in validation)
    if not training or not validation:
        raise MissingInputError(
            f"{folder}: fewer than {VALIDATION_SHARE} cases in labelsTr and no labelsVal; add cases"
        )
    channels = data.get("channel_names") or data.get("modality") or {"0": "image"}
    notice = data.get("licence", data.get("license", ""))
    name = data.get("name", folder.name)
    source = read_source_rule(folder / "dataset.json")
    return Dataset(name, table, tuple(channels.values()), training, validation, synthesis, notice, source)


def _cases(folder: Path, split: str, synthetic: bool) -> tuple[Case, ...]:
    labels = sorted((folder / f"labels{split}").glob("*.nii.gz"))
    if not labels:
        raise MissingInputError(f"{folder / f'labels{split}'}: no .nii.gz label maps in it")
    cases, missing = [], []
    for label in labels:
        name = label.name.removesuffix(".nii.gz")
        places = [folder / f"images{split}" / f"{name}{ending}" for ending in ("_0000.nii.gz", ".nii.gz")]
        image = None if synthetic else next((place for place in places if place.is_file()), None)
        if image is None and not synthetic:
            missing.append(name)
        cases.append(Case(name, image, label))
    if missing:
        raise MissingInputError(
            f"{folder / f'images{split}'}: no image for {len(missing)} labels: {', '.join(missing[:5])}"
        )
    return tuple(cases)


def read_case(case: Case, dataset: Dataset, config: TrainConfig, intensity: Intensity) -> tuple[NDArray, NDArray]:
    """Image (1, z, y, x) float32 in [0, 1] and labels (z, y, x) uint8, both on the working grid."""
    if case.image is None:
        raise UnsuitableInputError(f"{case.name}: a label map alone; its image is synthesised, not read")
    volume = read_scan(case.image).volume
    labels, geometry = read_label_map(case.label)
    if labels.shape != volume.geometry.shape:
        raise GeometryError(
            f"{case.label}: shape {labels.shape}, its image has {volume.geometry.shape}; they must match"
        )
    working = to_working_grid(volume, config.orientation, config.spacing_mm)
    scale = normalisation(working, intensity)
    image = (np.clip(working.array, scale.lower[0], scale.upper[0]) - np.float32(scale.offset[0])) * scale.scale[0]
    target = labels_to_working_grid(dataset.merge(labels), geometry, config.orientation, config.spacing_mm)
    return image.astype(np.float32), target

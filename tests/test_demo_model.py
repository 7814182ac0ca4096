"""The model in the package on real heads: its numbers, heads with the skull on, and all 48 orientations of one."""

import json
import subprocess
import sys
from itertools import permutations, product
from pathlib import Path

import numpy as np
import pytest
from shared_data import DATA, needs
from tolerances import REORIENTED_DICE

from dropgen_rt.dataset_labels import read_label_table
from dropgen_rt.engines import Engine, open_engine
from dropgen_rt.evaluate import dice_per_label
from dropgen_rt.geometry import Geometry
from dropgen_rt.model import Model
from dropgen_rt.preprocess import to_working_grid
from dropgen_rt.segment import segment
from dropgen_rt.store import DEMO_MODEL, open_named
from dropgen_rt.volume import Volume, read_label_map, read_scan

ROOT = Path(__file__).parents[1]
LEAST_MEAN_DICE = 0.70
CODES = ["".join(p) for order in permutations(("RL", "AP", "IS")) for p in product(*order)]


@pytest.fixture(scope="module")
def model() -> Model:
    return open_named(DEMO_MODEL)


@pytest.fixture(scope="module")
def engine(model: Model):  # type: ignore[no-untyped-def]
    with open_engine(model) as opened:
        yield opened


def test_manifest_names_nine_structures_and_the_fluid(model: Model) -> None:
    assert [label.value for label in model.manifest.labels] == list(range(1, 11))
    assert model.manifest.labels[-1].name == "fluid around the brain"
    assert model.manifest.spacing_mm == (2.0, 2.0, 2.0)
    assert "SynthSeg" in model.manifest.notice
    assert len(model.content) <= 15_000_000


@needs("data/brain_t1")
def test_dice_on_a_real_t1(model: Model, engine: Engine) -> None:
    folder = DATA / "brain_t1"
    result = segment(folder / "fs_subject_T1norm.nii.gz", model, engine=engine)
    reference, geometry = read_label_map(folder / "fs_subject_aseg.nii.gz")
    assert geometry == result.labels.geometry
    table = read_label_table(ROOT / "examples" / "brain9" / "dataset.json")
    # FreeSurfer does not label the fluid around the brain, the tenth.
    scores = dice_per_label(result.labels.array[0], table.merge(reference), 10)[:9]
    assert scores.mean() >= LEAST_MEAN_DICE, dict(zip((label.name for label in table.labels), scores, strict=True))


@needs("data/brain_contrasts")
@pytest.mark.parametrize("contrast", ["T1", "T2", "PD"])
def test_white_matter_of_heads_with_the_skull_on(model: Model, engine: Engine, contrast: str) -> None:
    folder = DATA / "brain_contrasts"
    labels = segment(folder / f"avg152{contrast}.nii.gz", model, engine=engine).labels.array[0]
    prior = read_scan(folder / "white.nii.gz").volume.array[0] > 0.5
    # Cerebellum and brainstem hold white matter under labels of their own.
    pure = ~np.isin(labels, [4, 9])
    assert dice_per_label(((labels == 3) & pure).astype(np.uint8), (prior & pure).astype(np.uint8), 1)[0] >= 0.6


def test_demo_runs_as_the_readme_says(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "examples" / "demo.py"), str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1].startswith("next:    ")
    labels, _ = read_label_map(tmp_path / "out" / "mni152_t1_seg.nii.gz")
    assert np.array_equal(np.unique(labels), np.arange(11))
    record = json.loads((tmp_path / "out" / "mni152_t1_seg.json").read_text())
    assert record["windows"] > 1


def cut_to_content(volume: Volume) -> Volume:
    """The box of voxels that are not air: a third of the windows, so that 48 runs stay affordable."""
    low = [int(places.min()) for places in np.nonzero(volume.array[0])]
    high = [int(places.max()) + 1 for places in np.nonzero(volume.array[0])]
    cut = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
    array = np.ascontiguousarray(volume.array[(slice(None), *cut)])
    grid = volume.geometry
    origin = tuple(grid.to_world(low[::-1]).tolist())
    z, y, x = array.shape[1:]
    return Volume(array, Geometry((x, y, z), grid.spacing_mm, origin, grid.direction))


def oblique_anisotropic(volume: Volume) -> Volume:
    """The same head on a coarser, anisotropic grid whose header is turned by 20 and 10 degrees."""
    coarse = to_working_grid(cut_to_content(volume), "LPS", (2.0, 2.5, 4.0))
    a, b = np.deg2rad(20), np.deg2rad(10)
    turn = np.array([[np.cos(a), -np.sin(a), 0], [np.sin(a), np.cos(a), 0], [0, 0, 1]])
    turn = turn @ np.array([[1, 0, 0], [0, np.cos(b), -np.sin(b)], [0, np.sin(b), np.cos(b)]])
    grid = coarse.geometry
    return Volume(coarse.array, Geometry(grid.size, grid.spacing_mm, grid.origin_mm, tuple(turn.ravel().tolist())))


@needs("data/brain_t1")
@pytest.mark.slow
def test_48_orientations_give_one_answer(model: Model, engine: Engine) -> None:
    head = oblique_anisotropic(read_scan(DATA / "brain_t1" / "fs_subject_T1norm.nii.gz").volume)
    first = None
    for code in CODES:
        geometry, change = head.geometry.reoriented(code)
        turned = Volume(np.ascontiguousarray(change.apply(head.array)), geometry)
        labels = segment(turned, model, engine=engine).labels
        assert labels.geometry == geometry
        # The stored voxel v of the turned scan is the voxel undo(v) of the first: one place in the world.
        back = change.undo(labels.array[0])
        first = back if first is None else first
        assert np.nanmin(dice_per_label(back, first, 10)) >= REORIENTED_DICE, code

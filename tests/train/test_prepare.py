"""The cache of prepared cases and the survey: keyed by content and settings, resumable, the same in parallel."""

import math
import os
import pickle
import resource
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813  the name its users know

from dropgen_rt.dataset_labels import LabelTable
from dropgen_rt.errors import OutputError, ResourceError
from dropgen_rt.manifest import Intensity, Label
from dropgen_rt.train import survey as survey_module
from dropgen_rt.train.config import TrainConfig
from dropgen_rt.train.dataset import grid_of, read_case, read_dataset
from dropgen_rt.train.layout import Case
from dropgen_rt.train.prepare import (
    ABANDONED_S,
    PLACES_PER_LABEL,
    Grid,
    Prepared,
    load,
    lost_labels,
    on_working_grid,
    places_of,
    prepare,
)
from dropgen_rt.train.survey import Finding, survey

CONFIG = TrainConfig(window=(16, 16, 16), spacing_mm=(2.0, 1.0, 1.0))


def prepared(folder: Path, cache: Path, workers: int = 1, config: TrainConfig = CONFIG) -> tuple[list, list[int]]:
    dataset = read_dataset(folder)
    done: list[int] = []
    findings = survey(dataset.cases, dataset.table, None)
    grid = grid_of(dataset, config)
    return prepare(dataset.cases, findings, grid, cache, workers, lambda n, total: done.append(total)), done


def test_a_prepared_case_is_the_read_one(balls: Path, tmp_path: Path) -> None:
    dataset = read_dataset(balls)
    made, _ = prepared(balls, tmp_path / "cache")
    for case, ready in zip(dataset.cases, made, strict=True):
        image, labels = read_case(case, dataset, CONFIG)
        assert np.array_equal(ready.image, image)
        assert np.array_equal(ready.label, labels)
        assert all(labels[z, y, x] == value for value, z, y, x in ready.places)


def test_a_memory_mapped_case_travels_as_its_files_names(balls: Path, tmp_path: Path) -> None:
    made, _ = prepared(balls, tmp_path / "cache")
    content = pickle.dumps(made[0])
    again = pickle.loads(content)  # noqa: S301  our own
    assert isinstance(again.image, np.memmap) and isinstance(again.label, np.memmap)
    assert len(content) < made[0].image.nbytes / 4 + made[0].places.nbytes
    for part in ("image", "label", "places"):
        assert np.array_equal(getattr(again, part), getattr(made[0], part))
    own = replace(made[0], image=np.array(made[0].image), label=made[0].label[:4])
    again = pickle.loads(pickle.dumps(own))  # noqa: S301  our own
    assert np.array_equal(again.image, own.image) and np.array_equal(again.label, own.label)


def test_processes_prepare_the_same(balls: Path, tmp_path: Path) -> None:
    alone, _ = prepared(balls, tmp_path / "a")
    together, done = prepared(balls, tmp_path / "b", workers=2)
    assert done == [6] * 6
    assert all(np.array_equal(x.image, y.image) for x, y in zip(alone, together, strict=True))
    names = [sorted(path.name for path in (tmp_path / cache).iterdir()) for cache in "ab"]
    assert names[0] == names[1]


def test_a_stopped_preparation_goes_on(balls: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    _, done = prepared(balls, cache)
    assert len(done) == 6
    next(cache.glob("*.places.npy")).unlink()
    _, done = prepared(balls, cache)
    assert done == [1]
    _, done = prepared(balls, cache)
    assert done == []


@pytest.mark.parametrize("left", [0, 100, 400])
def test_a_cached_file_that_was_cut_short_is_made_again(balls: Path, tmp_path: Path, left: int) -> None:
    dataset = read_dataset(balls)
    cases, grid = dataset.training[:1], grid_of(dataset, TrainConfig(window=(16, 16, 16)))
    findings = survey(cases, dataset.table, None)
    (before,) = prepare(cases, findings, grid, tmp_path, 1)
    expected = np.array(before.image)
    (file,) = tmp_path.glob("*.image.npy")
    file.write_bytes(file.read_bytes()[:left])
    (again,) = prepare(cases, findings, grid, tmp_path, 1)
    assert np.array_equal(again.image, expected)


def test_settings_and_content_name_a_case(balls: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    prepared(balls, cache)
    _, done = prepared(balls, cache, config=replace(CONFIG, spacing_mm=(1.0, 1.0, 1.0)))
    assert len(done) == 6
    first, second = (balls / "imagesTr" / f"case{i}_0000.nii.gz" for i in (0, 1))
    first.write_bytes(second.read_bytes())
    _, done = prepared(balls, cache)
    assert len(done) == 1


def test_unchanged_files_are_not_surveyed_again(balls: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = read_dataset(balls)
    first = survey(dataset.cases, dataset.table, tmp_path)
    monkeypatch.setattr(survey_module, "inspect_case", lambda case, table: pytest.fail("read again"))
    told: list[tuple[int, int]] = []
    assert survey(dataset.cases, dataset.table, tmp_path, None, lambda done, of: told.append((done, of))) == first
    assert not told


def test_only_what_changed_is_surveyed_again(balls: Path, tmp_path: Path) -> None:
    dataset = read_dataset(balls)
    first = survey(dataset.cases, dataset.table, tmp_path)
    dataset.cases[2].label.touch()
    told: list[tuple[int, int]] = []
    assert survey(dataset.cases, dataset.table, tmp_path, None, lambda done, of: told.append((done, of))) == first
    assert told == [(1, 1)]


def test_a_file_that_changes_while_it_is_read_is_read_again(
    balls: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The real reading, after which the file is another: what a second program would do at the worst moment."""
    dataset = read_dataset(balls)
    target, source = dataset.cases[0].images[0], dataset.cases[1].images[0]
    inspect = survey_module.inspect_case

    def changed(case: Case, table: LabelTable) -> Finding:
        found = inspect(case, table)
        target.write_bytes(source.read_bytes())
        return found

    with monkeypatch.context() as patch:
        patch.setattr(survey_module, "inspect_case", changed)
        stale = survey(dataset.cases[:1], dataset.table, tmp_path)
    fresh = survey(dataset.cases[:1], dataset.table, tmp_path)
    assert fresh != stale and fresh == survey(dataset.cases[:1], dataset.table, None)


@pytest.mark.parametrize("content", ["", "[]", "null", "3", '{"case": 1, "more": 2}'])
def test_a_damaged_note_is_written_again(balls: Path, tmp_path: Path, content: str) -> None:
    dataset = read_dataset(balls)
    first = survey(dataset.cases, dataset.table, tmp_path)
    for note in tmp_path.glob("*.json"):
        note.write_text(content)
    assert survey(dataset.cases, dataset.table, tmp_path) == first
    assert all("voxels" in note.read_text() for note in tmp_path.glob("*.json"))


def test_labels_that_voxels_are_too_large_for_are_told() -> None:
    table = LabelTable((Label(1, "node", (1, 0, 0)), Label(2, "liver", (2, 0, 0))), ((1,), (2,)))
    findings = [Finding(name, (), voxels=voxels) for name, voxels in (("a", (5, 90)), ("b", (0, 80)), ("c", (9, 70)))]
    kept = [np.array([[2, 0, 0, 0]], np.int32), np.array([[2, 1, 1, 1]], np.int32), np.array([[1, 0, 0, 0]], np.int32)]
    made = [Prepared("", np.zeros(0, np.float32), np.zeros(0, np.uint8), places) for places in kept]
    assert lost_labels(made, findings, table) == [("node", 1, 2), ("liver", 1, 3)]


def test_a_file_that_went_is_a_fault(balls: Path, tmp_path: Path) -> None:
    dataset = read_dataset(balls)
    dataset.cases[0].label.unlink()
    faults = [finding.faults for finding in survey(dataset.cases, dataset.table, tmp_path)]
    assert "no such" in faults[0][0] and not any(faults[1:])


def test_a_label_has_a_bounded_number_of_places() -> None:
    labels = np.ones((20, 20, 20), np.uint8)
    labels[0, 0, 0] = 2
    places = places_of(labels, 3)
    assert (places[:, 0] == 1).sum() == PLACES_PER_LABEL
    assert places[places[:, 0] == 2].tolist() == [[2, 0, 0, 0]]
    assert np.array_equal(places, places_of(labels, 3))


@pytest.mark.parametrize(("image_edge", "label_edge"), [(0.7, np.float32(0.7)), (np.float32(0.7), 0.7)])
def test_labels_lie_on_the_image_whatever_their_header_rounds(
    balls: Path, tmp_path: Path, image_edge: float, label_edge: float
) -> None:
    """25 voxels of 0.7 mm are 17.5 of 1 mm, of 0.7 in float32 a little less: 18 or 17."""
    voxels = np.zeros((25, 25, 25), np.uint8)
    voxels[5:12, 8:20, 3:9] = 1
    for array, edge, path in (
        (voxels * np.float32(100), image_edge, tmp_path / "image.mha"), (voxels, label_edge, tmp_path / "label.mha"),
    ):  # fmt: skip
        written = sitk.GetImageFromArray(array)
        written.SetSpacing((float(edge),) * 3)
        sitk.WriteImage(written, str(path))
    grid = Grid("LPS", (1.0, 1.0, 1.0), (Intensity("range", 0.0, 100.0),), read_dataset(balls).table)
    image, label = on_working_grid(Case("c", (tmp_path / "image.mha",), tmp_path / "label.mha"), grid)
    assert image.shape[1:] == label.shape
    assert np.array_equal(label == 1, image[0] > 0.5)


def test_what_a_killed_preparation_left_is_removed_after_a_day(balls: Path, tmp_path: Path) -> None:
    fresh, old = (tmp_path / f".writing-{age}.npy" for age in ("fresh", "old"))
    for path in (fresh, old):
        path.touch()
    os.utime(old, (time.time() - ABANDONED_S,) * 2)
    prepared(balls, tmp_path)
    assert fresh.exists() and not old.exists()


def test_as_many_files_may_be_open_as_the_system_allows(balls: Path, tmp_path: Path) -> None:
    """Each prepared case keeps two; the usual limit of 1024 would do for few cases."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    open_now = len(list(Path("/proc/self/fd").iterdir()))
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (open_now + 8, before[1]))
        made, _ = prepared(balls, tmp_path / "cache")  # six cases, twelve arrays
        assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] == before[1]
        key = made[0].key
        resource.setrlimit(resource.RLIMIT_NOFILE, (3, before[1]))
        with pytest.raises(ResourceError, match=r"too few files be open for so many cases.*\(ulimit -n\)"):
            load(tmp_path / "cache", key, "case0")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


@pytest.mark.parametrize("shape", [(391, 512, 512), (196, 512, 512), (20, 22, 24), (1, 1, 1)])
def test_a_sample_for_percentiles_sees_all_columns(shape: tuple[int, int, int]) -> None:
    step, size = survey_module._stride(shape), math.prod(shape)
    columns = np.unique(np.arange(0, size, step) % shape[2])
    assert len(columns) == shape[2]
    assert size // step <= 2 * survey_module.SAMPLED_VOXELS


def test_a_full_disk_is_told_in_one_line(balls: Path, tmp_path: Path) -> None:
    """The system itself refuses to let a file grow, as a full disk does."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        with pytest.raises(OutputError, match=r"cannot write .*\.image\.npy: the file exceeds a size limit"):
            prepared(balls, tmp_path / "cache")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not list((tmp_path / "cache").glob("*.npy"))


def test_a_cache_that_cannot_be_made_is_refused(balls: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    grid = Grid("LPS", (1.0, 1.0, 1.0), (Intensity(),), read_dataset(balls).table)
    with pytest.raises(OutputError, match="cannot write"):
        prepare([], [], grid, tmp_path / "file" / "cache")

"""The whole road of a scan with a network that is known by hand: where labels begin, and on which grid they lie."""

import itertools
import json

import numpy as np
import pytest
from tolerances import NEAREST_PHANTOM, PROBABILITY, SMOOTH_PHANTOM

from dropgen_rt.engines import open_engine
from dropgen_rt.errors import MissingModelError, ResourceError, UnsuitableInputError, UsageError
from dropgen_rt.geometry import Geometry
from dropgen_rt.manifest import Intensity
from dropgen_rt.segment import segment
from dropgen_rt.settings import Settings
from dropgen_rt.volume import Volume, read_scan

IDENTITY = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0)
CODES = [
    "".join(letters) for order in itertools.permutations(("LR", "PA", "SI")) for letters in itertools.product(*order)
]
GRIDS = {
    "working": ((25, 22, 19), (1.0, 1.0, 1.0), "straight"),
    "anisotropic": ((36, 24, 9), (0.7, 1.0, 2.8), "straight"),
    "oblique": ((26, 28, 14), (1.0, 0.8, 2.0), "oblique"),
    "thinner than the window": ((9, 8, 48), (1.6, 1.7, 1.0), "straight"),
    "fine": ((40, 40, 36), (0.6, 0.6, 0.6), "oblique"),
}


def oblique():
    """Turned by 0.2, 0.3 and 0.25 rad about x, y and z."""
    turn = np.eye(3)
    for axis, angle in enumerate((0.2, 0.3, 0.25)):
        a, b = (i for i in range(3) if i != axis)
        step = np.eye(3)
        step[[a, b], [a, b]], step[a, b], step[b, a] = np.cos(angle), -np.sin(angle), np.sin(angle)
        turn = turn @ step
    return tuple(turn.ravel().tolist())


def phantom(size, spacing_mm, turned):
    """A bright blob of 100 on 0, off the grid's centre and longer along one axis of the patient, in float32."""
    direction = oblique() if turned == "oblique" else IDENTITY
    geometry = Geometry(size, spacing_mm, (-40.0, 25.0, 8.0), direction)
    index = np.stack(np.meshgrid(*map(np.arange, size), indexing="ij"), axis=-1)
    offset = geometry.to_world(index) - geometry.to_world((np.array(size) - 1) / 2) - (1.5, -2.0, 1.0)
    bright = 100 * np.exp(-0.5 * ((offset / (10.0, 12.0, 14.0)) ** 2).sum(axis=-1))
    return Volume(np.ascontiguousarray(bright.T[None], np.float32), geometry)


def thresholded(array):
    return (array > 30).astype(np.uint8) + (array > 70)


@pytest.fixture
def engine(model):
    with open_engine(model, "cpu") as opened:
        yield opened


@pytest.mark.parametrize("settings", [Settings(), Settings(overlap=0.5, blend="gaussian"), Settings(reference=True)])
@pytest.mark.parametrize("grid", GRIDS.values(), ids=GRIDS)
def test_labels_begin_at_the_known_intensities(model, engine, grid, settings):
    volume = phantom(*grid)
    result = segment(volume, model, settings, engine=engine)
    assert result.labels.geometry == volume.geometry
    labels, bright = result.labels.array, volume.array
    assert labels.dtype == np.uint8 and labels.shape == volume.array.shape
    margin = SMOOTH_PHANTOM + NEAREST_PHANTOM * settings.reference
    margin = 1e-3 if grid[1] == (1.0, 1.0, 1.0) else margin
    clear = np.minimum(abs(bright - 30), abs(bright - 70)) > margin
    assert clear.mean() > 0.45
    assert set(np.unique(labels)) == {0, 1, 2}
    assert np.array_equal(labels[clear], thresholded(bright)[clear])


@pytest.mark.parametrize("reference", [False, True], ids=["default", "reference"])
@pytest.mark.parametrize("turned", ["straight", "oblique"])
def test_how_a_scan_is_stored_does_not_move_its_labels(model, engine, turned, reference):
    volume = phantom((26, 28, 11), (1.0, 0.8, 2.1), turned)
    noise = np.random.default_rng(0).normal(0, 8, volume.array.shape).astype(np.float32)
    volume = Volume(volume.array + noise, volume.geometry)
    settings = Settings(reference=reference)
    expected = segment(volume, model, settings, engine=engine).labels.array
    assert np.bincount(expected.ravel()).min() > 100
    for code in CODES:
        geometry, change = volume.geometry.reoriented(code)
        stored = Volume(np.ascontiguousarray(change.apply(volume.array)), geometry)
        result = segment(stored, model, settings, engine=engine)
        assert result.labels.geometry == geometry
        assert np.array_equal(change.undo(result.labels.array), expected), code


def test_reference_labels_are_those_of_the_working_grid(model, engine):
    """A ramp at 3 mm: interpolated logits find the threshold within a voxel, the nearest label cannot."""
    geometry = Geometry((64, 3, 3), (0.25, 1.0, 1.0), (0.0, 0.0, 0.0), IDENTITY)
    ramp = np.broadcast_to(np.linspace(0, 100, 64, dtype=np.float32), (1, 3, 3, 64))
    volume = Volume(np.ascontiguousarray(ramp), geometry)
    fine = segment(volume, model, engine=engine).labels.array[0, 1, 1]
    nearest = segment(volume, model, Settings(reference=True), engine=engine).labels.array[0, 1, 1]
    assert (fine == thresholded(ramp[0, 1, 1])).mean() > 0.96
    assert all(len(set(block)) == 1 for block in nearest.reshape(16, 4))  # 4 voxels share a working voxel
    assert (fine != nearest).any()


def test_probabilities_are_softmax_of_the_known_logits(model, engine):
    volume = phantom(*GRIDS["working"])
    result = segment(volume, model, Settings(probabilities=True), engine=engine)
    best = result.probabilities
    assert best.array.dtype == np.float32 and best.geometry == volume.geometry
    assert best.array.min() > 1 / 3 and best.array.max() <= 1
    value = volume.array.astype(np.float64) / 100
    logits = np.stack([0 * value, value - 0.3, 3 * value - 1.7])
    expected = 1 / np.exp(logits - logits.max(axis=0)).sum(axis=0)
    assert np.abs(best.array - expected).max() <= PROBABILITY
    assert segment(volume, model, engine=engine).probabilities is None


def test_the_same_input_gives_the_same_bytes(model):
    volume = phantom(*GRIDS["oblique"])
    first, second = (segment(volume, model, Settings(probabilities=True)) for _ in range(2))
    assert first.labels.array.tobytes() == second.labels.array.tobytes()
    assert first.probabilities.array.tobytes() == second.probabilities.array.tobytes()


def test_an_engine_given_is_left_open(model, engine):
    volume = phantom(*GRIDS["working"])
    for _ in range(2):
        segment(volume, model, engine=engine)


def test_progress_counts_every_window(model):
    told = []
    result = segment(phantom(*GRIDS["working"]), model, progress=lambda done, total: told.append((done, total)))
    # 25, 22 and 19 voxels by windows of 16 in steps of 8
    assert result.record.windows == 3 * 2 * 2
    assert told == [(done, 12) for done in range(1, 13)]


def test_around_a_body_air_costs_nothing_and_labels_stay(tiny, model, tmp_path):
    # The model's labels begin at 40 and 80, whatever lies around a voxel.
    values = np.zeros((1, 90, 20, 70), np.float32)
    values[0, 40:70, 5:15, 10:20] = np.linspace(0, 100, 10, dtype=np.float32)
    volume = Volume(values, Geometry((70, 20, 90), (2.0, 2.0, 2.0), (0.0, 0.0, 0.0), IDENTITY))
    told = []
    for overlap in (0.5, 0.25):
        whole = segment(volume, model, Settings(overlap=overlap))
        around = segment(
            volume, model, Settings(overlap=overlap, placement="body"), progress=lambda *done: told.append(done)
        )
        run = [found.record.windows - found.record.skipped_windows for found in (whole, around)]
        assert 0 < run[1] < run[0]
        assert told[-1] == (around.record.windows,) * 2
        assert around.labels.array.tobytes() == whole.labels.array.tobytes() and len(np.unique(whole.labels.array)) == 3
        assert around.record.settings["placement"] == "body"
    own = tiny.write(tmp_path / "own.onnx", placement="body")
    assert segment(volume, own).record.settings["placement"] == "body"
    assert segment(volume, own, Settings(placement="scan")).record.settings["placement"] == "scan"
    # Where no window may be left out they lie over the whole scan.
    for settings in (Settings(skip_air=False), Settings(reference=True)):
        assert segment(volume, own, settings).record.settings["placement"] == "scan"


def test_the_record_of_a_file(model, model_file, make, tmp_path):
    path = tmp_path / "scan.nii"
    values = np.zeros(make.size[::-1], np.int16)
    values[1:3, 1:3, 1:3], values[4, 4, 3] = 50, 100
    path.write_bytes(make.nifti("i2", data=values.tobytes()))
    record = segment(path, model_file, Settings(overlap=0.0)).record
    known = json.loads(record.to_json())
    assert known["schema"] == "1.0"
    assert known["input"] == {
        "file": "scan.nii", "sha256": read_scan(path).sha256, "voxel_type": "int16", "size": [4, 5, 6],
        "spacing_mm": [1.5, 2.0, 3.0], "orientation": "LPS",
    }  # fmt: skip
    assert known["model"] == {"name": "tiny", "sha256": model.sha256, "window": [16, 16, 16]}
    assert known["settings"] == {
        "overlap": 0.0,
        "blend": "constant",
        "placement": "scan",
        "components": "all",
        "reference": False,
    }
    assert {key: known["engine"][key] for key in ("name", "precision", "device")} == {
        "name": "openvino", "precision": "fp32", "device": "cpu",
    }  # fmt: skip
    assert [(row["value"], row["name"]) for row in known["labels"]] == [(1, "medium"), (2, "bright")]
    assert set(known["timings_s"]) >= {"read", "open_model", "open_engine", "to_working_grid", "network", "finalise"}
    assert all(seconds >= 0 for seconds in known["timings_s"].values())
    assert {"dropgen-rt", "numpy", "simpleitk"} <= set(known["versions"])


def test_spacings_are_recorded_without_the_noise_of_headers(model, engine):
    size, spacing_mm, turned = GRIDS["working"]
    noisy = tuple(mm * (1 + 6e-14) for mm in spacing_mm)
    assert segment(phantom(size, noisy, turned), model, engine=engine).record.input["spacing_mm"] == spacing_mm


def test_volumes_are_voxels_times_their_size(model, engine):
    volume = phantom(*GRIDS["anisotropic"])
    result = segment(volume, model, engine=engine)
    for row in result.record.labels:
        assert row.voxels == np.count_nonzero(result.labels.array == row.value) > 0
        assert row.volume_ml == pytest.approx(row.voxels * 0.7 * 1.0 * 2.8 / 1000)


def test_settings_left_open_are_the_models(tiny, tmp_path):
    path = tiny.write(tmp_path / "own.onnx", overlap=0.5, blend="gaussian")
    volume = phantom(*GRIDS["working"])
    assert segment(volume, path).record.settings == {
        "overlap": 0.5, "blend": "gaussian", "placement": "scan", "components": "all", "reference": False,
    }  # fmt: skip
    given = segment(volume, path, Settings(overlap=0.25, blend="constant")).record.settings
    assert given == {"overlap": 0.25, "blend": "constant", "placement": "scan", "components": "all", "reference": False}
    fixed = segment(volume, path, Settings(reference=True)).record.settings
    assert fixed == {"overlap": 0.5, "blend": "constant", "placement": "scan", "components": "all", "reference": True}


@pytest.mark.parametrize("size", [(60, 14, 12), (120, 14, 12)], ids=["the far one smaller", "the far one larger"])
def test_components_that_lie_apart_are_left_out(tiny, tmp_path, size):
    """Two bright blobs that no label connects."""
    values = np.zeros((1, *size[::-1]), np.float32)
    values[0, 2:10, 2:12, 2:14] = 100
    far = values.copy()
    far[0, 4:8, 4:10, 40:] = 100
    known = Geometry(size, (1.5, 1.0, 2.0), (0.0, 0.0, 0.0), IDENTITY)
    own = tiny.write(tmp_path / "own.onnx", components="largest")
    whole, alone = (segment(Volume(far, known), own, Settings(components=choice)) for choice in ("all", None))
    both = whole.labels.array > 0
    assert both[..., 30:].any() and both[..., :20].any() and not both[..., 20:30].any()
    larger = np.s_[..., :25] if size[0] == 60 else np.s_[..., 25:]
    expected = np.zeros_like(whole.labels.array)
    expected[larger] = whole.labels.array[larger]
    assert np.array_equal(alone.labels.array, expected)
    assert sum(row.voxels for row in alone.record.labels) == np.count_nonzero(expected)
    assert alone.record.settings["components"] == "largest" and "components" in alone.record.timings_s
    told = [line for line in alone.record.warnings if "lay apart from its largest component" in line]
    assert len(told) == 1 and told[0].startswith(f"{1 - np.count_nonzero(expected) / both.sum():.0%} of what")
    assert segment(Volume(far, known), own, Settings(reference=True)).record.settings["components"] == "all"


def test_percentile_bounds_make_labels_independent_of_scale(tiny, tmp_path):
    path = tiny.write(tmp_path / "mr.onnx", intensity=(Intensity("percentile", 1.0, 99.0),))
    volume = phantom(*GRIDS["working"])
    brighter = Volume(volume.array * 4 + 512, volume.geometry)
    expected = segment(volume, path).labels.array
    assert set(np.unique(expected)) == {0, 1, 2}
    assert (segment(brighter, path).labels.array == expected).mean() > 0.999


def test_a_working_grid_of_another_orientation_changes_nothing(tiny, model, tmp_path):
    volume = phantom(*GRIDS["anisotropic"])
    expected = segment(volume, model).labels.array
    turned = segment(volume, tiny.write(tmp_path / "ras.onnx", orientation="SAR")).labels.array
    assert np.array_equal(turned, expected)


def test_two_channels(tiny, tmp_path):
    path = tiny.write(tmp_path / "two.onnx", channels=("T1", "T2"))
    one = phantom(*GRIDS["working"])
    two = Volume(np.concatenate([one.array, 100 - one.array]), one.geometry)
    assert np.array_equal(segment(two, path).labels.array, thresholded(one.array))
    with pytest.raises(UnsuitableInputError, match=r"1 channel\(s\), the model 'tiny' takes 2 \(T1, T2\); name CASE"):
        segment(one, path)


def test_fewer_voxels_than_labels(model):
    geometry = Geometry((1, 1, 1), (1.0, 1.0, 1.0), (0.0, 0.0, 0.0), IDENTITY)
    with pytest.raises(UnsuitableInputError, match=r"1 voxel\(s\), fewer than the 2 labels of 'tiny'; give a whole"):
        segment(Volume(np.ones((1, 1, 1, 1), np.float32), geometry), model)


def test_a_scan_without_contrast_on_the_working_grid(tiny, tmp_path):
    path = tiny.write(tmp_path / "mr.onnx", intensity=(Intensity("percentile", 1.0, 99.0),))
    volume = phantom(*GRIDS["working"])
    with pytest.raises(UnsuitableInputError, match="channel 0 holds the single value 5"):
        segment(Volume(np.full_like(volume.array, 5), volume.geometry), path)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("kind", ["range", "percentile"])
def test_an_array_with_voxels_that_are_no_numbers(tiny, tmp_path, kind, value):
    """A file's are refused by the reader; an array given in Python has met none."""
    path = tiny.write(tmp_path / "m.onnx", intensity=(Intensity(kind, 1.0, 99.0),))
    volume = phantom(*GRIDS["working"])
    array = volume.array.copy()
    array[0, 1, 2, 3] = array[0, 3, 2, 1] = value
    with pytest.raises(
        UnsuitableInputError, match=r"\(array\): 2 voxels are NaN or infinite; accepted: finite numbers"
    ):
        segment(Volume(array, volume.geometry), path)


@pytest.mark.parametrize(
    ("device", "error"), [("cuda", ResourceError), ("gpu", UsageError), ("", UsageError), ("CPU:1", UsageError)]
)
def test_an_unknown_device(model, device, error):
    with pytest.raises(error, match=rf"device '?{device}'?: (accepted are auto, cpu|no NVIDIA driver|.*build-engine)"):
        open_engine(model, device)


def test_a_missing_model(home):
    with pytest.raises(MissingModelError):
        segment(phantom(*GRIDS["working"]), "nobody")


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ({"overlap": 1.0}, "accepted is a number from 0 up to"),
        ({"overlap": -0.5}, "accepted is a number from 0 up to"),
        ({"blend": "median"}, "accepted are constant and gaussian"),
        ({"reference": True, "overlap": 0.5}, "reference mode fixes overlap, blend, placement and components"),
        ({"reference": True, "blend": "constant"}, "reference mode fixes overlap, blend, placement and components"),
        ({"reference": True, "placement": "scan"}, "reference mode fixes overlap, blend, placement and components"),
        ({"reference": True, "components": "all"}, "reference mode fixes overlap, blend, placement and components"),
        ({"components": "each"}, "accepted are all and largest"),
        ({"placement": "head"}, "accepted are scan and body"),
        ({"placement": "body", "skip_air": False}, "give it or --every-window, not both"),
        ({"reference": True, "probabilities": True}, "gives no probabilities"),
    ],
    ids=str,
)
def test_settings_that_contradict(choice, message):
    with pytest.raises(UsageError, match=message):
        Settings(**choice)

"""Dice by hand, the merge table, grids that differ, and the two files written."""

import csv
import json
import math

import numpy as np
import pytest

from dropgen_rt.dataset_labels import PALETTE, read_label_table
from dropgen_rt.errors import (
    GeometryError,
    InputError,
    MissingInputError,
    OutputError,
    UnreadableInputError,
    UnsuitableInputError,
    UsageError,
)
from dropgen_rt.evaluate import dice_per_label, evaluate_files
from dropgen_rt.geometry import Geometry
from dropgen_rt.volume import write_labels

NOT_SCORED = "warning: not scored: {}; no label map belongs to them, or a _seg file does"
IDENTITY = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0)


def line(*values):
    return np.array(values, np.uint8).reshape(1, 1, -1)


def write(path, labels, origin_mm=(0.0, 0.0, 0.0), direction=IDENTITY, spacing_mm=(1.0, 1.0, 1.0)):
    write_labels(labels, Geometry(labels.shape[::-1], spacing_mm, origin_mm, direction), path)
    return path


def table(path, **content):
    path.write_text(json.dumps(content))
    return path


def test_dice_by_hand():
    scores = dice_per_label(line(0, 1, 1, 1, 2, 0), line(0, 1, 1, 2, 2, 4), 4)
    # label 1: 2 * 2 / (3 + 2); label 2: 2 * 1 / (1 + 2); label 3: nowhere; label 4: only in the reference
    assert scores[:2] == pytest.approx([4 / 5, 2 / 3])
    assert math.isnan(scores[2])
    assert scores[3] == 0


def test_dice_of_a_map_with_itself_is_one():
    labels = np.random.default_rng(0).integers(0, 4, (5, 6, 7), np.uint8)
    assert dice_per_label(labels, labels, 3).tolist() == [1, 1, 1]


def test_values_beyond_the_labels_are_no_labels():
    assert dice_per_label(line(1, 9), line(1, 7).astype(np.uint16), 1).tolist() == [1]


def test_two_files(tmp_path):
    prediction = write(tmp_path / "p.nii.gz", line(0, 1, 1, 1, 3, 0))
    label = write(tmp_path / "l.nrrd", line(0, 1, 1, 3, 3, 0))
    assert list(evaluate_files(prediction, label, None, None)) == [
        "0.8000  label 1, HD95 0.90 mm, surface Dice 1.0000", "0.6667  label 3, HD95 0.95 mm, surface Dice 1.0000",
        "mean Dice 0.7333",
    ]  # fmt: skip


def test_source_values_are_merged_in_the_reference_only(tmp_path):
    prediction = write(tmp_path / "p.nii.gz", line(1, 1, 2, 0, 0))
    label = write(tmp_path / "l.nii.gz", line(3, 53, 17, 99, 0))
    labels = {"background": 0, "hippocampus": [3, 53], "amygdala": 17}
    doubt, *lines = evaluate_files(prediction, label, table(tmp_path / "dataset.json", labels=labels), None)
    assert doubt == "warning: label values that dataset.json does not list count as none: 99"
    assert lines == [f"1.0000  {name}, HD95 0.00 mm, surface Dice 1.0000" for name in ("hippocampus", "amygdala")] + [
        "mean Dice 1.0000"
    ]


def test_json_and_csv_are_written(tmp_path):
    prediction = write(tmp_path / "NaN_p.nii.gz", line(1, 1, 3))
    label = write(tmp_path / "l.nii.gz", line(1, 0, 3))
    out = tmp_path / "result.json"
    names = {"label 1": 1, "label 2": 2, "label 3": 3}
    list(evaluate_files(prediction, label, table(tmp_path / "dataset.json", labels=names), out))
    document = json.loads(out.read_text(), parse_constant=pytest.fail)
    assert document["prediction"] == "NaN_p.nii.gz"
    assert document["mean_dice"] == pytest.approx((2 / 3 + 1) / 2)
    assert document["labels"] == [
        {
            "label": "label 1",
            "value": 1,
            "dice": pytest.approx(2 / 3),
            "hd95_mm": pytest.approx(0.95),
            "surface_dice": 1,
            "in_one_map_only": 0,
        },
        {"label": "label 2", "value": 2, "dice": None, "hd95_mm": None, "surface_dice": None, "in_one_map_only": 0},
        {"label": "label 3", "value": 3, "dice": 1.0, "hd95_mm": 0, "surface_dice": 1, "in_one_map_only": 0},
    ]
    with (tmp_path / "result.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["label"] for row in rows] == ["label 1", "label 2", "label 3"]
    assert float(rows[0]["dice"]) == pytest.approx(2 / 3)
    assert math.isnan(float(rows[1]["dice"]))


def folders(tmp_path, predictions, labels):
    for name, files in (("p", predictions), ("l", labels)):
        (tmp_path / name).mkdir()
        for file, array in files.items():
            write(tmp_path / name / f"{file}.nii.gz", array)
    return tmp_path / "p", tmp_path / "l"


def test_no_mean_of_distances_where_no_case_has_any(tmp_path):
    """One case has the label in neither map, the other in one only."""
    pair = folders(tmp_path, {"a": line(1), "b": line(1)}, {"a": line(1), "b": line(2)})
    table = list(evaluate_files(*pair, None, None))
    assert "0.0000  label 2, surface Dice 0.0000, in one map only: 1" in table


def test_two_folders_are_compared_subject_by_subject(tmp_path):
    predictions = {"a_seg": line(1, 1, 0, 0), "b": line(1, 0, 2, 0), "extra": line(1)}
    pair = folders(tmp_path, predictions, {"a": line(1, 1, 0, 2), "b": line(0, 1, 2, 0)})
    lines = list(evaluate_files(*pair, None, tmp_path / "out.json"))
    assert lines == [
        NOT_SCORED.format("extra.nii.gz"),
        "0.5000  label 1, HD95 0.50 mm, surface Dice 1.0000",
        "0.5000  label 2, HD95 0.00 mm, surface Dice 0.5000, in one map only: 1",
        "mean Dice 0.5000",
    ]
    with (tmp_path / "out.csv").open() as file:
        rows = [
            (row["subject"], row["label"], float(row["dice"]), float(row["hd95_mm"])) for row in csv.DictReader(file)
        ]
    assert rows == [
        ("a", "label 1", 1, 0), ("a", "label 2", 0, math.inf), ("b", "label 1", 0, 1), ("b", "label 2", 1, 0),
    ]  # fmt: skip
    document = json.loads((tmp_path / "out.json").read_text())
    assert document["subjects"] == 2 and [label["in_one_map_only"] for label in document["labels"]] == [0, 1]


def test_predictions_named_after_nnunet_images_find_their_labels(tmp_path):
    pair = folders(tmp_path, {"a_0000_seg": line(1), "b_0000_seg": line(1)}, {"a": line(1), "b_0000": line(1)})
    assert list(evaluate_files(*pair, None, None))[-1] == "mean Dice 1.0000"


@pytest.mark.parametrize("other", ["a_0000", "a", "a_zzz"])
def test_beside_the_scans_what_ends_in_seg_is_the_prediction(tmp_path, other):
    pair = folders(tmp_path, {"a_0000_seg": line(1, 0), other: line(0, 1)}, {"a": line(1, 0)})
    lines = list(evaluate_files(*pair, None, None))
    assert lines[0] == NOT_SCORED.format(f"{other}.nii.gz") and lines[-1] == "mean Dice 1.0000"


def test_two_folders_of_results_and_what_macos_leaves_there(tmp_path):
    pair = folders(tmp_path, {"a_seg": line(1), "._a_seg": line(2)}, {"a_seg": line(1), "._a_seg": line(1)})
    assert list(evaluate_files(*pair, None, None))[-1] == "mean Dice 1.0000"


def test_folders_that_do_not_fit_are_refused(tmp_path):
    pair = folders(tmp_path, {"a": line(1)}, {"a": line(1), "b": line(1)})
    with pytest.raises(MissingInputError, match="no prediction for b; names must be alike"):
        list(evaluate_files(*pair, None, None))
    with pytest.raises(UsageError, match="one is a folder, the other is not"):
        list(evaluate_files(pair[0], pair[1] / "a.nii.gz", None, None))


def test_two_empty_maps_have_no_mean(tmp_path):
    path = write(tmp_path / "p.nii.gz", line(0, 0))
    assert list(evaluate_files(path, path, None, None)) == ["mean Dice nan"]


def test_far_values_make_no_long_table(tmp_path):
    """As FreeSurfer numbers its parcels."""
    prediction = write(tmp_path / "p.nii.gz", np.array([12175, 12175, 11100, 0], np.uint16).reshape(1, 1, -1))
    label = write(tmp_path / "l.nii.gz", np.array([12175, 65535, 11100, 0], np.uint16).reshape(1, 1, -1))
    out = tmp_path / "dice.json"
    assert list(evaluate_files(prediction, label, None, out)) == [
        "warning: no prediction holds the label values 65535; if a model merges them, give its data set's --labels "
        "DATASET.JSON",
        "1.0000  label 11100, HD95 0.00 mm, surface Dice 1.0000",
        "0.6667  label 12175, HD95 0.95 mm, surface Dice 1.0000",
        "0.0000  label 65535, surface Dice 0.0000, in one map only: 1", "mean Dice 0.5556",
    ]  # fmt: skip
    assert [row["value"] for row in json.loads(out.read_text())["labels"]] == [11100, 12175, 65535]


def test_images_are_no_label_maps(tmp_path):
    image = write(tmp_path / "image.nii.gz", np.arange(2000, dtype=np.uint16).reshape(10, 10, 20))
    with pytest.raises(UnsuitableInputError, match=r"image\.nii\.gz: 2000 different values; accepted: .* 1000; check"):
        list(evaluate_files(image, image, None, None))
    far = write(tmp_path / "far.nii.gz", np.array([0, 2**31 - 1], np.uint32).reshape(1, 1, -1))
    with pytest.raises(UnsuitableInputError, match=r"values up to 2147483647; accepted: labels up to 65535; renumber"):
        list(evaluate_files(far, far, None, None))


CUBE = np.arange(27, dtype=np.uint8).reshape(3, 3, 3)
BOTH = "both 3 x 3 x 3 voxels, which lie up to "
FLIPPED = (-1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0)
SWAPPED = (0.0, 1.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0, 1.0)  # x and y: voxel 0 and the opposite corner stay in place


@pytest.mark.parametrize(
    ("labels", "change", "differ"),
    [
        (np.zeros((3, 3, 4), np.uint8), {}, "3 x 3 x 3 and 4 x 3 x 3 voxels"),
        (CUBE, {"origin_mm": (0.0, 0.0, 0.5)}, BOTH + "0.5 mm apart"),
        (CUBE, {"spacing_mm": (1.0, 1.1, 1.0)}, BOTH + "0.2 mm apart"),
        (CUBE, {"direction": FLIPPED, "origin_mm": (2.0, 0.0, 0.0)}, BOTH + "2 mm apart"),
        (CUBE, {"direction": SWAPPED}, BOTH + "2.828 mm apart"),
    ],
    ids=["size", "origin", "spacing", "flip", "swap"],
)
def test_other_grids_are_refused(tmp_path, labels, change, differ):
    prediction = write(tmp_path / "p.nii.gz", CUBE)
    label = write(tmp_path / "l.nii.gz", labels, **change)
    with pytest.raises(GeometryError) as refused:
        list(evaluate_files(prediction, label, None, None))
    assert str(refused.value) == (
        f"{prediction} and {label}: not on one grid ({differ}); give a prediction made from the labelled scan itself"
    )


def test_mean_dice_is_over_labels_whatever_the_number_of_subjects_that_have_them(tmp_path):
    for folder in ("found", "known"):
        (tmp_path / folder).mkdir()
    for name, found, known in (("a", line(1, 0, 2), line(1, 1, 2)), ("b", line(1, 0, 0), line(1, 1, 0))):
        write(tmp_path / "found" / f"{name}.nii.gz", found)
        write(tmp_path / "known" / f"{name}.nii.gz", known)
    lines = list(evaluate_files(tmp_path / "found", tmp_path / "known", None, tmp_path / "out.json"))
    # label 1: 2 * 1 / (1 + 2) in both; label 2: 1 in the one subject that has it
    assert lines[-1] == "mean Dice 0.8333"
    assert json.loads((tmp_path / "out.json").read_text())["mean_dice"] == pytest.approx((2 / 3 + 1) / 2)


def test_a_rounded_origin_is_the_same_grid(tmp_path):
    prediction = write(tmp_path / "p.nii.gz", CUBE, (100.123456, 0.0, 0.0))
    label = write(tmp_path / "l.nii.gz", CUBE, (100.1235, 0.0, 0.0))
    assert list(evaluate_files(prediction, label, None, None))[-1] == "mean Dice 1.0000"


def test_refused_files_leave_nothing(tmp_path):
    path = write(tmp_path / "p.nii.gz", line(1, 2))
    with pytest.raises(UsageError, match=r"must end in \.json"):
        list(evaluate_files(path, path, None, tmp_path / "out.csv"))
    with pytest.raises(MissingInputError):
        list(evaluate_files(path, tmp_path / "none.nii.gz", None, tmp_path / "out.json"))
    with pytest.raises(OutputError):
        list(evaluate_files(path, path, None, tmp_path / "none" / "out.json"))
    assert [entry.name for entry in tmp_path.iterdir()] == ["p.nii.gz"]


def test_a_prediction_of_source_values_is_doubted(tmp_path):
    prediction, label = write(tmp_path / "p.nii.gz", line(1, 2, 3)), write(tmp_path / "l.nii.gz", line(1, 2, 3))
    labels = table(tmp_path / "dataset.json", labels={"background": 0, "x": 1, "y": [2, 3]})
    assert next(evaluate_files(prediction, label, labels, None)) == (
        "warning: values of predictions that are no label's number, 1 to 2, count as none: 3; predictions are taken to "
        "be merged already"
    )


def test_two_references_of_one_name_are_refused(tmp_path):
    for folder, names in (("ours", ("a.mha",)), ("theirs", ("a.mha", "a.nii.gz"))):
        (tmp_path / folder).mkdir()
        for name in names:
            write(tmp_path / folder / name, line(1, 2))
    with pytest.raises(UsageError, match=r"a\.mha: beside it lies a\.nii\.gz, of the same name; move one elsewhere"):
        list(evaluate_files(tmp_path / "ours", tmp_path / "theirs", None, None))


def test_both_styles_of_label_tables(tmp_path):
    nnunet = read_label_table(table(tmp_path / "a.json", labels={"background": 0, "b": [4, 5], "a": 2}))
    decathlon = read_label_table(table(tmp_path / "b.json", labels={"0": "background", "4": "b", "2": "a"}))
    assert nnunet.sources == ((4, 5), (2,)) and decathlon.sources == ((4,), (2,))
    for found in (nnunet, decathlon):
        assert [(label.value, label.name, label.colour) for label in found.labels] == [
            (1, "b", PALETTE[0]), (2, "a", PALETTE[1]),
        ]  # fmt: skip
    assert nnunet.merge(line(0, 2, 4, 5, 200)).ravel().tolist() == [0, 2, 1, 1, 0]
    assert nnunet.merge(line(0)).dtype == np.uint8


def test_colours_may_be_named(tmp_path):
    found = read_label_table(table(tmp_path / "a.json", labels={"a": 1, "b": 2}, colours={"b": [1, 2, 3]}))
    assert [label.colour for label in found.labels] == [PALETTE[0], (1, 2, 3)]


@pytest.mark.parametrize(
    "content",
    [
        {},
        {"labels": []},
        {"labels": {}},
        {"labels": {"background": 0}},
        {"labels": {"a": -1}},
        {"labels": {"a": []}},
        {"labels": {"a": None}},
        {"labels": {"a": 1, "b": "2"}},
        {"labels": {"a": 10**30}},
        {"labels": {"a": 10**12}},
        {"labels": {"1": "kidney", "2": "kidney"}},
        {"labels": {"rein\u00a0gauche": 1}},
        {"labels": {"a\nx": 1}},
        {"labels": {"a\ud800": 1}},
        {"labels": {"Background": [0, 3]}},
        {"labels": {"a": {"b": 1}}},
        {"labels": {"x": "a"}},
        {"labels": {"1": ""}},
        {"labels": {"a": 1}, "colours": {"a": "red"}},
        {"labels": {"a": 1}, "colours": {"a": [1, 2, 999]}},
        {"labels": {"a": 1}, "colours": 5},
    ],
    ids=str,
)
def test_a_table_without_usable_labels_is_refused(tmp_path, content):
    path = table(tmp_path / "dataset.json", **content)
    with pytest.raises(UnreadableInputError) as caught:
        read_label_table(path)
    assert str(caught.value).startswith(f"{path}: ") and "\n" not in str(caught.value)


def test_a_background_is_one_however_it_is_written(tmp_path):
    found = read_label_table(table(tmp_path / "a.json", labels={"Background": [7], "a": 1}))
    assert (found.background, found.sources) == ((0, 7), ((1,),))


@pytest.mark.parametrize("text", ["", "not json", "[1]", "\xff", '{"labels": ' + "[" * 100_000])
def test_what_is_no_table_is_refused(tmp_path, text):
    path = tmp_path / "dataset.json"
    path.write_text(text, encoding="latin-1")
    with pytest.raises(InputError, match=r"dataset\.json"):
        read_label_table(path)


def test_values_of_the_prediction_alone_are_no_reason_to_merge(tmp_path):
    """They are found too much; only labels are merged."""
    few, many = np.array([[[1, 1, 2, 0]]], np.uint8), np.arange(8, dtype=np.uint8).reshape(1, 1, 8)
    prediction, label = write(tmp_path / "p.nii.gz", few), write(tmp_path / "l.nii.gz", few % 2)
    assert not any("warning" in line for line in evaluate_files(prediction, label, None, None))
    prediction, label = write(tmp_path / "p.nii.gz", many % 2), write(tmp_path / "l.nii.gz", many)
    warning, *_ = evaluate_files(prediction, label, None, None)
    assert warning.startswith("warning: no prediction holds the label values 2, 3, 4, 5, 6 and 1 more;")


@pytest.mark.parametrize(("values", "told"), [(35, True), (34, False)])
def test_a_scan_in_a_label_maps_place_is_doubted(tmp_path, values, told):
    """An 8-bit one is a map like another; 33 values and more that the other lacks make it doubtful."""
    scan = write(tmp_path / "scan.nii.gz", np.arange(values, dtype=np.uint8).reshape(1, 1, -1))
    label = write(tmp_path / "label.nii.gz", np.arange(values, dtype=np.uint8).reshape(1, 1, -1) % 2)
    few = "if they are scans, give label maps"
    ours = f"warning: the predictions hold {values - 2} values that no label map holds; {few}"
    assert (ours in evaluate_files(scan, label, None, None)) == told
    theirs = f"warning: the label maps hold {values - 2} values that no prediction holds; {few}"
    assert (theirs in evaluate_files(label, scan, None, None)) == told


def test_where_nothing_can_be_written_is_found_before_a_map_is_read(tmp_path):
    with pytest.raises(OutputError, match="the folder does not exist"):
        next(evaluate_files(tmp_path / "none.nii", tmp_path / "none.nii", None, tmp_path / "none" / "scores.json"))


@pytest.mark.parametrize("tolerance_mm", [math.nan, math.inf, -1.0])
def test_a_tolerance_that_is_no_length_is_refused(tmp_path, tolerance_mm):
    with pytest.raises(UsageError, match=r"--tolerance-mm .*: accepted is a length from 0 mm up"):
        list(evaluate_files(tmp_path, tmp_path, None, tmp_path / "s.json", tolerance_mm))

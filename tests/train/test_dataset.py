"""Data folders and tables: both label styles, merged labels, channels, the split, and every fault at once."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813  the name its users know

from dropgen_rt.errors import FaultyDatasetError, GeometryError, InputError
from dropgen_rt.train.config import TrainConfig
from dropgen_rt.train.dataset import Dataset, read_case, read_dataset
from dropgen_rt.train.patients import told
from dropgen_rt.train.survey import inspect_case, refuse_faults, survey


def describe(folder: Path, **changes: object) -> None:
    path = folder / "dataset.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def write(array: np.ndarray, path: Path, spacing_mm: tuple[float, ...] = (1.0, 1.0, 1.0)) -> None:
    image = sitk.GetImageFromArray(array)
    image.SetSpacing(spacing_mm)
    sitk.WriteImage(image, str(path))


def read(path: Path) -> np.ndarray:
    return sitk.GetArrayFromImage(sitk.ReadImage(str(path)))


def refusal(folder: Path, split: Path | None = None) -> str:
    dataset = read_dataset(folder, split)
    with pytest.raises(FaultyDatasetError) as caught:
        refuse_faults(folder, dataset.faults, survey(dataset.cases, dataset.table, None), dataset.table)
    assert caught.value.exit_code == 3
    return str(caught.value)


def accepted(folder: Path, split: Path | None = None) -> Dataset:
    dataset = read_dataset(folder, split)
    refuse_faults(folder, dataset.faults, survey(dataset.cases, dataset.table, None), dataset.table)
    return dataset


def test_split_and_labels(balls: Path) -> None:
    dataset = accepted(balls)
    assert [label.name for label in dataset.labels] == ["dim", "bright"]
    assert [case.name for case in dataset.validation] == ["case4"]
    assert len(dataset.training) == 5
    assert dataset.channels == ("MRI",)


def test_own_validation_and_test_folders(balls: Path) -> None:
    for short, case in (("Val", "case1"), ("Ts", "case2")):
        for kind, name in (("images", f"{case}_0000.nii.gz"), ("labels", f"{case}.nii.gz")):
            (balls / f"{kind}{short}").mkdir()
            (balls / f"{kind}Tr" / name).rename(balls / f"{kind}{short}" / name)
    dataset = accepted(balls)
    assert [case.name for case in dataset.training] == ["case0", "case3", "case4", "case5"]
    assert [case.name for case in dataset.validation] == ["case1"]
    assert [case.name for case in dataset.testing] == ["case2"]


def test_decathlon_style_means_the_same(balls: Path) -> None:
    for image in (balls / "imagesTr").iterdir():
        image.rename(image.with_name(image.name.replace("_0000", "")))
    before = json.loads((balls / "dataset.json").read_text())
    del before["channel_names"]
    (balls / "dataset.json").write_text(json.dumps({**before, "modality": {"0": "MRI"}}))
    describe(balls, labels={"0": "background", "1": "dim", "2": "bright"})
    dataset = accepted(balls)
    assert [(label.value, label.name) for label in dataset.labels] == [(1, "dim"), (2, "bright")]
    assert len(dataset.training) == 5


def test_other_suffixes_than_nifti(balls: Path) -> None:
    for path in [*(balls / "imagesTr").iterdir(), *(balls / "labelsTr").iterdir()]:
        sitk.WriteImage(sitk.ReadImage(str(path)), str(path).replace(".nii.gz", ".nrrd"))
        path.unlink()
    assert len(accepted(balls).training) == 5


def test_several_channels(balls: Path) -> None:
    describe(balls, channel_names={"0": "T1", "1": "T2"})
    for image in sorted((balls / "imagesTr").iterdir()):
        shutil.copy(image, str(image).replace("_0000", "_0001"))
    dataset = accepted(balls)
    assert [path.name for path in dataset.training[0].images] == ["case0_0000.nii.gz", "case0_0001.nii.gz"]
    image, _ = read_case(dataset.training[0], dataset, TrainConfig(window=(16, 16, 16)))
    assert image.shape == (2, 20, 22, 24)
    (balls / "imagesTr" / "case3_0001.nii.gz").unlink()
    assert "case3.nii.gz: 1 of 2 channels in imagesTr; add case3_0001.nii.gz" in refusal(balls)
    (balls / "imagesTr" / "case3_0000.nii.gz").rename(balls / "imagesTr" / "case3.nii.gz")
    told = "imagesTr/case3.nii.gz: one file for 2 channels; save each by itself, as case3_0000.nii.gz and so on"
    assert told in refusal(balls)


def test_a_scan_in_the_place_of_its_label_map_is_told(balls: Path) -> None:
    table = "image,label,split\n" + "".join(
        f"labelsTr/case{i}.nii.gz,imagesTr/case{i}_0000.nii.gz,{'val' if i else 'train'}\n" for i in range(2)
    )
    (balls / "split.csv").write_text(table)
    for i in range(2):
        path = str(balls / "imagesTr" / f"case{i}_0000.nii.gz")
        image = sitk.ReadImage(path)
        sitk.WriteImage(sitk.Cast(sitk.RescaleIntensity(image, 0, 255), sitk.sitkUInt8), path)
    assert "; if this is a scan, name its label map" in refusal(balls, balls / "split.csv")


def test_files_of_channels_that_are_not_named_are_faults(balls: Path) -> None:
    shutil.copy(balls / "imagesTr" / "case0_0000.nii.gz", balls / "imagesTr" / "case0_0001.nii.gz")
    assert "case0_0001.nii.gz: channel 1, dataset.json names 1; add it to" in refusal(balls)


def test_channels_of_one_case_are_of_one_format_and_one_grid(balls: Path) -> None:
    describe(balls, channel_names={"0": "T1", "1": "T2"})
    for image in sorted((balls / "imagesTr").iterdir()):
        shutil.copy(image, str(image).replace("_0000", "_0001"))
    (balls / "imagesTr" / "case1_0001.nii.gz").unlink()
    write(read(balls / "imagesTr" / "case1_0000.nii.gz"), balls / "imagesTr" / "case1_0001.mha")
    moved = sitk.ReadImage(str(balls / "imagesTr" / "case2_0001.nii.gz"))
    moved.SetOrigin((0.0, 0.0, 3.0))
    sitk.WriteImage(moved, str(balls / "imagesTr" / "case2_0001.nii.gz"))
    told = refusal(balls)
    assert "case1.nii.gz: its channels are .mha and .nii.gz; infer takes one format, so save them alike" in told
    wanted = "case2_0001.nii.gz: its voxels lie up to 3 mm from those of case2.nii.gz, as many and as large; resample"
    assert wanted in told and "case2.nii.gz: its grid" not in told


def test_accents_of_macos_are_the_same_letters(balls: Path) -> None:
    (balls / "imagesTr" / "case0_0000.nii.gz").rename(balls / "imagesTr" / "e\u0301a_0000.nii.gz")
    (balls / "labelsTr" / "case0.nii.gz").rename(balls / "labelsTr" / "\u00e9a.nii.gz")
    assert len(accepted(balls).cases) == 6


def test_codes_and_the_dicom_rule(balls: Path) -> None:
    code = ["10200004", "SCT", "Liver"]
    describe(balls, codes={"dim": code}, dicom={"modality": ["CT"], "pick": "thickest"})
    dataset = read_dataset(balls)
    assert [label.code for label in dataset.labels] == [tuple(code), None]
    assert (dataset.source.modality, dataset.source.pick) == (("CT",), "thickest")


@pytest.mark.parametrize(
    "wrong",
    [
        {"codes": {"dim": ["1"]}},
        {"codes": {"dim": "123"}},
        {"codes": {"dim": ["1", "SCT", "a\u00a0b"]}},
        {"colours": {"dim": "123"}},
        {"dicom": {"pick": "any"}},
        {"dicom": {"body": "x"}},
        {"dicom": {"modality": "CT"}},
        {"dicom": "CT"},
        {"licence": "CC\u200b0"},
        {"licence": "long " * 3000},
    ],
)
def test_wrong_codes_and_rules_are_named(balls: Path, wrong: dict) -> None:
    describe(balls, **wrong)
    with pytest.raises(InputError, match=next(iter(wrong))):
        read_dataset(balls)


def test_lists_merge_source_values(balls: Path) -> None:
    describe(balls, labels={"background": 0, "ball": [1, 2]})
    merged = read_dataset(balls).merge(np.array([0, 1, 2, 3]))
    assert merged.tolist() == [0, 1, 1, 0]


def test_a_table_says_who_is_what(balls: Path, tmp_path: Path) -> None:
    rows = [f"balls/imagesTr/case{i}_0000.nii.gz,balls/labelsTr/case{i}.nii.gz,{s}" for i, s in
            enumerate(["train", "Train", "val", "test", "validation", "tr"])]  # fmt: skip
    table = tmp_path / "split.csv"
    table.write_text("\n".join(["image,label,split", *rows]))
    dataset = accepted(balls, table)
    assert [case.name for case in dataset.training] == ["case0", "case1", "case5"]
    assert [case.name for case in dataset.validation] == ["case2", "case4"]
    assert [case.name for case in dataset.testing] == ["case3"]
    table.write_text("\n".join(["image,label,split", *rows, rows[0], rows[1].replace("Train", "?"), "no,no,val"]))
    text = refusal(balls, table)
    assert "line 8: " in text and "stands in an earlier line" in text
    assert "line 9: the split is none of train, val, test" in text
    assert "line 10: no such file" in text
    table.write_text("a,b\n1,2\n")
    with pytest.raises(InputError, match=r"columns a, b, 1 rows; accepted are the columns image, label, split"):
        read_dataset(balls, table)
    table.write_text("\n\n".join(["Image, label , SPLIT", *(row.replace(",", ", ") for row in rows)]))
    assert accepted(balls, table) == dataset
    table.write_text("\n\n".join(["image,label,split", *rows, f"no,{balls / 'labelsTr' / 'case0.nii.gz'},val"]))
    assert "line 15: no such file" in refusal(balls, table)
    assert f"line 15: {balls / 'labelsTr' / 'case0.nii.gz'} stands in an earlier line too" in refusal(balls, table)
    table.write_text("\n".join(["image,label,split", *(",".join((*row.split(",")[:2], "val")) for row in rows)]))
    with pytest.raises(InputError, match=r"0 cases to train on and 6 to validate; accepted are some of each"):
        read_dataset(balls, table)


def test_few_subjects_are_drawn_by_the_seed(balls: Path) -> None:
    dataset = read_dataset(balls)
    draws = {dataset.few(2, seed) for seed in range(20)}
    assert len(draws) > 3
    assert all(len(draw) == 2 and set(draw) <= set(dataset.training) for draw in draws)
    assert dataset.few(2, 7) == dataset.few(2, 7)
    assert dataset.few(0, 7) == dataset.training
    with pytest.raises(InputError, match="6 subjects were asked for, the data set has 5"):
        dataset.few(6, 0)


def test_a_case_comes_on_the_working_grid(balls: Path) -> None:
    dataset = read_dataset(balls)
    config = TrainConfig(window=(16, 16, 16), spacing_mm=(2.0, 1.0, 1.0))
    image, labels = read_case(dataset.training[0], dataset, config)
    assert image.shape == (1, 20, 22, 12)
    assert labels.shape == (20, 22, 12)
    assert image.min() == 0
    assert image.max() == pytest.approx(1)
    assert image[0][labels == 2].mean() > image[0][labels == 1].mean() > image[0][labels == 0].mean()


def make_unreadable(path: Path) -> None:
    """A file that the kernel itself refuses to read from its start, to root as well."""
    path.unlink()
    path.symlink_to("/proc/self/mem")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "dataset.json").unlink(), "dataset.json: no such file"),
        (lambda folder: (folder / "dataset.json").write_text("{"), "not JSON"),
        (lambda folder: (folder / "dataset.json").write_text("{}"), 'no "labels" table'),
        (lambda folder: make_unreadable(folder / "dataset.json"), "cannot be read"),
        (lambda folder: describe(folder, labels={"background": 0}), "at least one label"),
        (lambda folder: describe(folder, labels={"ball": "x", "y": "z"}), '"labels" are not'),
        (lambda folder: shutil.rmtree(folder / "labelsTr"), "no label maps in it"),
    ],
)
def test_what_is_no_data_set_is_refused(balls: Path, damage: object, message: str) -> None:
    damage(balls)  # type: ignore[operator]
    with pytest.raises(InputError, match=message):
        read_dataset(balls)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ({"background": 0, "whole": [1, 2], "core": 2}, "value 2 stands in both 'whole' and 'core'"),
        ({"background": [0, 1], "dim": 1, "bright": 2}, "value 1 stands in both 'background' and 'dim'"),
        ({"background": 0, "dim": 1, "ignore": 2}, '"ignore" would be learnt as a label'),
        ({"background": 0, "dim": 1.7, "bright": 2}, "not name: value"),
        ({"background": 0, "dim": True, "bright": 2}, "not name: value"),
    ],
)
def test_labels_that_would_be_learnt_otherwise_are_refused(balls: Path, labels: dict, message: str) -> None:
    describe(balls, labels=labels)
    with pytest.raises(InputError, match=message):
        read_dataset(balls)


@pytest.mark.parametrize(
    "names", ["CT", ["CT"], {"0": 7}, {"first": "MRI"}, {"0": "MRI", "\u00b2": "x"}, {"0": "MRI\nT1"}]
)
def test_channel_names_that_are_none_are_named(balls: Path, names: object) -> None:
    describe(balls, channel_names=names)
    with pytest.raises(InputError, match=r'"channel_names" .* is not'):
        read_dataset(balls)


def test_channels_follow_their_numbers(balls: Path) -> None:
    describe(balls, channel_names={"1": "T2", "0": "T1"})
    assert read_dataset(balls).channels == ("T1", "T2")


def test_a_folder_per_patient_names_the_cases(balls: Path, tmp_path: Path) -> None:
    rows = ["image,label,split"]
    for index in range(4):
        patient = tmp_path / f"p{index}"
        patient.mkdir()
        shutil.copy(balls / "imagesTr" / f"case{index}_0000.nii.gz", patient / "scan.nii.gz")
        shutil.copy(balls / "labelsTr" / f"case{index}.nii.gz", patient / "seg.nii.gz")
        rows.append(f"{patient.name}/scan.nii.gz,{patient.name}/seg.nii.gz,{'val' if index else 'train'}")
    (tmp_path / "split.csv").write_text("\n".join(rows))
    dataset = accepted(balls, tmp_path / "split.csv")
    assert [case.name for case in dataset.validation] == ["p1_seg", "p2_seg", "p3_seg"]


def sites(balls: Path, folder: Path, places: list[str]) -> Path:
    """A table of cases that lie at these places, without saying what validates."""
    rows = ["image,label,split"]
    for index, place in enumerate(places):
        image, label = folder / f"{place}.nii.gz", folder / f"{place}_seg.nii.gz"
        image.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(balls / "imagesTr" / f"case{index % 6}_0000.nii.gz", image)
        shutil.copy(balls / "labelsTr" / f"case{index % 6}.nii.gz", label)
        rows.append(f"{place}.nii.gz,{place}_seg.nii.gz,train")
    (folder / "split.csv").write_text("\n".join(rows))
    return folder / "split.csv"


def test_folders_tell_patients(balls: Path, tmp_path: Path) -> None:
    table = sites(balls, tmp_path, [f"p{i}/{scan}" for i in range(3) for scan in ("base", "follow")])
    dataset = accepted(balls, table)
    assert [case.name for case in dataset.validation] == ["p2_base_seg", "p2_follow_seg"]
    assert told(dataset.training, dataset.validation) == [
        "by their folders, 6 cases of 3 patients; each is on one side of the split"
    ]


def test_patients_of_two_sites_with_one_name_are_two(balls: Path, tmp_path: Path) -> None:
    table = sites(balls, tmp_path, [f"{site}/p{i}/scan" for site in "AB" for i in range(5)])
    dataset = accepted(balls, table)
    assert [case.name for case in dataset.validation] == ["A_p4_scan_seg", "B_p4_scan_seg"]
    assert len({case.patient for case in dataset.cases}) == 10 and told(dataset.cases) == []


def test_a_byte_order_mark_does_not_matter(balls: Path) -> None:
    path = balls / "dataset.json"
    path.write_text(path.read_text(), encoding="utf-8-sig")
    assert len(accepted(balls).labels) == 2


def test_files_that_could_be_either_are_faults(balls: Path) -> None:
    (balls / "imagesVal").mkdir()
    shutil.copy(balls / "imagesTr" / "case0_0000.nii.gz", balls / "imagesVal" / "case9_0000.nii.gz")
    for name, twin in (("imagesTr/case1_0000", ".nrrd"), ("labelsTr/case2", ".mha")):
        write(read(balls / f"{name}.nii.gz"), balls / f"{name}{twin}")
    told = refusal(balls)
    assert "labelsVal: no label maps, though imagesVal has images" in told
    assert "case1_0000.nrrd: beside it lies case1_0000.nii.gz, of the same case" in told
    assert "case2.nii.gz: beside it lies case2.mha, of the same case" in told


def test_a_survey_notices_voxels_that_changed_beside_their_header(balls: Path, tmp_path: Path) -> None:
    path = balls / "labelsTr" / "case0.mhd"
    labels = read(balls / "labelsTr" / "case0.nii.gz")
    (balls / "labelsTr" / "case0.nii.gz").unlink()
    write(labels, path)
    dataset, cache = read_dataset(balls), tmp_path / "cache"
    cache.mkdir()
    before = survey(dataset.training[:1], dataset.table, cache)[0]
    write(np.array([0, 2, 1], np.uint8)[labels], path)
    assert path.with_suffix(".raw").is_file()  # the voxels lie beside the header
    after = survey(dataset.training[:1], dataset.table, cache)[0]
    assert after.voxels == before.voxels[::-1] and after.digests[1] != before.digests[1]


def test_all_faults_are_listed_at_once(balls: Path) -> None:
    images, labels = balls / "imagesTr", balls / "labelsTr"
    shape = (20, 22, 24)
    (images / "case0_0000.nii.gz").unlink()
    (labels / "case1.nii.gz").unlink()
    write(np.ones((5, 5, 5), np.uint8), labels / "case2.nii.gz")
    write(np.full(shape, 7, np.uint8), labels / "case3.nii.gz")
    write(np.zeros(shape, np.uint8), labels / "case4.nii.gz")
    (images / "case5_0000.nii.gz").write_bytes(b"no image")
    write(np.ones(shape, np.uint8), images / "case2_0000_seg.nii.gz")
    describe(balls, labels={"background": 0, "dim": 1, "bright": 2, "unseen": 3})
    lines = refusal(balls).splitlines()
    expected = [
        "labelsTr/case0.nii.gz: 0 of 1 channels in imagesTr; add case0_0000.nii.gz",
        "imagesTr/case1_0000.nii.gz: no label map in labelsTr; add it",
        "case2_0000_seg.nii.gz: not an image but the labels that infer gave case2_0000.nii.gz; move it elsewhere",
        "case2.nii.gz: its grid (5 x 5 x 5 voxels of 1 x 1 x 1 mm) is not that of case2_0000.nii.gz",
        "case3.nii.gz: values that dataset.json does not list: 7; add them",
        "case3.nii.gz: no voxel of any label",
        "case4.nii.gz: no voxel of any label",
        "case5_0000.nii.gz: ",
        "label 'unseen': in no case",
    ]
    for wanted in expected:
        assert sum(wanted in line for line in lines) == 1, (wanted, lines)
    assert lines[0].startswith(f"{balls}: {len(lines) - 1} faults found before the first step")


def test_a_label_map_in_place_of_its_image_is_a_fault(balls: Path) -> None:
    shutil.copy(balls / "labelsTr" / "case2.nii.gz", balls / "imagesTr" / "case2_0000.nii.gz")
    dataset = read_dataset(balls)
    (fault,) = [fault for case in dataset.cases for fault in inspect_case(case, dataset.table).faults]
    assert fault == f"{balls / 'imagesTr' / 'case2_0000.nii.gz'}: is the label map itself; name the scan"


def test_the_background_may_gather_values(balls: Path) -> None:
    for path in (balls / "labelsTr").iterdir():
        labels = sitk.GetArrayFromImage(sitk.ReadImage(str(path)))
        labels[0, 0, 0] = 9
        write(labels, path)
    assert "does not list: 9" in refusal(balls)
    describe(balls, labels={"background": [0, 9], "dim": 1, "bright": 2})
    assert len(accepted(balls).labels) == 2


def test_unlike_grids_are_refused_when_read(balls: Path) -> None:
    dataset = read_dataset(balls)
    case = dataset.training[0]
    config = TrainConfig(window=(16, 16, 16))
    write(np.ones((5, 5, 5), np.uint8), case.label)
    with pytest.raises(GeometryError, match=r"shape \(5, 5, 5\), its image has \(20, 22, 24\)"):
        read_case(case, dataset, config)

"""Scans of one patient stay together, by their names."""

from dataclasses import replace
from pathlib import Path

import pytest

from dropgen_rt.train.layout import Case
from dropgen_rt.train.patients import by_patient, divided, told


def cases(*names: str) -> list[Case]:
    return [Case(name, (Path(f"{name}_0000.nii.gz"),), Path(f"{name}.nii.gz")) for name in names]


def names(some: tuple[Case, ...]) -> list[str]:
    return [case.name for case in some]


HEARTS = [f"p{patient:02}_{frame}" for patient in range(1, 8) for frame in ("frame01", "frame12")]


def test_every_fifth_patient_validates_with_all_scans() -> None:
    training, validation = divided(cases(*HEARTS))
    assert names(validation) == ["p05_frame01", "p05_frame12"]
    assert names(training) == [name for name in HEARTS if not name.startswith("p05")]


@pytest.mark.parametrize(
    "given",
    [
        [f"liver_{number:03}" for number in range(1, 12)],
        [f"case{number}" for number in range(1, 12)],
        ["A", *(f"site1_{number}" for number in range(5)), *(f"site2_{number}" for number in range(5))],
    ],
)
def test_other_names_are_a_patient_each(given: list[str]) -> None:
    training, validation = divided(cases(*given))
    assert names(validation) == given[4::5]
    assert len(training) + len(validation) == len(given)
    assert told(training, validation, []) == []


def test_the_last_of_few_patients_validates() -> None:
    training, validation = divided(cases("a_1", "a_2", "b_1", "b_2", "c_1"))
    assert (names(training), names(validation)) == (["a_1", "a_2", "b_1", "b_2"], ["c_1"])


@pytest.mark.parametrize(
    "given", [[], ["a_1", "a_2", "a_3", "a_4"], ["a_1", "a_2", "b_1", "b_2"], ["a", "b", "c", "d"]]
)
def test_too_few_to_divide(given: list[str]) -> None:
    assert names(divided(cases(*given))[1]) == []


def test_a_patient_with_five_scans_is_not_told_from_a_name_of_the_data_set() -> None:
    assert len(by_patient(cases("a_1", "a_2", "a_3", "a_4", "a_5"))) == 5


def test_a_patient_with_five_scans_among_others_is_one() -> None:
    many = [f"p08_{frame}" for frame in range(5)]
    training, validation = divided(cases(*HEARTS[:8], *many, *HEARTS[8:]))
    assert names(validation) == many
    assert names(training) == HEARTS
    assert "19 cases of 8 patients" in told(training, validation, ())[0]


def test_what_is_told() -> None:
    training, validation = divided(cases(*HEARTS))
    assert told(training, validation, ()) == [
        "by their names, 14 cases of 7 patients; each is on one side of the split"
    ]
    (line,) = told(training[:-1], training[-1:], validation)
    assert line == (
        "warning: p07_frame01, p07_frame12 look like scans of one patient and are on different sides of the split "
        "(patients so: 1): what is tested may have been trained on; --split CSV divides the cases"
    )
    again = [replace(case, label=Path("labelsTs") / case.label.name) for case in training[:2]]
    (line,) = told(training, validation, again)  # two folders that count from one
    assert line.startswith(f"warning: {training[0].label} and {training[1].label} and {again[0].label} and ")
    numbered = cases("case0", "case1")
    (line,) = told(numbered, (), [replace(numbered[0], label=Path("labelsTs/case0.nii.gz"))])
    assert line.startswith(f"warning: {numbered[0].label} and labelsTs/case0.nii.gz look like scans of one patient")

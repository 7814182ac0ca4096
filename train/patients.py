"""Which cases validate where the data set does not say: every fifth patient, with all of his or her scans."""

from collections.abc import Sequence

from dropgen_rt.train.layout import Case, tell_patients

VALIDATION_SHARE = 5


def by_patient(cases: Sequence[Case]) -> list[list[Case]]:
    """The cases of each patient as folders or names tell, in the order of the first of each.

    Names that differ after their last underscore alone are scans of one patient (``p01_frame01``, ``p01_frame12``) if
    there are other beginnings, and they tell patients (``layout.tell_patients``); ``liver_001`` to ``liver_131`` are
    131 patients.
    """
    owners = [case.patient or case.name.rpartition("_")[0] or case.name for case in cases]
    patients: dict[str, list[Case]] = {}
    for owner, case in zip(owners, cases, strict=True):
        patients.setdefault(owner, []).append(case)
    if len(patients) == 1 or not tell_patients(owners):
        return [[case] for case in cases]
    return list(patients.values())


def divided(cases: Sequence[Case]) -> tuple[tuple[Case, ...], tuple[Case, ...]]:
    """Training and validation cases: every fifth patient validates, the last one where there are fewer."""
    patients = by_patient(cases)
    few = len(patients) < VALIDATION_SHARE <= len(cases)
    chosen = patients[-1:] if few else patients[VALIDATION_SHARE - 1 :: VALIDATION_SHARE]
    validation = tuple(case for patient in chosen for case in patient)
    others = set(validation)
    return tuple(case for case in cases if case not in others), validation


def told(*sides: Sequence[Case]) -> list[str]:
    """For a person: that names tell of patients with several scans; a warning if one is on two ``sides`` of a split."""
    side_of = {case: index for index, side in enumerate(sides) for case in side}
    cases = list(side_of)
    patients = by_patient(cases)
    several = [patient for patient in patients if len(patient) > 1]
    apart = [patient for patient in several if len({side_of[case] for case in patient}) > 1]
    if apart:
        names = ", ".join(case.name for case in apart[0])
        if len({case.name for case in apart[0]}) < len(apart[0]):  # folders that each count from one
            names = " and ".join(str(case.label) for case in apart[0])
        return [
            f"warning: {names} look like scans of one patient and are on different sides of the split (patients so: "
            f"{len(apart)}): what is tested may have been trained on; --split CSV divides the cases"
        ]
    if several:
        told_by = "folders" if all(case.patient for case in cases) else "names"
        return [f"by their {told_by}, {len(cases)} cases of {len(patients)} patients; each is on one side of the split"]
    return []

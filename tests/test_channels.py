"""Scans of several channels, a file each, from the command line and from Python."""

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813  the name its users know
from click.testing import CliRunner

from dropgen_rt import read_channels, segment
from dropgen_rt.channels import cases
from dropgen_rt.cli import main
from dropgen_rt.errors import MissingInputError, UnsuitableInputError
from dropgen_rt.volume import read_label_map

SIZE = (18, 17, 16)


def write(path, seed, size=SIZE):
    image = sitk.GetImageFromArray(np.random.default_rng(seed).uniform(0, 100, size[::-1]).astype(np.float32))
    sitk.WriteImage(image, str(path))
    return path


@pytest.fixture
def model(tiny, tmp_path):
    """A model of two channels, the first of which decides."""
    return tiny.write(tmp_path / "two.onnx", channels=("T1", "T2"))


@pytest.fixture
def folder(tmp_path):
    made = tmp_path / "scans"
    made.mkdir()
    for case in ("a", "b"):
        for channel in range(2):
            write(made / f"{case}_000{channel}.nii.gz", ord(case) + channel)
    return made


def infer(*arguments):
    return CliRunner().invoke(main, ["infer", *map(str, arguments)])


def test_a_folder_of_cases(folder, model, tmp_path):
    result = infer(folder, "-o", tmp_path, "--model", model)
    assert result.exit_code == 0, result.output
    assert result.output.splitlines()[-1] == f"wrote {tmp_path / 'b_seg.nii.gz'}"
    for case in ("a", "b"):
        scan = read_channels([folder / f"{case}_0000.nii.gz", folder / f"{case}_0001.nii.gz"])
        assert scan.volume.array.shape == (2, *SIZE[::-1])
        expected = segment(scan, model).labels.array[0]
        assert np.array_equal(read_label_map(tmp_path / f"{case}_seg.nii.gz")[0], expected)


def test_one_case_by_its_first_file(folder, model, tmp_path):
    assert infer(folder / "a_0000.nii.gz", "-o", tmp_path, "--model", model).exit_code == 0
    assert (tmp_path / "a_seg.nii.gz").is_file()


def test_what_cannot_be_a_case_is_refused(folder, model, tmp_path):
    (folder / "a_0001.nii.gz").unlink()
    write(folder / "c.nii.gz", 0)
    for name, words in (
        ("a_0000.nii.gz", "no a_0001.nii.gz beside it; accepted: a file for each channel; put the scan of channel T2"),
        ("c.nii.gz", "a scan of one channel; accepted: 2 channels (T1, T2); name a file CASE_0000"),
    ):
        result = infer(folder / name, "-o", tmp_path, "--model", model)
        assert result.exit_code == 3 and words in result.stderr and result.stderr.count("\n") == 1
    assert not list(tmp_path.glob("*_seg*"))


def test_unlike_grids_and_missing_files(folder):
    other = write(folder / "d_0001.nii.gz", 0, (18, 17, 15))
    with pytest.raises(UnsuitableInputError, match="its grid is not that of d_0001"):
        read_channels([folder / "a_0000.nii.gz", other])
    with pytest.raises(MissingInputError):
        read_channels([folder / "a_0000.nii.gz", folder / "e_0001.nii.gz"])


def test_a_model_of_one_channel_takes_every_file(folder):
    files = sorted(folder.iterdir())
    assert cases(files, ("T1",)) == files
    assert cases(files, ("T1", "T2")) == [folder / "a_0000.nii.gz", folder / "b_0000.nii.gz"]

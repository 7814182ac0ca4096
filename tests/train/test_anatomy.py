"""Label maps that encoders are pretrained on: which are taken, and what is drawn from them."""

from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813  the name its users know
import torch

from dropgen_rt.errors import MissingInputError, UnreadableInputError, UnsuitableInputError
from dropgen_rt.train.anatomy import Anatomy, read_indexed_maps, two_views
from dropgen_rt.train.synthesis import RandomSource

CPU = torch.device("cpu")


def write(path: Path, labels: np.ndarray, spacing_mm: tuple[float, float, float] = (1.0, 1.0, 1.0)) -> Path:
    image = sitk.GetImageFromArray(labels)
    image.SetSpacing(spacing_mm)
    path.parent.mkdir(exist_ok=True)
    sitk.WriteImage(image, str(path))
    return path


def halves() -> np.ndarray:
    """(6, 5, 4) uint16: background, 3 and 700, in blocks along z."""
    return np.repeat(np.array([0, 3, 700], np.uint16), 2)[:, None, None] * np.ones((1, 5, 4), np.uint16)


def test_maps_are_indexed_by_their_sorted_values(tmp_path: Path) -> None:
    folder = write(tmp_path / "maps" / "a.nrrd", halves()).parent
    [index] = read_indexed_maps(folder, {})
    assert (index.dtype, tuple(index.shape)) == (torch.uint8, (6, 5, 4))
    assert index[:, 0, 0].tolist() == [0, 0, 1, 1, 2, 2]
    [merged] = read_indexed_maps(folder, {"both": (3, 700), "not there": (9, 65535)})
    assert merged[:, 0, 0].tolist() == [0, 0, 1, 1, 1, 1]


def test_maps_are_of_one_millimetre(tmp_path: Path) -> None:
    folder = write(tmp_path / "maps" / "thick.nrrd", halves(), (1.5, 1.5, 8.0)).parent
    with pytest.raises(UnsuitableInputError, match=r"thick\.nrrd: voxels of 1\.5 x 1\.5 x 8 mm, accepted are 1 mm;"):
        read_indexed_maps(folder, {})
    write(folder / "thick.nrrd", halves(), (1.0, 1.0, 0.96))
    assert len(read_indexed_maps(folder, {})) == 1
    with pytest.raises(MissingInputError, match="no label maps in it"):
        read_indexed_maps(tmp_path / "nowhere", {})


def test_maps_of_too_many_values_or_of_none(tmp_path: Path) -> None:
    many = np.arange(12**3, dtype=np.uint16).reshape(12, 12, 12) % 300
    folder = write(tmp_path / "maps" / "a.nii.gz", many).parent
    with pytest.raises(UnsuitableInputError, match=r"a\.nii\.gz: 300 different values, accepted are 256; merge"):
        read_indexed_maps(folder, {})
    assert len(read_indexed_maps(folder, {"most": tuple(range(1, 299))})) == 1
    write(folder / "a.nii.gz", np.zeros_like(many))
    with pytest.raises(UnsuitableInputError, match=r"a\.nii\.gz: holds nothing but background, of which nothing"):
        read_indexed_maps(folder, {})


@pytest.mark.parametrize("values", ["[]", "[-1, 2]", "[1, 70000]"])
def test_tissues_that_no_map_can_have(values: str, tmp_path: Path) -> None:
    folder = write(tmp_path / "maps" / "a.nii.gz", halves()).parent
    (tmp_path / "t.toml").write_text(f"[tissues]\na = {values}\n[contrasts]\nrandom = 1.0\n")
    with pytest.raises(UnreadableInputError, match=r"t\.toml: tissues: a .*: accepted are label values, 0 to 65535"):
        Anatomy.read(folder, CPU, tmp_path / "t.toml")


def test_tissues_merge_maps_and_tell_them_apart(tmp_path: Path) -> None:
    folder = write(tmp_path / "maps" / "a.nii.gz", halves()).parent
    (tmp_path / "t.toml").write_text("[tissues]\na = [3, 700]\n[contrasts]\nrandom = 1.0\n")
    plain, merged = Anatomy.read(folder, CPU), Anatomy.read(folder, CPU, tmp_path / "t.toml")
    assert plain.digest != merged.digest
    assert [len(some.maps[0].unique()) for some in (plain, merged)] == [3, 2]


def test_two_views_are_one_anatomy_in_two_contrasts(balls: Path) -> None:
    """The same source of randomness draws the same ones again."""
    anatomy = Anatomy.read(balls / "labelsTr", CPU)
    for seed in range(4):
        views, labels = two_views(anatomy, 16, RandomSource.seeded(seed))
        again, _ = two_views(anatomy, 16, RandomSource.seeded(seed))
        assert (tuple(views.shape), tuple(labels.shape)) == ((2, 1, 16, 16, 16), (16, 16, 16))
        assert torch.equal(views, again)
        assert views.min() >= 0 and views.max() <= 1 and labels.unique().numel() > 1
        assert not torch.allclose(views[0], views[1], atol=0.05)

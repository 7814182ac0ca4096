"""Golden windows from scan files, here of noise: of every channel, and with a note that the model file takes."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813  the name its users know

from dropgen_rt.errors import InputError
from dropgen_rt.export.golden_scans import golden_windows
from dropgen_rt.golden import MAX_TEXT, WINDOWS, answered, digest, pack, unpack
from dropgen_rt.manifest import Manifest


def write_scan(path: Path, seed: int) -> Path:
    values = np.random.default_rng(seed).integers(0, 100, (20, 24, 28)).astype(np.int16)
    sitk.WriteImage(sitk.GetImageFromArray(values), str(path))
    return path


def test_a_model_of_several_channels_sees_all_of_them(tiny: SimpleNamespace, tmp_path: Path) -> None:
    manifest: Manifest = tiny.manifest(channels=("T1", "T2"))
    first = write_scan(tmp_path / "a_0000.nii.gz", 0)
    with pytest.raises(InputError, match=r"a_0000\.nii\.gz: .*no a_0001\.nii\.gz beside it"):
        golden_windows(manifest, [first])
    write_scan(tmp_path / "a_0001.nii.gz", 1)
    windows, source = golden_windows(manifest, [first])
    assert windows.shape == (WINDOWS, 2, *manifest.window) and source == "a_0000.nii.gz"
    assert not np.array_equal(windows[:, 0], windows[:, 1])


@pytest.mark.parametrize("names", [["a\u00a0b.nii.gz"], [f"{'n' * 200}{number}.nii.gz" for number in range(6)]])
def test_any_names_come_back_from_the_model_file(tiny: SimpleNamespace, tmp_path: Path, names: list[str]) -> None:
    """In the place of a network stands one that gives its input back; its logits are not what is asked about."""
    manifest: Manifest = tiny.manifest()
    windows, source = golden_windows(manifest, [write_scan(tmp_path / name, 0) for name in names])
    assert source.isprintable() and len(source) <= MAX_TEXT

    def infer(batch: np.ndarray) -> np.ndarray:
        return np.concatenate([np.zeros_like(batch), batch, batch], axis=1)

    text = pack(answered(windows, infer, source, "a stand-in"))
    assert unpack(text, replace(manifest, golden_sha256=digest(text))).source == source

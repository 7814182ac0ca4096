import pytest

from dropgen_rt.errors import DeviceError
from dropgen_rt.gpu import device as module
from dropgen_rt.gpu import images, open_device
from dropgen_rt.gpu.images import load_kernels


def test_without_a_driver_library_the_refusal_says_what_to_install(monkeypatch):
    monkeypatch.setattr(module, "find_spec", lambda name: None)
    with pytest.raises(DeviceError, match="device cuda:1: pycuda is not installed; install it with: pip install"):
        open_device(1)
    assert DeviceError.exit_code == 6


class Loaded:
    capability = (9, 0)

    def __init__(self):
        self.entries = []

    def load(self, image, entries):
        assert image == b"image"
        self.entries += entries


def test_shipped_images_are_loaded_as_they_are(monkeypatch, tmp_path):
    for stem in images.ENTRY_POINTS:
        (tmp_path / f"{stem}.fatbin").write_bytes(b"image")
    monkeypatch.setattr(images, "source_folder", lambda: tmp_path)
    device = Loaded()
    load_kernels(device)
    assert device.entries == [entry for entries in images.ENTRY_POINTS.values() for entry in entries]


def test_without_images_and_nvcc_the_refusal_says_what_to_do(monkeypatch, tmp_path):
    monkeypatch.setattr(images, "source_folder", lambda: tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    expected = r"this installation has no CUDA kernels .*; build it where nvcc is on the PATH"
    with pytest.raises(DeviceError, match=expected):
        load_kernels(Loaded())

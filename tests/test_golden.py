"""Golden windows: small, exact through the file, and refused when they are not the manifest's."""

import base64
import io
from dataclasses import replace

import numpy as np
import onnx
import pytest

from dropgen_rt.errors import ModelError
from dropgen_rt.golden import (
    GOLDEN_KEY,
    MAX_BYTES,
    answered,
    as_windows,
    coarse_grid,
    digest,
    pack,
    synthetic_windows,
    unpack,
)
from dropgen_rt.manifest import METADATA_KEY, Label
from dropgen_rt.model import read_model
from dropgen_rt.verify import golden_of


def logits_of(windows):
    """The tiny network of conftest, in NumPy."""
    return np.concatenate([np.zeros_like(windows), windows - np.float32(0.3), 3 * windows - np.float32(1.7)], axis=1)


@pytest.fixture
def packed(tiny):
    manifest = tiny.manifest()
    golden = answered(synthetic_windows(manifest), logits_of, "synthetic", "NumPy")
    text = pack(golden)
    return golden, text, replace(manifest, golden_sha256=digest(text))


def test_they_come_back_bit_for_bit(packed):
    golden, text, manifest = packed
    again = unpack(text, manifest)
    for name in ("windows", "labels", "logits"):
        assert np.array_equal(getattr(again, name), getattr(golden, name))
    assert (again.step, again.source, again.referee) == (golden.step, "synthetic", "NumPy")
    assert np.array_equal(again.labels, logits_of(again.windows).argmax(1))


def test_synthetic_windows_have_background_and_contrast(tiny):
    windows = synthetic_windows(tiny.manifest(channels=("T1", "T2")))
    assert windows.shape == (3, 2, 16, 16, 16) and windows.dtype == np.float32
    assert windows.min() == 0 and 0.9 < windows.max() <= 1
    assert 0.2 < (windows == 0).mean() < 0.5
    assert np.array_equal(windows, synthetic_windows(tiny.manifest(channels=("T1", "T2"))))
    # neighbours resemble each other, as in a scan and not as in noise
    assert np.corrcoef(windows[:, :, 1:].ravel(), windows[:, :, :-1].ravel())[0, 1] > 0.5


@pytest.mark.parametrize(
    ("window", "grid"), [((16, 16, 16), (16, 16, 16)), ((128, 128, 128), (64, 64, 64)), ((96, 160, 128), (48, 80, 64))]
)
def test_large_windows_are_kept_coarse(window, grid):
    assert coarse_grid(window) == grid
    images = np.random.default_rng(0).random((1, 1, *grid))
    windows = as_windows(images, window)
    factor = window[0] // grid[0]
    assert windows.shape == (1, 1, *window)
    assert np.array_equal(
        windows[..., ::factor, ::factor, ::factor], windows[..., factor - 1 :: factor, ::factor, ::factor]
    )


def noisy(tiny, classes, edge):
    """Golden windows whose labels are noise, which nothing compresses; three windows of ``edge`` voxels."""
    labels = tuple(Label(value, f"part {value}", (0, 0, 0)) for value in range(1, classes))
    manifest = tiny.manifest(window=(edge, edge, edge), labels=labels)
    rng = np.random.default_rng(0)
    return manifest, answered(
        synthetic_windows(manifest), lambda w: rng.random((1, classes, *w.shape[2:]), dtype=np.float32), "noise", "none"
    )


def test_many_classes_stay_below_two_megabytes(tiny):
    """By fewer logits, then by fewer windows; what is left is whole and equals what was there."""
    manifest, golden = noisy(tiny, 14, 96)
    text = pack(golden)
    assert len(text) <= MAX_BYTES
    kept = unpack(text, replace(manifest, golden_sha256=digest(text)))
    count, step = len(kept.windows), kept.step
    assert 1 <= count < 3 and step > golden.step and step % golden.step == 0
    assert np.array_equal(kept.windows, golden.windows[:count]) and np.array_equal(kept.labels, golden.labels[:count])
    assert np.array_equal(kept.logits, golden.logits[:count, :, :: step // golden.step, :: step // golden.step,
                                                     :: step // golden.step])  # fmt: skip


def test_what_does_not_fit_at_all_is_refused(tiny):
    _, golden = noisy(tiny, 20, 144)
    with pytest.raises(ModelError, match=rf"accepted are {MAX_BYTES}; give --golden SCAN, .* or a smaller window"):
        pack(golden)
    assert len(pack(replace(golden, labels=np.zeros_like(golden.labels)))) <= MAX_BYTES


def test_others_than_the_manifest_names_are_refused(packed):
    _, text, manifest = packed
    for wrong in (text[:-4] + "AAAA", "", "ü" * 9):
        with pytest.raises(ModelError, match="not the ones that its manifest names"):
            unpack(wrong, manifest)


def npz(**arrays):
    stream = io.BytesIO()
    np.savez_compressed(stream, **arrays)
    return base64.b64encode(stream.getvalue()).decode()


GOOD = {
    "images": np.zeros((1, 1, 16, 16, 16), np.uint8), "labels": np.zeros((1, 16, 16, 16), np.uint8),
    "logits": np.zeros((1, 3, 16, 16, 16), np.float32), "step": np.int64(1), "source": np.str_("s"),
    "referee": np.str_("r"),
}  # fmt: skip


@pytest.mark.parametrize(
    "text",
    [
        "no base64",
        base64.b64encode(b"no zip").decode(),
        npz(**{key: value for key, value in GOOD.items() if key != "logits"}),
        npz(**GOOD | {"logits": np.zeros((1, 4, 16, 16, 16), np.float32)}),
        npz(**GOOD | {"images": np.zeros((1, 1, 0, 16, 16), np.uint8)}),
        npz(**GOOD | {"step": np.array([object()])}),
        npz(**GOOD | {"labels": np.zeros(300_000_000, np.uint8)}),  # 300 MB in 300 kB
        npz(**GOOD | {"labels": np.full((1, 16, 16, 16), 3, np.uint8)}),  # the manifest has classes 0 to 2
        npz(**GOOD | {"labels": np.zeros((1, 16, 16, 16), np.int64)}),
        npz(**GOOD | {"labels": np.zeros((1, 16, 16), np.uint8)}),
        npz(**GOOD | {"images": np.zeros((1, 1, 16, 16, 16), np.float32)}),
        npz(**GOOD | {"images": np.array("text")}),
        npz(**GOOD | {"images": np.zeros((1, 1, 16, 16, 3), np.uint8)}),
        npz(**GOOD | {"images": np.zeros((1, 2, 16, 16, 16), np.uint8)}),
        npz(**{key: np.repeat(value, 9, 0) if value.ndim else value for key, value in GOOD.items()}),
        npz(**{key: value[:0] if value.ndim else value for key, value in GOOD.items()}),
        npz(**GOOD | {"logits": np.zeros((1, 3, 16, 16, 16), np.complex64)}),
        npz(**GOOD | {"logits": np.full((1, 3, 16, 16, 16), np.nan, np.float32)}),
        npz(**GOOD | {"step": np.int64(0)}),
        npz(**GOOD | {"step": np.int64(-1)}),
        npz(**GOOD | {"step": np.int64(2**62)}),
        npz(**GOOD | {"step": np.float64(1)}),
        npz(**GOOD | {"step": np.array([1, 1])}),
        npz(**GOOD | {"source": np.str_("two\nlines")}),
        npz(**GOOD | {"referee": np.int64(3)}),
    ],
)
def test_damaged_ones_are_refused_even_with_the_right_digest(tiny, text):
    with pytest.raises(ModelError, match=r"golden windows cannot be read|not the ones"):
        unpack(text, tiny.manifest(golden_sha256=digest(text)))


def test_three_hundred_damaged_ones(tiny):
    """Bytes of the archive changed at random, the digest made to fit: ModelError of one line, or windows to use."""
    content, rng, refused = base64.b64decode(npz(**GOOD)), np.random.default_rng(20261123), 0
    for _ in range(300):
        damaged = bytearray(content)
        for place in rng.integers(0, len(content), 3):
            damaged[place] = rng.integers(0, 256)
        text = base64.b64encode(bytes(damaged)).decode()
        try:
            assert unpack(text, tiny.manifest(golden_sha256=digest(text))).windows.shape == (1, 1, 16, 16, 16)
        except ModelError as error:
            refused += 1
            assert "\n" not in str(error)
    assert 100 < refused < 300


def test_the_good_ones_of_that_table_are_read(tiny):
    text = npz(**GOOD)
    assert unpack(text, tiny.manifest(golden_sha256=digest(text))).referee == "r"


def test_a_model_carries_them(packed, tiny, tmp_path):
    golden, text, manifest = packed
    path = tmp_path / "m.onnx"
    path.write_bytes(tiny.onnx({METADATA_KEY: manifest.to_json(), GOLDEN_KEY: text}))
    found = golden_of(read_model(path))
    assert found.referee == "NumPy" and np.array_equal(found.labels, golden.labels)


def test_a_model_that_lost_them_is_refused(packed, tiny, tmp_path):
    path = tmp_path / "m.onnx"
    path.write_bytes(tiny.onnx({METADATA_KEY: packed[2].to_json()}))
    with pytest.raises(ModelError, match="not the ones that its manifest names"):
        golden_of(read_model(path))


def test_a_model_without_them_gets_some_made_here(model):
    golden = golden_of(model)
    assert golden.referee.startswith("onnxruntime ") and golden.referee.endswith(" fp32, here")
    assert np.array_equal(golden.labels, logits_of(golden.windows).argmax(1))
    assert onnx.load_model_from_string(model.content).metadata_props[0].key == METADATA_KEY

"""Reference mode is MONAI's sliding window: the same logits within rounding, and so the same labels."""

import numpy as np
import onnx
import pytest
import torch
from monai.inferers import sliding_window_inference
from tolerances import LOGIT_PARITY
from torch import nn

from dropgen_rt.geometry import Geometry
from dropgen_rt.kernels import Normalisation
from dropgen_rt.manifest import METADATA_KEY, Intensity, Label
from dropgen_rt.model import read_model
from dropgen_rt.segment import segment
from dropgen_rt.settings import Settings
from dropgen_rt.slide import argmax_labels, slide
from dropgen_rt.volume import Volume
from dropgen_rt.windows import WindowPlan

WINDOW = (8, 10, 12)
CLASSES = 4
SHAPES = {
    "smaller on all axes": (5, 7, 3),
    "smaller on some": (20, 9, 7),
    "odd": (13, 17, 19),
    "one voxel thick": (1, 23, 18),
    "exactly one window": WINDOW,
    "one more": (9, 11, 13),
    "many windows": (14, 16, 20),
}
IDENTITY = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0)


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Networks this small run faster so."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def network():
    """Reflecting padding makes a logit depend on where its window lies; tanh, on more than one tap."""
    with torch.random.fork_rng():
        torch.manual_seed(3)
        layers = nn.Sequential(
            nn.Conv3d(1, 6, 3, padding=1, padding_mode="reflect"),
            nn.Tanh(),
            nn.Conv3d(6, CLASSES, 3, padding=1, padding_mode="reflect"),
        )
    with torch.no_grad():
        layers[0].weight.mul_(6)  # else one class wins everywhere
        layers[2].bias.zero_()
    return layers.eval()


@pytest.fixture(scope="module")
def exported(network, tmp_path_factory, tiny):
    """The same network through ONNX, with a manifest."""
    program = torch.onnx.export(
        network, (torch.zeros(2, 1, *WINDOW),), dynamo=True, opset_version=20, input_names=["image"],
        output_names=["logits"], dynamic_shapes=({0: torch.export.Dim("batch", min=1)},), verbose=False,
    )  # fmt: skip
    labels = tuple(Label(value, f"part {value}", (value, 0, 0)) for value in range(1, CLASSES))
    manifest = tiny.manifest(window=WINDOW, labels=labels, intensity=(Intensity("range", 0.0, 1.0),))
    proto = program.model_proto
    onnx.helper.set_model_props(proto, {METADATA_KEY: manifest.to_json()})
    path = tmp_path_factory.mktemp("model") / "parity.onnx"
    onnx.save_model(proto, path)
    return read_model(path)


def noise(shape):
    """Values of 0 to 1, both ends present, so that normalising to that range changes nothing."""
    array = np.random.default_rng(sum(shape)).random((1, *shape), dtype=np.float32)
    array.flat[0], array.flat[-1] = 0, 1
    return array


def monai_logits(network, image, batch):
    with torch.no_grad():
        logits = sliding_window_inference(
            torch.from_numpy(image)[None], WINDOW, batch, network, overlap=0.5, mode="constant"
        )
    return logits[0].numpy()


def assert_same_labels(labels, logits):
    """Equal wherever MONAI's two best logits are further apart than the tolerance, which is nearly everywhere."""
    second, best = np.partition(logits, -2, axis=0)[-2:]
    decided = best - second > 2 * LOGIT_PARITY * np.ptp(logits)
    assert decided.mean() > 0.99
    assert len(np.unique(labels)) > 1
    assert np.array_equal(labels[decided], logits.argmax(axis=0)[decided])


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_the_same_network_gives_the_logits_of_monai(network, shape, batch):
    def infer(windows):
        with torch.no_grad():
            return network(torch.from_numpy(windows)).numpy()

    image = noise(shape)
    expected = monai_logits(network, image, batch)
    plan = WindowPlan.cover(shape, WINDOW, 0.5)
    sums, totals = slide(image, plan, Normalisation.identity(), infer, CLASSES, batch=batch)
    z, y, x = totals
    logits = sums / (z[:, None, None] * y[:, None] * x)
    assert np.abs(logits - expected).max() <= LOGIT_PARITY * np.ptp(expected)
    assert_same_labels(argmax_labels(sums, totals), expected)


def test_the_network_sees_where_its_window_lies(network):
    """Else the comparisons above would hold for any placement."""
    image = noise(SHAPES["many windows"])
    expected = monai_logits(network, image, 1)
    with torch.no_grad():
        shifted = sliding_window_inference(torch.from_numpy(image)[None], WINDOW, 1, network, overlap=0.25)
    assert np.abs(shifted[0].numpy() - expected).max() > 100 * LOGIT_PARITY * np.ptp(expected)


@pytest.mark.slow
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_a_segmentation_in_reference_mode_is_the_argmax_of_monai(network, exported, shape):
    image = noise(shape)
    geometry = Geometry(shape[::-1], (1.0, 1.0, 1.0), (5.0, -3.0, 2.0), IDENTITY)
    result = segment(Volume(image, geometry), exported, Settings(reference=True))
    assert result.labels.geometry == geometry
    assert_same_labels(result.labels.array[0], monai_logits(network, image, 1))

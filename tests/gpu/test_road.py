"""The GPU's road against the CPU's, on the CPU: the same bits, whatever the batch."""

import ctypes

import numpy as np
import pytest
from cuda_on_host import CXX, HostDevice, build

from dropgen_rt import slide
from dropgen_rt.errors import DeviceError, DeviceMemoryError, MemoryLimitError
from dropgen_rt.geometry import Geometry
from dropgen_rt.gpu import roll
from dropgen_rt.gpu.road import GpuRoad
from dropgen_rt.gpu.scan import choose_batch, roll_scan
from dropgen_rt.kernels import AxisMap
from dropgen_rt.manifest import Intensity, Label, Manifest
from dropgen_rt.record import Stopwatch
from dropgen_rt.segment import _roll_on_cpu, native_maps
from dropgen_rt.settings import Settings
from dropgen_rt.volume import Volume
from dropgen_rt.windows import WindowPlan

pytestmark = pytest.mark.skipif(CXX is None, reason="no g++ to run the CUDA files on the CPU")

WINDOW, CLASSES = (16, 16, 16), 5
MANIFEST = Manifest(
    "tiny", tuple(Label(value, f"label {value}", (value, 0, 0)) for value in range(1, CLASSES)), (2.0, 2.0, 2.0),
    WINDOW, 16, intensity=(Intensity("percentile", 1, 99),),
)  # fmt: skip


class HostNetwork:
    """A network on "device" memory: what ``infer_device`` reads and writes is checked by what comes out."""

    name, version, precision, device = "host", "1", "fp32", "cuda:0"

    def __init__(self, largest=100, later=100, edge=16):
        """Takes up to ``largest`` windows of ``edge``^3 at once, and up to ``later`` from the fourth call on."""
        self.largest, self.later, self.window = largest, later, (edge,) * 3
        self.batches, self.addresses, self.mix = [], [], np.random.default_rng(0).standard_normal((CLASSES, 2))

    def infer(self, windows):
        mean = windows.mean(axis=(1, 2, 3, 4), keepdims=True)
        rows = [
            np.float32(8 * k) * (windows[:, :1] - np.float32(0.12 * k)) + np.float32(b) * mean
            for k, (_, b) in enumerate(self.mix)
        ]
        return np.ascontiguousarray(np.concatenate(rows, 1))

    def infer_device(self, windows, logits, batch, stream):
        if batch > (self.later if len(self.batches) > 2 else self.largest):
            raise DeviceMemoryError("too much at once")
        self.batches.append(batch)
        self.addresses.append(logits)
        count = batch * int(np.prod(self.window))
        given = np.ctypeslib.as_array((ctypes.c_float * count).from_address(windows)).reshape(batch, 1, *self.window)
        found = self.infer(given)
        ctypes.memmove(logits, found.ctypes.data, found.nbytes)


@pytest.fixture(scope="module")
def device(tmp_path_factory):
    return HostDevice(build(tmp_path_factory.mktemp("cuda_on_host")))


def head(size, spacing_mm, code="LPS"):
    """A ball in noisy air, stored in any orientation."""
    rng, geometry = np.random.default_rng(0), Geometry(size, spacing_mm, (1.0, -2.0, 3.0), tuple(np.eye(3).ravel()))
    z, y, x = np.meshgrid(*(np.linspace(-1, 1, n) for n in geometry.shape), indexing="ij")
    ball = 200 * np.clip(0.5 - (z**2 + y**2 + x**2), 0, 1) + rng.random(geometry.shape)
    turned, change = geometry.reoriented(code)
    return Volume(np.ascontiguousarray(change.apply(ball[None].astype(np.float32))), turned)


def both(device, volume, settings, network):
    """What the CPU's and the GPU's road find. The sums that labels come from must be the same in every bit."""
    with pytest.MonkeyPatch.context() as patch:
        sums = recorded_sums(patch, device)
        found = through_both(device, volume, settings, network)
    assert len(sums["cpu"]) == len(sums["gpu"]) > 0
    assert all(ours == theirs for ours, theirs in zip(sums["gpu"], sums["cpu"], strict=True))
    return found


def recorded_sums(patch, device):
    """The bytes of the sums at every call of finalise, on either road."""
    sums, finalise, launch = {"cpu": [], "gpu": []}, slide.finalise, device.launch

    def on_cpu(ring, *arguments, **named):
        if len(named["out"]):
            sums["cpu"].append(ring.tobytes())
        return finalise(ring, *arguments, **named)

    def on_gpu(what, stream=0):
        if what.entry.startswith("finalise"):
            address, classes, *shape = (int(argument) for argument in what.arguments[:5])
            sums["gpu"].append(ctypes.string_at(address, 4 * classes * int(np.prod(shape))))
        launch(what, stream)

    patch.setattr(slide, "finalise", on_cpu)
    patch.setattr(device, "launch", on_gpu)
    return sums


def through_both(device, volume, settings, network):
    oriented, _ = volume.geometry.reoriented("LPS")
    working = oriented.resampled(MANIFEST.spacing_mm)
    plan = WindowPlan.cover(working.shape, network.window, 0.5)
    maps = native_maps(working, oriented)
    if settings.reference:
        maps = tuple(AxisMap.identity(size) for size in plan.shape)
    done, said = [], []
    arguments = (volume, plan, maps, MANIFEST, settings)
    plain = HostNetwork(edge=network.window[0])
    expected, _ = _roll_on_cpu(*arguments, plain, Stopwatch(), lambda n, of: None, lambda line: None)
    on = GpuRoad(device, kernels_loaded=True)
    found, memory = roll_scan(*arguments, network, Stopwatch(), lambda n, of: done.append((n, of)), said.append, on)
    assert {of for _, of in done} == {sum(n for n, _ in done)} == {found.windows} == {expected.windows}
    assert said == [f"{memory.line()}, batches of 4"]
    assert not device.held, "memory was left behind"
    return expected, found


@pytest.mark.parametrize("code", ["LPS", "SAR", "IRP"])
@pytest.mark.parametrize(
    "grid", [((40, 44, 50), (1.5, 1.5, 1.5)), ((30, 20, 70), (3.0, 2.5, 1.2)), ((9, 8, 7), (2.0, 2.0, 2.0))]
)
def test_labels_are_the_cpus(device, grid, code):
    expected, found = both(device, head(*grid, code), Settings(), HostNetwork())
    assert found.labels.tobytes() == expected.labels.tobytes()
    assert len(np.unique(found.labels)) > 1 and found.skipped == expected.skipped


@pytest.mark.parametrize("settings", [Settings(reference=True), Settings(skip_air=False), Settings(placement="body")])
def test_settings_mean_the_same(device, settings):
    expected, found = both(device, head((40, 44, 90), (2.0, 2.0, 2.0)), settings, HostNetwork())
    assert found.labels.tobytes() == expected.labels.tobytes() and found.skipped == expected.skipped
    assert (found.skipped > 0) == (settings.placement == "body")


def test_probabilities_are_the_cpus(device):
    expected, found = both(device, head((40, 44, 50), (1.5, 1.5, 1.5)), Settings(probabilities=True), HostNetwork())
    np.testing.assert_allclose(found.probability, expected.probability, atol=2e-6)


def test_a_graph_of_the_network_gives_the_same(device):
    network = HostNetwork()
    settings = Settings(skip_air=False, cuda_graph=True)
    expected, found = both(device, head((60, 44, 90), (1.5, 1.5, 1.5)), settings, network)
    assert found.labels.tobytes() == expected.labels.tobytes()
    # Once as it is for every size of a batch, then from graphs, which are dropped in the end.
    assert device.recorder.replayed == len(network.batches) - len(set(network.batches)) > 0
    assert not device.recorder.graphs


@pytest.mark.parametrize("cuda_graph", [False, True])
@pytest.mark.parametrize("edge", [10, 16])
@pytest.mark.parametrize(("largest", "later"), [(1, 1), (2, 2), (3, 3), (4, 2), (4, 1)])
def test_a_network_out_of_memory_gets_smaller_batches(device, largest, later, edge, cuda_graph):
    """At once, or later, when logits wait. Those of 10^3 voxels take 20,000 bytes, no multiple of 256: none wait."""
    network, settings = HostNetwork(largest, later, edge), Settings(skip_air=False, cuda_graph=cuda_graph)
    expected, found = both(device, head((60, 44, 50), (1.5, 1.5, 1.5)), settings, network)
    assert found.labels.tobytes() == expected.labels.tobytes()
    assert max(network.batches[:3]) <= largest and max(network.batches[3:]) <= later
    assert edge == 16 or len(set(network.addresses)) == 1


def test_air_between_windows_that_wait(device, monkeypatch):
    """Every third window counts as air, wherever it lies."""
    for module, name in ((roll, "are_air"), (slide, "air_windows")):
        monkeypatch.setattr(module, name, lambda image, starts, *rest: np.arange(len(starts)) % 3 == 1)
    expected, found = both(device, head((60, 44, 50), (1.5, 1.5, 1.5)), Settings(), HostNetwork())
    assert found.labels.tobytes() == expected.labels.tobytes()
    assert found.skipped == expected.skipped > 20


def test_memory_that_runs_out_at_air_makes_batches_smaller(device, monkeypatch):
    """The first window counts as air, and the network's first answer is that memory is out."""

    class Refusing(HostNetwork):
        refused = False

        def infer_device(self, windows, logits, batch, stream):
            if not self.refused:
                self.refused = True
                raise DeviceMemoryError("too much at once")
            super().infer_device(windows, logits, batch, stream)

    for module, name in ((roll, "are_air"), (slide, "air_windows")):
        monkeypatch.setattr(module, name, lambda image, starts, *rest: np.arange(len(starts)) % 3 == 0)
    network = Refusing()
    expected, found = both(device, head((60, 44, 50), (1.5, 1.5, 1.5)), Settings(), network)
    assert network.refused and found.labels.tobytes() == expected.labels.tobytes()


def test_a_network_that_never_fits_is_refused(device):
    with pytest.raises(DeviceMemoryError, match=r"one window of .* does not fit beside"):
        both(device, head((60, 44, 50), (1.5, 1.5, 1.5)), Settings(), HostNetwork(0))
    assert not device.held


def test_too_little_device_memory_is_refused_before_the_start(device, monkeypatch):
    """One byte less than a single window takes; with that byte it is not refused."""
    volume = head((60, 44, 50), (1.5, 1.5, 1.5))
    plan = WindowPlan.cover(volume.geometry.resampled(MANIFEST.spacing_mm).shape, WINDOW, 0.5)
    roomy = choose_one(device, plan, volume.geometry.shape)
    beyond_one = roomy.memory.parts["logits"] // roomy.together * (roomy.together - 1)
    needed = sum(roomy.memory.parts.values()) - beyond_one
    monkeypatch.setattr(device, "free", needed)
    tight = choose_one(device, plan, volume.geometry.shape)
    assert (tight.batch, tight.together) == (1, 1)
    monkeypatch.setattr(device, "free", needed - 1)
    with pytest.raises(MemoryLimitError, match="this scan needs"):
        both(device, volume, Settings(), HostNetwork())
    assert not device.held


@pytest.mark.parametrize(("room", "together"), [(3, 4), (7, 4), (11, 8), (1000, 20)])
def test_logits_wait_for_those_of_further_batches(device, monkeypatch, room, together):
    """As many batches of 4 as a quarter of what is left holds, up to a layer's 20 windows, are added at once."""
    volume = head((60, 44, 50), (1.5, 1.5, 1.5))
    plan = WindowPlan.cover(volume.geometry.resampled(MANIFEST.spacing_mm).shape, WINDOW, 0.5)
    parts = choose_batch(
        device, plan, volume.geometry.shape, channels=1, classes=CLASSES, most=4, probabilities=False, limit=None
    ).memory.parts  # fmt: skip
    beside = sum(parts.values()) - parts["logits"]
    monkeypatch.setattr(device, "free", beside + 4 * room * 4 * CLASSES * 16**3)
    plain, added = device.launch, []

    def launch(launch, stream=0):
        if launch.entry == "accumulate_f32":
            added.append(int(launch.arguments[10]))
        plain(launch, stream)

    monkeypatch.setattr(device, "launch", launch)
    expected, found = both(device, volume, Settings(skip_air=False), HostNetwork())
    assert found.labels.tobytes() == expected.labels.tobytes() and max(added) == together


def test_more_sums_than_the_kernels_count_are_refused(device):
    plan = WindowPlan.cover((16, 2**14, 2**14), (16, 2**14, 2**14), 0.5)
    with pytest.raises(DeviceError, match=r"a GPU takes fewer than 2\^32 sums; use --device cpu"):
        choose_one(device, plan, plan.shape)


def choose_one(device, plan, native_shape):
    return choose_batch(
        device, plan, native_shape, channels=1, classes=MANIFEST.classes, most=1, probabilities=False, limit=None
    )

"""The networks against the published layouts and the outputs of the original code."""

import csv
from contextlib import nullcontext
from typing import Literal

import numpy as np
import pytest
import torch
from shared_data import SHARED, needs
from tolerances import JOINED_TAPS, NETWORK_ORACLE, NORMALISED_ORACLE

from dropgen_rt.errors import UsageError
from dropgen_rt.train.config import build_config, preset_for
from dropgen_rt.train.network import ANATOMIX, ANATOMIX_DEV, DropGen, UNet, UNetConfig, rebuild, segmentor_config
from dropgen_rt.train.segmentors import MonaiConfig, SegmentorKind

PAPER = build_config(preset_for("paper", []))
SEGMENTOR = segmentor_config(17, 4, PAPER.width, PAPER.levels, PAPER.norm, PAPER.padding)
SMALL = UNetConfig(width=4, levels=2, padding_mode="zeros")


def seeded(network: torch.nn.Module) -> torch.nn.Module:
    """The state that the oracle's outputs were made with (facts/dropgen.md)."""
    generator = np.random.default_rng(0)
    state = network.state_dict()
    for key, tensor in state.items():
        if tensor.dtype == torch.int64:
            continue
        draw = generator.standard_normal(tuple(tensor.shape)).astype(np.float32)
        if key.endswith("running_var"):
            draw = np.abs(draw) * np.float32(0.5) + np.float32(0.5)
        elif draw.ndim == 1:
            draw = draw * np.float32(0.1) + np.float32(key.endswith("weight"))
        else:
            draw = draw * np.float32(np.sqrt(2 / np.prod(draw.shape[1:])))
        state[key] = torch.from_numpy(draw.astype(np.float32))
    network.load_state_dict(state, strict=True)
    return network.eval()


@needs("facts")
@pytest.mark.parametrize(
    ("config", "table"), [(ANATOMIX, "anatomix"), (ANATOMIX_DEV, "anatomix_dev"), (SEGMENTOR, "segmentor")]
)
def test_state_dict_is_the_published_one(config: UNetConfig, table: str) -> None:
    with (SHARED / "facts" / f"{table}_state_dict.tsv").open(encoding="utf-8") as file:
        expected = [(row["key"], row["shape"]) for row in csv.DictReader(file, delimiter="\t")]
    with torch.device("meta"):
        state = UNet(config).state_dict()
    shapes = [(key, "x".join(map(str, tensor.shape)) or "scalar") for key, tensor in state.items()]
    if table == "segmentor":  # the table is of another number of classes
        expected, shapes = expected[:-1], shapes[:-1]
    assert shapes == expected


@needs("facts/network_oracle.npz")
@pytest.mark.parametrize(
    ("name", "config", "shape", "tolerance"),
    [
        ("anatomix", ANATOMIX, (1, 1, 32, 48, 32), NETWORK_ORACLE),
        ("anatomix_dev", ANATOMIX_DEV, (1, 1, 64, 64, 64), NORMALISED_ORACLE),
        ("segmentor", SEGMENTOR, (1, 17, 64, 64, 64), NETWORK_ORACLE),
    ],
)
def test_outputs_equal_the_original_code(
    name: str, config: UNetConfig, shape: tuple[int, ...], tolerance: float
) -> None:
    oracle = np.load(SHARED / "facts" / "network_oracle.npz")[name]
    image = torch.from_numpy(np.random.default_rng(1).random(shape, dtype=np.float32))
    with torch.no_grad():
        ours = seeded(UNet(config))(image).numpy()[:, :, ::4, ::4, ::4]
    assert np.linalg.norm(ours - oracle) <= tolerance * np.linalg.norm(oracle)


@needs("facts/network_oracle.npz")
def test_normalised_features_equal_the_original_code() -> None:
    """What the segmentor sees beside the image."""
    oracle = np.load(SHARED / "facts" / "network_oracle.npz")["inst_anatomix"]
    network = DropGen(UNetConfig(17, 3, 4, 2), ANATOMIX)
    assert network.encoder is not None
    seeded(network.encoder)
    image = torch.from_numpy(np.random.default_rng(1).random((1, 1, 32, 48, 32), dtype=np.float32))
    with torch.no_grad():
        ours = network.feature_norm(network.encoder(image)).numpy()[:, :, ::4, ::4, ::4]
    assert np.linalg.norm(ours - oracle) <= NORMALISED_ORACLE * np.linalg.norm(oracle)


def dropgen(drop: float = 0.5) -> DropGen:
    torch.manual_seed(0)
    segmentor = UNetConfig(in_channels=17, out_channels=3, width=4, levels=2, padding_mode="zeros")
    return DropGen(segmentor, SMALL, drop=drop)


@pytest.mark.parametrize(
    ("segmentor", "encoder", "window", "taken"),
    [
        (UNetConfig(1, 2, 4, 2, padding_mode="zeros"), None, (4, 4, 4), True),
        (UNetConfig(1, 2, 4, 2, padding_mode="zeros"), None, (4, 4, 6), False),
        (UNetConfig(1, 2, 4, 2, "instance", padding_mode="zeros"), None, (4, 4, 4), False),
        (UNetConfig(1, 2, 4, 2, "instance", padding_mode="zeros"), None, (4, 8, 4), True),
        (UNetConfig(2, 2, 4, 2, padding_mode="zeros"), UNetConfig(1, 1, 2, 2), (4, 8, 8), False),
        (UNetConfig(2, 2, 4, 2, padding_mode="zeros"), UNetConfig(1, 1, 2, 2), (8, 8, 8), True),
    ],
)
def test_windows_are_refused_where_the_network_cannot_be_trained_on_them(
    segmentor: UNetConfig, encoder: UNetConfig | None, window: tuple[int, int, int], taken: bool
) -> None:
    network = DropGen(segmentor, encoder, 0.0, "dropgen" if encoder else "erm").train()
    with nullcontext() if taken else pytest.raises(UsageError, match="edges are multiples of 4 from"):
        network.check_window(window)
    with nullcontext() if taken else pytest.raises((RuntimeError, ValueError)):
        network(torch.rand(2, 1, *window))


def test_encoder_is_frozen_and_stays_in_evaluation_mode() -> None:
    network = dropgen().train()
    assert network.encoder is not None
    before = {key: value.clone() for key, value in network.encoder.state_dict().items()}
    network(torch.rand(1, 1, 16, 16, 16)).sum().backward()
    assert all(p.grad is None for p in network.encoder.parameters())
    assert not network.encoder.training
    assert network.segmentor.training
    assert all(torch.equal(before[key], value) for key, value in network.encoder.state_dict().items())


def test_dropout_takes_whole_channels_the_image_included() -> None:
    network = dropgen(drop=0.75).train()
    seen = []
    network.segmentor.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    for seed in range(40):
        torch.manual_seed(seed)
        network(torch.rand(1, 1, 16, 16, 16) + 0.5)
    alive = torch.stack([(x[0].abs().amax((1, 2, 3)) > 0) for x in seen]).float()  # (draws, 17)
    assert 0.15 < alive.mean() < 0.35  # a quarter survives
    assert 0 < alive[:, 0].mean() < 1  # the image is dropped too, and not always
    image = next(x[0, 0] for x, kept in zip(seen, alive, strict=True) if kept[0])
    assert image.min() >= 0.5 / 0.25  # survivors are scaled by 1 / (1 - p)


def test_evaluation_drops_nothing() -> None:
    network = dropgen(drop=0.75).eval()
    image = torch.rand(1, 1, 16, 16, 16)
    assert torch.equal(network(image), network(image))


def test_erm_is_the_segmentor_alone() -> None:
    network = DropGen(UNetConfig(out_channels=3, width=4, levels=2), None, method="erm").eval()
    image = torch.rand(1, 1, 16, 16, 16)
    assert torch.equal(network(image), network.segmentor(image))


@pytest.mark.parametrize("method", ["dropgen", "concat", "features", "erm"])
def test_method_and_encoder_must_agree(method: str) -> None:
    encoder = SMALL if method == "erm" else None
    with pytest.raises(ValueError, match=f"method '{method}'"):
        DropGen(SMALL, encoder, method=method)  # type: ignore[arg-type]


def test_features_never_see_the_image_and_concat_drops_nothing() -> None:
    image = torch.rand(1, 1, 16, 16, 16)
    features = DropGen(UNetConfig(16, 3, 4, 2, padding_mode="zeros"), SMALL, 0.75, "features").train()
    assert features.encoder is not None
    expected = features.segmentor(features.feature_norm(features.encoder(image)))
    assert torch.allclose(features(image), expected)
    assert features.segmentor.model[0].weight.abs().min() > 0  # nothing to start from but the features
    concat = DropGen(UNetConfig(17, 3, 4, 2, padding_mode="zeros"), SMALL, 0.75, "concat").train()
    seen = []
    concat.segmentor.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    concat(image)
    assert torch.equal(seen[0][:, :1], image) and (seen[0].abs().amax((0, 2, 3, 4)) > 0).all()


def test_the_image_alone_while_training_and_told_so() -> None:
    network, image = dropgen(drop=0.75).train(), torch.rand(2, 1, 16, 16, 16)
    assert network.encoder is not None
    seen, encoded = [], []
    network.segmentor.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    network.encoder.register_forward_pre_hook(lambda *_: encoded.append(1))
    network.image_alone = True
    network(image).sum().backward()
    assert torch.equal(seen[0][:, :1], image) and seen[0].shape[1] == 17 and not seen[0][:, 1:].any()
    assert not encoded
    network.eval()(image)
    assert encoded and seen[1][:, 1:].any()


def test_settling_drops_nothing_while_batch_norms_learn_on() -> None:
    network, image = dropgen(drop=0.75).train(), torch.rand(2, 1, 16, 16, 16)
    seen = []
    network.segmentor.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    network.settling = True
    before = network.segmentor.model[1].running_mean.clone()
    network(image)
    assert torch.equal(seen[0][:, :1], image) and (seen[0].abs().amax((2, 3, 4)) > 0).all()
    assert not torch.equal(network.segmentor.model[1].running_mean, before)


def test_features_are_scaled_beside_the_image() -> None:
    image = torch.rand(1, 1, 16, 16, 16)
    seen = []
    for scale in (1.0, 0.1):
        torch.manual_seed(0)
        network = DropGen(UNetConfig(17, 3, 4, 2, padding_mode="zeros"), SMALL, feature_scale=scale).eval()
        network.segmentor.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
        network(image)
        assert rebuild(network.description()).feature_scale == scale
    assert torch.equal(seen[0][:, :1], seen[1][:, :1])
    assert torch.equal(0.1 * seen[0][:, 1:], seen[1][:, 1:])
    older = {key: value for key, value in network.description().items() if key != "feature_scale"}
    assert rebuild(older).feature_scale == 1


def test_description_rebuilds_the_network() -> None:
    network = dropgen()
    again = rebuild(network.description())
    again.load_state_dict(network.state_dict(), strict=True)
    image = torch.rand(1, 1, 16, 16, 16)
    assert torch.equal(again.eval()(image), network.eval()(image))


def test_output_has_the_input_grid() -> None:
    config = UNetConfig(1, 5, 4, 2, padding_mode="zeros")
    edge = config.stride * 2
    assert UNet(config)(torch.rand(2, 1, edge, edge, 2 * edge)).shape == (2, 5, edge, edge, 2 * edge)


def test_segmentor_begins_as_the_images_own() -> None:
    """Without features, and with weights as large as PyTorch draws them for one input: up to 1 / sqrt(3 * 3 * 3)."""
    network = dropgen()
    first = network.segmentor.model[0].weight
    assert first.abs().min() > 0 and first.abs().max() <= 1 / (17 * 27) ** 0.5  # as published, unless it is asked for
    network.start_from_the_image()
    assert first[:, 1:].abs().max() == 0
    assert 0.9 / 27**0.5 < first[:, :1].abs().max() <= 1 / 27**0.5


@pytest.mark.parametrize(
    ("kind", "width", "layers"),
    [("dynunet", 17, 1), ("dynunet", 16, 1), ("segresnet", 16, 1), ("swinunetr", 12, 3), ("swinunetr", 24, 3)],
)
def test_of_monais_networks_only_what_sees_the_input_begins_so(kind: SegmentorKind, width: int, layers: int) -> None:
    """With 17 inputs and a width of 17 other layers, too, have 17 inputs."""
    encoder = UNetConfig(out_channels=16, width=2, levels=2, padding_mode="zeros")
    network = DropGen(MonaiConfig(kind, 17, 3, width, levels=3), encoder)
    network.start_from_the_image()
    kernels = [layer.weight for layer in network.segmentor.modules() if isinstance(layer, torch.nn.Conv3d)]
    assert sum(bool((weight[:, 1:] == 0).all()) for weight in kernels if weight.shape[1] > 1) == layers


@pytest.mark.parametrize("padding_mode", ["zeros", "reflect"])
def test_joined_taps_change_nothing_but_sums(
    padding_mode: Literal["zeros", "reflect"], joined: list[tuple[int, ...]]
) -> None:
    """Whole networks, the finest level joined and the others below the size where it is worth it; also gradients."""
    torch.manual_seed(0)
    network = UNet(UNetConfig(2, 3, 4, 3, padding_mode=padding_mode)).double().train()
    image = torch.rand(1, 2, 32, 16, 24, dtype=torch.float64)
    results = []
    for join in (False, True):
        if join:
            network.prefer_speed()
        network.zero_grad()
        *kept, logits = network.trace(image, network.decoder_layers)
        logits.square().sum().backward()
        gradients = [parameter.grad for parameter in network.parameters() if parameter.grad is not None]
        results.append([logits.detach(), *(layer.detach() for layer in kept), *(g.clone() for g in gradients)])
    assert joined == [(32, 16, 24)]
    assert all(torch.allclose(a, b, rtol=JOINED_TAPS, atol=JOINED_TAPS) for a, b in zip(*results, strict=True))


def test_trilinear_decoders_keep_their_upsampling() -> None:
    network = UNet(UNetConfig(1, 3, 4, 2, upsample="trilinear")).eval()
    image = torch.rand(2, 1, 32, 32, 32)  # one alone might be convolved as two halves
    expected = network(image)
    network.prefer_speed()
    assert torch.equal(network(image), expected)

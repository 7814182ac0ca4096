"""The anatomix U-Net and the DropGen network built on it.

Layout and state-dict keys follow the published anatomix checkpoints (Dey et al., arXiv 2411.02372), so
that those load with ``strict=True``; the fusion follows DropGen (Diaz et al., arXiv 2604.02564).
"""

from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from dropgen_rt.errors import UsageError
from dropgen_rt.train.layers import WORTH_JOINING, BatchNorm3d, Conv3d, InstanceNorm3d, MaxPool3d, Upsample
from dropgen_rt.train.segmentors import MonaiConfig, MonaiSegmentor

Method = Literal["dropgen", "erm", "features", "concat"]
METHODS: tuple[Method, ...] = get_args(Method)
Norm = Literal["batch", "instance"]
NORMS: tuple[Norm, ...] = get_args(Norm)
Padding = Literal["zeros", "reflect"]
PADDINGS: tuple[Padding, ...] = get_args(Padding)

# The feature normalisation's epsilon of the reference; part of the model's definition, not a tuning knob.
INSTANCE_NORM_EPS = 1e-5
# That of the published anatomix-dev's own norms, which learn no scale and shift.
ANATOMIX_DEV_EPS = 1e-2


@dataclass(frozen=True)
class UNetConfig:
    """Everything that determines a :class:`UNet`'s shape; stored in checkpoints and rebuilt from them."""

    in_channels: int = 1
    out_channels: int = 16
    width: int = 16
    levels: int = 4
    norm: Norm = "batch"
    pool: Literal["max", "average"] = "max"
    upsample: Literal["nearest", "trilinear"] = "nearest"
    conv_bias: bool = False
    padding_mode: Padding = "reflect"
    affine: bool = False  # of instance norms: scale and shift are learnt; batch norms always learn them

    @property
    def stride(self) -> int:
        """Edges of an input must be multiples of this many voxels."""
        return 2**self.levels

    @property
    def smallest_edge(self) -> int:
        """Of an input; reflect padding needs two voxels along each axis of the bottleneck, else one will do."""
        return self.stride * (2 if self.padding_mode == "reflect" else 1)

    @property
    def smallest_longest_edge(self) -> int:
        """Of an input's longest edge: instance norms need two voxels of the bottleneck in all."""
        return max(self.smallest_edge, self.stride * (2 if self.norm == "instance" else 1))


def segmentor_config(
    inputs: int, classes: int, width: int, levels: int, norm: Norm = "batch", padding: Padding = "zeros"
) -> UNetConfig:
    """The reference's segmentor where batch norms and reflected borders are asked for.

    Zeros beyond the borders are faster, and take smaller windows. Instance norms are as nnU-Net has them: scale and
    shift are learnt.
    """
    return UNetConfig(inputs, classes, width, levels, norm, padding_mode=padding, affine=norm == "instance")


ANATOMIX = UNetConfig()
ANATOMIX_DEV = UNetConfig(
    out_channels=32, width=32, levels=5, norm="instance", pool="average", upsample="trilinear", conv_bias=True
)


class UNet(nn.Module):
    """(batch, in, z, y, x) float -> (batch, out, z, y, x) float; edges are multiples of ``2**levels``.

    All layers sit in one flat ``Sequential`` called ``model``, because the published state dicts number
    them that way; ``_saves`` and ``_concatenates`` say which of them store and which take a skip.
    """

    def __init__(self, config: UNetConfig) -> None:
        super().__init__()
        self.config = config
        layers: list[nn.Module] = []
        self._saves: set[int] = set()
        self._concatenates: set[int] = set()
        # See ``prefer_speed``.
        self._joins_taps = False
        # The last layer of each decoder level, from coarse to full resolution.
        self.decoder_layers: list[int] = []

        def convolve(inputs: int, outputs: int) -> None:
            layers.extend([_conv(inputs, outputs, config), _norm(outputs, config), nn.ReLU()])

        width = config.width
        convolve(config.in_channels, width)
        for level in range(config.levels):
            wider = width if level == 0 else width * 2
            convolve(width, wider)
            convolve(wider, wider)
            width = wider
            self._saves.add(len(layers) - 1)
            layers.append(MaxPool3d(2) if config.pool == "max" else nn.AvgPool3d(2))
        convolve(width, width * 2)
        convolve(width * 2, width * 2)
        width *= 2
        for _ in range(config.levels):
            self._concatenates.add(len(layers))
            layers.append(_upsample(config))
            convolve(width + width // 2, width // 2)
            convolve(width // 2, width // 2)
            self.decoder_layers.append(len(layers) - 1)
            width //= 2
        layers.append(_conv(width, config.out_channels, config))
        self.model = nn.Sequential(*layers)

    @property
    def input_layers(self) -> list[nn.Module]:
        """The convolutions that see the input itself: the first."""
        return [self.model[0]]

    def forward(self, x: Tensor) -> Tensor:
        return self.trace(x, ())[-1]

    def trace(self, x: Tensor, keep: Collection[int]) -> list[Tensor]:
        """Outputs of the layers ``keep`` (no norms, no upsampling) in their order, and last the network's own."""
        kept: list[Tensor] = []
        skips: list[Tensor] = []
        for index, layer in enumerate(self.model):
            if index in self._concatenates:
                continue  # the next layer takes it along
            if index - 1 in self._concatenates:
                x = self._join(self.model[index - 1], layer, skips.pop(), x)
            else:
                x = layer(x)
            if index in self._saves:
                skips.append(x)
            if index in keep:
                kept.append(x)
        return [*kept, x]

    def _join(self, upsample: nn.Module, convolve: nn.Module, skip: Tensor, coarse: Tensor) -> Tensor:
        if self._joins_taps and skip[:, 0].numel() >= WORTH_JOINING:
            assert isinstance(convolve, Conv3d)
            return convolve.over_upsampled(skip, coarse)
        joined: Tensor = convolve(torch.cat([skip, upsample(coarse)], dim=1))
        return joined

    def prefer_speed(self) -> None:
        """From now on in the forms that train fastest on a CPU, whose sums come in another order; weights stay.

        Decoders never compute on upsampled volumes (``Conv3d.over_upsampled``), where that is possible, and one small
        volume is convolved as two halves (benchmarks/train_step.py).
        """
        self._joins_taps = self.config.upsample == "nearest"
        for layer in self.modules():
            if isinstance(layer, Conv3d):
                layer.halves = True
            elif isinstance(layer, nn.ReLU):
                layer.inplace = True  # on a GPU batch norms give views, and those are copied first


def _conv(inputs: int, outputs: int, config: UNetConfig) -> nn.Module:
    return Conv3d(inputs, outputs, 3, padding="same", padding_mode=config.padding_mode, bias=config.conv_bias)


def _norm(channels: int, config: UNetConfig) -> nn.Module:
    if config.norm == "batch":
        return BatchNorm3d(channels)
    if config.affine:
        return InstanceNorm3d(channels, affine=True)
    return InstanceNorm3d(channels, eps=ANATOMIX_DEV_EPS)


def _upsample(config: UNetConfig) -> nn.Module:
    if config.upsample == "nearest":
        return Upsample(scale_factor=2, mode="nearest")
    return nn.Upsample(scale_factor=2, mode="trilinear", align_corners=False)


class DropGen(nn.Module):
    """``segmentor(dropout3d(concat[image, instance_norm(encoder(image))]))``; the encoder never learns.

    Dropout takes whole channels, the image's own included, and only while training; survivors are scaled
    by ``1 / (1 - drop)``. Methods: "dropgen"; "concat", the same without dropout; "features", without the
    image and without dropout; "erm", the image alone, without encoder and dropout: the baseline.
    ``feature_scale`` multiplies the features: below 1 the segmentor takes them in more slowly beside the image.
    (batch, channels, z, y, x) float -> logits (batch, classes, z, y, x) float.
    """

    def __init__(
        self,
        segmentor: UNetConfig | MonaiConfig,
        encoder: UNetConfig | None,
        drop: float = 0.75,
        method: Method = "dropgen",
        feature_scale: float = 1.0,
    ) -> None:
        super().__init__()
        if (encoder is not None) != (method != "erm"):
            raise ValueError(f"method {method!r} {'takes no' if method == 'erm' else 'needs an'} encoder")
        self.method, self.feature_scale = method, feature_scale
        self.drop = nn.Dropout3d(drop if method == "dropgen" else 0.0)
        #: While training: no features and no dropout (TrainConfig.image_first); features without dropout (settle).
        self.image_alone, self.settling = False, False
        self.segmentor = UNet(segmentor) if isinstance(segmentor, UNetConfig) else MonaiSegmentor(segmentor)
        self.encoder = UNet(encoder) if encoder is not None else None
        if self.encoder is not None:
            self.encoder.requires_grad_(False)
            self.feature_norm = InstanceNorm3d(self.encoder.config.out_channels, eps=INSTANCE_NORM_EPS)

    def start_from_the_image(self) -> None:
        """Zero the first layers' feature weights: the segmentor begins as the image's own and takes features in.

        For trainings on the image first. Sixteen standardised features otherwise drown one image, and a short training
        sees little but them. The image's weights are drawn for all inputs together, small; they get the size that the
        image alone would have had, or the first steps, as large as they are, would throw them about.
        """
        assert self.encoder is not None and self.method != "features"
        inputs = self.segmentor.config.in_channels
        images = inputs // (1 + self.encoder.config.out_channels)  # c images make c * (1 + features) channels
        for layer in self.segmentor.input_layers:
            assert isinstance(layer, nn.Conv3d) and layer.in_channels == inputs
            with torch.no_grad():
                layer.weight[:, images:] = 0
                layer.weight[:, :images] *= (inputs / images) ** 0.5

    def train(self, mode: bool = True) -> "DropGen":
        """Switch modes, except that the frozen encoder stays in evaluation mode for ever."""
        super().train(mode)
        if self.encoder is not None:
            self.encoder.eval()
        return self

    @property
    def stride(self) -> int:
        return max(net.config.stride for net in (self.segmentor, self.encoder) if net is not None)

    @property
    def smallest_edge(self) -> int:
        """A window's edges are at least this many voxels."""
        return max(net.config.smallest_edge for net in (self.segmentor, self.encoder) if net is not None)

    def check_window(self, window: Sequence[int]) -> None:
        """Raises UsageError for a ``window`` (z, y, x) that the networks do not take."""
        nets = [net for net in (self.segmentor, self.encoder) if net is not None]
        longest = max(net.config.smallest_longest_edge for net in nets)
        if any(edge % self.stride or edge < self.smallest_edge for edge in window) or max(window) < longest:
            one = f", the longest from {longest} up" if longest > self.smallest_edge else ""
            raise UsageError(
                f"window {tuple(window)}: for this network, edges are multiples of {self.stride} from "
                f"{self.smallest_edge} up{one}"
            )

    def forward(self, image: Tensor) -> Tensor:
        if self.encoder is None:
            logits: Tensor = self.segmentor(image)
            return logits
        if self.training and self.image_alone:
            return self.segmentor(torch.cat([image, self._no_features(image)], dim=1))
        features = self._features(image)
        if self.method == "features":
            logits = self.segmentor(features)
        else:
            # Under autocast features are narrow: beside a wide image they would be widened, and then narrowed again.
            both = _beside(image.to(features.dtype), features)
            logits = self.segmentor(both if self.settling else self.drop(both))
        return logits

    @torch.no_grad()
    def _features(self, image: Tensor) -> Tensor:
        """Each image channel passes through the single-channel encoder on its own."""
        assert self.encoder is not None
        single = [self.feature_norm(self.encoder(channel)) for channel in image.split(1, dim=1)]
        features = torch.cat(single, dim=1) if len(single) > 1 else single[0]
        return features if self.feature_scale == 1 else features * self.feature_scale

    def _no_features(self, image: Tensor) -> Tensor:
        batch, channels, *edges = image.shape
        return image.new_zeros(batch, self.segmentor.config.in_channels - channels, *edges)

    def description(self) -> dict[str, object]:
        """What :func:`rebuild` needs, as plain JSON types."""
        return {
            "method": self.method,
            "drop": self.drop.p,
            "feature_scale": self.feature_scale,
            "segmentor": asdict(self.segmentor.config),
            "encoder": asdict(self.encoder.config) if self.encoder is not None else None,
        }


def _beside(image: Tensor, features: Tensor) -> Tensor:
    """``cat`` along channels, in the layout of ``features``: an image of one channel hides it from PyTorch's own."""
    if features.is_contiguous():
        return torch.cat([image, features], dim=1)
    return torch.cat([image.movedim(1, -1), features.movedim(1, -1)], dim=-1).movedim(-1, 1)


def rebuild(description: dict) -> DropGen:
    """The network that :meth:`DropGen.description` told of, with fresh weights."""
    encoder, segmentor = description["encoder"], description["segmentor"]
    return DropGen(
        MonaiConfig(**segmentor) if "kind" in segmentor else UNetConfig(**segmentor),
        UNetConfig(**encoder) if encoder is not None else None,
        drop=description["drop"],
        method=description["method"],
        feature_scale=description.get("feature_scale", 1.0),  # older checkpoints have none
    )

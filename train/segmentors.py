"""Segmentation networks beside the reference U-Net: MONAI's DynUNet, SegResNet and SwinUNETR.

The method is agnostic to them: each takes (b, in, z, y, x) and gives logits (b, out, z, y, x).
"""

from dataclasses import dataclass
from typing import Any, Literal, get_args

from torch import Tensor, nn

from dropgen_rt.train.layers import replace_instance_norms

SegmentorKind = Literal["unet", "dynunet", "segresnet", "swinunetr"]
SEGMENTORS: tuple[SegmentorKind, ...] = get_args(SegmentorKind)
# SwinUNETR halves five times whatever is asked.
SWIN_STRIDE = 32
# Widths are multiples of these: SegResNet's group norm divides channels by eight, SwinUNETR's heads by twelve.
WIDTH_STEPS = {"segresnet": 8, "swinunetr": 12}
# Convolutions that see the input itself, by their names in MONAI's networks; SwinUNETR's last one is not always there.
INPUT_LAYERS = {
    "dynunet": ("input_block.conv1.conv",),
    "segresnet": ("convInit.conv",),
    "swinunetr": ("swinViT.patch_embed.proj", "encoder1.layer.conv1.conv", "encoder1.layer.conv3.conv"),
}


@dataclass(frozen=True)
class MonaiConfig:
    """What determines one of MONAI's networks; ``width`` channels at full resolution, ``levels`` halvings."""

    kind: SegmentorKind
    in_channels: int
    out_channels: int
    width: int = 20
    levels: int = 4

    @property
    def stride(self) -> int:
        """Edges of an input must be multiples of this many voxels."""
        return SWIN_STRIDE if self.kind == "swinunetr" else 2**self.levels

    @property
    def smallest_edge(self) -> int:
        """Instance norms need more than one voxel at the bottleneck, and patches are merged by two along each axis."""
        return self.stride * 2

    @property
    def smallest_longest_edge(self) -> int:
        """As ``UNetConfig`` has it."""
        return self.smallest_edge


def taken_width(kind: SegmentorKind, width: int) -> int:
    """The channels at full resolution that a network really has where ``width`` is asked for: whole steps of it."""
    step = WIDTH_STEPS.get(kind, 1)
    return max(step, width - width % step)


class MonaiSegmentor(nn.Module):
    """One of MONAI's networks under the name ``net``, with the configuration that rebuilds it."""

    def __init__(self, config: MonaiConfig) -> None:
        super().__init__()
        self.config = config
        self.net = _MAKERS[config.kind](config)
        replace_instance_norms(self.net)

    @property
    def input_layers(self) -> list[nn.Module]:
        """The convolutions that see the input itself."""
        modules = dict(self.net.named_modules())
        return [modules[name] for name in INPUT_LAYERS[self.config.kind] if name in modules]

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.net(x)
        return logits


def _dynunet(config: MonaiConfig) -> nn.Module:
    from monai.networks.nets import DynUNet

    filters = [min(config.width * 2**level, 320) for level in range(config.levels + 1)]
    strides = [1] + [2] * config.levels
    net: nn.Module = DynUNet(
        3, config.in_channels, config.out_channels, [3] * len(strides), strides, strides[1:], filters=filters
    )
    return net


def _segresnet(config: MonaiConfig) -> nn.Module:
    from monai.networks.nets import SegResNet

    # MONAI's default depth grows, ours follows ``levels``.
    net: nn.Module = SegResNet(
        3, taken_width(config.kind, config.width), config.in_channels, config.out_channels,
        blocks_down=(1, *[2] * config.levels), blocks_up=(1,) * config.levels,
    )  # fmt: skip
    return net


def _swinunetr(config: MonaiConfig) -> nn.Module:
    from monai.networks.nets import SwinUNETR

    width = taken_width(config.kind, config.width)
    net: nn.Module = SwinUNETR(config.in_channels, config.out_channels, feature_size=width)
    return net


_MAKERS: dict[str, Any] = {"dynunet": _dynunet, "segresnet": _segresnet, "swinunetr": _swinunetr}

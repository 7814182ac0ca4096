"""The loss that pretrains an encoder: features of voxels of one label together, of others apart, in two contrasts.

After anatomix (Dey et al., arXiv 2411.02372).
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dropgen_rt.train.device import autocast
from dropgen_rt.train.layers import InstanceNorm3d
from dropgen_rt.train.network import INSTANCE_NORM_EPS, UNet
from dropgen_rt.train.synthesis import RandomSource

TEMPERATURE = 0.33
VOXELS_PER_VIEW = 1024
# How many decoder levels, counted from full resolution, the loss looks at beside the output itself.
LEVELS_IN_LOSS = 3


class Pretraining(nn.Module):
    """An encoder, the normalisation its users apply, and projection heads that are thrown away afterwards.

    The output itself is compared without a head: what a segmentor gets must be the stable thing.
    """

    def __init__(self, encoder: UNet, projection: int = 32) -> None:
        super().__init__()
        self.encoder = encoder
        self.norm = InstanceNorm3d(encoder.config.out_channels, eps=INSTANCE_NORM_EPS)
        self.layers = encoder.decoder_layers[-LEVELS_IN_LOSS:]
        finest = encoder.config.width
        widths = [finest * 2**level for level in reversed(range(len(self.layers)))]
        self.heads = nn.ModuleList(
            nn.Sequential(nn.Linear(width, 64), nn.ReLU(), nn.Linear(64, projection)) for width in widths
        )

    def forward(self, views: Tensor) -> list[Tensor]:
        """(b, c, z, y, x) features of each layer in the loss, coarse to fine, the normalised output last."""
        *decoder, output = self.encoder.trace(views, self.layers)
        return [*decoder, self.norm(output)]

    def project(self, layer: int, features: Tensor) -> Tensor:
        """(n, channels) features of a layer -> (n, d) to be compared."""
        return self.heads[layer](features) if layer < len(self.heads) else features


def ensemble_loss(model: Pretraining, views: Tensor, labels: Tensor, source: RandomSource) -> Tensor:
    """Mean over layers and pairs of the contrastive loss; ``views`` (b, 2, 1, n, n, n), ``labels`` (b, n, n, n)."""
    device = labels.device
    with autocast(device):
        layers = model(views.flatten(0, 1).contiguous(memory_format=torch.channels_last_3d))
    weights = label_weights(labels)
    losses = []
    for place, features in enumerate(layers):
        stride = labels.shape[-1] // features.shape[-1]
        coarse = labels[:, stride // 2 :: stride, stride // 2 :: stride, stride // 2 :: stride]
        voxels = balanced_voxels(coarse, weights, VOXELS_PER_VIEW, source)
        target = coarse.flatten(1).gather(1, voxels)
        # (b, view, channels, voxels) -> (b, view * voxels, channels), in fp32
        by_view = features.flatten(2).unflatten(0, (-1, 2))
        index = voxels[:, None, None].expand(-1, 2, by_view.shape[2], -1)
        chosen = by_view.gather(3, index).transpose(2, 3).flatten(1, 2).float()
        losses.append(contrastive_loss(model.project(place, chosen), target.repeat(1, 2)))
    return torch.stack(losses).mean()


def label_weights(labels: Tensor) -> Tensor:
    """(b, 256) float64: a voxel's weight by its label, so that in each of (b, …) uint8 maps labels weigh alike."""
    index = labels.flatten(1).to(torch.int64) + 256 * torch.arange(len(labels), device=labels.device)[:, None]
    # Labels of fewer than 20 voxels would be the same few voxels again and again.
    return 1.0 / torch.bincount(index.flatten(), minlength=256 * len(labels)).view(-1, 256).clamp_min(20).double()


def balanced_voxels(labels: Tensor, weights: Tensor, count: int, source: RandomSource) -> Tensor:
    """(b, count) flat indices of voxels drawn by their labels' weight: small structures must be seen."""
    cumulative = weights.gather(1, labels.flatten(1).to(torch.int64)).cumsum(1)
    shape = (len(labels), count)
    places = torch.rand(shape, generator=source.fields, device=labels.device, dtype=torch.float64)
    return torch.searchsorted(cumulative, places * cumulative[:, -1:]).clamp_max(cumulative.shape[1] - 1)


def contrastive_loss(features: Tensor, labels: Tensor) -> Tensor:
    """Supervised contrastive loss (Khosla et al., arXiv 2004.11362, L_out), mean over b sets.

    ``features`` (b, n, d), ``labels`` (b, n); a feature is compared with those of its own set.
    """
    features = F.normalize(features, dim=2)
    own = torch.eye(features.shape[1], dtype=torch.bool, device=features.device)
    similarity = (features @ features.transpose(1, 2) / TEMPERATURE).masked_fill(own, float("-inf"))
    positive = (labels[:, :, None] == labels[:, None, :]) & ~own
    log_share = similarity - similarity.logsumexp(dim=2, keepdim=True)
    return -(log_share.masked_fill(~positive, 0).sum(2) / positive.sum(2).clamp_min(1)).mean()

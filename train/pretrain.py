"""Contrastive pretraining of an encoder: the same voxel's label in two contrasts must give one feature.

After anatomix (Dey et al., arXiv 2411.02372): an ensemble of labelled shapes is drawn, painted in two
independent random contrasts, and a supervised contrastive loss pulls together the features of voxels that
share a label, across both views, and pushes the others apart.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dropgen_rt.errors import MissingInputError
from dropgen_rt.train.checkpoint import save_encoder
from dropgen_rt.train.network import INSTANCE_NORM_EPS, UNet, UNetConfig
from dropgen_rt.train.synthesis import SUBSAMPLES, deformed_coordinates, index_labels, look_up, paint, shape_ensemble
from dropgen_rt.volume import read_label_map

TEMPERATURE = 0.33
VOXELS_PER_VIEW = 512
# Crops of 96 mm at 2 mm: small enough for a CPU, large enough to hold several structures.
EDGE, SPACING_MM = 48, 2.0
SHAPES_SHARE = 0.3
PEAK_LEARNING_RATE, WARM_UP = 2e-3, 0.05
REPORT_EVERY = 50


def random_table(labels: int, rng: np.random.Generator) -> np.ndarray:
    """(2, labels) float32: an independent mean in [0.02, 1] and a deviation per label."""
    return np.stack([rng.uniform(0.02, 1.0, labels), rng.uniform(0.01, 0.08, labels)]).astype(np.float32)


def two_views(
    label_maps: list[Tensor], edge: int, step: float, shapes: float, rng: np.random.Generator
) -> tuple[Tensor, Tensor]:
    """Images (2, 1, n, n, n) float32 of one ensemble in two contrasts, and its labels (n, n, n) uint8."""
    if rng.random() < shapes or not label_maps:
        fine = shape_ensemble(edge, rng)
    else:
        chosen = label_maps[rng.integers(len(label_maps))]
        centre = np.array([rng.uniform(0.3, 0.7) * size for size in chosen.shape])
        fine = look_up(chosen, deformed_coordinates(centre, edge, step, rng))
    count = int(fine.max()) + 1
    views = torch.stack([paint(fine, random_table(count, rng), rng) for _ in range(2)])
    return views, fine[::2, ::2, ::2]


def balanced_voxels(labels: Tensor, count: int, rng: np.random.Generator) -> Tensor:
    """Flat indices of ``count`` voxels, every label equally likely: small structures must be seen."""
    flat = labels.reshape(-1).numpy()
    frequency = np.bincount(flat, minlength=256)
    weight = (1.0 / np.maximum(frequency, 20))[flat]
    cumulative = np.cumsum(weight)
    return torch.from_numpy(np.searchsorted(cumulative, rng.random(count) * cumulative[-1]))


def contrastive_loss(features: Tensor, labels: Tensor) -> Tensor:
    """Supervised contrastive loss (Khosla et al., arXiv 2004.11362, L_out) of (n, d) features, (n,) labels."""
    features = F.normalize(features, dim=1)
    similarity = features @ features.T / TEMPERATURE
    own = torch.eye(len(features), dtype=torch.bool)
    similarity = similarity.masked_fill(own, float("-inf"))
    positive = (labels[:, None] == labels[None, :]) & ~own
    log_share = similarity - similarity.logsumexp(dim=1, keepdim=True)
    return -(log_share.masked_fill(~positive, 0).sum(1) / positive.sum(1).clamp_min(1)).mean()


class Pretraining(nn.Module):
    """An encoder, the normalisation its users apply, and a projection head that is thrown away afterwards."""

    def __init__(self, encoder: UNet, projection: int = 32) -> None:
        super().__init__()
        channels = encoder.config.out_channels
        self.encoder = encoder
        self.norm = nn.InstanceNorm3d(channels, eps=INSTANCE_NORM_EPS)
        self.head = nn.Sequential(nn.Linear(channels, 64), nn.ReLU(), nn.Linear(64, projection))

    def forward(self, views: Tensor, voxels: Tensor) -> Tensor:
        """Projected features (views * len(voxels), projection) at the flat ``voxels`` of every view."""
        features = self.norm(self.encoder(views)).flatten(2)[:, :, voxels]
        return self.head(features.transpose(1, 2).flatten(0, 1))


def pretrain(folder: Path, out: Path, steps: int, width: int, seed: int, report: Callable[[str], None]) -> None:
    """Pretrain an encoder on the label maps (.nii.gz) of ``folder`` and write it to ``out``.

    ``report`` gets a line every 50 steps. Raises MissingInputError if the folder holds no label maps.
    """
    label_maps = read_indexed_maps(folder)
    rng = np.random.default_rng(seed)
    torch.manual_seed(seed)
    model = Pretraining(UNet(UNetConfig(width=width, padding_mode="zeros")))
    model.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
    optimiser = torch.optim.AdamW(model.parameters(), PEAK_LEARNING_RATE, weight_decay=1e-5)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, PEAK_LEARNING_RATE, total_steps=max(steps, 2), pct_start=WARM_UP
    )
    losses = []
    for step in range(steps):
        views, labels = two_views(label_maps, EDGE, SPACING_MM / SUBSAMPLES, SHAPES_SHARE, rng)
        voxels = balanced_voxels(labels, VOXELS_PER_VIEW, rng)
        features = model(views.contiguous(memory_format=torch.channels_last_3d), voxels)
        loss = contrastive_loss(features, labels.reshape(-1)[voxels].repeat(2))
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        schedule.step()
        losses.append(loss.item())
        if (step + 1) % REPORT_EVERY == 0 or step + 1 == steps:
            report(f"step {step + 1} of {steps}: loss {np.mean(losses[-REPORT_EVERY:]):.3f}")
    provenance = {"label_maps": len(label_maps), "steps": steps, "width": width, "seed": seed}
    save_encoder(out, model.encoder, provenance)


def read_indexed_maps(folder: Path) -> list[Tensor]:
    """Every label map of a folder, turned to LPS, as (z, y, x) uint8 indices into its sorted values."""
    paths = sorted(folder.glob("*.nii.gz"))
    if not paths:
        raise MissingInputError(f"{folder}: no .nii.gz label maps in it; name a folder that has some")
    maps = []
    for path in paths:
        raw, geometry = read_label_map(path)
        _, change = geometry.reoriented("LPS")
        maps.append(index_labels(change.apply(raw))[0])
    return maps

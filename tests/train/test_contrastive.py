"""The contrastive loss, and the voxels that it compares."""

import torch

from dropgen_rt.train.contrastive import balanced_voxels, contrastive_loss, label_weights
from dropgen_rt.train.synthesis import RandomSource


def test_contrastive_loss_prefers_agreeing_features() -> None:
    labels = torch.tensor([0, 0, 1, 1])
    agreeing = torch.tensor([[1.0, 0], [1, 0], [0, 1], [0, 1]])
    mixed = agreeing[[0, 2, 1, 3]]
    assert contrastive_loss(agreeing[None], labels[None]) < contrastive_loss(mixed[None], labels[None])


def test_balanced_voxels_reach_small_labels() -> None:
    labels = torch.zeros(20, 20, 20, dtype=torch.uint8)
    labels[:3, :3, :3] = 1
    weights = label_weights(labels[None])
    chosen = labels.reshape(-1)[balanced_voxels(labels[None], weights, 1000, RandomSource.seeded(0))[0]]
    assert 300 < int((chosen == 1).sum()) < 700

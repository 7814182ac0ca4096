"""Losses by name; each takes logits (b, k, z, y, x) and targets (b, 1, z, y, x). The background has no Dice."""

from collections.abc import Callable
from typing import Any

import torch.nn.functional as F
from monai.losses import DiceCELoss, DiceFocalLoss, TverskyLoss
from torch import Tensor

from dropgen_rt.train.config import LossKind

Loss = Callable[[Tensor, Tensor], Tensor]
# Misses cost more than false alarms: small structures are missed first (Salehi et al., arXiv 1706.05721).
TVERSKY_FALSE_ALARM, TVERSKY_MISS = 0.3, 0.7


def make_loss(kind: LossKind) -> Loss:
    """The loss of this name: the paper's Dice + cross-entropy, Dice + focal, Tversky, or cross-entropy alone.

    Dice favours labels that are too large where the network is unsure; cross-entropy alone does not.
    """
    shared: dict[str, Any] = {"softmax": True, "include_background": False, "to_onehot_y": True, "batch": True}
    loss: Loss
    if kind == "dice_ce":
        loss = DiceCELoss(**shared)
    elif kind == "dice_focal":
        loss = DiceFocalLoss(**shared)
    elif kind == "ce":
        loss = _cross_entropy
    else:
        loss = TverskyLoss(alpha=TVERSKY_FALSE_ALARM, beta=TVERSKY_MISS, **shared)
    return loss


def _cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    return F.cross_entropy(logits, target[:, 0].long())

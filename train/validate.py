"""Validation by the runtime's own sliding window, with the network in an engine's place."""

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray

from dropgen_rt.evaluate import dice_per_label
from dropgen_rt.kernels import Normalisation
from dropgen_rt.slide import argmax_labels, slide
from dropgen_rt.train.config import TrainConfig
from dropgen_rt.train.device import autocast
from dropgen_rt.train.distributed import Ranks
from dropgen_rt.train.network import DropGen
from dropgen_rt.windows import Blend, WindowPlan


def validate(
    network: DropGen, cases: list[tuple[NDArray, NDArray]], config: TrainConfig, ranks: Ranks | None = None
) -> NDArray[np.float64]:
    """(labels,) mean Dice over ``cases`` by the runtime's own sliding window; NaN where no case has the label.

    Several processes divide the cases among them and all get the whole result.
    """
    ranks = ranks or Ranks()
    network.eval()
    labels = network.segmentor.config.out_channels - 1
    mine = cases[ranks.rank :: ranks.world]
    scores = [dice_per_label(predict(network, image, config), target, labels) for image, target in mine]
    network.train()
    table = np.array([row for part in ranks.gather(scores) for row in part])
    with np.errstate(invalid="ignore"):
        return np.where(np.isnan(table).all(0), np.nan, np.nansum(table, 0) / (~np.isnan(table)).sum(0))


def predict(
    network: DropGen, image: NDArray[np.float32], config: TrainConfig, blend: Blend = "constant"
) -> NDArray[np.unsignedinteger]:
    """(z, y, x) labels of a prepared image (channels, z, y, x), by the inference road with the paper's overlap."""
    plan = WindowPlan.cover(image.shape[1:], config.window, 0.5)
    infer = torch_infer(network, config.precision)
    classes = network.segmentor.config.out_channels
    whole = np.ascontiguousarray(image)  # a memory-mapped one is read here
    return argmax_labels(*slide(whole, plan, Normalisation.identity(len(whole)), infer, classes, blend=blend))


def torch_infer(network: DropGen, precision: str = "auto") -> Callable[[NDArray[np.float32]], NDArray[np.float32]]:
    """The network as the engines' ``infer``: (b, c, z, y, x) float32 -> logits (b, k, z, y, x) float32."""
    device = next(network.parameters()).device

    def infer(batch: NDArray[np.float32]) -> NDArray[np.float32]:
        with torch.no_grad(), autocast(device, precision):
            image = torch.from_numpy(batch).to(device).contiguous(memory_format=torch.channels_last_3d)
            return network(image).float().contiguous().cpu().numpy()

    return infer

"""A network as inference needs it: evaluation mode, no dropout, batch norms folded into convolutions."""

import copy

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from dropgen_rt.train.network import DropGen, UNet


def fuse(network: DropGen) -> DropGen:
    """A copy of ``network`` that computes the same logits with fewer layers; the original stays as it was."""
    fused = copy.deepcopy(network).eval()
    fused.drop = nn.Identity()  # type: ignore[assignment]
    for unet in (fused.segmentor, fused.encoder):
        if isinstance(unet, UNet):  # MONAI's networks keep their norms as they are
            _fold_batch_norms(unet)
    return fused


def _fold_batch_norms(unet: UNet) -> None:
    """Replace each convolution before a batch norm by their product, and the norm by nothing; indices stay."""
    for index, layer in enumerate(unet.model):
        if isinstance(layer, nn.BatchNorm3d):
            convolution = unet.model[index - 1]
            assert isinstance(convolution, nn.Conv3d)  # UNet puts one before each of its norms
            unet.model[index - 1] = fuse_conv_bn_eval(convolution, layer)
            unet.model[index] = nn.Identity()


def folding_scales(network: DropGen) -> dict[str, Tensor]:
    """What folding multiplies each kernel by: its parameter's name -> (outputs,) float32, for kernels before a norm."""
    return {
        f"{part}.model.{index - 1}.weight": _scale(layer)
        for part in ("segmentor", "encoder")
        if isinstance(unet := getattr(network, part), UNet)
        for index, layer in enumerate(unet.model)
        if isinstance(layer, nn.BatchNorm3d)
    }


def _scale(norm: nn.BatchNorm3d) -> Tensor:
    assert norm.running_var is not None  # UNet's norms keep statistics
    return (norm.weight * torch.rsqrt(norm.running_var + norm.eps)).detach()

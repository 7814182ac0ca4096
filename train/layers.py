"""Layers of our U-Net: PyTorch's own, in the forms in which they are fast and their gradients right."""

import torch
from torch import Tensor, nn

from dropgen_rt.train.norms import Normalised, normalise
from dropgen_rt.train.padding import Border, as_narrow, padded
from dropgen_rt.train.upsampling import interleave, joined_taps

# Below this many voxels of output, joining taps takes longer than the smaller convolution saves.
WORTH_JOINING = 4096
# On a CPU, PyTorch 2.13 convolves one fp32 volume of up to this many channels times planes times rows by a method that
# is many times as slow as oneDNN's, which it takes for two volumes at once.
SLOW_ALONE = 20480
# Up to this many voxels, kernels are larger than volumes, and two volumes take no less time than one.
WORTH_HALVING = 64


class Conv3d(nn.Conv3d):
    """As its parent, of kernel 3 and padding "same". In training, volumes of up to two planes are padded along z first.

    PyTorch 2.13 on a CPU leaves garbage in the bf16 gradient of a kernel of three where z is two, or of two where z is
    one, and zeros are padded by the convolution itself.
    """

    #: Whether one small volume is convolved as two halves, see SLOW_ALONE.
    halves = False

    def forward(self, x: Tensor) -> Tensor:
        return self._convolve(x, self.weight, self.bias, self._border)

    def over_upsampled(self, skip: Tensor, coarse: Tensor) -> Tensor:
        """The layer's output for ``cat([skip, nearest(coarse)])``, without ever making that volume.

        skip (b, s, z, y, x), coarse (b, c, z/2, y/2, x/2) -> (b, out, z, y, x). Sums come in another order; under
        autocast the joined taps and each of the two parts are rounded.
        """
        split = skip.shape[1]
        # Fine voxel -1 mirrors voxel 1, which repeats voxel 0: mirroring the fine volume repeats the coarse one's edge.
        beyond: Border = "constant" if self.padding_mode == "zeros" else "replicate"
        upsampled = interleave(self._convolve(coarse, joined_taps(self.weight[:, split:]), None, beyond))
        return self._convolve(skip, self.weight[:, :split], self.bias, self._border) + upsampled

    @property
    def _border(self) -> Border:
        assert self.padding_mode in ("zeros", "reflect")  # UNetConfig knows no other
        return "constant" if self.padding_mode == "zeros" else "reflect"

    def _convolve(self, x: Tensor, weight: Tensor, bias: Tensor | None, border: Border) -> Tensor:
        if border != "constant":
            return self._convolve_padded(padded(x, border), weight, bias)
        if self._is_slow(x) or (x.shape[2] <= 2 and self.training and torch.is_grad_enabled()):
            return self._convolve_padded(padded(x, border, axes=1), weight, bias, (0, 1, 1))
        return nn.functional.conv3d(x, weight, bias, padding=1)

    def _convolve_padded(
        self, x: Tensor, weight: Tensor, bias: Tensor | None, padding: tuple[int, int, int] = (0, 0, 0)
    ) -> Tensor:
        """A convolution over a volume that is padded along z already."""
        if not self._is_slow(x):
            return nn.functional.conv3d(x, weight, bias, padding=padding)
        overlap = weight.shape[2] - 1
        planes = x.shape[2] - overlap
        half = (planes + 1) // 2
        halves = torch.cat([x[:, :, : half + overlap], x[:, :, planes - half :]])
        first, second = nn.functional.conv3d(halves, weight, bias, padding=padding).split(1)
        return torch.cat([first, second[:, :, 2 * half - planes :]], dim=2)

    def _is_slow(self, x: Tensor) -> bool:
        """Whether to convolve two halves of ``x``; not where a graph is made, which others compute."""
        if not self.halves or x.device.type != "cpu" or x.dtype != torch.float32 or torch.compiler.is_compiling():
            return False
        alone = len(x) == 1 and not torch.is_autocast_enabled("cpu")
        return alone and x[0, 0].numel() > WORTH_HALVING and x[0, ..., 0].numel() <= SLOW_ALONE and x.shape[2] > 3


class MaxPool3d(nn.MaxPool3d):
    """As its parent, in the type of its input."""

    def forward(self, x: Tensor) -> Tensor:
        with as_narrow(x):
            return super().forward(x)


class Upsample(nn.Upsample):
    """As its parent, by "nearest", in the type of its input."""

    def forward(self, x: Tensor) -> Tensor:
        with as_narrow(x):
            return super().forward(x)


class BatchNorm3d(nn.BatchNorm3d):
    """As its parent; in training on a CPU by ``normalise``, on a GPU with two axes seen as one.

    On an H100 the kernels of three dimensions took half the time of a whole training step in bf16.
    """

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return super().forward(x)
        if x.device.type == "cpu" and not torch.compiler.is_compiling():
            return self.by_moments(x)
        return _as_volumes(super().forward(_as_planes(x)), x.shape[2])

    def by_moments(self, x: Tensor) -> Tensor:
        """The definition, in fp32; keeps statistics as its parent does."""
        volumes, mean, variance, number = self._normalise(x)
        # UNet's norms keep statistics, and forget older ones.
        assert self.running_mean is not None and self.running_var is not None and self.momentum is not None
        assert self.num_batches_tracked is not None
        with torch.no_grad():
            self.num_batches_tracked.add_(1)
            kind = self.running_mean.dtype
            self.running_mean.lerp_(mean[0].to(kind), self.momentum)
            self.running_var.lerp_((variance[0] * (number / max(number - 1, 1))).to(kind), self.momentum)
        return volumes

    def _normalise(self, x: Tensor) -> Normalised:
        return normalise(x, self.weight, self.bias, self.eps)

    def _check_input_dim(self, input: Tensor) -> None:
        """Four axes are fine here."""


def _as_planes(x: Tensor) -> Tensor:
    """(b, c, z, y, x) -> (b, c, z*y, x), channels last. ``flatten`` forgets that layout where there is one volume."""
    return x.movedim(1, -1).flatten(1, 2).movedim(-1, 1)


def _as_volumes(x: Tensor, planes: int) -> Tensor:
    """The inverse of ``_as_planes``."""
    return x.movedim(1, -1).unflatten(1, (planes, -1)).movedim(-1, 1)


class InstanceNorm3d(nn.InstanceNorm3d):
    """As its parent, on a CPU by ``normalise``.

    PyTorch 2.13's own on a CPU loses the layout, and its gradients are wrong for one volume in a batch where they come
    in channels last.
    """

    def forward(self, x: Tensor) -> Tensor:
        ours = x.device.type == "cpu" and not torch.compiler.is_compiling() and not self.track_running_stats
        if not ours or x.ndim != 5 or x.shape[1] != self.num_features or x[:1, 0].numel() <= 1:
            return super().forward(x)  # which refuses what there is to refuse
        return normalise(x, self.weight, self.bias, self.eps, groups=len(x)).volumes


def replace_instance_norms(network: nn.Module) -> None:
    """Ours in place of PyTorch's, whose gradients may be wrong; all that a module holds stays."""
    for module in network.modules():
        if type(module) is nn.InstanceNorm3d:
            module.__class__ = InstanceNorm3d

"""Layers of our U-Net: PyTorch's own, in the forms in which they are fast and their gradients right."""

import torch
from torch import Tensor, nn

# Below this many voxels of output, joining taps takes longer than the smaller convolution saves.
WORTH_JOINING = 4096


class Conv3d(nn.Conv3d):
    """As its parent, of kernel 3 and padding "same". In training, volumes of two planes are padded along z first.

    PyTorch 2.13 on a CPU leaves garbage in the bf16 gradient of a kernel of three where z is two and zeros are padded
    by the convolution itself.
    """

    def forward(self, x: Tensor) -> Tensor:
        return self._convolve(x, self.weight, self.bias)

    def over_upsampled(self, skip: Tensor, coarse: Tensor) -> Tensor:
        """The layer's output for ``cat([skip, nearest(coarse)])``, without ever making that volume.

        skip (b, s, z, y, x), coarse (b, c, z/2, y/2, x/2) -> (b, out, z, y, x). Nearest upsampling repeats each voxel,
        so a kernel of three meets each coarse voxel once or twice: its taps, joined, are a transposed convolution of
        eight products per voxel and channel instead of 27. Sums come in another order; under autocast the joined taps
        and each of the two parts are rounded.
        """
        split = skip.shape[1]
        upsampled = _transposed(coarse, joined_taps(self.weight[:, split:]), self.padding_mode)
        return self._convolve(skip, self.weight[:, :split], self.bias) + upsampled

    def _convolve(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if x.shape[2] != 2 or self.padding_mode != "zeros" or not (self.training and torch.is_grad_enabled()):
            return self._conv_forward(x, weight, bias)
        padded = nn.functional.pad(x, (0, 0, 0, 0, 1, 1))
        return nn.functional.conv3d(padded, weight, bias, padding=(0, 1, 1))


def joined_taps(kernel: Tensor) -> Tensor:
    """(out, in, 3, 3, 3) of a convolution after nearest upsampling -> (in, out, 4, 4, 4) of a transposed one, stride 2.

    Along each axis an even voxel meets taps (0, 1 + 2) of its two coarse neighbours, an odd one (0 + 1, 2).
    """
    for axis in (2, 3, 4):
        first, middle, last = kernel.unbind(axis)
        kernel = torch.stack([last, middle + last, first + middle, first], axis)
    return kernel.transpose(0, 1)


def _transposed(coarse: Tensor, kernel: Tensor, padding_mode: str) -> Tensor:
    if padding_mode == "zeros":
        return nn.functional.conv_transpose3d(coarse, kernel, stride=2, padding=1)
    assert padding_mode == "reflect"  # UNetConfig knows no other
    # Fine voxel -1 mirrors voxel 1, which repeats voxel 0: mirroring the fine volume repeats the coarse one's edge.
    around = nn.functional.pad(coarse, (1,) * 6, mode="replicate")
    return nn.functional.conv_transpose3d(around, kernel, stride=2, padding=3)


class BatchNorm3d(nn.BatchNorm3d):
    """As its parent, in training in the form that is exact on a CPU, or fast on a GPU.

    PyTorch's channels-last batch norm on a CPU adds fp32 values one after another and loses digits with their number;
    ``sum`` adds in parts (tests/tolerances.py, BATCH_NORM). On an H100 the kernels of three dimensions took half the
    time of a whole training step in bf16: there two axes are seen as one.
    """

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return super().forward(x)
        if x.device.type == "cpu" and x.dtype == torch.float32:
            return self.by_sums(x)
        return super().forward(x.flatten(2, 3)).unflatten(2, x.shape[2:4])

    def by_sums(self, x: Tensor) -> Tensor:
        """The definition, in fp32, from the sums of values and of their squares."""
        values, axes = x.float(), (0, 2, 3, 4)
        sums = torch.stack([values.sum(axes), (values * values).sum(axes)])
        sums, count = self.of_all(sums, values.numel() // values.shape[1])
        mean = sums[0] / count
        variance = (sums[1] / count - mean * mean).clamp_min(0)
        # UNet's norms keep statistics, and forget older ones.
        assert self.running_mean is not None and self.running_var is not None and self.momentum is not None
        assert self.num_batches_tracked is not None
        with torch.no_grad():
            self.num_batches_tracked.add_(1)
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * (count / max(count - 1, 1)), self.momentum)
        scale = self.weight * torch.rsqrt(variance + self.eps)
        shape = (1, -1, 1, 1, 1)
        return (values * scale.view(shape) + (self.bias - mean * scale).view(shape)).to(x.dtype)

    def of_all(self, sums: Tensor, count: int) -> tuple[Tensor, int]:
        """Sums and number of values over all that is normalised together: what this process has."""
        return sums, count

    def _check_input_dim(self, input: Tensor) -> None:
        """Four axes are fine here."""

"""Padding against PyTorch's own."""

import pytest
import torch
from torch import nn

from dropgen_rt.train.padding import Border, padded

CHANNELS_LAST = torch.channels_last_3d


@pytest.mark.parametrize("border", ["constant", "reflect", "replicate"])
@pytest.mark.parametrize("shape", [(1, 3, 2, 2, 2), (2, 1, 3, 2, 5), (2, 4, 6, 5, 4)])
@pytest.mark.parametrize("layout", [torch.contiguous_format, CHANNELS_LAST])
def test_padded(border: Border, shape: tuple[int, ...], layout: torch.memory_format) -> None:
    torch.manual_seed(0)
    x = torch.randn(shape, dtype=torch.float64).to(memory_format=layout).requires_grad_()
    expected = nn.functional.pad(x, (1,) * 6, border)
    assert torch.equal(padded(x, border), expected)
    slope = torch.randn_like(expected)
    (wanted,) = torch.autograd.grad(expected, x, slope)
    kept = slope.clone()
    (found,) = torch.autograd.grad(padded(x, border), x, slope)
    assert torch.allclose(found, wanted, rtol=1e-14, atol=1e-14)  # sums of up to eight numbers, in another order
    assert torch.equal(slope, kept)  # others may need it


def test_one_axis() -> None:
    x = torch.ones(1, 1, 2, 3, 4)
    assert torch.equal(padded(x, "constant", axes=1), nn.functional.pad(x, (0, 0, 0, 0, 1, 1)))


@pytest.mark.parametrize("border", ["reflect", "replicate"])
@pytest.mark.parametrize("batch", [1, 2])
def test_type_and_layout_stay(border: Border, batch: int) -> None:
    """Under autocast, too; and the gradient's."""
    x = torch.randn(batch, 3, 4, 4, 4).bfloat16().to(memory_format=CHANNELS_LAST).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        around = padded(x, border)
    (slope,) = torch.autograd.grad(around, x, torch.ones_like(around))
    for volume in (around, slope):
        assert volume.dtype == torch.bfloat16
        assert volume.stride()[1] == 1 and volume.stride()[0] == volume[0].numel()  # not by chance, as for one volume

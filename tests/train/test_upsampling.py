"""A convolution before nearest upsampling against one after it."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tolerances import JOINED_TAPS
from torch import nn

from dropgen_rt.train.upsampling import PARITIES, interleave, joined_taps

EDGES = st.integers(1, 4)


@settings(deadline=None, max_examples=40)
@given(
    shape=st.tuples(EDGES, EDGES, EDGES),
    channels=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    batch=st.integers(1, 2),
)
def test_values_and_gradients(shape: tuple[int, int, int], channels: tuple[int, int], batch: int) -> None:
    torch.manual_seed(0)
    inputs, outputs = channels
    coarse = torch.randn(batch, inputs, *shape, dtype=torch.float64, requires_grad=True)
    kernel = torch.randn(outputs, inputs, 3, 3, 3, dtype=torch.float64, requires_grad=True)
    fine = nn.functional.interpolate(coarse, scale_factor=2, mode="nearest")
    expected = nn.functional.conv3d(fine, kernel, padding=1)
    found = interleave(nn.functional.conv3d(coarse, joined_taps(kernel), padding=1))
    slope = torch.randn_like(expected)
    pairs = zip(
        (expected, *torch.autograd.grad(expected, (coarse, kernel), slope)),
        (found, *torch.autograd.grad(found, (coarse, kernel), slope)),
        strict=True,
    )
    for one, other in pairs:
        assert torch.allclose(one, other, rtol=JOINED_TAPS, atol=JOINED_TAPS)


def test_every_voxel_comes_from_its_parity() -> None:
    """Each channel holds its own number: fine voxels tell whose they are."""
    coarse = torch.arange(8.0).view(1, 8, 1, 1, 1).expand(1, 8, 3, 4, 2)
    fine = interleave(coarse)
    assert fine.shape == (1, 1, 4, 6, 2)
    for number, (z, y, x) in enumerate(PARITIES):
        assert (fine[0, 0, z::2, y::2, x::2] == number).all()

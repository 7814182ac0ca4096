"""The two networks of the deepbet wheel as one TorchScript file: find the brain, cut it out, segment it, put it back.

    pip install deepbet
    python examples/deepbet/make_model.py deepbet.pt
    dropgen-rt export --torchscript deepbet.pt --manifest examples/deepbet/deepbet.toml --golden T1.nii.gz \\
        -o deepbet.onnx
    dropgen-rt build-engine deepbet.onnx --precision fp32
    dropgen-rt infer T1.nii.gz

deepbet (Fisch et al., Bioinformatics 2024; MIT) samples the head to 128^3, lets a first network find the brain, samples
its box to 256^3 for a second one, and takes the mask back. What it does in Python between the two is done here in
PyTorch, so that the graph holds all of it; the largest component and filled holes of its end are left out.
"""

import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Final

import torch
from torch import Tensor, nn


class TwoStages(nn.Module):
    """(1, 1, z, y, x) in [0, 1], RAS -> probabilities (1, 2, z, y, x) of background and brain."""

    coarse: Final[int] = 128
    fine: Final[int] = 256

    def __init__(self, finder: nn.Module, segmentor: nn.Module) -> None:
        super().__init__()
        self.finder, self.segmentor = finder, segmentor

    def forward(self, image: Tensor) -> Tensor:
        head = image.permute(0, 1, 4, 3, 2)  # deepbet's arrays are (x, y, z)
        small = sample(head, [self.coarse, self.coarse, self.coarse])
        brain = (self.finder(standardise(small))[:, 1:2] > 0.5).float()[0, 0]
        x0, x1 = box(brain.mean(2).mean(1), head.shape[2])
        y0, y1 = box(brain.mean(2).mean(0), head.shape[3])
        z0, z1 = box(brain.mean(1).mean(0), head.shape[4])
        inside = sample(head[:, :, x0:x1, y0:y1, z0:z1], [self.fine, self.fine, self.fine])
        found = sample(self.segmentor(standardise(inside))[:, 1:2], [x1 - x0, y1 - y0, z1 - z0])
        around = [z0, head.shape[4] - z1, y0, head.shape[3] - y1, x0, head.shape[2] - x1]
        probability = nn.functional.pad(found, around).permute(0, 1, 4, 3, 2)
        return torch.cat([1 - probability, probability], dim=1)


def sample(image: Tensor, shape: list[int]) -> Tensor:
    """Nearest voxel at the centres of a grid of another shape over the same box."""
    for axis in range(3):
        size = image.shape[axis + 2]
        places = (torch.arange(shape[axis], dtype=torch.float32) + 0.5) * (size / shape[axis])
        image = torch.index_select(image, axis + 2, places.to(torch.int64))
    return image


def standardise(image: Tensor) -> Tensor:
    """The intensities that deepbet's networks were trained on."""
    return 0.226 * (image - image.mean()) / image.std() + 0.449


def box(planes: Tensor, size: int, least: float = 0.02, growth: float = 1.2) -> tuple[int, int]:
    """First and one past the last voxel, on an axis of ``size``, of where the coarse ``planes`` hold brain.

    A plane with 2 % of brain belongs to it; the box grows by a tenth of its extent on each side.
    """
    places = torch.nonzero(planes > least)[:, 0]
    first, last = places.min().float(), places.max().float() + 1.0
    scale = size / planes.shape[0]
    centre, extent = torch.round(scale * (first + last) / 2), torch.round(growth * scale * (last - first))
    low = torch.clamp((centre - extent / 2).to(torch.int64), min=0)
    high = torch.clamp((centre + extent / 2).to(torch.int64), max=size)
    return int(low.item()), int(high.item())


def make(out: Path) -> None:
    """Write the TorchScript file. deepbet itself is not imported: only its weights are read."""
    found = find_spec("deepbet")
    if found is None or found.origin is None:
        raise SystemExit("deepbet is not installed; pip install deepbet")
    weights = Path(found.origin).parents[1] / "data" / "models"
    names = "bbox_model.pt", "model.pt"
    finder, segmentor = (torch.jit.load(weights / name, map_location="cpu").eval() for name in names)
    torch.jit.save(torch.jit.script(TwoStages(finder, segmentor).eval()), out)


if __name__ == "__main__":
    make(Path(sys.argv[1]))

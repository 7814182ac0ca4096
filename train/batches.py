"""Batches of a training: each step's crops, drawn between the steps on a CPU and ahead of them beside a GPU."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from numpy.typing import NDArray
from torch import Tensor

from dropgen_rt.train.config import TrainConfig
from dropgen_rt.train.distributed import Ranks
from dropgen_rt.train.parallel import ahead, cores
from dropgen_rt.train.samples import Sampler, ScanSampler
from dropgen_rt.train.synthesis import RandomSource

Batch = tuple[Tensor, Tensor]
# Processes that draw crops beside a GPU, at most: each holds PyTorch and MONAI once more.
MOST_DRAWING = 12


@dataclass(frozen=True)
class Drawing:
    """Draws this process's part of a step's batch: a pure function of the step, wherever it runs.

    ``places`` are those in the batch of all processes; ``device`` is where images are synthesised.
    """

    sampler: Sampler
    seed: int
    places: tuple[int, ...]
    device: str = "cpu"

    def __call__(self, step: int) -> Batch:
        sources = (RandomSource.seeded(self.seed, step, place, device=self.device) for place in self.places)
        images, targets = zip(*(self.sampler.draw(source) for source in sources), strict=True)
        return torch.stack(images), torch.stack(targets)[:, None]

    def arrays(self, step: int) -> tuple[NDArray, NDArray]:
        """The same as arrays, which travel through a pipe: tensors take shared memory, and containers have little."""
        image, target = self(step)
        return image.numpy(), target.numpy()


def batches(
    sampler: Sampler, config: TrainConfig, first: int, ranks: Ranks, device: torch.device, workers: int | None
) -> Iterator[Batch]:
    """Images (b, c, z, y, x) and targets (b, 1, z, y, x) on the device: this process's part of each batch.

    On the CPU drawn between the steps: beside them both would want all cores, and together are slower. On a
    GPU machine crops of scans are drawn ahead, by ``workers`` processes or one per core.
    """
    steps, places = range(first, config.steps), tuple(ranks.share(config.batch))
    if device.type == "cuda" and isinstance(sampler, ScanSampler):
        processes = workers or min(cores(), MOST_DRAWING)
        drawn: Iterator[Batch] = (
            (torch.from_numpy(image), torch.from_numpy(target))
            for image, target in ahead(Drawing(sampler, config.seed, places).arrays, steps, processes)
        )
    else:
        drawn = map(Drawing(sampler, config.seed, places, str(device)), steps)
    for image, target in drawn:
        yield image.to(device), target.to(device)

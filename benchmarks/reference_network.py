"""The reference network at its full size, with weights that decide labels, for ``dropgen-rt bench``.

    python benchmarks/reference_network.py --out FOLDER
    dropgen-rt build-engine FOLDER/reference.onnx
    dropgen-rt bench --scan SCAN --model reference --checkpoint FOLDER/reference.pt --against monai,torch,nnunet

Encoder of 5.9 and segmentor of 36.9 million parameters, window 96^3 at 1 mm, random weights. Batch norms take their
statistics from crops of one brain (``../shared/data/brain_t1``); then the last level of the segmentor learns white
matter and the rest of that brain from what the frozen layers below give it, starting from the finest features. It is no
useful model. What comes up from coarser levels is noise that depends on where windows lie, more than in a trained
network; with ``--finest-only`` all of it is computed and then weighted by zero, so that labels depend on near voxels
only, less than in a trained network. Seeded: a machine repeats its weights.
"""

import argparse
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dropgen_rt import read_scan
from dropgen_rt.export.to_onnx import export
from dropgen_rt.manifest import Intensity, Label
from dropgen_rt.preprocess import labels_to_working_grid, normalisation, to_working_grid
from dropgen_rt.train import checkpoint
from dropgen_rt.train.config import TrainConfig
from dropgen_rt.train.device import autocast
from dropgen_rt.train.loop import cosine, fast_cpu
from dropgen_rt.train.losses import make_loss
from dropgen_rt.train.network import ANATOMIX, DropGen, UNet, UNetConfig
from dropgen_rt.volume import read_label_map

DATA = Path(__file__).parents[2] / "shared" / "data" / "brain_t1"
LABELS = (Label(1, "grey matter and fluid", (220, 120, 60)), Label(2, "white matter", (230, 230, 230)))
# FreeSurfer's values: white matter of cerebrum and cerebellum, brainstem, ventral diencephalon, corpus callosum.
WHITE = (2, 41, 77, 251, 252, 253, 254, 255, 7, 46, 16, 28, 60)
LEARN, RUN = 32, 96  # edges of crops, voxels
# Convolution, norm and rectifier twice, and the last convolution.
LAST_LEVEL = -7
PEAK_RATE = 5e-4


def the_scan() -> tuple[NDArray[np.float32], NDArray[np.integer]]:
    """(z, y, x) normalised intensities and labels, LPS at 1 mm."""
    scan = read_scan(DATA / "fs_subject_T1norm.nii.gz").volume
    working = to_working_grid(scan, "LPS", (1.0, 1.0, 1.0))
    bounds = normalisation(working, Intensity())
    image = np.clip((working.array[0] - bounds.offset[0]) * bounds.scale[0], 0, 1).astype(np.float32)
    values, geometry = read_label_map(DATA / "fs_subject_aseg.nii.gz")
    values = labels_to_working_grid(values, geometry, "LPS", (1.0, 1.0, 1.0))
    return image, np.where(np.isin(values, WHITE), 2, values > 0)


class Crops:
    """Crops of one scan whose centre lies in the brain."""

    def __init__(self, image: NDArray[np.float32], labels: NDArray[np.integer], seed: int) -> None:
        self._image, self._labels, self._rng = image, labels, np.random.default_rng(seed)
        self._inside = np.argwhere(labels)

    def draw(self, edge: int) -> tuple[Tensor, Tensor]:
        """Image and target, (1, 1, edge, edge, edge)."""
        centre = self._inside[self._rng.integers(len(self._inside))]
        first = np.clip(centre - edge // 2, 0, np.array(self._image.shape) - edge)
        place = tuple(slice(start, start + edge) for start in first)
        image = torch.from_numpy(self._image[place][None, None].copy())
        return (
            image.contiguous(memory_format=torch.channels_last_3d),
            torch.from_numpy(self._labels[place][None, None].astype(np.int64)),
        )


def calibrate(network: DropGen, part: UNet, crops: Crops, count: int) -> None:
    """Batch norms of ``part`` take the mean of their statistics over ``count`` crops."""
    norms = [layer for layer in part.modules() if isinstance(layer, torch.nn.BatchNorm3d)]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the plain mean
        norm.train()
    with torch.no_grad(), autocast(torch.device("cpu"), "bf16"):
        for _ in range(count):
            network(crops.draw(RUN)[0])
    network.eval()


def below_the_last_level(network: DropGen, image: Tensor) -> Tensor:
    """(1, 60, z, y, x): skip and upsampled features that the segmentor's last level sees."""
    assert network.encoder is not None and isinstance(network.segmentor, UNet)
    with torch.no_grad(), autocast(torch.device("cpu"), "bf16"):
        features = network.feature_norm(network.encoder(image))
        return network.segmentor.trace(
            torch.cat([image, features], dim=1), {len(network.segmentor.model) + LAST_LEVEL - 1}
        )[0].float()


def learn(network: DropGen, seen: list[tuple[Tensor, Tensor]], steps: int, finest_only: bool) -> None:
    """The last level's three convolutions; all norms keep their statistics."""
    assert isinstance(network.segmentor, UNet)
    network.requires_grad_(False)
    # As the first layer starts from the image, the last level starts from the finest features.
    coarser = network.segmentor.model[LAST_LEVEL].weight.data[:, network.segmentor.config.width :]
    coarser.zero_()
    last = network.segmentor.model[LAST_LEVEL:].requires_grad_(True)
    optimiser, loss_of = torch.optim.AdamW(last.parameters(), PEAK_RATE), make_loss("dice_ce")
    rng = np.random.default_rng(1)
    for step in range(steps):
        places = [tuple(slice(start, start + LEARN) for start in rng.integers(0, RUN - LEARN, 3)) for _ in seen]
        inputs = [features[(..., *place)] for (features, _), place in zip(seen, places, strict=True)]
        target = torch.cat([labels[(..., *place)] for (_, labels), place in zip(seen, places, strict=True)])
        for group in optimiser.param_groups:
            group["lr"] = cosine(PEAK_RATE, step, steps)
        loss = loss_of(last(torch.cat(inputs)), target)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        if finest_only:
            coarser.zero_()
        if step % 20 == 19:
            print(f"step {step + 1} of {steps}: loss {loss.item():.4f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--crops", type=int, default=3, help="Crops of 96^3 to learn from.")
    parser.add_argument("--finest-only", action="store_true", help="What comes up from coarser levels has no weight.")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    network = DropGen(UNetConfig(17, len(LABELS) + 1, 20, 5), ANATOMIX).eval()
    network.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
    crops = Crops(*the_scan(), seed=0)
    with fast_cpu():
        for part in (network.encoder, network.segmentor):
            assert isinstance(part, UNet)
            calibrate(network, part, crops, 2)
        seen = []
        for _ in range(arguments.crops):
            image, target = crops.draw(RUN)
            seen.append((below_the_last_level(network, image), target))
        learn(network, seen, arguments.steps, arguments.finest_only)
    write(network, arguments.out, arguments.steps, arguments.finest_only)


def write(network: DropGen, out: Path, steps: int, finest_only: bool) -> None:
    """The checkpoint and the model exported from it."""
    config = TrainConfig(width=20, levels=5, window=(RUN,) * 3, spacing_mm=(1.0, 1.0, 1.0), steps=steps)
    out.mkdir(parents=True, exist_ok=True)
    path = out / "reference.pt"
    told = ", no weight on coarser levels" if finest_only else ""
    content = {
        "network": network.description(),
        "state": {key: value.contiguous() for key, value in network.state_dict().items()},
        "labels": [asdict(label) for label in LABELS],
        "dataset": {
            "name": f"one brain, the last level only, {steps} steps{told}",
            "channels": ["T1"],
            "notice": "For timing only.",
        },
        "intensity": asdict(Intensity()),
        "config": config.summary(),
        "progress": {"step": steps},
    }
    checkpoint.save(path, content)
    for row in export(path, out / "reference.onnx").rows:
        print(row)
    print(f"wrote {path} and {out / 'reference.onnx'}")


if __name__ == "__main__":
    main()

"""The two settings of domain_shift.py as one file of arrays each, so that a run needs nothing else.

Written by ``python benchmarks/domain_shift.py prepare``: images (n, z, y, x) float16 in [0, 1] and labels uint8, for
training and for each test domain.
"""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812  it is F everywhere

from dropgen_rt.evaluate import same_grid
from dropgen_rt.manifest import Intensity
from dropgen_rt.preprocess import normalisation
from dropgen_rt.train.config import TrainConfig
from dropgen_rt.train.dataset import read_case, read_dataset
from dropgen_rt.train.synthesis import (
    MEAN,
    SUBSAMPLES,
    RandomSource,
    SynthesisConfig,
    deformed_coordinates,
    draw_intensities,
    index_labels,
    look_up,
    paint,
)
from dropgen_rt.volume import Volume, read_label_map, read_scan

ROOT = Path(__file__).parents[1]
DATA = ROOT.parent / "shared" / "data"
# Scans of each data set that are held out, the last ones.
HELD_OUT = {"hippocampus": 52, "heart_acdc": 24}
# Every hippocampus fits.
HIPPOCAMPUS_SHAPE = (48, 64, 48)
# Heads: crops of 128 mm at the 2 mm of the real contrasts.
HEAD_EDGE, HEAD_SPACING_MM = 64, 2.0
# Label maps, the last of them, that no segmentor trains on; and those of them that the encoder in the package has not
# seen either (examples/brain9/prepare.py): features of heads that it was pretrained on would be no fair test.
HELD_OUT_MAPS, UNSEEN_MAPS = 4, 2
TISSUES = {
    "grey": (3, 42, 8, 47, 10, 49, 11, 50, 12, 51, 13, 52, 17, 53, 18, 54, 26, 58),
    "white": (2, 41, 7, 46, 16, 28, 60),
    "csf": (4, 5, 14, 15, 24, 43, 44),
}


def contrast_changes(image: np.ndarray, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """What domain_shift.py never trains with, of an image (z, y, x) in [0, 1]; each rescaled as a scan of its own."""
    low, high = 1 / 3, 3.0
    knots = torch.from_numpy(rng.normal(0, 0.6, (1, 1, 3, 3, 3)).astype(np.float32))
    field = F.interpolate(knots, size=image.shape, mode="trilinear", align_corners=True)[0, 0].exp().numpy()
    sizes = [max(size // 3, 1) for size in image.shape]
    small = F.interpolate(torch.from_numpy(image)[None, None], size=sizes, mode="area")
    coarse = F.interpolate(small, size=image.shape, mode="trilinear", align_corners=False)[0, 0].numpy()
    changed = {
        "inversion": 1 - image,
        "gamma 1/3": image**low,
        "gamma 3": image**high,
        "bias field": image * field,
        "low resolution": coarse,
        "noise": image + rng.normal(0, 0.15, image.shape).astype(np.float32),
    }
    return {name: rescaled(array.astype(np.float32)) for name, array in changed.items()}


def rescaled(image: np.ndarray) -> np.ndarray:
    """By the percentiles that the runtime takes of a scan."""
    low, high = np.percentile(image, [Intensity().lower, Intensity().upper])
    return np.clip((image - low) / max(high - low, 1e-6), 0, 1).astype(np.float32)


def padded(array: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """(z, y, x) centred in zeros, as the sliding window does."""
    sides = [((w - s) // 2, w - s - (w - s) // 2) for s, w in zip(array.shape, shape, strict=True)]
    return np.pad(array, sides)


def hippocampus(out: Path) -> None:
    """Setting (a): hippocampi of one natural intensity regime; held-out scans, and changes of their contrast."""
    dataset = read_dataset(DATA / "hippocampus")
    config = TrainConfig(window=HIPPOCAMPUS_SHAPE)
    everyone = sorted((*dataset.training, *dataset.validation), key=lambda case: case.name)
    arrays: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {"train": [], "held-out scans": []}
    rng = np.random.default_rng(0)
    for place, case in enumerate(everyone):
        held_out = place >= len(everyone) - HELD_OUT["hippocampus"]
        regime = regime_of(case.images[0])
        if not held_out and regime != "float, thousands":
            continue
        image, label = read_case(case, dataset, config)
        if regime != "float, thousands":
            arrays.setdefault("other regimes", []).append(pair(image[0], label))
            continue
        arrays["held-out scans" if held_out else "train"].append(pair(image[0], label))
        for name, changed in (contrast_changes(image[0], rng) if held_out else {}).items():
            arrays.setdefault(name, []).append(pair(changed, label))
    outside = [name for name in arrays if name not in ("train", "held-out scans", "other regimes")]
    write(out, "hippocampus", [label.name for label in dataset.labels], ["held-out scans"], outside, arrays)


def regime_of(path: Path) -> str:
    """The natural intensity regimes of this data set: by voxel type and by the largest value's size."""
    scan = read_scan(path)
    if scan.voxel_type == "uint8":
        return "bytes"
    return "float, thousands" if 1e3 <= scan.volume.array.max() < 1e4 else "float, other"


def pair(image: np.ndarray, label: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return padded(image, HIPPOCAMPUS_SHAPE), padded(label, HIPPOCAMPUS_SHAPE)


def tissue(out: Path, images: int) -> None:
    """Setting (b): T1-like heads painted from label maps, and one real anatomy in T1, T2 and PD."""
    plan = SynthesisConfig.read(ROOT / "examples" / "brain9" / "synthesis.toml")
    plan = replace(plan, contrasts={"t1": 1.0}, outside_jitter=0.1, strip=0.3, severity=0.5)
    paths = sorted((DATA / "synthseg_label_maps").glob("*.nii.gz"))
    arrays: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {"train": [], "held-out heads, T1": []}
    for place, path in enumerate(paths):
        if len(paths) - HELD_OUT_MAPS <= place < len(paths) - UNSEEN_MAPS:
            continue
        name = "train" if place < len(paths) - HELD_OUT_MAPS else "held-out heads, T1"
        raw, geometry = read_label_map(path)
        index, values = index_labels(geometry.reoriented("LPS")[1].apply(raw))
        count = images if name == "train" else max(images // 2, 1)
        arrays[name] += [painted(index, values, plan, (place, number)) for number in range(count)]
        print(f"{path.name}: {count} crops")
    truth = tissue_truth()
    for contrast in ("T1", "T2", "PD"):
        volume = read_scan(DATA / "brain_contrasts" / f"avg152{contrast}.nii.gz").volume
        oriented, change = volume.geometry.reoriented("LPS")
        working = Volume(change.apply(volume.array), oriented)
        scale = normalisation(working, (Intensity(),))
        image = (np.clip(working.array[0], scale.lower[0], scale.upper[0]) - scale.offset[0]) * scale.scale[0]
        arrays[f"real {contrast}"] = [(image, truth)]
    write(out, "tissue", list(TISSUES), ["held-out heads, T1"], ["real T2", "real PD"], arrays)


def painted(
    index: torch.Tensor, values: np.ndarray, plan: SynthesisConfig, seed: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray]:
    """A T1-like crop of one head and its tissues."""
    source = RandomSource.seeded(*seed)
    brain = np.argwhere(np.isin(values[index.numpy()[::8, ::8, ::8]], sum(TISSUES.values(), ()))) * 8
    centre = brain[source.numbers.integers(len(brain))]
    places = deformed_coordinates(centre, HEAD_EDGE, HEAD_SPACING_MM / SUBSAMPLES, source, plan.severity)
    table = draw_intensities(plan, values, source.numbers)
    image = paint(look_up(index, places), table, source, plan.severity)[0]
    target = np.zeros(len(values), np.uint8)
    for number, members in enumerate(TISSUES.values(), 1):
        target[np.isin(values, members) & (table[MEAN] > 0)] = number
    middle = look_up(index, F.avg_pool3d(places[None], SUBSAMPLES)[0])
    return image.numpy(), target[middle.numpy()]


def tissue_truth() -> np.ndarray:
    """(z, y, x) of the priors thresholded at one half: grey 1, white 2, csf 3."""
    truth, first = None, None
    for number, name in enumerate(TISSUES, 1):
        volume = read_scan(DATA / "brain_contrasts" / f"{name}.nii.gz").volume
        first = first or volume.geometry
        assert same_grid(volume.geometry, first)
        prior = volume.geometry.reoriented("LPS")[1].apply(volume.array[0])
        truth = np.zeros(prior.shape, np.uint8) if truth is None else truth
        truth[prior > 0.5] = number
    assert truth is not None
    return truth


def write(
    out: Path, setting: str, labels: list[str], inside: list[str], outside: list[str],
    arrays: dict[str, list[tuple[np.ndarray, np.ndarray]]],
) -> None:  # fmt: skip
    about = {"setting": setting, "labels": labels, "in_domain": inside, "out_of_domain": outside}
    stacks = {}
    for name, cases in arrays.items():
        stacks[f"{name}/images"] = np.stack([image for image, _ in cases]).astype(np.float16)
        stacks[f"{name}/labels"] = np.stack([label for _, label in cases]).astype(np.uint8)
        print(f"{setting}, {name}: {stacks[f'{name}/images'].shape}")
    np.savez_compressed(out, about=np.array(json.dumps(about)), **stacks)
    print(f"wrote {out}")

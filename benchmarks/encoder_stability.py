"""Does one anatomy give one feature? The same brain in T1, T2 and PD through an encoder.

python benchmarks/encoder_stability.py --encoder FILE --out benchmarks/results/encoder_stability.json

Inside the tissue of ../shared/data/brain_contrasts (priors above one half) every channel is standardised, per contrast.
Agreement is the mean cosine between a voxel's features in two contrasts. Transfer is a linear read-out of grey, white
and csf (logistic regression), fitted on every other coronal slab of the T1 and tested on the slabs between of each
contrast: accuracy, and mean Dice over the tissues. Beside the encoder stand the raw intensity, a network of the same
shape with random weights, and the voxel's position, which agrees perfectly and says little: beware of features like it.
"""

import argparse
import hashlib
from pathlib import Path

import numpy as np
import torch
from monai.inferers import sliding_window_inference
from recording import write

from dropgen_rt.manifest import Intensity
from dropgen_rt.preprocess import normalisation
from dropgen_rt.train.checkpoint import load_encoder
from dropgen_rt.train.device import autocast, choose_device
from dropgen_rt.train.network import UNet
from dropgen_rt.volume import Volume, read_scan

CONTRASTS = ("T1", "T2", "PD")
TISSUES = ("grey", "white", "csf")
DATA = Path(__file__).parents[2] / "shared" / "data" / "brain_contrasts"
# A coronal slab, in voxels of 2 mm: several are fitted and several tested in every part of the brain.
SLAB = 8
# Of the read-out's weights: keeps it defined where channels repeat each other.
PENALTY = 1e-4


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--encoder", type=Path, required=True)
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--picture", type=Path)
    parser.add_argument("--window", type=int, help="Edge of a window; by default the whole scan is one.")
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    images = {name: contrast(arguments.data, name) for name in CONTRASTS}
    truth = tissues(arguments.data)
    encoder = load_encoder(arguments.encoder)
    torch.manual_seed(0)
    random = UNet(encoder.config).eval()
    networks = {
        "raw intensity": lambda image: image[None],
        "position": lambda image: np.indices(image.shape, np.float32),
        "random weights": lambda image: run(random, image, arguments),
        "encoder": lambda image: run(encoder, image, arguments),
    }
    rows, features = {}, {}
    for name, features_of in networks.items():
        features = {key: standardised(features_of(image), truth) for key, image in images.items()}
        rows[name] = figures(features, truth)
        print(f"{name:15}" + "".join(f" {key} {value:.3f}" for key, value in rows[name].items()))
    if arguments.picture is not None:
        draw(images, features, arguments.picture)
    about = {"encoder": arguments.encoder.name, "sha256": hashlib.sha256(arguments.encoder.read_bytes()).hexdigest()}
    write(arguments.out, {**about, "window": arguments.window, "voxels": int((truth > 0).sum()), "figures": rows})


def contrast(folder: Path, name: str) -> np.ndarray:
    """(z, y, x) float32 in [0, 1], LPS, by the runtime's own normalisation."""
    volume = read_scan(folder / f"avg152{name}.nii.gz").volume
    geometry, change = volume.geometry.reoriented("LPS")
    oriented = Volume(change.apply(volume.array), geometry)
    scale = normalisation(oriented, (Intensity(),))
    return (np.clip(oriented.array[0], scale.lower[0], scale.upper[0]) - scale.offset[0]) * scale.scale[0]


def tissues(folder: Path) -> np.ndarray:
    """(z, y, x): the number of the tissue whose prior is above one half, 0 where none is."""
    truth = np.zeros(0)
    for number, name in enumerate(TISSUES, 1):
        volume = read_scan(folder / f"{name}.nii.gz").volume
        prior = volume.geometry.reoriented("LPS")[1].apply(volume.array[0])
        truth = np.zeros(prior.shape, np.uint8) if number == 1 else truth
        truth[prior > 0.5] = number
    return truth


def run(network: UNet, image: np.ndarray, arguments: argparse.Namespace) -> np.ndarray:
    """(channels, z, y, x) features: of the whole scan at once, or window by window with Gaussian blending."""
    place = choose_device(arguments.device)
    stride = network.config.stride
    sides = [(0, -size % stride) for size in image.shape]
    whole = torch.from_numpy(np.pad(image, sides)[None, None]).to(place, memory_format=torch.channels_last_3d)
    window = (arguments.window,) * 3 if arguments.window else whole.shape[2:]
    network.to(place)
    with torch.no_grad(), autocast(place):
        out = sliding_window_inference(whole, window, 1, network, overlap=0.5, mode="gaussian")[0].float().cpu().numpy()
    return out[:, : image.shape[0], : image.shape[1], : image.shape[2]]


def standardised(features: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Mean 0 and deviation 1 per channel inside the tissue."""
    inside = features[:, truth > 0].astype(np.float64)
    mean, deviation = inside.mean(1), inside.std(1)
    shape = (-1, 1, 1, 1)
    return (features - mean.reshape(shape)) / np.maximum(deviation, 1e-12).reshape(shape)


def figures(features: dict[str, np.ndarray], truth: np.ndarray) -> dict[str, float]:
    inside = truth > 0
    fitted = (np.arange(truth.shape[1]) // SLAB % 2 == 0)[None, :, None]
    rows = {}
    for other in CONTRASTS[1:]:
        a, b = features["T1"][:, inside], features[other][:, inside]
        cosine = (a * b).sum(0) / np.maximum(np.linalg.norm(a, axis=0) * np.linalg.norm(b, axis=0), 1e-12)
        rows[f"cosine T1-{other}"] = round(float(cosine.mean()), 4)
    fit, held_out = inside & fitted, inside & ~fitted
    weights = read_out(features["T1"][:, fit], truth[fit])
    for name in CONTRASTS:
        found = np.argmax(with_constant(features[name][:, held_out]) @ weights, 1) + 1
        target = truth[held_out]
        dice = [
            2 * np.sum((found == k) & (target == k)) / (np.sum(found == k) + np.sum(target == k)) for k in (1, 2, 3)
        ]
        rows[f"read-out {name}"] = round(float(np.mean(dice)), 4)
        rows[f"accuracy {name}"] = round(float(np.mean(found == target)), 4)
    return rows


def with_constant(features: np.ndarray) -> np.ndarray:
    """(voxels, channels + 1)."""
    return np.column_stack([features.T, np.ones(features.shape[1])])


def read_out(features: np.ndarray, target: np.ndarray) -> np.ndarray:
    """(channels + 1, tissues): weights of a multinomial logistic regression."""
    x = torch.from_numpy(with_constant(features))
    y = torch.from_numpy(target.astype(np.int64) - 1)
    weights = torch.zeros(x.shape[1], len(TISSUES), dtype=x.dtype, requires_grad=True)
    optimiser = torch.optim.LBFGS([weights], max_iter=200, line_search_fn="strong_wolfe")

    def loss() -> torch.Tensor:
        optimiser.zero_grad()
        value = torch.nn.functional.cross_entropy(x @ weights, y) + PENALTY * weights.square().sum()
        value.backward()
        return value

    optimiser.step(loss)
    return weights.detach().numpy()


def draw(images: dict[str, np.ndarray], features: dict[str, np.ndarray], path: Path) -> None:
    """Top: the contrasts. Below: the three channels that agree best over them, as red, green and blue."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    plane = next(iter(images.values())).shape[0] // 2
    first = features["T1"][:, plane]
    agreement = [
        min(np.corrcoef(first[c].ravel(), features[other][c, plane].ravel())[0, 1] for other in CONTRASTS[1:])
        for c in range(len(first))
    ]
    best = np.argsort(agreement)[::-1][:3]
    figure = Figure(figsize=(9, 7), layout="constrained")
    FigureCanvasAgg(figure)
    for column, name in enumerate(CONTRASTS):
        top = figure.add_subplot(2, 3, column + 1)
        top.imshow(images[name][plane], cmap="gray", vmin=0, vmax=1)
        top.set_title(name)
        bottom = figure.add_subplot(2, 3, column + 4)
        colours = np.moveaxis(np.clip(0.5 + features[name][best, plane] / 5, 0, 1), 0, -1)
        bottom.imshow(colours)
        bottom.set_title(f"channels {', '.join(map(str, best))}")
        top.axis("off")
        bottom.axis("off")
    figure.savefig(path, dpi=110)
    print(f"wrote {path}")


if __name__ == "__main__":
    main()

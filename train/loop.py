"""The training loop: AdamW with cosine decay on Dice + cross-entropy, validated by the inference road itself."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from monai.losses import DiceCELoss
from numpy.typing import NDArray
from torch import Tensor

from dropgen_rt.errors import DropgenError, UsageError
from dropgen_rt.evaluate import dice_per_label
from dropgen_rt.kernels import Normalisation
from dropgen_rt.manifest import Intensity
from dropgen_rt.slide import argmax_labels, slide
from dropgen_rt.train import checkpoint
from dropgen_rt.train.config import TrainConfig
from dropgen_rt.train.dataset import Dataset, read_case, read_dataset
from dropgen_rt.train.device import autocast, choose_device
from dropgen_rt.train.network import DropGen, UNet, UNetConfig, rebuild
from dropgen_rt.train.samples import Sampler, ScanSampler, SyntheticSampler
from dropgen_rt.train.synthesis import RandomSource
from dropgen_rt.windows import WindowPlan

Report = Callable[[dict[str, object]], None]
# Validation of synthetic data: this many fixed crops of the held-out label maps.
SYNTHETIC_VALIDATION_CROPS = 12


@contextmanager
def fast_cpu() -> Iterator[None]:
    """All cores, and no denormal numbers, which slow a CPU's convolutions manyfold; both as before afterwards."""
    threads = torch.get_num_threads()
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(False)
        torch.set_num_threads(threads)


@fast_cpu()
def train(
    data: Path,
    out: Path,
    config: TrainConfig,
    encoder: Path | None,
    resume: bool,
    report: Report,
    init: Path | None = None,
    device: str = "cpu",
) -> Path:
    """Train on ``data`` into the run folder ``out``; returns the best checkpoint's path.

    ``report`` is called after each step with step, loss, and after validation with Dice. With ``resume``
    the run goes on from ``out/last.pt``; ``init`` is a checkpoint of a like network whose weights it starts
    from instead of random ones. ``device`` is "auto", "cpu" or "cuda"; synthesised images are drawn there
    too. Raises InputError, UsageError, ModelError, ResourceError, or DropgenError on NaN.
    """
    place = choose_device(device)
    dataset = read_dataset(data)
    intensity = Intensity()
    torch.manual_seed(config.seed)
    network = _network(dataset, config, encoder)
    if init is not None:
        _start_from(init, network)
    network.to(place, memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
    optimiser = torch.optim.AdamW(
        [p for p in network.parameters() if p.requires_grad], config.learning_rate, weight_decay=config.weight_decay
    )
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, config.steps)
    out.mkdir(parents=True, exist_ok=True)
    first, best = 0, -1.0
    if resume and (out / "last.pt").is_file():
        first, best = _resume(out / "last.pt", network, optimiser, schedule, config)
    sampler = _sampler(dataset, config, intensity, place)
    validation = _validation_set(dataset, config, intensity)
    loss_of = DiceCELoss(softmax=True, include_background=False, to_onehot_y=True, batch=True)
    network.train()
    for step, image, target in _batches(sampler, config, first, place):
        # Seeded per step, so that the dropped channels too are those of an unbroken run.
        torch.manual_seed(config.seed * 1_000_003 + step)
        with autocast(place):
            logits = network(image.contiguous(memory_format=torch.channels_last_3d))
        loss = loss_of(logits.float(), target)
        _refuse_infinite(loss, step, out)
        _descend(loss, network, optimiser, config)
        schedule.step()
        row: dict[str, object] = {"step": step + 1, "loss": loss.item()}
        if (step + 1) % config.validate_every == 0 or step + 1 == config.steps:
            dice = validate(network, validation, config)
            row["dice"] = float(np.nanmean(dice))
            content = _content(network, dataset, config, intensity, step + 1, [float(d) for d in dice])
            if row["dice"] > best:  # type: ignore[operator]
                best = float(np.nanmean(dice))
                checkpoint.save(out / "best.pt", content)
            state = {"optimiser": optimiser.state_dict(), "schedule": schedule.state_dict(), "best": best}
            checkpoint.save(out / "last.pt", {**content, **state})
        report(row)
    return out / "best.pt"


def _network(dataset: Dataset, config: TrainConfig, encoder_path: Path | None) -> DropGen:
    channels = len(dataset.channels)
    if config.method == "erm":
        if encoder_path is not None:
            raise UsageError("method 'erm' takes no encoder; leave --encoder out or choose --method dropgen")
        encoder, features = None, 0
    else:
        if encoder_path is None:
            raise UsageError("method 'dropgen' needs an encoder; name its file with --encoder")
        encoder = checkpoint.load_encoder(encoder_path)
        features = encoder.config.out_channels * channels
    classes = len(dataset.labels) + 1
    segmentor = UNetConfig(channels + features, classes, config.width, config.levels, padding_mode="zeros")
    network = DropGen(segmentor, encoder.config if encoder else None, config.drop, config.method)
    if network.encoder is not None and encoder is not None:
        network.encoder.load_state_dict(encoder.state_dict())
    return network


def _sampler(dataset: Dataset, config: TrainConfig, intensity: Intensity, device: torch.device) -> Sampler:
    if dataset.synthesis is not None:
        return SyntheticSampler(dataset.training, dataset, config, device)
    return ScanSampler(dataset.training, dataset, config, intensity)


def _refuse_infinite(loss: Tensor, step: int, out: Path) -> None:
    if not torch.isfinite(loss):
        raise DropgenError(
            f"step {step}: the loss is {loss.item()}; {out / 'last.pt'} is the last sound state, resume it "
            "with a smaller --learning-rate"
        )


def _descend(loss: Tensor, network: DropGen, optimiser: torch.optim.Optimizer, config: TrainConfig) -> None:
    optimiser.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(network.parameters(), config.gradient_clip)
    optimiser.step()


def _batches(
    sampler: Sampler, config: TrainConfig, first: int, device: torch.device
) -> Iterator[tuple[int, Tensor, Tensor]]:
    """(step, images (b, 1, z, y, x), targets (b, 1, z, y, x)), on the device.

    Drawn between the steps, not beside them: on the CPU both would want all cores, and together are slower.
    """
    for step in range(first, config.steps):
        sources = (RandomSource.seeded(config.seed, step, i, device=device) for i in range(config.batch))
        images, targets = zip(*(sampler.draw(source) for source in sources), strict=True)
        yield step, torch.stack(images).to(device), torch.stack(targets)[:, None].to(device)


def _validation_set(dataset: Dataset, config: TrainConfig, intensity: Intensity) -> list[tuple[NDArray, NDArray]]:
    if dataset.synthesis is None:
        return [read_case(case, dataset, config, intensity) for case in dataset.validation]
    sampler = SyntheticSampler(dataset.validation, dataset, config)
    draws = (sampler.draw(RandomSource.seeded(config.seed, 1 << 40, i)) for i in range(SYNTHETIC_VALIDATION_CROPS))
    return [(image.numpy(), target.numpy()) for image, target in draws]


def validate(network: DropGen, cases: list[tuple[NDArray, NDArray]], config: TrainConfig) -> NDArray[np.float64]:
    """(labels,) mean Dice over ``cases`` by the runtime's own sliding window; NaN where no case has the label."""
    network.eval()
    labels = network.segmentor.config.out_channels - 1
    scores = []
    for image, target in cases:
        plan = WindowPlan.cover(target.shape, config.window, 0.5)
        sums, totals = slide(image, plan, Normalisation.identity(len(image)), torch_infer(network), labels + 1)
        scores.append(dice_per_label(argmax_labels(sums, totals), target, labels))
    network.train()
    table = np.array(scores)
    with np.errstate(invalid="ignore"):
        return np.where(np.isnan(table).all(0), np.nan, np.nansum(table, 0) / (~np.isnan(table)).sum(0))


def torch_infer(network: DropGen) -> Callable[[NDArray[np.float32]], NDArray[np.float32]]:
    """The network as the engines' ``infer``: (b, c, z, y, x) float32 -> logits (b, k, z, y, x) float32."""

    device = next(network.parameters()).device

    def infer(batch: NDArray[np.float32]) -> NDArray[np.float32]:
        with torch.no_grad(), autocast(device):
            image = torch.from_numpy(batch).to(device).contiguous(memory_format=torch.channels_last_3d)
            return network(image).float().contiguous().cpu().numpy()

    return infer


def _start_from(path: Path, network: DropGen) -> None:
    content = checkpoint.load(path)
    if content["network"] | {"drop": 0} != network.description() | {"drop": 0}:
        raise UsageError(f"{path}: a network of another layout; give the same --width, --levels and labels")
    network.load_state_dict(content["state"])


def _content(
    network: DropGen, dataset: Dataset, config: TrainConfig, intensity: Intensity, step: int, dice: list[float]
) -> dict[str, object]:
    return {
        "network": network.description(),
        "state": {key: value.contiguous().cpu() for key, value in network.state_dict().items()},
        "labels": [asdict(label) for label in dataset.labels],
        "dataset": {"name": dataset.name, "notice": dataset.notice, "channels": list(dataset.channels)},
        "intensity": asdict(intensity),
        "config": config.summary(),
        "progress": {"step": step, "validation_dice": dice},
    }


def _resume(
    path: Path, network: DropGen, optimiser: torch.optim.Optimizer, schedule: object, config: TrainConfig
) -> tuple[int, float]:
    content = checkpoint.load(path)
    if content["config"] != config.summary():
        raise UsageError(f"{path}: was trained with other options; give the same ones, or another --out")
    network.load_state_dict(content["state"])
    optimiser.load_state_dict(content["optimiser"])
    schedule.load_state_dict(content["schedule"])  # type: ignore[attr-defined]
    return int(content["progress"]["step"]), float(content["best"])


def load_network(path: Path) -> tuple[DropGen, dict]:
    """The trained network in evaluation mode and the checkpoint's other content."""
    content = checkpoint.load(path)
    network = rebuild(content["network"])
    network.load_state_dict(content["state"])
    return network.eval(), content


__all__ = ["UNet", "load_network", "torch_infer", "train", "validate"]

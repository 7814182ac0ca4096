"""The training loop: AdamW with cosine decay, validated by the inference road itself."""

import math
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dropgen_rt.console import Console
from dropgen_rt.errors import DropgenError, UsageError
from dropgen_rt.evaluate import dice_per_label
from dropgen_rt.kernels import Normalisation
from dropgen_rt.slide import argmax_labels, slide
from dropgen_rt.train import checkpoint
from dropgen_rt.train.config import TrainConfig
from dropgen_rt.train.dataset import Dataset, grid_of, read_dataset
from dropgen_rt.train.distributed import Ranks, gather_batch, parallel, ranks_of_environment, share_batch_norms
from dropgen_rt.train.losses import Loss, make_loss
from dropgen_rt.train.network import DropGen, UNet, UNetConfig, rebuild
from dropgen_rt.train.prepare import Prepared, default_cache, made_folder, prepare
from dropgen_rt.train.samples import Sampler, ScanSampler, SyntheticSampler
from dropgen_rt.train.segmentors import MonaiConfig
from dropgen_rt.train.survey import refuse_faults, survey
from dropgen_rt.windows import WindowPlan

Report = Callable[[dict[str, object]], None]
# Validation of synthetic data: this many fixed crops of the held-out label maps.
SYNTHETIC_VALIDATION_CROPS = 12
# What a resumed run may change: none of it changes what the network is or which samples it sees.
CHANGEABLE = frozenset({"learning_rate", "weight_decay", "gradient_clip", "validate_every", "precision", "compile"})
HALF = {"bf16": torch.bfloat16, "fp16": torch.float16}


@contextmanager
def fast_cpu() -> Iterator[None]:
    """All cores, and no denormal numbers, which slow a CPU's convolutions manyfold; both as before afterwards."""
    threads = torch.get_num_threads()
    cores = len(os.sched_getaffinity(0))
    torch.set_num_threads(max(cores // int(os.environ.get("LOCAL_WORLD_SIZE", "1")), 1))
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
    *,
    device: str = "cpu",
    split: Path | None = None,
    cache: Path | None = None,
    workers: int | None = None,
    console: Console | None = None,
) -> Path:
    """Train on ``data`` into the run folder ``out``; returns the best checkpoint's path.

    ``report`` is called after each step with step, loss, and after validation with Dice. With ``resume``
    the run goes on from ``out/last.pt``; ``init`` is a checkpoint of a like network whose weights it starts
    from instead of random ones. ``split`` is a table of cases, ``cache`` the folder of prepared cases. Under
    torchrun the batch is divided among the processes. Raises InputError, UsageError, ModelError, OutputError,
    or DropgenError on NaN.
    """
    with ranks_of_environment(torch.device(device).type) as ranks:
        dataset = read_dataset(data, split)
        torch.manual_seed(config.seed)
        network = _network(dataset, config, encoder)
        if init is not None:
            _start_from(init, network)
        made_folder(out)
        if ranks.first:
            config.save(out / "config.toml")
        share_batch_norms(network, ranks)
        network.to(device, memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
        run = Run(network, dataset, config, out, ranks, torch.device(device))
        if resume and (out / "last.pt").is_file():
            run.resume()
        else:
            run.save_last()  # a full disk shows now, and there is always a checkpoint to go on from
        cases = _cases(data, dataset, config, cache, workers, ranks, console or Console(quiet=True))
        run.go(_sampler(dataset, config, cases[0]), _validation_set(dataset, config, cases[1]), report)
    return out / "best.pt"


class Run:
    """The state of one training: network, optimiser, step and best Dice; what ``last.pt`` holds."""

    def __init__(
        self, network: DropGen, dataset: Dataset, config: TrainConfig, out: Path, ranks: Ranks, device: torch.device
    ) -> None:
        self.network, self.dataset, self.config, self.out = network, dataset, config, out
        self.ranks, self.device = ranks, device
        self.step, self.best = 0, -1.0
        self.dice: list[float] = []
        self.loss = make_loss(config.loss)
        self.optimiser = torch.optim.AdamW(
            [p for p in network.parameters() if p.requires_grad], config.learning_rate, weight_decay=config.weight_decay
        )
        self.scaler = torch.amp.GradScaler(device.type, enabled=config.precision == "fp16")

    def resume(self) -> None:
        """Take up ``out/last.pt``. Raises ModelError, or UsageError if it was trained with other options."""
        path = self.out / "last.pt"
        content = checkpoint.load(path)
        changed = _changed(content["config"], self.config.summary())
        if changed:
            raise UsageError(f"{path}: was trained with other options ({changed}); give the same, or another --out")
        self.network.load_state_dict(content["state"])
        self.optimiser.load_state_dict(content["optimiser"])
        for group in self.optimiser.param_groups:
            group["weight_decay"] = self.config.weight_decay
        self.scaler.load_state_dict(content["scaler"])
        self.step, self.best = int(content["progress"]["step"]), float(content["best"])

    def go(self, sampler: Sampler, validation: list[tuple[NDArray, NDArray]], report: Report) -> None:
        """All steps that are left. Raises DropgenError where loss or gradient is not finite."""
        config = self.config
        forward = parallel(self.network, self.ranks)
        if config.compile:
            forward = torch.compile(forward)  # type: ignore[assignment]
        self.network.train()
        for step, image, target in _batches(sampler, config, self.step, self.ranks):
            start = time.perf_counter()
            # Seeded per step, so that the dropped channels too are those of an unbroken run.
            torch.manual_seed((config.seed * 1_000_003 + step) * self.ranks.world + self.ranks.rank)
            loss = self._step(forward, image, target)
            self.step = step + 1
            row: dict[str, object] = {"step": self.step, "loss": loss, "samples": config.batch}
            row["seconds"] = time.perf_counter() - start
            if self.step % config.validate_every == 0 or self.step == config.steps:
                dice = validate(self.network, validation, config, self.ranks)
                self.dice = [float(d) for d in dice]
                row.update(dice=float(np.nanmean(dice)), dice_per_label=self.dice)
                self._save(float(np.nanmean(dice)))
            report(row)

    def _step(self, forward: Callable[[Tensor], Tensor], image: Tensor, target: Tensor) -> float:
        config = self.config
        for group in self.optimiser.param_groups:
            group["lr"] = cosine(config.learning_rate, self.step, config.steps)
        image = image.to(self.device).contiguous(memory_format=torch.channels_last_3d)
        target = gather_batch(target.to(self.device), self.ranks)
        half = HALF.get(config.precision)
        with torch.autocast(self.device.type, half, enabled=half is not None):
            logits = forward(image)
        # The loss sums over a whole batch of voxels: half a precision's digits would not do.
        loss = self.loss(gather_batch(logits.float(), self.ranks), target)
        if not torch.isfinite(loss):
            raise self._unsound(f"the loss is {loss.item()}")
        self.optimiser.zero_grad()
        self.scaler.scale(loss).backward()
        self.scaler.unscale_(self.optimiser)
        norm = torch.nn.utils.clip_grad_norm_(self.network.parameters(), config.gradient_clip)
        if not self.scaler.is_enabled() and not torch.isfinite(norm):  # the scaler passes over such steps itself
            raise self._unsound(f"the gradient's norm is {norm.item()}")
        self.scaler.step(self.optimiser)
        self.scaler.update()
        return loss.item()

    def _unsound(self, what: str) -> DropgenError:
        last = self.out / "last.pt"
        state = (
            f"{last} is the last sound state, resume it" if last.is_file() else "no checkpoint was due yet, start it"
        )
        return DropgenError(f"step {self.step}: {what}; {state} with a smaller --learning-rate")

    def _save(self, dice: float) -> None:
        """``best.pt`` where this is the best so far, then ``last.pt``."""
        improved = dice > self.best or not (self.out / "best.pt").is_file()
        self.best = max(self.best, dice) if not math.isnan(dice) else self.best
        if self.ranks.first and improved:
            checkpoint.save(self.out / "best.pt", _content(self))
        self.save_last()

    def save_last(self) -> None:
        """``last.pt``: all that is needed to go on. The first process writes, the others wait."""
        if self.ranks.first:
            state = {"optimiser": self.optimiser.state_dict(), "scaler": self.scaler.state_dict(), "best": self.best}
            checkpoint.save(self.out / "last.pt", {**_content(self), **state})
        self.ranks.wait()


def cosine(peak: float, step: int, steps: int) -> float:
    """The learning rate of ``step``: from ``peak`` along half a cosine to 0 after ``steps``."""
    return 0.5 * peak * (1 + math.cos(math.pi * step / steps))


def _changed(before: dict, now: dict) -> str:
    """Names of the options that a resumed run must not change and that differ."""
    names = sorted({*before, *now} - CHANGEABLE)
    return ", ".join(name for name in names if before.get(name) != now.get(name))


def _network(dataset: Dataset, config: TrainConfig, encoder_path: Path | None) -> DropGen:
    channels = len(dataset.channels)
    if config.method == "erm":
        if encoder_path is not None:
            raise UsageError("method 'erm' takes no encoder; leave --encoder out or choose --method dropgen")
        encoder, features = None, 0
    else:
        if encoder_path is None:
            raise UsageError(f"method {config.method!r} needs an encoder; name its file with --encoder")
        encoder = checkpoint.load_encoder(encoder_path)
        features = encoder.config.out_channels * channels
    inputs = features if config.method == "features" else channels + features
    classes = len(dataset.labels) + 1
    segmentor: UNetConfig | MonaiConfig
    if config.segmentor == "unet":
        segmentor = UNetConfig(inputs, classes, config.width, config.levels, padding_mode="zeros")
    else:
        segmentor = MonaiConfig(config.segmentor, inputs, classes, config.width, config.levels)
    network = DropGen(segmentor, encoder.config if encoder else None, config.channel_drop, config.method)
    if any(edge % network.stride or edge < network.smallest_edge for edge in config.window):
        raise UsageError(
            f"window {config.window}: with this encoder and segmentor, edges are multiples of {network.stride} "
            f"from {network.smallest_edge} up"
        )
    if network.encoder is not None and encoder is not None:
        network.encoder.load_state_dict(encoder.state_dict())
    return network


def _cases(
    data: Path, dataset: Dataset, config: TrainConfig, cache: Path | None, workers: int | None, ranks: Ranks,
    console: Console,
) -> tuple[list[Prepared], list[Prepared]]:  # fmt: skip
    """Prepared training and validation cases; none where images are synthesised. The first process prepares."""
    if dataset.synthesis is not None:
        refuse_faults(data, dataset.faults, (), dataset.table)
        return [], []
    folder = made_folder(cache or default_cache())
    training = dataset.few(config.subjects, config.seed)
    cases = (*training, *dataset.validation)
    grid = grid_of(dataset, config, config.intensity)

    def prepared() -> list[Prepared]:
        with console.progress("checking files", "cases") as progress:
            findings = survey(dataset.cases, dataset.table, folder, workers, progress)
        refuse_faults(data, dataset.faults, findings, dataset.table)
        by_case = dict(zip(dataset.cases, findings, strict=True))
        with console.progress("preparing", "cases") as progress:
            return prepare(cases, [by_case[case] for case in cases], grid, folder, workers, progress)

    if ranks.first:
        made = prepared()
    ranks.wait()
    if not ranks.first:
        made = prepared()  # everything is in the cache by now
    return made[: len(training)], made[len(training) :]


def _sampler(dataset: Dataset, config: TrainConfig, cases: list[Prepared]) -> Sampler:
    if dataset.synthesis is not None:
        return SyntheticSampler(dataset.few(config.subjects, config.seed), dataset, config)
    return ScanSampler(cases, config)


def _batches(sampler: Sampler, config: TrainConfig, first: int, ranks: Ranks) -> Iterator[tuple[int, Tensor, Tensor]]:
    """(step, images (b, c, z, y, x), targets (b, 1, z, y, x)), this process's part of each batch.

    Drawn between the steps, not beside them: on the CPU both would want all cores, and together are slower.
    """
    for step in range(first, config.steps):
        pairs = [sampler.draw(np.random.default_rng((config.seed, step, i))) for i in ranks.share(config.batch)]
        images, targets = zip(*pairs, strict=True)
        yield step, torch.stack(images), torch.stack(targets)[:, None]


def _validation_set(dataset: Dataset, config: TrainConfig, cases: list[Prepared]) -> list[tuple[NDArray, NDArray]]:
    if dataset.synthesis is None:
        return [(case.image, case.label) for case in cases]
    sampler = SyntheticSampler(dataset.validation, dataset, config)
    draws = (sampler.draw(np.random.default_rng((config.seed, 1 << 40, i))) for i in range(SYNTHETIC_VALIDATION_CROPS))
    return [(image.numpy(), target.numpy()) for image, target in draws]


def validate(
    network: DropGen, cases: list[tuple[NDArray, NDArray]], config: TrainConfig, ranks: Ranks | None = None
) -> NDArray[np.float64]:
    """(labels,) mean Dice over ``cases`` by the runtime's own sliding window; NaN where no case has the label.

    Several processes divide the cases among them and all get the whole result.
    """
    ranks = ranks or Ranks()
    network.eval()
    labels = network.segmentor.config.out_channels - 1
    scores = []
    for image, target in cases[ranks.rank :: ranks.world]:
        plan = WindowPlan.cover(target.shape, config.window, 0.5)
        image = np.ascontiguousarray(image)  # a memory-mapped one is read here
        sums, totals = slide(image, plan, Normalisation.identity(len(image)), torch_infer(network), labels + 1)
        scores.append(dice_per_label(argmax_labels(sums, totals), target, labels))
    network.train()
    table = np.array([row for part in ranks.gather(scores) for row in part])
    with np.errstate(invalid="ignore"):
        return np.where(np.isnan(table).all(0), np.nan, np.nansum(table, 0) / (~np.isnan(table)).sum(0))


def torch_infer(network: DropGen) -> Callable[[NDArray[np.float32]], NDArray[np.float32]]:
    """The network as the engines' ``infer``: (b, c, z, y, x) float32 -> logits (b, k, z, y, x) float32."""
    device = next(network.parameters()).device

    def infer(batch: NDArray[np.float32]) -> NDArray[np.float32]:
        with torch.no_grad():
            image = torch.from_numpy(batch).to(device).contiguous(memory_format=torch.channels_last_3d)
            return network(image).contiguous().cpu().numpy()

    return infer


def _start_from(path: Path, network: DropGen) -> None:
    content = checkpoint.load(path)
    if content["network"] | {"drop": 0} != network.description() | {"drop": 0}:
        raise UsageError(f"{path}: a network of another layout; give the same --width, --levels and labels")
    network.load_state_dict(content["state"])


def _content(run: Run) -> dict[str, object]:
    dataset = run.dataset
    return {
        "network": run.network.description(),
        "state": {key: value.cpu().contiguous() for key, value in run.network.state_dict().items()},
        "labels": [asdict(label) for label in dataset.labels],
        "dataset": {"name": dataset.name, "notice": dataset.notice, "channels": list(dataset.channels)},
        "intensity": asdict(run.config.intensity),
        "config": run.config.summary(),
        "progress": {"step": run.step, "validation_dice": run.dice},
    }


def load_network(path: Path) -> tuple[DropGen, dict]:
    """The trained network in evaluation mode and the checkpoint's other content."""
    content = checkpoint.load(path)
    network = rebuild(content["network"])
    network.load_state_dict(content["state"])
    return network.eval(), content


__all__ = ["Loss", "Run", "UNet", "load_network", "torch_infer", "train", "validate"]

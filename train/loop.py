"""The training loop: AdamW with cosine decay, validated by the inference road itself."""

import hashlib
import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

import torch
from numpy.typing import NDArray
from torch import Tensor

import dropgen_rt
from dropgen_rt.console import Console
from dropgen_rt.errors import DropgenError, ModelError, UsageError
from dropgen_rt.evaluate import mean_of
from dropgen_rt.manifest import plain_intensity
from dropgen_rt.store import make_folder
from dropgen_rt.train import checkpoint
from dropgen_rt.train.assemble import (
    label_map_digests,
    load_network,
    make_network,
    make_sampler,
    prepared_cases,
    same_weights,
    start_from,
    validation_set,
)
from dropgen_rt.train.batches import batches
from dropgen_rt.train.config import TrainConfig
from dropgen_rt.train.config_text import merge
from dropgen_rt.train.dataset import Dataset, read_dataset
from dropgen_rt.train.device import (
    autocast,
    choose_device,
    half_of,
    memory_told,
    move_to,
    require_sound_gradients,
)
from dropgen_rt.train.distributed import Ranks, gather_batch, parallel, ranks_of_environment, share_batch_norms
from dropgen_rt.train.fast_cpu import fast_cpu
from dropgen_rt.train.losses import make_loss
from dropgen_rt.train.network import DropGen
from dropgen_rt.train.samples import Sampler
from dropgen_rt.train.validate import validate

__all__ = ["Report", "Run", "load_network", "train"]

Report = Callable[[dict[str, object]], None]
# What a resumed run may change: none of it changes what the network is or which samples it sees.
# An encoder's file may have moved: its weights are compared.
CHANGEABLE = frozenset(
    {"learning_rate", "weight_decay", "gradient_clip", "validate_every", "precision", "compile", "encoder"}
)
# PyTorch's fused step reads weights, gradients and moments in the order in which they lie. On a GPU it refuses what
# lies otherwise than its weight, and weights are grouped anyway. On a CPU it would be silently wrong, but there
# backward gives gradients as their weights lie, and moments of a checkpoint are laid so.
FUSED = {"cpu": True, "cuda": None}
# A scale of fp16's losses, halved at each gradient that is not finite: thirty in a row lead here from its first one.
SMALLEST_SCALE = 1e-4


@memory_told()
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
    *,
    split: Path | None = None,
    cache: Path | None = None,
    workers: int | None = None,
    console: Console | None = None,
) -> Path:
    """Train on ``data`` into the run folder ``out``; returns the best checkpoint's path.

    ``report`` is called after each step with step, loss, and after validation with Dice. With ``resume``
    the run goes on from ``out/last.pt``; ``init`` is a checkpoint of a like network whose weights it starts
    from instead of random ones. ``device`` is "auto", "cpu" or "cuda"; synthesised images are drawn there
    too. ``split`` is a table of cases, ``cache`` the folder of prepared cases. Under torchrun the batch is
    divided among the processes. Raises InputError, UsageError, ModelError, ResourceError, or DropgenError on NaN.
    """
    place, console = choose_device(device), console or Console(quiet=True)
    require_sound_gradients(config, place)
    with ranks_of_environment(place.type) as ranks:
        dataset = read_dataset(data, split)
        torch.manual_seed(config.seed)
        network = make_network(dataset, config, encoder)
        if init is not None:
            start_from(init, network, config.encoder)
        share_batch_norms(network, ranks)
        move_to(network, place)
        run = Run(network, dataset, config, make_folder(out), ranks, place)
        if resume and (out / "last.pt").is_file():
            began = run.resume()
            if began != dropgen_rt.__version__:
                console.line(
                    f"warning: {out / 'last.pt'}: the dropgen-rt that wrote it was {began}, this is "
                    f"{dropgen_rt.__version__}; if they draw crops differently, the weights are not an unbroken run's"
                )
        training, validation = prepared_cases(data, dataset, config, cache, workers, ranks, console)
        keys = [case.key for case in (*training, *validation)]
        run.check_content(keys if dataset.synthesis is None else label_map_digests(dataset))
        sampler = make_sampler(dataset, config, training, place, console)
        held_out = validation_set(dataset, config, validation)
        # Once nothing is left to refuse: what is refused leaves no run that stands in the way of the next.
        if run.step == config.steps:
            console.line(f"{out}: all {run.step} steps are done; only its scores are written again")
        elif ranks.first:
            config.save(out / "config.toml")
        if not run.step:
            run.save_last()  # a full disk shows now, and there is always a checkpoint to go on from
        run.go(sampler, held_out, report, workers)
    return out / "best.pt"


class Run:
    """The state of one training: network, optimiser, step and best Dice; what ``last.pt`` holds."""

    def __init__(
        self, network: DropGen, dataset: Dataset, config: TrainConfig, out: Path, ranks: Ranks, device: torch.device
    ) -> None:
        self.network, self.dataset, self.config, self.out = network, dataset, config, out
        self.ranks, self.device = ranks, device
        self.step, self.best = 0, -1.0
        self.content = ""  # a digest of what the prepared cases hold, once it is known
        self.dice: list[float] = []
        self.loss = make_loss(config.loss)
        self.optimiser = torch.optim.AdamW(
            [p for p in network.parameters() if p.requires_grad],
            config.learning_rate,
            weight_decay=config.weight_decay,
            fused=FUSED[device.type],
        )
        self.scaler = torch.amp.GradScaler(device.type, enabled=half_of(device, config.precision) == torch.float16)

    def resume(self) -> str:
        """Take up ``out/last.pt``; returns the version that wrote it.

        Raises ModelError, or UsageError if it was trained with other options or cases.
        """
        path = self.out / "last.pt"
        content = checkpoint.load(path)
        if "optimiser" not in content:
            raise ModelError(
                f"{path}: holds no state to go on from, as a best.pt does not; give a folder whose last.pt the run "
                "wrote itself, or start another run from these weights by --init"
            )
        with checkpoint.rebuilding(path, "give the options and the encoder of then, or another --out"):
            return self._take_up(path, content)

    def _take_up(self, path: Path, content: dict) -> str:
        changed = _changed(content["config"], self.config.summary())
        if changed:
            raise UsageError(f"{path}: was trained with other options ({changed}); give the same, or another --out")
        # One that was not asked for by name may be that of a checkpoint that the run started from.
        if self.config.encoder and not _same_encoder(self.network, content["state"]):
            raise UsageError(f"{path}: was trained with another encoder; give that of then, or another --out")
        before = [label["name"] for label in content["labels"]], len(content["dataset"]["channels"])
        now = [label.name for label in self.dataset.labels], len(self.dataset.channels)
        self.content = content.get("content", "")
        if content.get("cases", self._cases()) != self._cases() or before != now:
            raise UsageError(
                f"{path}: was trained on other cases, labels or channels; give the DATA and --split of then, or "
                "another --out"
            )
        self.network.load_state_dict(content["state"])
        for group in content["optimiser"]["param_groups"]:
            group["fused"] = FUSED[self.device.type]  # a run may go on elsewhere
        self.optimiser.load_state_dict(content["optimiser"])
        for weight, state in self.optimiser.state.items():
            for moment in ("exp_avg", "exp_avg_sq"):
                state[moment] = torch.empty_like(weight).copy_(state[moment])
        for group in self.optimiser.param_groups:
            group["weight_decay"] = self.config.weight_decay
        if content["scaler"]:  # empty where the run was not in fp16
            self.scaler.load_state_dict(content["scaler"])
        self.step, self.best = int(content["progress"]["step"]), float(content["best"])
        return str(content.get("dropgen_rt", "an earlier version"))

    def check_content(self, digests: Sequence[str]) -> None:
        """Note ``digests`` of what the cases hold. Raises UsageError if a resumed run was trained on other content."""
        now = _digest(digests)
        if self.content not in ("", now):  # older checkpoints do not tell
            raise UsageError(
                f"{self.out / 'last.pt'}: a file of images or labels, what dataset.json merges, or synthesis.toml is "
                "another than it was trained with, or this version prepares cases otherwise; give those of then, or "
                "another --out"
            )
        self.content = now

    def go(
        self, sampler: Sampler, validation: list[tuple[NDArray, NDArray]], report: Report, workers: int | None = None
    ) -> None:
        """All steps that are left. Raises DropgenError where loss or gradient is not finite."""
        config = self.config
        forward = parallel(self.network, self.ranks)
        if config.compile:
            forward = torch.compile(forward)  # type: ignore[assignment]
        self.network.train()
        for image, target in batches(sampler, config, self.step, self.ranks, self.device, workers):
            # Seeded per step, so that the dropped channels too are those of an unbroken run.
            torch.manual_seed((config.seed * 1_000_003 + self.step) * self.ranks.world + self.ranks.rank)
            loss = self._step(forward, image, target)
            self.step += 1
            row: dict[str, object] = {"step": self.step, "loss": loss}
            if self.step % config.validate_every == 0 or self.step == config.steps:
                start = time.perf_counter()
                dice = validate(self.network, validation, config, self.ranks)
                self.dice = [float(d) for d in dice]
                mean = mean_of(self.dice)
                self._save(mean)
                row.update(dice=mean, dice_per_label=self.dice, validation_s=time.perf_counter() - start)
            report(row)

    def _step(self, forward: Callable[[Tensor], Tensor], image: Tensor, target: Tensor) -> float:
        config = self.config
        self.network.image_alone, self.network.settling = config.image_alone(self.step), config.settling(self.step)
        for group in self.optimiser.param_groups:
            group["lr"] = cosine(config.learning_rate, self.step, config.steps)
        with autocast(self.device, config.precision):
            logits = forward(image.contiguous(memory_format=torch.channels_last_3d))
        # The loss sums over all voxels of a batch: half a precision's digits would not do.
        loss = self.loss(gather_batch(logits.float(), self.ranks), gather_batch(target, self.ranks))
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
        if self.scaler.is_enabled() and self.scaler.get_scale() < SMALLEST_SCALE:
            raise self._unsound("no gradient was finite in fp16, however small the loss was made")
        return loss.item()

    def _unsound(self, what: str) -> DropgenError:
        return DropgenError(
            f"step {self.step}: {what}; {self.out / 'last.pt'} is the last sound state, resume it with a smaller "
            "--learning-rate"
        )

    def _save(self, dice: float) -> None:
        """``best.pt`` where this is the best so far, then ``last.pt``.

        A network that has seen the image alone is the best only until there is another, for it carries over to no
        scanner: of several such the newest.
        """
        rivals = not self.config.image_alone(self.step - 1)
        improved = not rivals or dice > self.best or not (self.out / "best.pt").is_file()
        if not checkpoint.finite(self.network):
            raise self._unsound("a weight is not finite")
        self.best = max(self.best, dice) if rivals and not math.isnan(dice) else self.best
        if self.ranks.first and improved:
            checkpoint.save(self.out / "best.pt", self._content())
        self.save_last()

    def save_last(self) -> None:
        """``last.pt``: all that is needed to go on. The first process writes, the others wait."""
        if self.ranks.first:
            state = {"optimiser": self.optimiser.state_dict(), "scaler": self.scaler.state_dict(), "best": self.best}
            checkpoint.save(
                self.out / "last.pt", {**self._content(), **state, "cases": self._cases(), "content": self.content}
            )
        self.ranks.wait()

    def _cases(self) -> str:
        """A digest of which cases train and which validate, by name: the folder may have moved."""
        return _digest([[case.name for case in cases] for cases in (self.dataset.training, self.dataset.validation)])

    def _content(self) -> dict[str, object]:
        dataset = self.dataset
        return {
            "dropgen_rt": dropgen_rt.__version__,
            "network": self.network.description(),
            "state": {key: value.contiguous().cpu() for key, value in self.network.state_dict().items()},
            "labels": [asdict(label) for label in dataset.labels],
            "dataset": {"name": dataset.name, "notice": dataset.notice, "channels": list(dataset.channels)},
            "source": asdict(dataset.source),
            "intensity": plain_intensity(self.config.intensity),
            "config": self.config.summary(),
            "progress": {"step": self.step, "validation_dice": self.dice},
        }


def _same_encoder(network: DropGen, state: dict[str, Tensor]) -> bool:
    """Whether a checkpoint's encoder is that of ``network``, which may have none."""
    own = {} if network.encoder is None else network.encoder.state_dict(prefix="encoder.")
    saved = {key: value for key, value in state.items() if key.startswith("encoder.")}
    return same_weights(own, saved)


def _digest(names: object) -> str:
    return hashlib.sha256(json.dumps(names).encode()).hexdigest()


def cosine(peak: float, step: int, steps: int) -> float:
    """The learning rate of ``step``: from ``peak`` along half a cosine to 0 after ``steps``."""
    return 0.5 * peak * (1 + math.cos(math.pi * step / steps))


def _changed(before: dict, now: dict) -> str:
    """Names of the options that a resumed run must not change and that differ."""
    known = TrainConfig().summary()
    merge(known, before)  # an option that an older version did not know had its default
    names = sorted({*known, *now} - CHANGEABLE)
    return ", ".join(name for name in names if known.get(name) != now.get(name))

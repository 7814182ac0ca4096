"""Contrastive pretraining of an encoder: the same voxel's label in two contrasts must give one feature.

After anatomix (Dey et al., arXiv 2411.02372): an ensemble of labelled shapes is drawn, painted in two
independent random contrasts, and a supervised contrastive loss pulls together the features of voxels that
share a label, across both views, and pushes the others apart. Beside shapes, whole heads are drawn from label maps.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from dropgen_rt.atomic import check_writable
from dropgen_rt.errors import DropgenError, MissingModelError, UsageError
from dropgen_rt.train import checkpoint
from dropgen_rt.train.anatomy import Anatomy, two_views
from dropgen_rt.train.config import check_seed
from dropgen_rt.train.contrastive import Pretraining, ensemble_loss
from dropgen_rt.train.device import choose_device, memory_told, move_to
from dropgen_rt.train.fast_cpu import fast_cpu
from dropgen_rt.train.network import UNet, UNetConfig
from dropgen_rt.train.prepare import held
from dropgen_rt.train.synthesis import RandomSource

PEAK_LEARNING_RATE, WARM_UP = 1e-3, 0.05
REPORT_EVERY = 50
STATE_FORMAT = "dropgen-rt pretraining 1"
STATE_SUFFIX = ".state.pt"


@dataclass(frozen=True)
class PretrainConfig:
    """All choices of a pretraining; ``edge`` is the crop's in voxels, ``batch`` the pairs of views in a step."""

    steps: int = 1100
    width: int = 8
    edge: int = 48
    batch: int = 1
    seed: int = 0
    save_every: int = 500

    def __post_init__(self) -> None:
        if min(self.steps, self.width, self.batch, self.save_every) < 1 or self.edge < 16 or self.edge % 16:
            raise UsageError("steps, width, batch and save-every must be at least 1, and edge a multiple of 16")
        check_seed(self.seed)


@memory_told("--batch, --edge or --width")
@fast_cpu()
def pretrain(
    folder: Path,
    out: Path,
    config: PretrainConfig,
    report: Callable[[str], None],
    device: str = "auto",
    resume: bool = False,
    tissues: Path | None = None,
) -> None:
    """Pretrain an encoder on the label maps, of 1 mm, of ``folder`` and write it to ``out``.

    ``tissues`` is a synthesis.toml whose tissues merge source values, such as left and right. ``report`` gets a
    line every 50 steps. The state is kept beside ``out`` as NAME.state.pt, from which ``resume`` goes on. Raises
    MissingInputError if the folder holds no label maps, UsageError where a state or ``out`` is there and not
    to be resumed, ResourceError where another process trains into ``out`` or memory does not hold the training,
    DropgenError on NaN.
    """
    place = choose_device(device)
    check_writable(out)  # before the first hours have passed
    with held(out.with_suffix(STATE_SUFFIX)):
        _pretrain(folder, out, config, report, place, resume, tissues)


def _pretrain(
    folder: Path,
    out: Path,
    config: PretrainConfig,
    report: Callable[[str], None],
    place: torch.device,
    resume: bool,
    tissues: Path | None,
) -> None:
    state = out.with_suffix(STATE_SUFFIX)
    for there in (state, out):
        if not resume and there.is_file():
            raise UsageError(f"{there}: is there already; go on with its run by --resume, or give another --out")
    if resume and not state.is_file():
        raise MissingModelError(f"{state}: no such state to go on from; leave --resume out to begin")
    anatomy = Anatomy.read(folder, place, tissues)
    torch.manual_seed(config.seed)
    model = Pretraining(UNet(UNetConfig(width=config.width, padding_mode="zeros")))
    move_to(model, place)
    optimiser = torch.optim.AdamW(model.parameters(), PEAK_LEARNING_RATE, weight_decay=1e-5)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, PEAK_LEARNING_RATE, total_steps=max(config.steps, 2), pct_start=WARM_UP
    )
    parts = {"model": model, "optimiser": optimiser, "schedule": schedule}
    first = _resume(state, parts, config, anatomy) if resume else 0
    provenance = {"label_maps": len(anatomy.maps), **asdict(config)}
    if first == config.steps:  # ended between the state and the encoder
        checkpoint.save_encoder(out, model.encoder, {**provenance, "trained_steps": first})
    losses: list[Tensor] = []
    for step in range(first, config.steps):
        losses.append(_descend(model, optimiser, anatomy, config, step, place))
        schedule.step()
        last = step + 1 == config.steps
        saves = (step + 1) % config.save_every == 0 or last
        if (step + 1) % REPORT_EVERY == 0 or saves:
            # A state of NaN must not be saved over a sound one.
            mean = torch.stack(losses[-REPORT_EVERY:]).mean().item()
            if not np.isfinite(mean):
                raise _unsound(step + 1, f"the loss is {mean}", state)
            if saves and not (checkpoint.finite(model) and checkpoint.finite(model.encoder, half=True)):
                raise _unsound(step + 1, "a weight is not finite", state)
        if (step + 1) % REPORT_EVERY == 0 or last:
            report(f"step {step + 1} of {config.steps}: loss {mean:.3f}")
        if saves:
            content = {name: part.state_dict() for name, part in parts.items()}  # type: ignore[attr-defined]
            drawn = {"config": asdict(config), "anatomy": anatomy.digest, "step": step + 1}
            checkpoint.save(state, {**content, **drawn}, STATE_FORMAT)
            checkpoint.save_encoder(out, model.encoder, {**provenance, "trained_steps": step + 1})


def _descend(
    model: Pretraining,
    optimiser: torch.optim.Optimizer,
    anatomy: Anatomy,
    config: PretrainConfig,
    step: int,
    device: torch.device,
) -> Tensor:
    """One step; its loss, still on the device."""
    sources = [RandomSource.seeded(config.seed, step, i, device=device) for i in range(config.batch)]
    views, labels = zip(*(two_views(anatomy, config.edge, source) for source in sources), strict=True)
    loss = ensemble_loss(model, torch.stack(views), torch.stack(labels), sources[0])
    optimiser.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimiser.step()
    return loss.detach()


def _unsound(step: int, what: str, state: Path) -> DropgenError:
    kept = f"{state} is the last sound state" if state.is_file() else "nothing had been saved before"
    return DropgenError(f"step {step}: {what}; {kept}")


def _resume(path: Path, parts: dict, config: PretrainConfig, anatomy: Anatomy) -> int:
    content = checkpoint.load(path, STATE_FORMAT)
    with checkpoint.rebuilding(path, "remove it, and the encoder beside it, and begin anew"):
        return _take_up(path, content, parts, config, anatomy)


def _take_up(path: Path, content: dict, parts: dict, config: PretrainConfig, anatomy: Anatomy) -> int:
    changed = [name for name, value in asdict(config).items() if content["config"].get(name) != value]
    if changed:
        raise UsageError(
            f"{path}: was trained with other options ({', '.join(changed)}); give the same ones, or another --out"
        )
    if content.get("anatomy", anatomy.digest) != anatomy.digest:  # older states do not tell
        raise UsageError(
            f"{path}: was trained on other label maps, or with other --tissues; give those of then, or another --out"
        )
    for name, part in parts.items():
        part.load_state_dict(content[name])
    return int(content["step"])

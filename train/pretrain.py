"""Contrastive pretraining of an encoder: the same voxel's label in two contrasts must give one feature.

After anatomix (Dey et al., arXiv 2411.02372): an ensemble of labelled shapes is drawn, painted in two
independent random contrasts, and a supervised contrastive loss pulls together the features of voxels that
share a label, across both views, and pushes the others apart. Beside shapes, whole heads are drawn from label maps.
"""

import hashlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from dropgen_rt.atomic import check_writable
from dropgen_rt.errors import DropgenError, MissingInputError, MissingModelError, UnsuitableInputError, UsageError
from dropgen_rt.inspect_file import scans_in
from dropgen_rt.train import checkpoint
from dropgen_rt.train.config import check_seed
from dropgen_rt.train.device import autocast, choose_device, memory_told, move_to
from dropgen_rt.train.fast_cpu import fast_cpu
from dropgen_rt.train.layers import InstanceNorm3d
from dropgen_rt.train.network import INSTANCE_NORM_EPS, UNet, UNetConfig
from dropgen_rt.train.prepare import held
from dropgen_rt.train.shapes import cut_templates, shape_ensemble
from dropgen_rt.train.synthesis import (
    SUBSAMPLES,
    RandomSource,
    SynthesisConfig,
    deformed_coordinates,
    index_labels,
    look_up,
    paint,
)
from dropgen_rt.volume import read_label_map
from dropgen_rt.words import by

TEMPERATURE = 0.33
VOXELS_PER_VIEW = 1024
# How many decoder levels, counted from full resolution, the loss looks at beside the output itself.
LEVELS_IN_LOSS = 3
SHAPES_SHARE = 0.5
# A voxel's edge in crops of heads, so that the encoder meets fine and coarse scans; label maps are at 1 mm.
SPACING_MM = (0.9, 2.5)
# What label maps have, and how far headers may be off.
MAP_SPACING_MM, MAP_SPACING_TOLERANCE = 1.0, 0.1
# Stronger than what a segmentor trains under: features must outlast what they will meet.
SEVERITY = 1.2
PEAK_LEARNING_RATE, WARM_UP = 1e-3, 0.05
REPORT_EVERY = 50
MOST_VALUES = 256  # each value of a label map is one byte here
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


def random_table(labels: int, rng: np.random.Generator) -> NDArray[np.float32]:
    """(3, labels): independent means in [0.02, 1], deviations and textures; label 0 is black half the time."""
    rows = rng.uniform(0.02, 1.0, labels), rng.uniform(0.01, 0.08, labels), rng.uniform(0, 0.12, labels)
    table = np.stack(rows).astype(np.float32)
    if rng.random() < 0.5:
        table[:, 0] = 0
    return table


@dataclass(frozen=True)
class Anatomy:
    """What ensembles are drawn from, on the device that trains: whole label maps and the structures cut from them."""

    maps: tuple[Tensor, ...]
    templates: Tensor
    digest: str  # of the maps' voxels, left and right merged or not

    @staticmethod
    def read(folder: Path, device: torch.device, tissues: Path | None = None) -> "Anatomy":
        """Every label map of a folder. Raises as ``read_indexed_maps``.

        ``tissues`` is a synthesis.toml: source values of one tissue become one label, left and right for example.
        """
        maps = read_indexed_maps(folder, SynthesisConfig.read(tissues).tissues if tissues is not None else {})
        digest = hashlib.sha256()
        for some in maps:
            digest.update(repr(tuple(some.shape)).encode())
            digest.update(some.numpy().tobytes())
        placed = tuple(some.to(device) for some in maps)
        return Anatomy(placed, torch.cat([cut_templates(some) for some in placed]), digest.hexdigest())


def two_views(anatomy: Anatomy, edge: int, source: RandomSource) -> tuple[Tensor, Tensor]:
    """Images (2, 1, n, n, n) float32 of one ensemble in two contrasts, and its labels (n, n, n) uint8."""
    rng = source.numbers
    if rng.random() < SHAPES_SHARE:
        fine = shape_ensemble(edge, anatomy.templates, source)
    else:
        chosen = anatomy.maps[rng.integers(len(anatomy.maps))]
        centre = [rng.uniform(0.3, 0.7) * size for size in chosen.shape]
        step = rng.uniform(*SPACING_MM) / SUBSAMPLES
        fine = look_up(chosen, deformed_coordinates(centre, edge, step, source))
    views = torch.stack([paint(fine, random_table(256, rng), source, SEVERITY) for _ in range(2)])
    return views, fine[::SUBSAMPLES, ::SUBSAMPLES, ::SUBSAMPLES]


def label_weights(labels: Tensor) -> Tensor:
    """(b, 256) float64: a voxel's weight by its label, so that in each of (b, …) uint8 maps labels weigh alike."""
    index = labels.flatten(1).to(torch.int64) + 256 * torch.arange(len(labels), device=labels.device)[:, None]
    # Labels of fewer than 20 voxels would be the same few voxels again and again.
    return 1.0 / torch.bincount(index.flatten(), minlength=256 * len(labels)).view(-1, 256).clamp_min(20).double()


def balanced_voxels(labels: Tensor, weights: Tensor, count: int, source: RandomSource) -> Tensor:
    """(b, count) flat indices of voxels drawn by their labels' weight: small structures must be seen."""
    cumulative = weights.gather(1, labels.flatten(1).to(torch.int64)).cumsum(1)
    shape = (len(labels), count)
    places = torch.rand(shape, generator=source.fields, device=labels.device, dtype=torch.float64)
    return torch.searchsorted(cumulative, places * cumulative[:, -1:]).clamp_max(cumulative.shape[1] - 1)


def contrastive_loss(features: Tensor, labels: Tensor) -> Tensor:
    """Supervised contrastive loss (Khosla et al., arXiv 2004.11362, L_out), mean over b sets.

    ``features`` (b, n, d), ``labels`` (b, n); a feature is compared with those of its own set.
    """
    features = F.normalize(features, dim=2)
    own = torch.eye(features.shape[1], dtype=torch.bool, device=features.device)
    similarity = (features @ features.transpose(1, 2) / TEMPERATURE).masked_fill(own, float("-inf"))
    positive = (labels[:, :, None] == labels[:, None, :]) & ~own
    log_share = similarity - similarity.logsumexp(dim=2, keepdim=True)
    return -(log_share.masked_fill(~positive, 0).sum(2) / positive.sum(2).clamp_min(1)).mean()


class Pretraining(nn.Module):
    """An encoder, the normalisation its users apply, and projection heads that are thrown away afterwards.

    The output itself is compared without a head: what a segmentor gets must be the stable thing.
    """

    def __init__(self, encoder: UNet, projection: int = 32) -> None:
        super().__init__()
        self.encoder = encoder
        self.norm = InstanceNorm3d(encoder.config.out_channels, eps=INSTANCE_NORM_EPS)
        self.layers = encoder.decoder_layers[-LEVELS_IN_LOSS:]
        finest = encoder.config.width
        widths = [finest * 2**level for level in reversed(range(len(self.layers)))]
        self.heads = nn.ModuleList(
            nn.Sequential(nn.Linear(width, 64), nn.ReLU(), nn.Linear(64, projection)) for width in widths
        )

    def forward(self, views: Tensor) -> list[Tensor]:
        """(b, c, z, y, x) features of each layer in the loss, coarse to fine, the normalised output last."""
        *decoder, output = self.encoder.trace(views, self.layers)
        return [*decoder, self.norm(output)]

    def project(self, layer: int, features: Tensor) -> Tensor:
        """(n, channels) features of a layer -> (n, d) to be compared."""
        return self.heads[layer](features) if layer < len(self.heads) else features


def ensemble_loss(model: Pretraining, views: Tensor, labels: Tensor, source: RandomSource) -> Tensor:
    """Mean over layers and pairs of the contrastive loss; ``views`` (b, 2, 1, n, n, n), ``labels`` (b, n, n, n)."""
    device = labels.device
    with autocast(device):
        layers = model(views.flatten(0, 1).contiguous(memory_format=torch.channels_last_3d))
    weights = label_weights(labels)
    losses = []
    for place, features in enumerate(layers):
        stride = labels.shape[-1] // features.shape[-1]
        coarse = labels[:, stride // 2 :: stride, stride // 2 :: stride, stride // 2 :: stride]
        voxels = balanced_voxels(coarse, weights, VOXELS_PER_VIEW, source)
        target = coarse.flatten(1).gather(1, voxels)
        # (b, view, channels, voxels) -> (b, view * voxels, channels), in fp32
        by_view = features.flatten(2).unflatten(0, (-1, 2))
        index = voxels[:, None, None].expand(-1, 2, by_view.shape[2], -1)
        chosen = by_view.gather(3, index).transpose(2, 3).flatten(1, 2).float()
        losses.append(contrastive_loss(model.project(place, chosen), target.repeat(1, 2)))
    return torch.stack(losses).mean()


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


def read_indexed_maps(folder: Path, tissues: dict[str, tuple[int, ...]]) -> list[Tensor]:
    """Every label map of a folder, turned to LPS, as (z, y, x) uint8 indices into its sorted values.

    Values of one tissue become the first of them before that. Raises MissingInputError, or UnsuitableInputError for
    voxels of another size than MAP_SPACING_MM, of too many values or of none.
    """
    paths = scans_in(folder) if folder.is_dir() else []
    if not paths:
        raise MissingInputError(f"{folder}: no label maps in it; name a folder that has some")

    def read(path: Path) -> Tensor:
        raw, geometry = read_label_map(path)
        merged = np.arange(int(raw.max()) + 1)
        for values in tissues.values():
            merged[[value for value in values if value < len(merged)]] = values[0]
        if any(abs(mm / MAP_SPACING_MM - 1) > MAP_SPACING_TOLERANCE for mm in geometry.spacing_mm):
            raise UnsuitableInputError(
                f"{path}: voxels of {by(geometry.spacing_mm)} mm, accepted are {MAP_SPACING_MM:g} mm; resample it"
            )
        _, change = geometry.reoriented("LPS")
        index, found = index_labels(merged[change.apply(raw)])
        if len(found) > MOST_VALUES:
            raise UnsuitableInputError(
                f"{path}: {len(found)} different values, accepted are {MOST_VALUES}; merge some by --tissues"
            )
        if len(found) < 2:
            raise UnsuitableInputError(
                f"{path}: holds nothing but background, of which nothing is learnt; remove it, or name another folder"
            )
        return index

    with ThreadPoolExecutor() as pool:
        return list(pool.map(read, paths))

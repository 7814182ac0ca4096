"""One training step: ours against a plain loop of the reference's recipe, side by side in one run.

python benchmarks/train_step.py --out benchmarks/results/train_step.json [--device cuda] [--compile]

Both loops train the same network (same weights, frozen encoder, channel dropout, instance norm) on the same crops with
AdamW and Dice + cross-entropy. The plain one keeps tensors contiguous, decoders as they are defined, batch norms and
denormal numbers as PyTorch leaves them; ours is what ``dropgen-rt train`` does. The losses of all steps are compared:
a step with other numerics would be no faster step. How far either loop is off the plain one in float64 is told besides:
where that is more than the difference allowed, no two loops in that precision would agree.
"""

import argparse
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import torch
from recording import write
from torch import nn

from dropgen_rt.train.config import TrainConfig
from dropgen_rt.train.device import autocast, choose_device, move_to
from dropgen_rt.train.layers import BatchNorm3d
from dropgen_rt.train.loop import fast_cpu
from dropgen_rt.train.losses import make_loss
from dropgen_rt.train.network import ANATOMIX, PADDINGS, DropGen, segmentor_config

CLASSES = 4
# Steps that are not timed: they find algorithms and memory.
FIRST = 2
# Losses of the same steps in the two loops, relative: convolutions sum in another order, bf16 keeps eight bits.
SAME = {"fp32": 1e-3, "bf16": 3e-2}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--edge", type=int, default=48)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--width", type=int, default=8)
    parser.add_argument("--levels", type=int, default=4)
    parser.add_argument("--padding", choices=PADDINGS, default="reflect", help="Of the segmentor; paper: reflect.")
    parser.add_argument("--steps", type=int, default=5, help="Timed steps of each loop, taken in turns.")
    parser.add_argument("--precisions", nargs="+", choices=SAME, default=list(SAME))
    parser.add_argument("--compile", action="store_true")
    arguments = parser.parse_args()
    device = choose_device(arguments.device)
    exact = loop("float64", device, arguments, ours=False)
    losses = [exact(step)[1] for step in range(arguments.steps + FIRST)]
    rows = {precision: compare(precision, device, arguments, losses) for precision in arguments.precisions}
    shape = {
        key: getattr(arguments, key) for key in ("edge", "batch", "width", "levels", "padding", "steps", "compile")
    }
    name = torch.cuda.get_device_name() if device.type == "cuda" else "cpu"
    write(arguments.out, {"device": name, "torch": torch.__version__, **shape, "precisions": rows})


def compare(
    precision: str, device: torch.device, arguments: argparse.Namespace, exact: Sequence[float]
) -> dict[str, float]:
    """Median step times in turns, their ratio, and how far losses are apart, and off the ``exact`` ones."""
    plain = loop(precision, device, arguments, ours=False)
    ours = loop(precision, device, arguments, ours=True)
    times: dict[str, list[float]] = {"plain": [], "ours": []}
    losses: dict[str, list[float]] = {"plain": [], "ours": []}
    for step in range(arguments.steps + FIRST):
        for name, run in (("plain", plain), ("ours", ours)):
            seconds, loss = run(step)
            losses[name].append(loss)
            if step >= FIRST:
                times[name].append(seconds)
    medians = {name: float(np.median(values)) for name, values in times.items()}
    apart = furthest(losses["ours"], losses["plain"])
    row = {
        "plain_s": round(medians["plain"], 4),
        "ours_s": round(medians["ours"], 4),
        "ratio": round(medians["plain"] / medians["ours"], 3),
        "losses_apart": round(apart, 6),
        "equal_numerics": bool(apart <= SAME[precision]),
        "plain_off_float64": round(furthest(losses["plain"], exact), 6),
        "ours_off_float64": round(furthest(losses["ours"], exact), 6),
    }
    print(f"{precision}: {row}")
    return row


def furthest(losses: Sequence[float], others: Sequence[float]) -> float:
    """The largest difference, relative to ``others``."""
    return max(abs(loss - other) / abs(other) for loss, other in zip(losses, others, strict=True))


def loop(precision: str, device: torch.device, arguments: argparse.Namespace, ours: bool) -> Callable:
    """A function of the step's number that trains one step and gives its seconds and its loss.

    ``precision`` may be "float64", too, for a plain loop.
    """
    torch.manual_seed(0)
    config = TrainConfig(width=arguments.width, levels=arguments.levels, window=(arguments.edge,) * 3)
    inputs = 1 + ANATOMIX.out_channels
    segmentor = segmentor_config(inputs, CLASSES, config.width, config.levels, padding=arguments.padding)
    network = DropGen(segmentor, ANATOMIX, config.drop)
    layout = torch.channels_last_3d if ours else torch.contiguous_format
    if ours:
        move_to(network, device)
    else:
        use_plain_norms(network.to(device))
    kind = torch.float64 if precision == "float64" else torch.float32
    network.to(kind).train()
    forward = torch.compile(network) if ours and arguments.compile else network
    weights = [p for p in network.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(weights, config.learning_rate, weight_decay=config.weight_decay)
    loss_of = make_loss("dice_ce")

    def run(step: int) -> tuple[float, float]:
        rng = np.random.default_rng(step)
        shape = (arguments.batch, 1, *config.window)
        image = torch.from_numpy(rng.random(shape, dtype=np.float32)).to(device, kind)
        target = (image * CLASSES).long().clamp_(0, CLASSES - 1)
        torch.manual_seed(step)
        with fast_cpu() if ours else nullcontext():
            settle(device)
            start = time.perf_counter()
            with nullcontext() if kind == torch.float64 else autocast(device, precision):
                logits = forward(image.contiguous(memory_format=layout))
            loss = loss_of(logits.to(kind), target)
            optimiser.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(weights, config.gradient_clip)
            optimiser.step()
            settle(device)
            return time.perf_counter() - start, loss.item()

    return run


def settle(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def use_plain_norms(network: nn.Module) -> None:
    """PyTorch's own batch norms in place of ours; states stay."""
    for module in network.modules():
        for name, child in list(module.named_children()):
            if isinstance(child, BatchNorm3d):
                plain = nn.BatchNorm3d(child.num_features, child.eps, child.momentum)
                plain.load_state_dict(child.state_dict())
                for ours, theirs in zip(child.parameters(), plain.parameters(), strict=True):
                    theirs.requires_grad_(ours.requires_grad)
                setattr(module, name, plain.to(next(child.parameters()).device))


if __name__ == "__main__":
    main()

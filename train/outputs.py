"""What stands in a run folder when training is over: scores of every subject, examples, a summary."""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import dropgen_rt
from dropgen_rt.atomic import atomic_path
from dropgen_rt.components import keep_largest_component
from dropgen_rt.console import Console
from dropgen_rt.evaluate import (
    TOLERANCE_MM,
    Score,
    dice_per_label,
    finite_or_none,
    in_one_map_only,
    mean_dice,
    mean_of,
    scores_of,
    write_scores,
)
from dropgen_rt.train.assemble import load_network
from dropgen_rt.train.config import TrainConfig, build_config
from dropgen_rt.train.curves import draw_examples
from dropgen_rt.train.dataset import Dataset, grid_of, read_dataset
from dropgen_rt.train.device import choose_device, memory_told, move_to
from dropgen_rt.train.fast_cpu import fast_cpu
from dropgen_rt.train.layout import Case
from dropgen_rt.train.network import DropGen
from dropgen_rt.train.prepare import Prepared, default_cache, prepare
from dropgen_rt.train.report import read_metrics
from dropgen_rt.train.survey import survey
from dropgen_rt.train.validate import predict

EXAMPLES = 4
# Dice that another way of joining windows, or of leaving out specks, must gain to be worth a line.
WORTH_SAYING = 1e-3
# Validation is scored in these ways, too: what a summary calls them, what a person reads, and what export takes.
OTHER_WAYS = {
    "dice_of_largest_component": ("the largest connected component alone", "--components largest"),
    "dice_of_gaussian_blend": ("windows that are joined smoothly", "--blend gaussian"),
    "dice_of_both": (
        "windows that are joined smoothly, and of the result the largest connected component alone,",
        "--blend gaussian --components largest",
    ),
}


@memory_told()
@fast_cpu()
def finish(
    data: Path,
    out: Path,
    device: str = "cpu",
    *,
    split: Path | None = None,
    cache: Path | None = None,
    console: Console | None = None,
) -> dict[str, Any]:
    """Score ``out/best.pt`` on validation and test cases; write their scores, examples.png and summary.json.

    ``validation.csv`` and ``test.csv`` hold Dice, HD95 and surface Dice of every subject and label on the working
    grid, the JSON of the same name their means. Where images are synthesised there is nothing to score. Returns
    the summary. Raises ModelError, InputError, OutputError, ResourceError.
    """
    console = console or Console(quiet=True)
    network, content = load_network(out / "best.pt")
    move_to(network, choose_device(device))
    dataset, config = read_dataset(data, split), build_config(content["config"])
    summary: dict[str, Any] = {
        "dropgen_rt": dropgen_rt.__version__,
        "dataset": content["dataset"],
        "method": config.method,
        "best_step": content["progress"]["step"],
        "best_validation_dice": [finite_or_none(dice) for dice in content["progress"]["validation_dice"]],
        "seconds": _seconds(out),
    }
    if dataset.synthesis is None:
        for name, cases in (("validation", dataset.validation), ("test", dataset.testing)):
            if cases:
                summary[name] = _score(name, cases, dataset, config, network, out, cache, console)
    with atomic_path(out / "summary.json") as temporary:
        temporary.write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
    return summary


def _score(
    name: str, cases: Sequence[Case], dataset: Dataset, config: TrainConfig, network: DropGen, out: Path,
    cache: Path | None, console: Console,
) -> dict[str, Any]:  # fmt: skip
    folder = cache or default_cache()
    findings = survey(cases, dataset.table, folder)
    prepared = prepare(cases, findings, grid_of(dataset, config), folder)
    scores: list[Score] = []
    others: dict[str, list[NDArray[np.float64]]] = {way: [] for way in OTHER_WAYS}
    labels = len(dataset.labels)
    with console.progress(f"scoring {name}", "cases") as progress:
        for done, case in enumerate(prepared, 1):
            found = predict(network, case.image, config)
            scores += scores_of(found, case.label, dataset.table, config.spacing_mm, TOLERANCE_MM, case.name)
            if name == "validation":
                for way, result in other_ways(network, case.image, config, found).items():
                    others[way].append(dice_per_label(result, case.label, labels))
            progress(done, len(prepared))
    write_scores(out / f"{name}.json", out / "best.pt", Path(dataset.name), scores, TOLERANCE_MM)
    if name == "validation":
        chosen = _examples(prepared, scores)
        # Found once more: to keep what was found in all cases would fill the memory.
        rows = [(title, case.image[0], case.label, predict(network, case.image, config)) for title, case in chosen]
        draw_examples(rows, dataset.labels, out / "examples.png", config.spacing_mm)
    by_label = {label.name: [s for s in scores if s.value == label.value] for label in dataset.labels}

    def means(measure: str) -> dict[str, float | None]:
        return {name: finite_or_none(mean_of([getattr(s, measure) for s in some])) for name, some in by_label.items()}

    return {
        "cases": len(prepared),
        "mean_dice": finite_or_none(mean_dice(scores)),
        "dice": means("dice"),
        **{
            way: {label.name: finite_or_none(mean_of(dice)) for label, *dice in zip(dataset.labels, *rows, strict=True)}
            for way, rows in others.items()
            if rows
        },
        "hd95_mm": means("hd95_mm"),
        "surface_dice": means("surface_dice"),
        "in_one_map_only": {name: in_one_map_only(some) for name, some in by_label.items()},
    }


def other_ways(
    network: DropGen, image: NDArray[np.float32], config: TrainConfig, found: NDArray[np.unsignedinteger]
) -> dict[str, NDArray[np.unsignedinteger]]:
    """(z, y, x) labels of an image (channels, z, y, x) by each of ``OTHER_WAYS``; ``found`` by ``predict``."""
    one_window = all(edge <= most for edge, most in zip(found.shape, config.window, strict=True))
    smooth = found if one_window else predict(network, image, config, "gaussian")
    alone, both = found.copy(), smooth.copy()
    for labels in (alone, both):
        keep_largest_component(labels)
    return dict(zip(OTHER_WAYS, (alone, smooth, both), strict=True))


def advice(validation: Mapping[str, Any], checkpoint: Path) -> Iterator[str]:
    """A line where, of a summary's validation, another way scores better, and no label worse: of the best the first."""
    gains = {way: gain for way in OTHER_WAYS if (gain := _gain(validation, way)) >= WORTH_SAYING}
    for way in OTHER_WAYS:
        if way in gains and gains[way] > max(gains.values()) - WORTH_SAYING:
            what, options = OTHER_WAYS[way]
            yield (
                f"{what} would add {gains[way]:.4f} to validation Dice: "
                f"dropgen-rt export {checkpoint} -o model.onnx {options}"
            )
            return


def _gain(validation: Mapping[str, Any], way: str) -> float:
    """In mean Dice over the labels; 0 where a label loses."""
    other = validation.get(way, {})
    gains = [other[label] - dice for label, dice in validation["dice"].items() if None not in (dice, other.get(label))]
    return float(np.mean(gains)) if gains and min(gains) >= 0 else 0.0


def _examples(prepared: Sequence[Prepared], scores: Sequence[Score]) -> list[tuple[str, Prepared]]:
    """A title and a case each, from the worst to the best, evenly: a picture of only good ones would flatter."""
    dice = [mean_of([score.dice for score in scores if score.subject == case.name]) for case in prepared]
    order = np.argsort(dice)
    chosen = order[np.linspace(0, len(order) - 1, min(EXAMPLES, len(order))).round().astype(int)]
    return [(f"{prepared[i].name} ({dice[i]:.3f})", prepared[i]) for i in chosen]


def _seconds(out: Path) -> float | None:
    rows = read_metrics(out)
    return float(rows[-1]["seconds"]) if rows else None

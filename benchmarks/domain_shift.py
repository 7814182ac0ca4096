"""Does it generalise? The paper's ablation in two settings: in-domain and out-of-domain Dice of each method.

python benchmarks/domain_shift.py prepare hippocampus --out hippocampus.npz     (needs ../shared/data)
python benchmarks/domain_shift.py prepare tissue --out tissue.npz
python benchmarks/domain_shift.py run hippocampus.npz --encoder FILE --runs RUNS --steps 400 --seeds 0 1 2
python benchmarks/domain_shift.py report --runs RUNS --out benchmarks/results/domain_shift.json

``run`` does what is not yet done: each method and seed leaves one JSON file in RUNS, so it may be stopped (--minutes),
started again, and started several times at once with other --seeds. Training itself turns, scales and shears only, so
that every change of the hippocampi's contrast is one that it never saw, unless --intensity-curve redraws contrasts.
Heads are painted as T1s with bias fields, noise and thick slices (``domain_data.tissue``); what is new there is T2 and
PD. The best step is not chosen: the last one is tested. The recorded runs have ``--batch 2 --cases 12``; a report holds
all settings.
"""

import argparse
import hashlib
import json
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812  it is F everywhere
from monai.inferers import sliding_window_inference
from recording import machine, write

from dropgen_rt.train.augment import RandIntensityCurved
from dropgen_rt.train.checkpoint import load_encoder
from dropgen_rt.train.config import TrainConfig
from dropgen_rt.train.device import autocast, move_to
from dropgen_rt.train.losses import make_loss
from dropgen_rt.train.network import NORMS, DropGen, UNet, segmentor_config

# "image-first" is dropgen with these options of ``train``; the best that was tried (docs/training-results.md). Preset
# tiny has 0.7, 0.1, 0.1: its augmentation varies contrast, and features need to count for less (changed_contrast.py).
IMAGE_FIRST = {"image_first": 0.5, "feature_scale": 0.2, "settle": 0.3}
METHODS = (
    "erm", "features", "concat", "dropgen 0.25", "dropgen 0.5", "dropgen 0.75", "image-first 0.25", "image-first 0.1",
)  # fmt: skip
SETTINGS = (
    "steps", "batch", "width", "levels", "learning_rate", "cases", "subjects", "precision", "norm", "intensity_curve",
)  # fmt: skip
OLDER = {"subjects": 0, "norm": "batch", "intensity_curve": 0.0}  # what runs had that do not tell it
TEST_BATCH = 8
BASELINE = "erm"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(dest="verb", required=True)
    prepare = verbs.add_parser("prepare")
    prepare.add_argument("setting", choices=["hippocampus", "tissue"])
    prepare.add_argument("--out", type=Path, required=True)
    prepare.add_argument("--images", type=int, default=12, help="Painted crops per label map, setting tissue.")
    run = verbs.add_parser("run")
    run.add_argument("data", type=Path)
    run.add_argument("--encoder", type=Path, required=True)
    run.add_argument("--runs", type=Path, required=True)
    run.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS)
    run.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    run.add_argument("--steps", type=int, default=400)
    run.add_argument("--batch", type=int, default=4)
    run.add_argument("--width", type=int, default=8)
    run.add_argument("--levels", type=int, default=4)
    run.add_argument("--learning-rate", type=float, default=2e-3)
    run.add_argument("--cases", type=int, default=0, help="Test on the first so many of each domain; 0 takes all.")
    run.add_argument("--subjects", type=int, default=0, help="Few-shot: train on so many scans, drawn by seed; 0: all.")
    run.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    run.add_argument("--image-first", type=float, nargs=3, default=list(IMAGE_FIRST.values()),
                     metavar=("SHARE", "SCALE", "SETTLE"), help="What the method of that name has.")  # fmt: skip
    run.add_argument("--norm", choices=NORMS, default="batch", help="Of the segmentor, whatever the method.")
    run.add_argument("--intensity-curve", type=float, default=0.0,
                     help="Share of crops of random contrast, as by train's augment.intensity_curve.")  # fmt: skip
    run.add_argument("--precision", choices=["auto", "fp32", "bf16"], default="auto")
    run.add_argument("--minutes", type=float, default=float("inf"), help="Start no further run after this.")
    report = verbs.add_parser("report")
    report.add_argument("--runs", type=Path, nargs="+", required=True, help="Folders; one holds one --image-first.")
    report.add_argument("--out", type=Path, required=True)
    report.add_argument("--picture", type=Path)
    report.add_argument("--keep", type=Path, help="An earlier report: settings without runs in RUNS are taken from it.")
    arguments = parser.parse_args()
    {"prepare": do_prepare, "run": do_run, "report": do_report}[arguments.verb](arguments)


def do_prepare(arguments: argparse.Namespace) -> None:
    import domain_data

    if arguments.setting == "hippocampus":
        domain_data.hippocampus(arguments.out)
    else:
        domain_data.tissue(arguments.out, arguments.images)


def do_run(arguments: argparse.Namespace) -> None:
    start = time.perf_counter()
    arguments.runs.mkdir(parents=True, exist_ok=True)
    torch.set_flush_denormal(True)
    torch.backends.cudnn.benchmark = True  # every batch has one shape
    data = Data(arguments.data, torch.device(arguments.device), arguments.cases)
    encoder = load_encoder(arguments.encoder)
    digest = hashlib.sha256(arguments.encoder.read_bytes()).hexdigest()
    settings = {key: getattr(arguments, key) for key in SETTINGS}
    for seed in arguments.seeds:
        for method in arguments.methods:
            path = arguments.runs / f"{data.setting}-{method.replace(' ', '')}-{seed}.json"
            note = {"setting": data.setting, "method": method, "seed": seed, "encoder_sha256": digest, **settings}
            note |= image_first(method, arguments)
            if path.is_file():
                if OLDER | json.loads(path.read_text())["note"] != note:
                    raise SystemExit(f"{path}: was made with other options; give another --runs")
                continue
            if time.perf_counter() - start > 60 * arguments.minutes:
                print("time is up; the same command goes on")
                return
            began = time.perf_counter()
            network, loss = train(data, encoder, method, seed, arguments)
            dice = {name: test(network, data, name, arguments.precision) for name in data.domains}
            seconds = time.perf_counter() - began
            about = {"labels": data.labels, "in_domain": data.inside, "out_of_domain": data.outside}
            about["device"] = device_name(data.device)
            path.write_text(json.dumps({"note": note, **about, "loss": loss, "seconds": seconds, "dice": dice}))
            means = ", ".join(f"{name} {np.nanmean(rows):.3f}" for name, rows in dice.items())
            print(f"{data.setting} {method} seed {seed}, {seconds:.0f} s: loss {loss:.3f}, {means}", flush=True)


def image_first(method: str, arguments: argparse.Namespace) -> dict[str, float]:
    """The options of ``train`` by which a method takes the image first; none for the others."""
    return dict(zip(IMAGE_FIRST, arguments.image_first, strict=True)) if method.startswith("image-first") else {}


def device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else str(machine()["cpu"])


class Data:
    """The arrays of a setting, on the device: images (n, 1, z, y, x) float32, labels (n, 1, z, y, x) uint8."""

    def __init__(self, path: Path, device: torch.device, cases: int = 0) -> None:
        with np.load(path) as file:
            about = json.loads(str(file["about"]))
            names = [key.removesuffix("/images") for key in file.files if key.endswith("/images")]
            self.arrays = {
                name: (
                    torch.from_numpy(file[f"{name}/images"]).to(device).float()[:, None],
                    torch.from_numpy(file[f"{name}/labels"]).to(device)[:, None],
                )
                for name in names
            }
        if cases:
            self.arrays = {
                name: arrays if name == "train" else (arrays[0][:cases], arrays[1][:cases])
                for name, arrays in self.arrays.items()
            }
        self.device = device
        self.setting, self.labels = about["setting"], about["labels"]
        self.inside, self.outside = about["in_domain"], about["out_of_domain"]
        self.domains = [name for name in names if name != "train"]

    @property
    def window(self) -> tuple[int, ...]:
        return tuple(self.arrays["train"][0].shape[2:])


def make_network(data: Data, encoder: UNet, name: str, seed: int, arguments: argparse.Namespace) -> DropGen:
    torch.manual_seed(seed)
    kind, _, drop = name.partition(" ")
    features = 0 if kind == "erm" else encoder.config.out_channels
    inputs = features + (0 if kind == "features" else 1)
    classes = len(data.labels) + 1
    segmentor = segmentor_config(inputs, classes, arguments.width, arguments.levels, arguments.norm)
    scale = image_first(name, arguments).get("feature_scale", 1.0)
    method = kind.replace("image-first", "dropgen")
    network = DropGen(segmentor, encoder.config if features else None, float(drop or 0), method, scale)
    if image_first(name, arguments).get("image_first"):  # as ``train`` does
        network.start_from_the_image()
    if network.encoder is not None:
        network.encoder.load_state_dict(encoder.state_dict())
    move_to(network, data.device)
    return network


def train(data: Data, encoder: UNet, method: str, seed: int, arguments: argparse.Namespace) -> tuple[DropGen, float]:
    """The network after all steps, and the mean loss of the last tenth of them."""
    network = make_network(data, encoder, method, seed, arguments)
    network.train()
    weights = [p for p in network.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(weights, arguments.learning_rate, weight_decay=1e-5)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, arguments.steps)
    loss_of, losses = make_loss("dice_ce"), []
    phases = TrainConfig(steps=arguments.steps, **image_first(method, arguments))
    images, labels = few(data.arrays["train"], arguments.subjects, seed)
    chance = torch.Generator(data.device).manual_seed(seed)  # the same crops for every method
    for step in range(arguments.steps):
        chosen = torch.randint(len(images), (arguments.batch,), generator=chance, device=data.device)
        image, target = moved(images[chosen], labels[chosen], chance)
        image = recontrasted(image, arguments.intensity_curve, seed * 1_000_003 + step)
        torch.manual_seed(seed * 1_000_003 + step)
        network.image_alone, network.settling = phases.image_alone(step), phases.settling(step)
        with autocast(data.device, arguments.precision):
            logits = network(image.contiguous(memory_format=torch.channels_last_3d))
        loss = loss_of(logits.float(), target)
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimiser.step()
        schedule.step()
        losses.append(loss.detach())
    return network.eval(), float(torch.stack(losses[-max(arguments.steps // 10, 1) :]).mean())


def few(arrays: tuple[torch.Tensor, torch.Tensor], subjects: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Images and labels of so many scans, drawn by the seed and so the same for every method; 0 takes all."""
    if not subjects:
        return arrays
    if not 0 < subjects <= len(arrays[0]):
        raise SystemExit(f"--subjects {subjects}: accepted are 0, all, to {len(arrays[0])}")
    chosen = torch.randperm(len(arrays[0]), generator=torch.Generator().manual_seed(seed))[:subjects]
    return arrays[0][chosen], arrays[1][chosen]


def moved(images: torch.Tensor, labels: torch.Tensor, chance: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Crops turned by up to 0.3 rad, scaled by up to 15 %, sheared and shifted by up to 10 %; intensities stay."""

    def uniform(*shape: int) -> torch.Tensor:
        return torch.rand(shape, generator=chance, device=images.device) * 2 - 1

    count = len(images)
    angles = 0.3 * uniform(count, 3)
    skew = torch.zeros(count, 3, 3, device=images.device)
    for axis, (i, j) in enumerate([(1, 2), (0, 2), (0, 1)]):
        skew[:, i, j], skew[:, j, i] = angles[:, axis], -angles[:, axis]
    matrix = torch.linalg.matrix_exp(skew) @ (torch.eye(3, device=images.device) + 0.1 * uniform(count, 3, 3))
    matrix = matrix * (1 + 0.15 * uniform(count, 1, 1))
    # Grid coordinates run from -1 to 1 whatever an axis' length; voxels are to be turned, not the unit cube.
    lengths = torch.tensor(images.shape[:1:-1], dtype=torch.float32, device=images.device)
    matrix = matrix * lengths[None, None, :] / lengths[None, :, None]
    theta = torch.cat([matrix, 0.1 * uniform(count, 3, 1)], 2)
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    image = F.grid_sample(images, grid, mode="bilinear", align_corners=False)
    target = F.grid_sample(labels.float(), grid, mode="nearest", align_corners=False)
    return image, target


def recontrasted(images: torch.Tensor, share: float, seed: int) -> torch.Tensor:
    """Crops (b, 1, z, y, x), a share of them with another contrast."""
    curve = RandIntensityCurved(share).set_random_state(seed=seed % 2**32)
    return torch.stack([curve({"image": image})["image"] for image in images.cpu()]).to(images.device)


@torch.no_grad()
def test(network: DropGen, data: Data, domain: str, precision: str) -> list[list[float]]:
    """Dice per case and label by the sliding window of the paper, overlap one half."""
    images, labels = data.arrays[domain]
    rows = []
    for some, truth in zip(images.split(TEST_BATCH), labels.split(TEST_BATCH), strict=True):
        some = some.contiguous(memory_format=torch.channels_last_3d)
        with autocast(data.device, precision):
            logits = sliding_window_inference(some, data.window, TEST_BATCH, network, overlap=0.5, mode="constant")
        found = logits.float().argmax(1, keepdim=True)
        values = torch.arange(1, len(data.labels) + 1, device=data.device).view(1, -1, 1, 1, 1)
        ours, theirs = found == values, truth == values
        # 0 / 0, a label that neither holds, is NaN and counts nowhere.
        rows += (2 * (ours & theirs).sum((2, 3, 4)) / (ours.sum((2, 3, 4)) + theirs.sum((2, 3, 4)))).tolist()
    return rows


def do_report(arguments: argparse.Namespace) -> None:
    runs = [json.loads(path.read_text()) for folder in arguments.runs for path in sorted(folder.glob("*.json"))]
    refuse_unlike(runs)
    tables = {setting: table([run for run in runs if run["note"]["setting"] == setting])
              for setting in sorted({run["note"]["setting"] for run in runs})}  # fmt: skip
    if arguments.keep is not None:
        tables = kept(json.loads(arguments.keep.read_text()), tables)
    for setting, figures in tables.items():
        print(f"\n{setting}: mean Dice over labels and cases, mean +- standard deviation over seeds")
        print(f"{'method':32}{'in-domain':>16}{'out-of-domain':>16}")
        for method, row in figures["methods"].items():
            cells = (cell(row[kind]) for kind in ("in_domain", "out_of_domain"))
            print(f"{method:32}" + "".join(f"{cell:>16}" for cell in cells))
        for method, gain in figures["gain"].items():
            print(f"{method} above {BASELINE}: {gain}")
    if arguments.picture is not None:
        draw(tables, arguments.picture)
    write(arguments.out, {"settings": tables})


def refuse_unlike(runs: list[dict]) -> None:
    """A table is of one kind of run, each seed of a row once; precision is told by the device."""
    known = ("setting", "encoder_sha256", *(key for key in SETTINGS if key != "precision"))
    kinds = {tuple((OLDER | run["note"])[key] for key in known) for run in runs}
    which = [(run["note"]["setting"], name_of(run, runs), run["note"]["seed"]) for run in runs]
    if len(kinds) > len({run["note"]["setting"] for run in runs}) or len(set(which)) < len(which):
        raise SystemExit("--runs: the folders hold runs of unlike options, or one run twice; give them one by one")


def kept(earlier: dict, tables: dict) -> dict:
    """``tables``, and of an earlier report the settings that they lack, with its date and version."""
    origin = {"date": earlier["date"], "version": earlier["version"]}
    settings = {name: origin | figures for name, figures in earlier["settings"].items() if name not in tables}
    return dict(sorted((settings | tables).items()))


def cell(figure: dict) -> str:
    return f"{figure['mean']:.3f}" + ("" if figure["sd"] is None else f" +- {figure['sd']:.3f}")


def table(runs: list[dict]) -> dict:
    """Of one setting: per method the Dice in and out of the domain and in each domain, over seeds."""
    methods = {}
    for name in names_of(runs):
        mine = [run for run in runs if name_of(run, runs) == name]
        kinds = {"in_domain": mine[0]["in_domain"], "out_of_domain": mine[0]["out_of_domain"]}
        kinds |= {domain: [domain] for domain in mine[0]["dice"]}
        methods[name] = {
            kind: spread([np.mean([np.nanmean(run["dice"][domain]) for domain in domains]) for run in mine])
            for kind, domains in kinds.items()
        } | {"seeds": [run["note"]["seed"] for run in mine]}
        methods[name] |= {key: mine[0]["note"][key] for key in IMAGE_FIRST if key in mine[0]["note"]}
    gain = {
        method: {
            kind: round(row[kind]["mean"] - methods[BASELINE][kind]["mean"], 4)
            for kind in ("in_domain", "out_of_domain")
        }
        for method, row in methods.items()
        if BASELINE in methods and method != BASELINE
    }
    settings = {key: (OLDER | runs[0]["note"])[key] for key in SETTINGS}
    settings["devices"] = sorted({run.get("device", "not kept") for run in runs})
    return {**settings, "encoder_sha256": runs[0]["note"]["encoder_sha256"], "gain": gain, "methods": methods}


def names_of(runs: list[dict]) -> list[str]:
    """The rows of a table, in the order of METHODS."""
    ordered = sorted(runs, key=lambda run: METHODS.index(run["note"]["method"]))
    return list(dict.fromkeys(name_of(run, runs) for run in ordered))


def name_of(run: dict, runs: list[dict]) -> str:
    """Its method; and how it takes the image first, where ``runs`` differ in that."""
    method, several = run["note"]["method"], len({how(other) for other in runs if how(other)}) > 1
    return f"{method} ({', '.join(f'{value:g}' for value in how(run))})" if several and how(run) else method


def how(run: dict) -> tuple[float, ...]:
    """Share of the steps on the image alone, scale of the features, share that settles; nothing of other methods."""
    return tuple(run["note"][key] for key in IMAGE_FIRST if key in run["note"])


def spread(values: list) -> dict[str, object]:
    """Mean and standard deviation over seeds, of one seed there is none, and the value of each."""
    sd = round(float(np.std(values, ddof=1)), 4) if len(values) > 1 else None
    return {"mean": round(float(np.mean(values)), 4), "sd": sd, "values": [round(float(value), 4) for value in values]}


def draw(tables: dict, path: Path) -> None:
    """The paper's figure 4: bars per method, in and out of the domain."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.5 * len(tables), 4), layout="constrained")
    FigureCanvasAgg(figure)
    for place, (setting, figures) in enumerate(tables.items(), 1):
        axes = figure.add_subplot(1, len(tables), place)
        names = list(figures["methods"])
        for shift, kind, colour in ((-0.2, "in_domain", "tab:grey"), (0.2, "out_of_domain", "tab:blue")):
            rows = [figures["methods"][name][kind] for name in names]
            axes.bar(
                np.arange(len(names)) + shift, [row["mean"] for row in rows], 0.4,
                yerr=[row["sd"] or np.nan for row in rows], label=kind.replace("_", " "), color=colour, capsize=3,
            )  # fmt: skip
        axes.set_xticks(range(len(names)), names, rotation=30, ha="right")
        axes.set(title=setting, ylabel="mean Dice", ylim=(0, 1))
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=2)
    figure.savefig(path, dpi=110)
    print(f"wrote {path}")


if __name__ == "__main__":
    main()

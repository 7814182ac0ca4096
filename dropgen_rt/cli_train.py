"""The commands train and encoders, which need PyTorch. Heavy imports wait inside them."""

import os
from contextlib import ExitStack
from pathlib import Path

import click

from dropgen_rt.survey import require_extra

FILE = click.Path(path_type=Path)


@click.command()
@click.argument("data", type=FILE)
@click.option("--out", type=FILE, required=True, help="Run folder: config, checkpoints, metrics, pictures.")
@click.option("--preset", help="paper, edge (fast inference) or tiny (CPU).  [default: tiny]")
@click.option("--config", "file", type=FILE, help="A config.toml, such as a run folder holds; options go over it.")
@click.option("--set", "assignments", multiple=True, metavar="A.B=C", help="Any option of config.toml; repeatable.")
@click.option("--split", type=FILE, help="CSV with the columns image, label, split in place of DATA's folders.")
@click.option("--encoder", metavar="NAME|FILE", help="Frozen encoder; by default the one in the package.")
@click.option("--method", help="dropgen, erm (image only), features (no image) or concat (no dropout).")
@click.option("--drop", type=float, help="Share of channels dropped while training.")
@click.option("--image-first", type=float, help="Share of the steps on the image alone, before features; tiny 0.7.")
@click.option(
    "--feature-scale", type=float, help="Below 1 features are taken in more slowly beside the image; tiny 0.1."
)
@click.option("--settle", type=float, help="Share of the steps, the last, that drop nothing; tiny 0.1.")
@click.option("--subjects", type=int, help="Train on this many cases, drawn by --seed.")
@click.option("--segmentor", help="unet, dynunet, segresnet or swinunetr.")
@click.option("--norm", help="Of segmentor unet: batch, folded away at export, or instance, as tiny has it.")
@click.option("--padding", help="Beyond the borders of segmentor unet: zeros, or reflect, as published and in paper.")
@click.option("--loss", help="dice_ce, dice_focal, tversky or ce.")
@click.option("--steps", type=int)
@click.option("--batch", type=int, help="Crops per step, over all processes together.")
@click.option("--window", type=int, nargs=3, help="Voxels, Z Y X; by default from the data set.")
@click.option("--spacing-mm", type=float, nargs=3, help="X Y Z; by default from the data set.")
@click.option("--width", type=int, help="Segmentor's channels at full resolution.")
@click.option("--levels", type=int, help="Segmentor's downsamplings.")
@click.option("--learning-rate", type=float)
@click.option("--precision", help="auto, fp32, bf16 or fp16 (autocast).")
@click.option("--compile/--no-compile", default=None, help="Let torch.compile fuse the network.")
@click.option("--validate-every", type=int, help="Steps between checkpoints.")
@click.option("--seed", type=int)
@click.option("--device", default="auto", show_default=True, help="auto, cpu or cuda.")
@click.option("--cache", type=FILE, help="Folder of prepared cases; by default below the user's data folder.")
@click.option(
    "--workers",
    type=click.IntRange(min=1),
    help="Processes that prepare cases and feed a GPU; by default one per core.",
)
@click.option("--init", type=FILE, help="Start from this checkpoint's weights, of a network of the same layout.")
@click.option("--resume", is_flag=True, help="Go on from last.pt in the run folder.")
def train(
    data: Path, out: Path, preset: str | None, file: Path | None, assignments: tuple[str, ...], split: Path | None,
    device: str, cache: Path | None, workers: int | None, init: Path | None, resume: bool,
    **options: object,
) -> None:  # fmt: skip
    """Train a model on DATA (nnU-Net or Decathlon layout) into a run folder."""
    require_extra("train")
    from dropgen_rt.atomic import remove_unfinished
    from dropgen_rt.console import Console
    from dropgen_rt.store import make_folder
    from dropgen_rt.train.device import choose_device
    from dropgen_rt.train.distributed import ranks_of_environment
    from dropgen_rt.train.encoders import absolute, encoder_for, find_encoder
    from dropgen_rt.train.loop import train as run
    from dropgen_rt.train.outputs import advice, finish
    from dropgen_rt.train.prepare import held
    from dropgen_rt.train.report import TrainingReport
    from dropgen_rt.train.run import configure

    first = os.environ.get("RANK", "0") == "0"  # under torchrun one process speaks for all
    console = Console(quiet=not first)
    given = {key: value for key, value in options.items() if value is not None}
    place = choose_device(device)  # this and the encoder are found missing before every file is read
    if "encoder" in given:
        find_encoder(str(given["encoder"]))
        given["encoder"] = absolute(str(given["encoder"]))
    with ExitStack() as holding:
        there = out.is_dir()
        if first and there:  # before anything in it is touched
            holding.enter_context(held(out))
        with ranks_of_environment(place.type) as ranks:
            config = configure(
                data, out, preset=preset, file=file, options=given, assignments=assignments, split=split, cache=cache,
                workers=workers, console=console, device=place, resume=resume, init=init, ranks=ranks,
            )  # fmt: skip
            found = encoder_for(config.method, config.encoder or None)
            if first and not there:
                holding.enter_context(held(make_folder(out)))
            if first:  # a checkpoint of gigabytes that a kill cut short, a picture
                for suffix in (".pt", ".png"):
                    remove_unfinished(out, suffix)
            with TrainingReport(out, config, resume, first) as report:
                best = run(
                    data, out, config, found, resume, report, init, device, split=split, cache=cache,
                    workers=workers, console=console,
                )  # fmt: skip
        summary = finish(data, out, device, split=split, cache=cache, console=console) if first else {}
    for name in ("validation", "test"):
        if name in summary:
            dice, cases = summary[name]["mean_dice"], summary[name]["cases"]
            told = "none, for no label was there or found" if dice is None else f"{dice:.4f}"
            console.line(f"{name}: mean Dice {told} over {cases} cases")
    for line in advice(summary["validation"], best) if "validation" in summary else ():
        console.line(line)
    console.line(f"wrote {best}")


@click.group()
def encoders() -> None:
    """Frozen encoders: list those at hand, fetch a published one, add a file."""
    require_extra("train")


@encoders.command("list")
def list_encoders() -> None:
    """Encoders in the package and in the user's data folder."""
    from dropgen_rt.train.encoders import describe

    for line in describe():
        click.echo(line)


@encoders.command()
@click.argument("name")
@click.option("--sha256", help="Take the hub's newest file, which must have this digest, not the pinned one.")
def fetch(name: str, sha256: str | None) -> None:
    """Download a published encoder (anatomix, anatomix-dev) of a pinned revision and digest."""
    from dropgen_rt.train.encoders import fetch as run

    click.echo(f"wrote {run(name, sha256)}")


@encoders.command()
@click.argument("file", type=FILE)
@click.option("--name", help="Install under this name; by default the file's.")
def add(file: Path, name: str | None) -> None:
    """Install an encoder FILE: one that pretrain-encoder wrote, or a published anatomix .pth."""
    from dropgen_rt.train.encoders import add as run

    click.echo(f"wrote {run(file, name)}")

"""The commands build-engine, verify and doctor."""

from pathlib import Path

import click

FILE = click.Path(path_type=Path)
ENGINES = ("auto", "openvino", "tensorrt", "rtx", "onnxruntime")
PRECISIONS = ("auto", "fp32", "fp16", "bf16", "int8")


@click.command("build-engine")
@click.argument("model", metavar="NAME|PATH")
@click.option("--engine", type=click.Choice(ENGINES), default="auto", show_default=True)
@click.option(
    "--precision", type=click.Choice(PRECISIONS), default="auto", show_default=True,
    help="auto tries what the machine computes fastest and climbs to a wider one if the gate fails.",
)  # fmt: skip
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N.")
@click.option("--arch", metavar="sm_86,…", default="", help="GPUs to build for ahead of time, with --engine rtx.")
@click.option("--batch", default="auto", show_default=True, metavar="N|auto", help="Most windows at once, on a GPU.")
@click.option("--threads", type=click.IntRange(1, 1024), help="CPU threads of the engine; by default one a core.")
@click.option("--name", help="Install under this name; by default the one given, or a file's own.")
@click.option("--no-default", is_flag=True, help="Leave the default model as it is.")
def build_engine(
    model: str, engine: str, precision: str, device: str, arch: str, batch: str, threads: int | None,
    name: str | None, no_default: bool,
) -> None:  # fmt: skip
    """Compile a model for a machine, hold it against fp32 on its golden windows, and install it under a name."""
    from dropgen_rt.build import BuildOptions, build

    architectures = tuple(item for item in arch.split(",") if item)
    options = BuildOptions(engine, precision, architectures, batch, name, not no_default, threads, device)
    build(model, options, click.echo)


@click.command()
@click.argument("model", metavar="[NAME|PATH]", required=False)
@click.option("--scan", type=FILE, help="Compare on this scan too, with fp32 reference mode.")
@click.option("--device", default="auto", show_default=True, help="auto, cpu or cuda:N.")
def verify(model: str | None, scan: Path | None, device: str) -> None:
    """Run the accuracy gate of the installed engine again; exit code 5 if it fails."""
    from dropgen_rt.store import open_named
    from dropgen_rt.verify import verify as run

    opened = open_named(model)
    report = run(opened, device, click.echo, scan)
    click.echo(f"verified {opened.name or opened.manifest.name}: {report.engine} {report.precision}")


@click.command()
def doctor() -> None:
    """What this machine has: GPUs, drivers, engines, compilers, models, and a self-test of the default model."""
    from dropgen_rt.doctor import examine

    examine(click.echo)

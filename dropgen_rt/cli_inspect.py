"""The command ``inspect``: what is in a path, what infer would use of it, what not and why."""

from pathlib import Path

import click

from dropgen_rt.errors import InputError


@click.command()
@click.argument("path", type=click.Path(path_type=Path))
@click.option("--series", metavar="UID", help="The series that would be named to infer.")
@click.option("--model", metavar="NAME|PATH", help="Model whose rule chooses; by default the default model.")
def inspect(path: Path, series: str | None, model: str | None) -> None:
    """Show what PATH holds and what infer would use: DICOM (folder, .dcm, .zip), other scans or a folder of them."""
    from dropgen_rt.inspection import inspect_path

    refused: InputError | None = None
    for line in inspect_path(path, series, model):
        if isinstance(line, InputError):
            refused = line
        else:
            click.echo(line)
    if refused is not None:
        raise refused

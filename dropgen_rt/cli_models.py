"""The commands models list, show, default, remove, export and import."""

from pathlib import Path

import click

FILE = click.Path(path_type=Path)


@click.group()
def models() -> None:
    """Installed models and their engines."""


@models.command("list")
def list_models() -> None:
    """Names, labels and engines of all models; a star marks the default."""
    from dropgen_rt.show import table

    for row in table():
        click.echo(row)


@models.command()
@click.argument("name", required=False)
def show(name: str | None) -> None:
    """Everything known of a model: its manifest and each engine's record."""
    from dropgen_rt.show import describe

    for row in describe(name):
        click.echo(row)


@models.command()
@click.argument("name")
def default(name: str) -> None:
    """Make NAME the model that infer uses when none is given."""
    from dropgen_rt.store import make_default

    make_default(name)
    click.echo(f"the default model is {name}")


@models.command()
@click.argument("name")
def remove(name: str) -> None:
    """Forget NAME, its file and its engines."""
    from dropgen_rt.store import remove as run

    for item in run(name):
        click.echo(f"removed {item}")


@models.command("export")
@click.argument("name")
@click.option("-o", "--out", type=FILE, required=True, help="Bundle to write, NAME.dropgen.")
def export_bundle(name: str, out: Path) -> None:
    """Write NAME and its engines as one signed file, to carry to another machine."""
    from dropgen_rt.bundle import write

    fingerprint = write(name, out)
    click.echo(f"signed with key {fingerprint}")
    click.echo(f"wrote {out}")


@models.command("import")
@click.argument("bundle", type=FILE)
@click.option("--name", help="Install under this name; by default the bundle's.")
@click.option("--trust", metavar="FINGERPRINT", help="Trust this key from now on; compare it with what export printed.")
@click.option("--no-default", is_flag=True, help="Leave the default model as it is.")
def import_bundle(bundle: Path, name: str | None, trust: str | None, no_default: bool) -> None:
    """Install the model and engines of a BUNDLE that models export wrote."""
    from dropgen_rt.bundle import read

    for row in read(bundle, name, trust, not no_default):
        click.echo(row)

"""What a person sees while work goes on: a bar on a terminal, plain lines elsewhere, nothing when quiet."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import click
from rich.console import Console as RichConsole
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from dropgen_rt.chatter import heard
from dropgen_rt.errors import DropgenError


class Console:
    """Lines to standard output, errors to standard error, and a progress bar where there is a terminal."""

    def __init__(self, quiet: bool) -> None:
        self.quiet = quiet

    def line(self, text: str) -> None:
        if not self.quiet:
            click.echo(text)

    def error(self, error: DropgenError) -> None:
        with heard():
            click.echo(f"error: {error}", err=True)

    @contextmanager
    def progress(self, title: str, unit: str = "windows") -> Iterator[Callable[[int, int], None]]:
        """A callback ``(done, total)`` that draws itself."""
        if self.quiet or not sys.stdout.isatty():
            yield lambda done, total: self.line(f"{title}: {total} {unit}") if done == total else None
            return
        columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
        with Progress(*columns, console=RichConsole(), transient=True) as bar:
            task = bar.add_task(title, total=None)
            yield lambda done, total: bar.update(task, completed=done, total=total)

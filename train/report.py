"""What a training run shows: a bar or plain lines, and ``metrics.csv`` in the run folder."""

import csv
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Any

import click
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

COLUMNS = ("step", "seconds", "loss", "dice")
LINE_EVERY = 50


class TrainingReport:
    """Callable once per step with ``{"step", "loss"}`` and, after a validation, ``"dice"``."""

    def __init__(self, out: Path, steps: int, resume: bool) -> None:
        out.mkdir(parents=True, exist_ok=True)
        path = out / "metrics.csv"
        fresh = not (resume and path.is_file())
        self._file = path.open("w" if fresh else "a", newline="", encoding="utf-8")
        self._table = csv.DictWriter(self._file, COLUMNS)
        if fresh:
            self._table.writeheader()
        self._steps, self._start, self._losses = steps, time.perf_counter(), list[float]()
        self._bar = None
        if sys.stdout.isatty():
            columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
            self._bar = Progress(*columns)
            self._task = self._bar.add_task("training", total=steps)

    def __call__(self, row: dict[str, Any]) -> None:
        self._losses = [*self._losses[1 - LINE_EVERY :], row["loss"]]
        loss = sum(self._losses) / len(self._losses)
        if self._bar is not None:
            self._bar.update(self._task, completed=row["step"], description=f"loss {loss:.3f}")
        if row["step"] % LINE_EVERY and "dice" not in row:
            return
        seconds = time.perf_counter() - self._start
        line = {"step": row["step"], "seconds": f"{seconds:.1f}", "loss": f"{loss:.4f}"}
        if "dice" in row:
            line["dice"] = f"{row['dice']:.4f}"
        self._table.writerow(line)
        self._file.flush()
        if self._bar is None:
            dice = f", validation Dice {row['dice']:.4f}" if "dice" in row else ""
            click.echo(f"step {row['step']} of {self._steps}: loss {loss:.4f}{dice}")

    def __enter__(self) -> "TrainingReport":
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
        self._file.close()

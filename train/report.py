"""What a training run shows: a bar or plain lines, and in the run folder metrics.csv, TensorBoard events and curves."""

import contextlib
import csv
import sys
import time
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import click
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from tensorboardX import summary
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event

from dropgen_rt.atomic import atomic_path, output_error
from dropgen_rt.store import make_folder
from dropgen_rt.train.config import TrainConfig
from dropgen_rt.train.curves import draw_curves

COLUMNS = ("step", "seconds", "samples_per_s", "loss", "dice")
LINE_EVERY = 50


class TrainingReport:
    """Callable once per step with ``{"step", "loss"}`` and, after a validation, ``"dice"``.

    Under torchrun only the first process reports; ``speaks=False`` makes a silent one. Raises OutputError.
    """

    def __init__(self, out: Path, config: TrainConfig, resume: bool, speaks: bool = True) -> None:
        self._out, self._config, self._speaks = make_folder(out), config, speaks
        self._start, self._losses = time.perf_counter(), deque[float](maxlen=LINE_EVERY)
        # When the last steps ended, as if no validation had lain between them.
        self._moments = deque[float](maxlen=LINE_EVERY + 1)
        self._dice: float | None = None
        self._bar = None
        self.rows: list[dict[str, str]] = []
        self._before: float | None = None  # seconds of the run that is resumed; known with the first row
        if not speaks:
            return
        if resume:
            self.rows = read_metrics(out)
        # Not SummaryWriter: its thread dies of a full disk, and the training then waits for it for ever.
        self._events = EventsWriter(str(make_folder(out / "events") / "events"))
        if sys.stdout.isatty():
            columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
            self._bar = Progress(*columns)
            self._task = self._bar.add_task("training", total=config.steps)

    def __call__(self, row: dict[str, Any]) -> None:
        if not self._speaks:
            return
        self._losses.append(row["loss"])
        if "validation_s" in row:
            self._moments = deque((m + row["validation_s"] for m in self._moments), self._moments.maxlen)
        self._moments.append(time.perf_counter())
        self._dice = row.get("dice", self._dice)
        if row["step"] % LINE_EVERY and "dice" not in row:
            if self._bar is not None:
                self._bar.update(self._task, completed=row["step"], description=self._text())
            return
        try:
            self._keep(row)
        except OSError as error:
            # What is written whole or not at all, metrics.csv and curves.png, tells of itself.
            raise output_error(self._out / "events", error) from error
        if self._bar is not None:
            self._bar.update(self._task, completed=row["step"], description=self._text())
        else:
            dice = f", validation Dice {row['dice']:.4f}" if "dice" in row else ""
            click.echo(
                f"step {row['step']} of {self._config.steps}: loss {self._loss:.4f}{dice}{self._left(row['step'])}"
            )

    @property
    def _loss(self) -> float:
        return sum(self._losses) / len(self._losses)

    @property
    def _rate(self) -> float:
        """Samples per second over the last steps; of the first step alone it counts from the beginning."""
        steps, since = (len(self._moments) - 1, self._moments[0]) if len(self._moments) > 1 else (1, self._start)
        return self._config.batch * steps / max(self._moments[-1] - since, 1e-9)

    def _text(self) -> str:
        dice = f", Dice {self._dice:.3f}" if self._dice is not None else ""
        return f"loss {self._loss:.3f}{dice}, {self._rate:.1f} samples/s"

    def _left(self, step: int) -> str:
        seconds = (self._config.steps - step) * self._config.batch / self._rate
        return f", {self._rate:.1f} samples/s, {seconds / 60:.0f} min left" if step < self._config.steps else ""

    def _keep(self, row: dict[str, Any]) -> None:
        # A run that was killed after its last checkpoint writes those steps again.
        self.rows = [kept for kept in self.rows if int(kept["step"]) < row["step"]]
        if self._before is None:
            self._before = float(self.rows[-1]["seconds"]) if self.rows else 0.0
        seconds = self._before + time.perf_counter() - self._start
        line = {
            "step": str(row["step"]), "seconds": f"{seconds:.1f}", "samples_per_s": f"{self._rate:.2f}",
            "loss": f"{self._loss:.4f}", "dice": f"{row['dice']:.4f}" if "dice" in row else "",
        }  # fmt: skip
        self.rows.append(line)
        with (
            atomic_path(self._out / "metrics.csv") as temporary,
            temporary.open("w", newline="", encoding="utf-8") as file,
        ):
            table = csv.DictWriter(file, COLUMNS)
            table.writeheader()
            table.writerows(self.rows)
        scalars = {"loss": self._loss, "samples_per_s": self._rate}
        if "dice" in row:
            scalars["dice"] = row["dice"]
            scalars |= {f"dice/label_{index}": dice for index, dice in enumerate(row.get("dice_per_label", ()), 1)}
            draw_curves(self.rows, self._out / "curves.png", self._config.image_steps)
        for name, value in scalars.items():
            self._events.write_event(
                Event(wall_time=time.time(), step=row["step"], summary=summary.scalar(name, value))
            )
        self._events.flush()

    def __enter__(self) -> "TrainingReport":
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
        if self._speaks:
            with contextlib.suppress(OSError):  # a full disk was told of when the last row was written
                self._events.close()


def read_metrics(out: Path) -> list[dict[str, str]]:
    """The rows of a run's metrics.csv but for those cut short; none where there is no such file of these columns."""
    path = out / "metrics.csv"
    if not path.is_file():
        return []
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
    except (UnicodeDecodeError, csv.Error):
        return []
    return [row for row in rows if set(row) == set(COLUMNS) and _whole(row)]


def _whole(row: Mapping[str, str | None]) -> bool:
    """Whether all of a row's numbers are there; without a validation Dice is empty."""
    *always, dice = (row[name] for name in COLUMNS)
    try:
        for number in (*always, dice or "0"):
            float(number or "")
    except ValueError:
        return False
    return dice is not None and (row["step"] or "").isdigit()

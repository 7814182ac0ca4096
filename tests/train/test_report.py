"""What a training run writes down while it goes on."""

import errno
import os
import threading
import time
from pathlib import Path

import pytest
from tensorboardX.event_file_writer import EventsWriter

from dropgen_rt.errors import OutputError
from dropgen_rt.train.config import TrainConfig
from dropgen_rt.train.curves import draw_curves
from dropgen_rt.train.report import TrainingReport, read_metrics


def test_a_resumed_run_counts_its_seconds_on(tmp_path: Path) -> None:
    """Stopped after the checkpoint of step 50, with a row of step 100 that is computed again."""
    table = "step,seconds,samples_per_s,loss,dice\n50,300.0,1.00,0.9,0.5\n100,600.0,1.00,0.8,\n"
    (tmp_path / "metrics.csv").write_text(table)
    with TrainingReport(tmp_path, TrainConfig(steps=200), resume=True) as report:
        for step in range(51, 151):
            report({"step": step, "loss": 0.7})
    rows = read_metrics(tmp_path)
    assert [row["step"] for row in rows] == ["50", "100", "150"]
    seconds = [float(row["seconds"]) for row in rows]
    assert seconds[0] == 300 and 300 <= seconds[1] <= seconds[2] < 600


def test_a_new_run_starts_at_zero(tmp_path: Path) -> None:
    with TrainingReport(tmp_path, TrainConfig(steps=50), resume=False) as report:
        for step in range(1, 51):
            report({"step": step, "loss": 0.7})
    (row,) = read_metrics(tmp_path)
    assert float(row["seconds"]) < 300 and row["loss"] == "0.7000"


def test_curves_of_a_run_without_any_dice_are_drawn(tmp_path: Path) -> None:
    """A label that no validation case has, and that is not found, has none."""
    draw_curves([{"step": "1", "loss": "1.0", "dice": "nan"}], tmp_path / "curves.png")
    assert (tmp_path / "curves.png").is_file()


def test_a_disk_that_fills_up_under_the_events_is_told_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*arguments: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    before = threading.active_count()
    report = TrainingReport(tmp_path, TrainConfig(steps=100), resume=False)
    assert threading.active_count() == before  # a thread would die of it unseen, and be waited for
    monkeypatch.setattr(EventsWriter, "flush", full)
    with pytest.raises(OutputError, match="the disk is full"), report:
        report({"step": 50, "loss": 0.7})


def test_a_row_that_was_cut_short_is_left_out(tmp_path: Path) -> None:
    table = "step,seconds,samples_per_s,loss,dice\n50,300.0,1.00,0.9,0.5\n100,600.0,1.00"
    (tmp_path / "metrics.csv").write_text(table)
    assert [row["step"] for row in read_metrics(tmp_path)] == ["50"]


def test_validation_does_not_count_as_training(tmp_path: Path) -> None:
    with TrainingReport(tmp_path, TrainConfig(steps=100, batch=2), resume=False) as report:
        for step in range(1, 4):
            time.sleep(0.01)
            report({"step": step, "loss": 0.7})
        time.sleep(0.5)
        report({"step": 4, "loss": 0.7, "dice": 0.5, "validation_s": 0.49})
    (row,) = read_metrics(tmp_path)
    assert float(row["samples_per_s"]) > 20  # with it, 12

"""What a training run writes down while it goes on."""

import resource
import threading
from pathlib import Path

import pytest

from dropgen_rt.errors import OutputError
from dropgen_rt.train.config import TrainConfig
from dropgen_rt.train.curves import best_of, draw_curves
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


@pytest.mark.parametrize(
    ("image_alone", "title"),
    [(0, "0.8000 at step 2"), (2, "0.6000 at step 3"), (9, "0.6000 at step 3")],
)
def test_the_best_step_of_the_curves_is_that_of_the_best_checkpoint(image_alone: int, title: str) -> None:
    """Steps that see the image alone are no rivals of those that see features; if there are none, the last counts."""
    rows = [{"step": str(step), "dice": dice} for step, dice in ((1, "nan"), (2, "0.8"), (3, "0.6"))]
    assert best_of(rows, image_alone) == f"best Dice {title}"
    assert best_of(rows[:1], image_alone) == ""


def test_events_that_cannot_be_written_are_told_in_one_line(tmp_path: Path) -> None:
    """The system itself refuses to let the file grow, as a full disk does; the other files stay below its limit."""
    before = threading.active_count()
    report = TrainingReport(tmp_path, TrainConfig(steps=500), resume=False)
    assert threading.active_count() == before  # a thread would die of it unseen, and be waited for
    report({"step": 50, "loss": 0.7})
    (events,) = (tmp_path / "events").iterdir()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (events.stat().st_size + 1, hard))
    try:
        with pytest.raises(OutputError, match=r"cannot write .*events: "), report:
            report({"step": 100, "loss": 0.7})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert [row["step"] for row in read_metrics(tmp_path)] == ["50", "100"]


def test_a_row_that_was_cut_short_is_left_out(tmp_path: Path) -> None:
    table = "step,seconds,samples_per_s,loss,dice\n50,300.0,1.00,0.9,0.5\n100,600.0,1.00"
    (tmp_path / "metrics.csv").write_text(table)
    assert [row["step"] for row in read_metrics(tmp_path)] == ["50"]


@pytest.mark.parametrize(
    "row", [b"3,,1.0,0.9,", b"3,4.0,x,0.9,", b"3,4.0,1.0,0.9,y", b"x,4.0,1.0,0.9,", b"\xff\xfe\x00bad"]
)
def test_a_table_that_is_damaged_is_no_traceback(tmp_path: Path, row: bytes) -> None:
    (tmp_path / "metrics.csv").write_bytes(
        b"step,seconds,samples_per_s,loss,dice\n50,300.0,1.00,0.9,0.5\n" + row + b"\n"
    )
    assert [kept["step"] for kept in read_metrics(tmp_path)] == ([] if b"\xff" in row else ["50"])


def test_validation_does_not_count_as_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a clock in the real one's place: a step of two samples takes a quarter of a second, validation eight."""
    now = 100.0
    monkeypatch.setattr("dropgen_rt.train.report.time.perf_counter", lambda: now)
    with TrainingReport(tmp_path, TrainConfig(steps=100, batch=2), resume=False) as report:
        for step in range(1, 4):
            now += 0.25
            report({"step": step, "loss": 0.7})
        now += 0.25 + 8
        report({"step": 4, "loss": 0.7, "dice": 0.5, "validation_s": 8.0})
    (row,) = read_metrics(tmp_path)
    assert float(row["samples_per_s"]) == 8 and float(row["seconds"]) == 9

"""What a training run writes down while it goes on."""

from pathlib import Path

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

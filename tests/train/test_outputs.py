"""What a run folder holds at the end, by the command line, and what a person reads."""

import csv
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813  the name its users know
import torch
from click.testing import CliRunner, Result
from PIL import Image

from dropgen_rt import __version__
from dropgen_rt.cli import main
from dropgen_rt.errors import MemoryLimitError, MissingModelError, OutputError, ResourceError
from dropgen_rt.train.config import IMAGE_FIRST, TrainConfig, build_config
from dropgen_rt.train.config_text import read_toml
from dropgen_rt.train.loop import load_network
from dropgen_rt.train.outputs import OTHER_WAYS, advice, other_ways
from dropgen_rt.train.prepare import held

SMALL = ["--window", 16, 16, 16, "--width", 8, "--levels", 2, "--steps", 40, "--validate-every", 20, "--device", "cpu"]


def command(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


@pytest.mark.slow
def test_a_run_folder(balls: Path, tmp_path: Path) -> None:
    for kind, name in (("images", "case5_0000.nii.gz"), ("labels", "case5.nii.gz")):
        (balls / f"{kind}Ts").mkdir()
        (balls / f"{kind}Tr" / name).rename(balls / f"{kind}Ts" / name)
    out = tmp_path / "run"
    result = command("train", balls, "--out", out, "--method", "erm", "--set", "augment.noise=0.01", *SMALL)
    assert result.exit_code == 0, result.output
    lines = result.output.splitlines()
    assert [line for line in lines if line.startswith("checking")] == lines[:1] == ["checking files: 6 cases"]
    assert lines[1] == "4 training cases, MR, channels MRI"
    assert lines[4] == (
        "spacing 1 x 1 x 1 mm (x, y, z), window 16 x 16 x 16 voxels (z, y, x), intensities by percentile 0.5 to 99.5"
    )
    assert lines[-1] == f"wrote {out / 'best.pt'}"
    assert {path.name for path in out.iterdir()} == {
        ".lock", "best.pt", "config.toml", "curves.png", "events", "examples.png", "fingerprint.json", "last.pt",
        "metrics.csv", "summary.json", "test.csv", "test.json", "validation.csv", "validation.json",
    }  # fmt: skip
    for picture in ("curves.png", "examples.png"):
        with Image.open(out / picture) as image:
            assert min(image.size) > 200
    assert next((out / "events").iterdir()).stat().st_size > 100
    with (out / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["step"] for row in rows] == ["20", "40"] and all(float(row["samples_per_s"]) > 0 for row in rows)
    summary = json.loads((out / "summary.json").read_text())
    best = max(float(row["dice"]) for row in rows)
    # The same network on the same windows: what the loop said of the best step is what the scores say.
    assert summary["validation"]["mean_dice"] == pytest.approx(best, abs=1e-4)
    assert f"validation: mean Dice {summary['validation']['mean_dice']:.4f} over 1 cases" in lines[-4:-2]
    assert all(set(summary["validation"][way]) == {"dim", "bright"} for way in OTHER_WAYS)
    assert not set(OTHER_WAYS) & set(summary["test"])
    with (out / "test.csv").open() as file:
        assert [(row["subject"], row["label"]) for row in csv.DictReader(file)] == [
            ("case5", "dim"),
            ("case5", "bright"),
        ]
    before = (out / "best.pt").read_bytes()
    again = command("train", balls, "--out", out, "--method", "erm", *SMALL)
    assert again.exit_code == 2 and (out / "best.pt").read_bytes() == before
    assert again.stderr == f"error: {out}: holds a run already; go on with it by --resume, or give another --out\n"
    config = build_config(read_toml(out / "config.toml"))
    assert config.augment.noise == 0.01 and config.summary() == load_network(out / "best.pt")[1]["config"]


ALONE, SMOOTH, BOTH = OTHER_WAYS
AS_IT_IS = {"a": 0.8, "b": 0.7, "c": None}


@pytest.mark.parametrize(
    ("ways", "line"),
    [
        (
            {ALONE: {"a": 0.82, "b": 0.71, "c": None}},
            "the largest connected component alone would add 0.0150 to validation Dice: "
            "dropgen-rt export b.pt -o model.onnx --components largest",
        ),
        ({ALONE: {"a": 0.8, "b": 0.701, "c": 0.5}}, None),  # hardly more
        ({ALONE: {"a": 0.9, "b": 0.69, "c": 0.5}, SMOOTH: AS_IT_IS}, None),  # more, and a label worse; the same
        (
            {ALONE: {"a": 0.8, "b": 0.71}, SMOOTH: {"a": 0.82, "b": 0.71}, BOTH: {"a": 0.8205, "b": 0.711}},
            "windows that are joined smoothly would add 0.0150 to validation Dice: "
            "dropgen-rt export b.pt -o model.onnx --blend gaussian",
        ),
        (
            {ALONE: {"a": 0.8, "b": 0.71}, SMOOTH: {"a": 0.82, "b": 0.71}, BOTH: {"a": 0.83, "b": 0.73}},
            "windows that are joined smoothly, and of the result the largest connected component alone, would add "
            "0.0300 to validation Dice: dropgen-rt export b.pt -o model.onnx --blend gaussian --components largest",
        ),
    ],
)
def test_another_way_is_advised_where_no_label_loses(
    ways: dict[str, dict[str, float | None]], line: str | None
) -> None:
    told = list(advice({"dice": AS_IT_IS, **ways}, Path("b.pt")))
    assert told == [line] if line else not told
    for line in told:  # as a person copies it; here there is no such file
        refused = command(*line.partition("dropgen-rt ")[2].split())
        assert refused.exit_code == MissingModelError.exit_code, refused.output


def test_scans_of_one_window_are_not_run_again_to_be_joined_otherwise() -> None:
    """None stands in the network's place: what asked it would fail."""
    found = np.array([0, 1, 0, 1, 1, 0, 2], np.uint8).reshape(1, 1, -1)
    config = TrainConfig(window=(16, 16, 16))
    ways = other_ways(None, np.zeros((1, 1, 1, 7), np.float32), config, found)  # type: ignore[arg-type]
    assert ways[SMOOTH].tolist() == found.tolist()
    assert ways[ALONE].tolist() == ways[BOTH].tolist() == [[[0, 0, 0, 1, 1, 0, 0]]]
    assert found.sum() == 5  # as it was


def test_a_start_from_weights_scales_features_as_they_do(balls: Path, encoder: Path, tmp_path: Path) -> None:
    """``tiny`` as it is, and a run with features as they are and batch norms; both see them from the first step."""
    short = [*SMALL[:-6], "--steps", 2, "--validate-every", 2, "--device", "cpu", "--encoder", encoder]
    tiny, other = (IMAGE_FIRST["feature_scale"], "instance"), (1.0, "batch")
    for name, given, known in (("as_it_is", [], tiny), ("other", ["--feature-scale", 1, "--norm", "batch"], other)):
        first, second = tmp_path / name / "a", tmp_path / name / "b"
        assert command("train", balls, "--out", first, *given, *short).exit_code == 0
        start = ["--resume"] if name == "other" else []  # as queued jobs say it, whether there is a run yet or not
        again = command("train", balls, "--out", second, "--init", first / "last.pt", *short, *start)
        assert again.exit_code == 0, again.output
        config = build_config(read_toml(second / "config.toml"))
        assert (config.feature_scale, config.norm, config.image_first, config.settle) == (*known, 0.0, 0.0)


@pytest.mark.parametrize("method", ["erm", "concat"])
def test_a_run_is_repeated_from_its_config(balls: Path, encoder: Path, tmp_path: Path, method: str) -> None:
    small = [*SMALL[:-6], "--steps", 2, "--validate-every", 2, "--device", "cpu"]
    own = [] if method == "erm" else ["--encoder", encoder]  # four features wide, unlike the package's
    assert command("train", balls, "--out", tmp_path / "a", "--method", method, *own, *small).exit_code == 0
    again = command(
        "train", balls, "--out", tmp_path / "b", "--config", tmp_path / "a" / "config.toml", "--device", "cpu"
    )
    assert again.exit_code == 0, again.output
    resumed = command("train", balls, "--out", tmp_path / "a", "--resume", "--device", "cpu")
    assert resumed.exit_code == 0, resumed.output
    first, second = (load_network(tmp_path / name / "last.pt")[0].state_dict() for name in "ab")
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_a_run_goes_on_from_another_folder_and_with_its_encoder_elsewhere(
    balls: Path, encoder: Path, other_encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "sub").mkdir()
    short = [*SMALL[:-6], "--steps", 2, "--validate-every", 2, "--device", "cpu"]
    monkeypatch.chdir(tmp_path)
    assert command("train", balls, "--out", "run", *short, "--encoder", "./encoder.pt").exit_code == 0
    monkeypatch.chdir(tmp_path / "sub")
    resume = ["train", balls, "--out", "../run", "--resume", "--device", "cpu"]
    assert command(*resume).exit_code == 0
    encoder.rename(tmp_path / "sub" / "moved.pt")
    gone = command(*resume)
    assert gone.exit_code == 4 and f"{encoder}: no such encoder file" in gone.stderr
    assert command(*resume, "--encoder", "moved.pt").exit_code == 0
    assert command(*resume, "--encoder", other_encoder).stderr == (
        "error: ../run/last.pt: was trained with another encoder; give that of then, or another --out\n"
    )


def test_what_was_asked_for_and_is_not_done_is_said(balls: Path, tmp_path: Path) -> None:
    short = [*SMALL[:-6], "--steps", 2, "--validate-every", 2, "--device", "cpu"]
    erm = ["train", balls, "--out", tmp_path / "erm", "--method", "erm", "--settle", 0.5, "--resume", *short]
    told = command(*erm).stdout
    assert f"{tmp_path / 'erm'}: no run there to go on with; one begins\n" in told
    assert "settle 0.5: method erm drops no channels, only dropgen does\n" in told
    (balls / "synthesis.toml").write_text("[tissues]\nball = [1, 2]\n[contrasts]\nrandom = 1.0\n")
    heads = ["train", balls, "--method", "erm", "--set", "augment.probability=1", "--set", "coverage=0.5", *short]
    painted = command(*heads, "--out", tmp_path / "heads")
    assert painted.exit_code == 0, painted.output
    for name in ("augment", "coverage"):
        assert f"{name}: of no use here, images are synthesised as synthesis.toml says\n" in painted.stdout
    description = json.loads((balls / "dataset.json").read_text())
    description["labels"]["ghost"] = 9
    (balls / "dataset.json").write_text(json.dumps(description))
    ghost = command(*heads, "--out", tmp_path / "ghost")
    assert ghost.stderr.startswith("error: label 'ghost': in no label map that is trained on; remove it from dataset")


def test_a_run_that_another_version_began_says_so(balls: Path, tmp_path: Path) -> None:
    line, last = ["train", balls, "--out", tmp_path / "run", "--method", "erm", *SMALL], tmp_path / "run" / "last.pt"
    assert command(*line).exit_code == 0
    assert "the dropgen-rt that wrote it" not in command(*line, "--resume").stdout
    torch.save(torch.load(last, weights_only=True) | {"dropgen_rt": "0.0.1"}, last)
    resumed = command(*line, "--resume")
    assert resumed.exit_code == 0, resumed.output
    assert f"warning: {last}: the dropgen-rt that wrote it was 0.0.1, this is {__version__}; " in resumed.stdout


def test_a_refused_start_leaves_no_run_in_the_way(balls: Path, tmp_path: Path) -> None:
    """What is refused last, an unlike window for synthesised images, and a run that memory did not hold."""
    (balls / "synthesis.toml").write_text("[tissues]\nball = [1, 2]\n[contrasts]\nrandom = 1.0\n")
    out = tmp_path / "run"
    line = ["train", balls, "--out", out, "--method", "erm", "--steps", 2, "--width", 4, "--levels", 2]
    refused = command(*line, "--window", 16, 16, 32)
    assert refused.exit_code == 2 and "give three equal edges" in refused.stderr
    assert not (out / "last.pt").exists() and not (out / "config.toml").exists()
    assert command(*line, "--window", 16, 16, 16).exit_code == 0
    last = torch.load(out / "last.pt", weights_only=True)
    torch.save(last | {"progress": last["progress"] | {"step": 0}}, out / "last.pt")
    anew = command(*line, "--window", 32, 32, 32)
    assert anew.exit_code == 0, anew.output
    assert torch.load(out / "last.pt", weights_only=True)["config"]["window"] == [32, 32, 32]
    (out / "last.pt").write_bytes(b"cut short")
    assert command(*line).stderr.endswith("holds a run already; go on with it by --resume, or give another --out\n")


def test_a_finished_run_keeps_its_config(balls: Path, tmp_path: Path) -> None:
    line, out = ["train", balls, "--out", tmp_path / "run", "--method", "erm", *SMALL], tmp_path / "run"
    assert command(*line).exit_code == 0
    before = (out / "config.toml").read_bytes()
    again = command(*line, "--resume", "--learning-rate", 0.5)
    assert again.exit_code == 0, again.output
    assert any(said.startswith(f"{out}: all ") and "only its scores" in said for said in again.stdout.splitlines())
    assert (out / "config.toml").read_bytes() == before


def test_what_a_resumed_run_does_not_look_at_is_told(balls: Path, tmp_path: Path) -> None:
    line, out = ["train", balls, "--out", tmp_path / "run", "--method", "erm", *SMALL], tmp_path / "run"
    assert command(*line).exit_code == 0
    resumed = command(*line, "--resume", "--preset", "edge")
    assert resumed.exit_code == 0, resumed.output
    assert "preset edge: not looked at, the run goes on with its own config.toml" in resumed.stdout.splitlines()
    shutil.copy(out / "best.pt", out / "last.pt")
    stateless = command(*line, "--resume")
    assert stateless.exit_code == 4
    assert stateless.stderr.startswith(
        f"error: {out / 'last.pt'}: holds no state to go on from, as a best.pt does not;"
    )


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (["--preset", "huge"], 2, "preset 'huge': accepted are tiny, edge, paper"),
        (["--set", "augment.nois=1"], 2, "augment.nois: no such option"),
        (["--window", 16, 16, 10], 2, "edges are multiples of"),
        (["--subjects", 50], 3, "50 subjects were asked for, the data set has 5"),
        (["--encoder", "nowhere"], 4, "no encoder named 'nowhere'"),
        (["--split", "nowhere.csv"], 3, "nowhere.csv: no such file"),
        # More than a process can address, so no machine is asked for memory that it might lend.
        (["--width", 2_000_000], 6, "this machine's memory does not hold this training; use a smaller --batch"),
    ],
)
def test_refusals(balls: Path, tmp_path: Path, options: list, code: int, message: str) -> None:
    method = [] if "--encoder" in options else ["--method", "erm"]
    result = command("train", balls, "--out", tmp_path / "run", *method, *options)
    assert result.exit_code == code, result.output
    assert message in result.stderr and result.stderr.count("\n") == 1 and "Traceback" not in result.output


IN_LITTLE_MEMORY = """
import resource, sys
from pathlib import Path
import torch
from dropgen_rt.cli import main
held = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (held + 3 * 2**30,) * 2)
main(sys.argv[1:])
"""


@pytest.mark.slow
def test_scoring_that_memory_does_not_hold(balls: Path, tmp_path: Path) -> None:
    """The kernel's own refusal: a window of 512^3 takes 4 GiB in the first layer, of which the process may have 3.

    One thread and one arena, for each of many would take addresses of its own.
    """
    out = tmp_path / "run"
    line = ["train", balls, "--out", out, "--method", "erm", *SMALL]
    assert command(*line).exit_code == 0
    best = torch.load(out / "best.pt", weights_only=True)
    torch.save(best | {"config": best["config"] | {"window": [512, 512, 512]}}, out / "best.pt")
    (out / "summary.json").unlink()
    scored = subprocess.run(
        [sys.executable, "-c", IN_LITTLE_MEMORY, *map(str, line), "--resume"],
        capture_output=True, text=True, check=False, env=os.environ | {"OMP_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "1"},
    )  # fmt: skip
    assert scored.returncode == MemoryLimitError.exit_code, scored.stderr
    assert scored.stderr == (
        "error: this machine's memory does not hold this training; use a smaller --batch, --window, --width or another "
        "--segmentor\n"
    )
    assert not (out / "summary.json").exists()


def test_a_run_folder_that_takes_no_files_is_found_before_the_cases_are_read(balls: Path, tmp_path: Path) -> None:
    (balls / "imagesTr" / "case2_0000.nii.gz").write_bytes(b"")
    (tmp_path / "file").touch()
    result = command("train", balls, "--out", tmp_path / "file" / "run", "--method", "erm")
    assert result.exit_code == OutputError.exit_code, result.output
    assert "file/run" in result.stderr and "fault" not in result.stderr and result.stderr.count("\n") == 1


def test_a_run_folder_that_another_process_trains_into(balls: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    out.mkdir()
    with held(out):
        second = command("train", balls, "--out", out, "--method", "erm", *SMALL)
    assert second.exit_code == ResourceError.exit_code, second.output
    assert second.stderr == (
        f"error: {out}: another process trains into it; wait until it ends, or give another --out\n"
    )
    assert not (out / "fingerprint.json").exists()  # what the first has there is not touched
    assert command("train", balls, "--out", out, "--method", "erm", *SMALL).exit_code == 0


def test_a_run_folder_that_cannot_be_held(balls: Path, tmp_path: Path) -> None:
    (tmp_path / "run" / ".lock").mkdir(parents=True)
    result = command("train", balls, "--out", tmp_path / "run", "--method", "erm", *SMALL)
    assert result.exit_code == OutputError.exit_code, result.output
    assert result.stderr.startswith(f"error: cannot write {tmp_path / 'run' / '.lock'}: ")
    assert result.stderr.count("\n") == 1 and not (tmp_path / "run" / "last.pt").exists()


def test_a_label_that_no_drawn_case_has(balls: Path, tmp_path: Path) -> None:
    for index in (0, 1, 2, 3):  # of five to train on, one of which is drawn; its label "bright" is left to the last
        path = balls / "labelsTr" / f"case{index}.nii.gz"
        image = sitk.ReadImage(str(path))
        sitk.WriteImage(image * sitk.Cast(image == 1, sitk.sitkUInt8), str(path))
    result = command("train", balls, "--out", tmp_path / "run", "--method", "erm", "--subjects", 1, *SMALL)
    assert result.exit_code == 0, result.output
    assert (
        "warning: label 'bright': in none of the 1 training cases that were drawn, so it cannot be learnt; draw others "
        "by --seed, or more by --subjects"
    ) in result.stdout.splitlines()


def test_every_fault_has_its_line(balls: Path, tmp_path: Path) -> None:
    (balls / "labelsTr" / "case1.nii.gz").unlink()
    (balls / "imagesTr" / "case2_0000.nii.gz").write_bytes(b"")
    result = command("train", balls, "--out", tmp_path / "run", "--method", "erm")
    assert result.exit_code == 3
    assert result.stderr.startswith(f"error: {balls}: 2 faults found before the first step; correct them all:\n  - ")
    assert result.stderr.count("\n  - ") == 2

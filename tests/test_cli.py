"""The command line: exit codes, exact last lines, one line per refusal, and nothing half-written."""

import gzip
import json
import math
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813  the name its users know
from click.testing import CliRunner

from dropgen_rt.cli import main
from dropgen_rt.store import default_name, find_model

pytestmark = pytest.mark.usefixtures("home")

COMMAND = Path(sys.executable).with_name("dropgen-rt")
VERBS = (
    "infer", "inspect", "bench", "train", "pretrain-encoder", "encoders", "export", "build-engine", "evaluate",
    "verify", "doctor", "models",
)  # fmt: skip
SIZE = (20, 18, 9)
RESULTS = ["_seg.json", "_seg.nii.gz", "_seg.png"]


def run(*arguments):
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def command(*arguments, limit_kib=None):
    """The installed program in a process of its own, optionally unable to write a file beyond ``limit_kib``."""
    line = [str(COMMAND), *map(str, arguments)]
    if limit_kib is not None:
        line = ["bash", "-c", f'ulimit -f {limit_kib}; exec "$@"', "bash", *line]
    return subprocess.run(line, capture_output=True, text=True, check=False)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def results(*stems):
    return sorted(stem + ending for stem in stems for ending in RESULTS)


def assert_refused(result, code):
    """Its exit code and one line on standard error, and no traceback anywhere."""
    assert result.exit_code == code, result.output
    assert isinstance(result.exception, SystemExit)
    assert result.stderr.startswith("error: ") and result.stderr.count("\n") == 1
    assert "Traceback" not in result.output


@pytest.fixture
def scan(make, tmp_path):
    """A writer of scans into a folder of their own: 60 in a box of 100 on noise about 0, spacing 1, 1, 2 mm."""
    folder = tmp_path / "scans"
    folder.mkdir()

    def write(name="scan.nii.gz", size=SIZE):
        array = np.random.default_rng(0).uniform(0, 10, size[::-1]).astype(np.float32)
        array[2:7, 4:14, 4:16] = 60
        array[3:5, 8:12, 8:12] = 100
        data = make.nifti(dim=(3, *size), pixdim=(1, 1, 1, 2), data=array.tobytes(),
                          rows=[[-1, 0, 0, 5], [0, -1, 0, 6], [0, 0, 2, 7]])  # fmt: skip
        (folder / name).write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
        return folder / name

    return write


@pytest.fixture
def out(tmp_path):
    folder = tmp_path / "out"
    folder.mkdir()
    return folder


def test_one_scan(scan, out, model_file):
    path = scan()
    result = run("infer", path, "-o", out, "--model", model_file)
    assert (result.exit_code, result.stderr) == (0, "")
    lines = result.stdout.splitlines()
    assert lines[-1] == f"wrote {out}/scan_seg.nii.gz"
    assert lines[0] == "model tiny, 2 labels"
    assert lines[1].startswith("engine openvino ") and lines[1].endswith(", fp32, cpu")
    # 20, 18 and 18 working voxels by windows of 16
    assert lines[2].startswith("memory: ")
    assert lines[3:-1] == ["scan.nii.gz: 8 windows"]
    assert names(out) == results("scan")
    labels, source = sitk.ReadImage(out / "scan_seg.nii.gz"), sitk.ReadImage(path)
    assert labels.GetSize() == SIZE and labels.GetPixelID() == sitk.sitkUInt8
    for item in ("GetSpacing", "GetOrigin", "GetDirection"):
        assert np.allclose(getattr(labels, item)(), getattr(source, item)(), atol=1e-6)
    array = sitk.GetArrayFromImage(labels)
    assert array[4, 6, 6] == 1 and array[3, 9, 9] == 2 and array[0, 0, 0] == 0
    record = json.loads((out / "scan_seg.json").read_text())
    assert [row["voxels"] for row in record["labels"]] == np.bincount(array.ravel())[1:].tolist()
    assert (out / "scan_seg.png").read_bytes().startswith(b"\x89PNG")


def test_the_installed_program(scan, model_file):
    """By default results lie beside the scan."""
    path = scan()
    result = command("infer", path, "--model", model_file)
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.splitlines()[-1] == f"wrote {path.parent}/scan_seg.nii.gz"
    assert names(path.parent) == sorted([path.name, *results("scan")])


def test_several_scans_and_a_folder(scan, out, model_file, tmp_path):
    first = scan("first.nii.gz")
    folder = tmp_path / "folder"
    folder.mkdir()
    for name in ("b.nii", "a.nii"):
        scan(name).rename(folder / name)
    (folder / "a_seg.nii.gz").write_bytes(b"an earlier result is no scan")
    (folder / "within").mkdir()
    result = run("infer", first, folder, "-o", out, "--model", model_file)
    assert (result.exit_code, result.stderr) == (0, "")
    assert f"{folder}: left out: 1 x a folder, which is not searched for scans" in result.stdout
    wrote = [line for line in result.stdout.splitlines() if line.startswith("wrote ")]
    assert wrote == [f"wrote {out}/{stem}_seg.nii.gz" for stem in ("first", "a", "b")]
    assert names(out) == results("first", "a", "b")


def test_one_bad_scan_among_good_ones(scan, out, model_file):
    bad = scan("bad.nii.gz")
    bad.write_bytes(bad.read_bytes()[:-20])
    result = run("infer", scan("a.nii.gz"), bad, scan("z.nii.gz"), "-o", out, "--model", model_file)
    assert result.exit_code == 3
    assert result.stderr.startswith(f"error: {bad}: truncated gzip data") and result.stderr.count("\n") == 1
    assert result.stdout.splitlines()[-1] == f"wrote {out}/z_seg.nii.gz"
    assert names(out) == results("a", "z")


def test_two_results_of_one_name(scan, out, model_file):
    first, second = scan("a.nii"), scan("a.nii.gz")
    result = run("infer", first, second, "-o", out, "--model", model_file)
    assert_refused(result, 2)
    assert f"{first} and {second} would both write a_seg.nii.gz" in result.stderr
    assert names(out) == []


def test_one_scan_under_two_paths(scan, model_file, monkeypatch):
    path = scan()
    monkeypatch.chdir(path.parent)
    assert_refused(run("infer", path, path.name, "--model", model_file), 2)
    assert names(path.parent) == [path.name]


def test_a_result_that_would_replace_a_scan(scan, model_file):
    first, second = scan("a.nii.gz"), scan("a_seg.nii.gz")
    before = second.read_bytes()
    result = run("infer", first, second, "--model", model_file)
    assert_refused(result, 2)
    assert "would replace it" in result.stderr
    assert second.read_bytes() == before and names(first.parent) == ["a.nii.gz", "a_seg.nii.gz"]


def test_quiet_prints_nothing(scan, out, model_file):
    result = run("infer", scan(), "-o", out, "--model", model_file, "--quiet")
    assert (result.exit_code, result.output) == (0, "")
    assert names(out) == results("scan")


def test_quiet_still_prints_errors(out, model_file):
    assert_refused(run("infer", out / "none.nii", "-o", out, "--model", model_file, "--quiet"), 3)


def test_reference_mode(scan, out, model_file):
    result = run("infer", scan(), "-o", out, "--model", model_file, "--reference")
    assert result.exit_code == 0, result.output
    settings = json.loads((out / "scan_seg.json").read_text())["settings"]
    assert settings == {
        "overlap": 0.5,
        "blend": "constant",
        "placement": "scan",
        "components": "all",
        "reference": True,
    }


def test_windows_around_the_body(scan, out, model_file):
    result = run("infer", scan(), "-o", out, "--model", model_file, "--placement", "body")
    assert result.exit_code == 0, result.output
    assert json.loads((out / "scan_seg.json").read_text())["settings"]["placement"] == "body"


@pytest.mark.parametrize(
    ("options", "code"),
    [
        ("--reference --overlap 0.5", 2),
        ("--reference --blend constant", 2),
        ("--reference --placement body", 2),
        ("--reference --components all", 2),
        ("--every-window --placement body", 2),
        ("--overlap 1", 2),
        ("--model nobody", 4),
        ("--model ../nobody", 4),
        ("--model no%body", 2),
        ("--device cuda", 6),
    ],
)
def test_options_that_are_refused(scan, out, model_file, options, code):
    chosen = options.split() if "--model" in options else [*options.split(), "--model", model_file]
    assert_refused(run("infer", scan(), "-o", out, *chosen), code)
    assert names(out) == []


def test_a_cuda_graph_without_a_gpu(scan, out, model_file):
    result = run("infer", scan(), "-o", out, "--model", model_file, "--device", "cpu", "--cuda-graph")
    assert_refused(result, 2)
    refusal = "takes windows from the host, which no graph holds; leave it out"
    assert re.fullmatch(f"error: --cuda-graph: [a-z]+ {refusal}", result.stderr.splitlines()[-1])
    assert names(out) == []


def test_a_scan_is_no_model(scan, out):
    path = scan("scan.onnx")
    assert_refused(run("infer", scan(), "-o", out, "--model", path), 4)


def test_a_missing_output_folder(scan, tmp_path, model_file):
    result = run("infer", scan(), "-o", tmp_path / "none", "--model", model_file)
    assert_refused(result, 6)
    assert "no such output folder; make it first" in result.stderr
    assert not (tmp_path / "none").exists()


def test_an_output_folder_that_is_a_file(scan, model_file):
    assert_refused(run("infer", scan(), "-o", model_file, "--model", model_file), 6)


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="needs a folder that nobody can write to")
def test_a_read_only_output_folder(scan, model_file):
    """Root may write anywhere but there; it is found before an engine is opened."""
    result = run("infer", scan(), "-o", "/proc/self", "--model", model_file)
    assert_refused(result, 6)
    assert "engine" not in result.output
    assert "its folder takes no files" in result.stderr


def test_a_result_in_whose_place_a_folder_stands(scan, out, model_file):
    (out / "scan_seg.json").mkdir()
    assert_refused(run("infer", scan(), "-o", out, "--model", model_file), 6)
    assert names(out) == ["scan_seg.json"]


def test_a_full_disk(scan, out, model_file):
    """A limit on the size of files fails as a full disk does, while it is written; no result is better than half."""
    path = scan("scan.nii.gz", (90, 80, 9))
    result = command("infer", path, "-o", out, "--model", model_file, limit_kib=1)
    assert result.returncode == 6, result.stdout + result.stderr
    assert result.stderr.startswith("error: cannot write ") and result.stderr.count("\n") == 1
    assert names(out) == []
    assert command("infer", path, "-o", out, "--model", model_file).returncode == 0  # half a cache is no harm
    assert names(out) == results("scan")


def test_earlier_results_outlive_a_full_disk(scan, out, model_file):
    path = scan("scan.nii.gz", (90, 80, 9))
    for ending in RESULTS:
        (out / f"scan{ending}").write_text("earlier")
    assert command("infer", path, "-o", out, "--model", model_file, limit_kib=1).returncode == 6
    assert names(out) == results("scan")
    assert {entry.read_text() for entry in out.iterdir()} == {"earlier"}


def one_voxel(value):
    values = np.arange(120).astype("f4")
    values[77] = value
    return values.tobytes()


def damaged(data, place):
    return data[:place] + bytes([data[place] ^ 0x55]) + data[place + 1 :]


SHEARED = [[-1.5, 0.5, 0, 10], [0, -2, 0, 20], [0, 0, 3, -30]]
SINGULAR = [[1.5, 1.5, 0, 0], [1.5, 1.5, 0, 0], [0, 0, 3, 0]]
BAD_SCANS = {
    "empty.nii.gz": lambda m: b"",
    "text.nii.gz": lambda m: b"hello\n" * 99,
    "text.nii": lambda m: b"hello\n" * 99,
    "text.dcm": lambda m: b"hello\n" * 99,
    "truncated.nii": lambda m: m.nifti()[:-50],
    "truncated.nii.gz": lambda m: gzip.compress(m.nifti())[:-30],
    "crc.nii.gz": lambda m: damaged(gzip.compress(m.nifti()), -6),
    "flat.nii": lambda m: m.nifti(dim=(2, 20, 6)),
    "time.nii": lambda m: m.nifti(dim=(4, 4, 5, 3, 2)),
    "complex.nii": lambda m: m.nifti("c8"),
    "rgb.nii": lambda m: m.nifti(datatype=128, bits=24),
    "nan.nii": lambda m: m.nifti(data=one_voxel(math.nan)),
    "inf.nii": lambda m: m.nifti(data=one_voxel(math.inf)),
    "constant.nii": lambda m: m.nifti(data=bytes(480)),
    "zero_spacing.nii": lambda m: m.nifti(pixdim=(1, 0, 2, 3)),
    "negative_spacing.nii": lambda m: m.nifti(pixdim=(1, -1.5, 2, 3)),
    "nan_spacing.nii": lambda m: m.nifti(pixdim=(1, math.nan, 2, 3)),
    "singular.nii": lambda m: m.nifti(rows=SINGULAR),
    "sheared.nii": lambda m: m.nifti(rows=SHEARED),
    "absurd.nii.gz": lambda m: gzip.compress(m.nifti(dim=(3, 16000, 16000, 16000))),
    "vast.nii": lambda m: m.nifti(version=2, dim=(3, 2**40, 2**40, 2**40)),
    "nonsense.nrrd": lambda m: b"NRRD0004\nnonsense\n\n",
    "singular.nrrd": lambda m: m.nrrd(space_directions="(1,1,0) (1,1,0) (0,0,3)"),
    "lost.mhd": lambda m: m.mha(b"", ElementDataFile="lost.raw"),
    "truncated.mha": lambda m: m.mha(m.voxels()[:-20]),
    "nan.mha": lambda m: m.mha(ElementSpacing="nan 2 3"),
    # readable, and refused for this model
    "thin.nii": lambda m: m.nifti(dim=(3, 2, 1, 1), data=np.arange(2, dtype="f4").tobytes()),
    "endless.nii": lambda m: m.nifti(
        dim=(3, 16384, 1, 1), pixdim=(1, 100, 100, 100), data=np.arange(16384, dtype="f4").tobytes(),
        rows=[[100, 0, 0, 0], [0, 100, 0, 0], [0, 0, 100, 0]],
    ),
}  # fmt: skip


@pytest.fixture
def three_labels(tiny, tmp_path):
    """A model of more labels than the thin scan has voxels."""
    labels = [{"value": value, "name": f"part {value}", "colour": (value, 0, 0)} for value in (1, 2, 3)]
    path = tmp_path / "three.onnx"
    manifest = json.loads(tiny.manifest().to_json()) | {"labels": labels}
    path.write_bytes(tiny.onnx({"dropgen_rt.manifest": json.dumps(manifest)}, classes=4))
    return path


@pytest.mark.parametrize("name", BAD_SCANS)
def test_a_bad_scan_is_refused(name, make, out, three_labels, capfd):
    path = out.parent / name
    path.write_bytes(BAD_SCANS[name](make))
    result = run("infer", path, "-o", out, "--model", three_labels)
    assert_refused(result, 3)
    assert name in result.stderr
    assert names(out) == []
    assert capfd.readouterr() == ("", "")  # nor does a C++ library speak past us


@pytest.mark.parametrize("name", ["none.nii.gz", "."])
def test_a_path_without_scans(name, out, model_file):
    assert_refused(run("infer", out / name, "-o", out, "--model", model_file), 3)
    assert names(out) == []


def test_bad_scans_in_one_process(make, out, three_labels):
    """Each its own line, in order, and not a word from anyone else."""
    paths = list({name.split(".")[0]: out.parent / name for name in BAD_SCANS}.values())
    for path in paths:
        path.write_bytes(BAD_SCANS[path.name](make))
    result = command("infer", *paths, "-o", out, "--model", three_labels)
    assert result.returncode == 3
    lines = result.stderr.splitlines()
    assert len(lines) == len(paths)
    assert all(line.startswith(f"error: {path}: ") for line, path in zip(lines, paths, strict=True))
    assert names(out) == []


def test_help_lists_every_verb():
    result = run("--help")
    assert result.exit_code == 0
    assert set(main.commands) == set(VERBS)
    assert all(f"  {verb} " in result.stdout for verb in VERBS)


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help(verb):
    result = run(verb, "--help")
    assert result.exit_code == 0
    assert result.stdout.startswith(f"Usage: main {verb} ")


def test_the_version():
    result = command("--version")
    assert result.returncode == 0
    assert result.stdout.startswith("dropgen-rt, version ")


def test_build_engine_then_infer_uses_it(scan, out, model_file, home):
    built = run("build-engine", model_file)
    assert built.exit_code == 0, built.output
    last = built.stdout.splitlines()[-1]
    assert last == f"installed tiny in {home}/models/tiny.json, the default model in place of brain9"
    assert find_model("tiny").read_bytes() == model_file.read_bytes()
    result = run("infer", scan(), "-o", out)
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines()[0] == "model tiny, 2 labels"
    record = json.loads((out / "scan_seg.json").read_text())
    assert record["model"]["name"] == "tiny"


def test_build_engine_may_leave_the_default(model_file, home):
    before = default_name()
    built = run("build-engine", model_file, "--name", "other", "--no-default")
    assert built.stdout.splitlines()[-1] == f"installed other in {home}/models/other.json"
    assert default_name() == before


@pytest.mark.parametrize("name", ["../evil", "a/b", "", ".."])
def test_build_engine_refuses_names_that_leave_the_folder(name, model_file, home):
    assert_refused(run("build-engine", model_file, "--name", name), 2)
    assert not (home / "models").exists() and not (home / "default").exists()


@pytest.mark.parametrize("content", [b"", b"text"])
def test_build_engine_refuses_what_is_no_model(content, tmp_path, home):
    (tmp_path / "bad.onnx").write_bytes(content)
    assert_refused(run("build-engine", tmp_path / "bad.onnx"), 4)
    assert_refused(run("build-engine", tmp_path / "none.onnx"), 4)
    assert not (home / "models").exists()


def test_a_data_folder_that_cannot_be_written(scan, out, model_file, monkeypatch):
    """Nothing can be installed there, but a scan needs no cache."""
    monkeypatch.setenv("DROPGEN_RT_HOME", str(model_file))
    assert_refused(run("build-engine", model_file), 6)
    assert run("infer", scan(), "-o", out, "--model", model_file).exit_code == 0
    assert names(out) == results("scan")


def test_evaluate(scan, out, model_file):
    run("infer", scan(), "-o", out, "--model", model_file)
    labels = out / "scan_seg.nii.gz"
    result = command("evaluate", labels, labels, "-o", out / "dice.json")
    assert (result.returncode, result.stderr) == (0, "")
    scores = [f"1.0000  label {value}, HD95 0.00 mm, surface Dice 1.0000" for value in (1, 2)]
    assert result.stdout.splitlines() == [*scores, "mean Dice 1.0000"]
    assert json.loads((out / "dice.json").read_text())["mean_dice"] == 1
    assert (out / "dice.csv").is_file()


def test_evaluate_refuses_other_grids(scan, out, model_file):
    for name, size in (("a.nii", SIZE), ("b.nii", (20, 18, 8))):
        run("infer", scan(name, size), "-o", out, "--model", model_file)
    before = names(out)
    result = run("evaluate", out / "a_seg.nii.gz", out / "b_seg.nii.gz", "-o", out / "dice.json")
    assert_refused(result, 3)
    assert names(out) == before


def test_an_interrupt_leaves_nothing(scan, out, model_file):
    """As Ctrl-C does: no result, no traceback."""
    path = scan("scan.nii.gz", (300, 300, 60))
    process = subprocess.Popen(
        [COMMAND, "infer", path, "-o", out, "--model", model_file], env={**os.environ, "PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        # A script that runs in the background ignores interrupts, and its children with it.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    lines = [process.stdout.readline() for _ in range(2)]  # the engine is open, the scan is being read
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert lines[1].startswith("engine ")
    assert process.returncode != 0 and "Traceback" not in errors
    assert names(out) == []

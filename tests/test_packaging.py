"""What ships: wheel and sdist against the tree, and the wheel installed in a clean environment."""

import json
import os
import shutil
import subprocess
import sys
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest
from machine import REQUIRED
from shared_data import DATA, needs

ROOT = Path(__file__).parents[1]
ROOMS = {"dropgen_rt": "dropgen_rt", "kernels": "dropgen_rt/kernels", "export": "dropgen_rt/export"}
ROOMS["train"] = "dropgen_rt/train"
VIEWER = {"dropgen_rt/viewer/niivue.umd.js", "dropgen_rt/viewer/niivue.licences.txt"}  # the build brings them in


@pytest.fixture(scope="module")
def viewer() -> set[str]:
    """What the build adds to the tree: nothing where there is neither npm nor a viewer brought in before."""
    had = shutil.which("npm") or all((ROOT / name).is_file() for name in VIEWER)
    assert had or not REQUIRED, "npm is not installed; the wheel has no viewer"
    return VIEWER if had else set()


def run(*command: object, **options: object) -> str:
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, **options)  # type: ignore[call-overload]
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def tracked() -> set[str]:
    listing = run("git", "ls-files", "--cached", "--others", "--exclude-standard", cwd=ROOT)
    return {name for name in listing.splitlines() if (ROOT / name).is_file()}


@pytest.fixture(scope="module")
def distributions(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The sdist, and the wheel built from the sdist, as a release would make them."""
    out = tmp_path_factory.mktemp("dist")
    # The CUDA images take minutes; that every file compiles for every architecture is tested with the kernels.
    run(sys.executable, "-m", "build", "--outdir", out, ROOT, env={**os.environ, "DROPGEN_RT_CUDA": "0"})
    return next(out.glob("*.tar.gz")), next(out.glob("*.whl"))


@pytest.mark.slow
def test_wheel_holds_the_four_rooms_and_nothing_else(distributions: tuple[Path, Path], viewer: set[str]) -> None:
    with zipfile.ZipFile(distributions[1]) as wheel:
        names = set(wheel.namelist())
    expected = set()
    for name in tracked():
        room, _, rest = name.partition("/")
        if room in ROOMS and rest:
            expected.add(f"{ROOMS[room]}/{rest}")
    inside = {name for name in names if ".dist-info/" not in name}
    compiled = {name for name in inside if name.startswith("dropgen_rt/kernels/_host.") and name.endswith(".so")}
    assert len(compiled) == 1
    assert inside - compiled == expected | viewer
    licences = {name.rsplit("/", 1)[1] for name in names if "/licenses/" in name}
    assert licences == {"LICENSE", "NOTICE"}


@pytest.mark.slow
def test_sdist_holds_what_is_tracked(distributions: tuple[Path, Path], viewer: set[str]) -> None:
    with tarfile.open(distributions[0]) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert tracked() | viewer <= names


def test_the_viewer_is_one_version_from_no_named_host() -> None:
    lock = (ROOT / "dropgen_rt" / "viewer" / "package-lock.json").read_text(encoding="utf-8")
    assert '"resolved"' not in lock
    wanted = json.loads((ROOT / "dropgen_rt" / "viewer" / "package.json").read_text(encoding="utf-8"))["dependencies"]
    packages = json.loads(lock)["packages"]
    assert wanted == {"@niivue/niivue": packages["node_modules/@niivue/niivue"]["version"]}
    assert all(package["integrity"].startswith("sha512-") for name, package in packages.items() if name)


def test_a_build_goes_on_without_npm_and_says_so(tmp_path: Path) -> None:
    folder = tmp_path / "viewer"
    folder.mkdir()
    for name in ("fetch.py", "package.json", "package-lock.json", "LICENSE.niivue"):
        shutil.copyfile(ROOT / "dropgen_rt" / "viewer" / name, folder / name)
    for options, code in (([], 1), (["--optional"], 0)):
        done = subprocess.run([sys.executable, folder / "fetch.py", *options], capture_output=True, text=True,
                              env={"PATH": str(tmp_path)})  # fmt: skip
        assert (done.returncode, done.stdout) == (code, "")
        assert done.stderr == (
            "the report's viewer was not brought in (npm is not installed); install npm, then: make viewer\n"
        )
    assert not list(folder.glob("niivue*"))


@needs("data/brain_t1")
@pytest.mark.slow
def test_wheel_works_in_a_clean_environment_without_torch(
    distributions: tuple[Path, Path], viewer: set[str], tmp_path: Path
) -> None:
    home = tmp_path / "venv"
    venv.create(home, with_pip=True)
    run(home / "bin" / "pip", "install", "--quiet", "-c", ROOT / "constraints.txt", distributions[1])
    code = "import dropgen_rt, sys; assert 'torch' not in sys.modules; print(dropgen_rt.__file__)"
    python = home / "bin" / "python"
    assert str(home) in run(python, "-c", code, cwd=tmp_path)
    packages = next((home / "lib").glob("python*")) / "site-packages"
    assert not {"kernels", "export", "train", "torch"} & {entry.name for entry in packages.iterdir()}
    scan = DATA / "brain_t1" / "fs_subject_T1norm.nii.gz"
    environment = {**os.environ, "DROPGEN_RT_HOME": str(tmp_path / "home")}
    output = run(home / "bin" / "dropgen-rt", "infer", scan, "-o", tmp_path, "--report", env=environment, cwd=tmp_path)
    assert ((tmp_path / "fs_subject_T1norm_report.html").stat().st_size > 2e6) == bool(viewer), "the viewer is in it"
    assert output.splitlines()[-1] == f"wrote {tmp_path / 'fs_subject_T1norm_seg.nii.gz'}"
    asked = subprocess.run([home / "bin" / "dropgen-rt", "train", "x", "--out", "y"], capture_output=True, text=True)
    assert asked.returncode == 2
    assert asked.stderr == "error: this command needs torch; install it with: pip install 'dropgen-rt[train]'\n"

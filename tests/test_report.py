"""The HTML report: looked at in a browser, and read as text."""

import base64
import gzip
import html
import json
import re
from collections.abc import Iterator
from pathlib import Path

import nibabel
import numpy as np
import pytest
from browser import NO_WEBGL, Page, open_page
from click.testing import CliRunner
from machine import require

from dropgen_rt import report, report_volumes
from dropgen_rt.cli import main
from dropgen_rt.geometry import Geometry
from dropgen_rt.record import Record, label_volumes
from dropgen_rt.volume import Volume

# What a page of a scan of 256 x 256 x 256 voxels may weigh: it is to pass through a hospital's mail.
LARGEST_PAGE_BYTES = 30_000_000

# Blended colours are rounded twice, and drawn over intensities that are interpolated: 8 of 256 steps.
COLOUR_STEPS = 8

# Pixels are drawn by the processor here: a window no larger than the tests need.
SMALL = (1100, 500)

IDENTITY = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0)
RESULTS = ["_report.html", "_seg.json", "_seg.nii.gz", "_seg.png"]


def write_scan(make, path: Path) -> Path:
    """60 in a box, 100 in a box within, on noise about 5; the tiny model marks them 1 and 2."""
    array = np.random.default_rng(0).uniform(0, 10, (24, 36, 40)).astype(np.float32)
    array[6:18, 8:28, 8:32] = 60
    array[10:14, 12:20, 12:20] = 100
    rows = [[-1, 0, 0, 5], [0, -1, 0, 6], [0, 0, 2, 7]]
    data = make.nifti(dim=(3, 40, 36, 24), pixdim=(1, 1, 1, 2), data=array.tobytes(), rows=rows, units=0)
    path.write_bytes(gzip.compress(data))
    return path


def infer(scan: Path, model: Path, out: Path, *options: str):
    return CliRunner().invoke(main, ["infer", str(scan), "-o", str(out), "--model", str(model), *options])


@pytest.fixture
def scan(make, tmp_path: Path) -> Path:
    return write_scan(make, tmp_path / "scan.nii.gz")


@pytest.fixture
def out(tmp_path: Path) -> Path:
    (tmp_path / "out").mkdir()
    return tmp_path / "out"


@pytest.fixture(scope="module")
def written(tiny, builders, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report as the command line writes it."""
    folder = tmp_path_factory.mktemp("report")
    model = tiny.write(folder / "tiny.onnx")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DROPGEN_RT_HOME", str(folder))
        done = infer(write_scan(builders, folder / "scan.nii.gz"), model, folder, "--report")
    assert done.exit_code == 0, done.output
    return folder / "scan_report.html"


@pytest.fixture(scope="module")
def page(written: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    require(report.has_viewer(), "these tests look at the viewer; install npm, then: make viewer")
    with open_page(written, tmp_path_factory.mktemp("profile"), SMALL) as opened:
        opened.wait_for("document.body.dataset.state !== 'static'")
        assert (
            opened.evaluate("document.body.dataset.state + document.getElementById('message').textContent") == "ready"
        )
        yield opened


def set_input(page: Page, selector: str, value: bool | int, event: str = "input") -> None:
    """As a hand does: the value, then the event."""
    field = "checked" if isinstance(value, bool) else "value"
    page.evaluate(f"""(() => {{
        const input = document.querySelector({selector!r});
        input.{field} = {json.dumps(value)};
        input.dispatchEvent(new Event({event!r}));
    }})()""")


def view(page: Page, name: str) -> None:
    page.evaluate(f"document.querySelector('[data-view={json.dumps(name)}]').click()")


def reset(page: Page) -> None:
    set_input(page, "#all", True)
    set_input(page, "#opacity", 100)
    for value in (1, 2):
        set_input(page, f"tr[data-value='{value}'] input[type=range]", 60)
    view(page, "multi")


def of_label(pixels: np.ndarray, colour: tuple[int, int, int]) -> np.ndarray:
    """Which pixels lean to a colour: its strongest part exceeds its weakest by 40 or more."""
    strong, weak = int(np.argmax(colour)), int(np.argmin(colour))
    return pixels[..., strong].astype(int) - pixels[..., weak] > 40


def test_the_canvas_shows_the_scan_and_the_labels(page: Page, tiny) -> None:
    reset(page)
    both = page.screenshot("#canvas")
    assert all(of_label(both, colour).mean() > 0.005 for colour in tiny.colours)
    set_input(page, "#all", False)
    grey = page.screenshot("#canvas")
    coloured = np.ptp(grey.astype(int), axis=-1) > 40
    assert coloured.mean() < 0.005, "only the cube that tells the directions has a colour"
    assert len(np.unique(grey[~coloured])) > 50 and grey[~coloured].std() > 20, "the scan has its contrast"


@pytest.mark.parametrize("value", [1, 2])
def test_each_structure_is_switched_by_itself(page: Page, tiny, value: int) -> None:
    reset(page)
    view(page, "axial")
    shown = page.screenshot("#canvas")
    set_input(page, f"tr[data-value='{value}'] input[type=checkbox]", False)
    hidden = page.screenshot("#canvas")
    mine, other = (tiny.colours[index] for index in (value - 1, 2 - value))
    assert of_label(shown, mine).sum() > 1000 and of_label(hidden, mine).sum() == 0
    assert of_label(hidden, other).sum() == pytest.approx(of_label(shown, other).sum(), rel=0.1)  # rims fade
    assert page.evaluate("document.getElementById('all').indeterminate")


@pytest.mark.parametrize(("own", "all_labels"), [(60, 100), (30, 100), (60, 50), (100, 100)])
def test_opacity_mixes_the_colour_of_the_manifest(page: Page, tiny, own: int, all_labels: int) -> None:
    reset(page)
    view(page, "axial")
    inside = eroded(of_label(page.screenshot("#canvas"), tiny.colours[0]))
    set_input(page, "tr[data-value='1'] input[type=range]", own)
    set_input(page, "#opacity", all_labels)
    mixed = page.screenshot("#canvas")[inside]
    set_input(page, "#all", False)
    grey = page.screenshot("#canvas")[inside]
    alpha = own * all_labels / 1e4
    expected = np.median(grey, axis=0) * (1 - alpha) + np.array(tiny.colours[0]) * alpha
    np.testing.assert_allclose(np.median(mixed, axis=0), expected, rtol=0, atol=COLOUR_STEPS)


def eroded(mask: np.ndarray, pixels: int = 12) -> np.ndarray:
    """Without the rim, where a label fades and the crosshair's lines have theirs."""
    for axis in (0, 1):
        for step in (-pixels, pixels):
            mask = mask & np.roll(mask, step, axis)
    return mask


@pytest.mark.parametrize("name", ["axial", "coronal", "sagittal", "3d"])
def test_every_view_shows_the_labels(page: Page, tiny, name: str) -> None:
    reset(page)
    page.evaluate("document.querySelector(\"tr[data-value='2'] button\").click()")
    view(page, name)
    assert page.evaluate("document.querySelector('[aria-pressed=true]').dataset.view") == name
    pixels = page.screenshot("#canvas")
    assert of_label(pixels, tiny.colours[0]).mean() > 0.02
    if name == "3d":  # the outer structure hides the inner one until it is switched off
        set_input(page, "tr[data-value='1'] input[type=checkbox]", False)
        pixels = page.screenshot("#canvas")
    assert of_label(pixels, tiny.colours[1]).mean() > 0.002


def test_outlines_and_grey_values_change_the_picture(page: Page) -> None:
    reset(page)
    before = page.screenshot("#canvas")
    set_input(page, "#outline", True)
    outlined = page.screenshot("#canvas")
    set_input(page, "#outline", False)
    assert (before != outlined).any(axis=-1).mean() > 0.002
    np.testing.assert_array_equal(page.screenshot("#canvas"), before)
    page.evaluate(
        "(low => { low.value = 50; low.dispatchEvent(new Event('change')); })(document.getElementById('low'))"
    )
    assert page.screenshot("#canvas").mean() < before.mean()
    page.evaluate("document.getElementById('reset').click()")
    np.testing.assert_array_equal(page.screenshot("#canvas"), before)


def test_a_structures_name_leads_to_it(page: Page) -> None:
    reset(page)
    for value, name, intensity in ((2, "bright", 100), (1, "medium", 60)):
        page.evaluate(f"document.querySelector(\"tr[data-value='{value}'] button\").click()")
        text = page.evaluate("document.getElementById('readout').textContent")
        assert text.endswith(f" · intensity {intensity} · {name}"), text
    middle = json.loads(page.evaluate("document.getElementById('page-data').textContent"))["structures"][1]["middle_mm"]
    # the box of 100: voxels 12 to 19, 12 to 19, 10 to 13, from (-5, -6, 7) mm; the nearer of two voxels is taken
    np.testing.assert_allclose(middle, (10.5, 9.5, 30), rtol=0, atol=1.01)


@pytest.mark.parametrize("code", ["LPS", "AIL"])
def test_an_oblique_scan_lies_where_it_should(tiny, tmp_path: Path, code: str) -> None:
    """The viewer, asked for the place of a structure that Python computed, finds intensity and label there."""
    geometry, change = oblique((40, 36, 24)).reoriented(code)
    grey, labels = np.random.default_rng(0).integers(0, 50, (24, 36, 40)), np.zeros((24, 36, 40), np.uint8)
    for value, box in ((1, np.s_[3:8, 20:30, 5:9]), (2, np.s_[15:20, 4:9, 25:36])):
        labels[box], grey[box] = value, 100 * value
    manifest = tiny.manifest()
    record = Record({}, {}, {}, {}, 1, label_volumes(labels, geometry, manifest.labels), {}, {})
    volumes = [Volume(np.ascontiguousarray(change.apply(item))[None], geometry)
               for item in (grey.astype(np.float32), labels)]  # fmt: skip
    path = tmp_path / "oblique_report.html"
    path.write_text(report.render("oblique", *volumes, manifest, record, b""), encoding="utf-8")
    with open_page(path, tmp_path / "profile", SMALL) as opened_page:
        opened_page.wait_for("document.body.dataset.state === 'ready'")
        data = json.loads(opened_page.evaluate("document.getElementById('page-data').textContent"))
        for structure in data["structures"]:
            value, name = structure["value"], structure["name"]
            opened_page.evaluate(f"document.querySelector(\"tr[data-value='{value}'] button\").click()")
            text = opened_page.evaluate("document.getElementById('readout').textContent")
            assert text.endswith(f" mm (left, posterior, superior) · intensity {100 * value} · {name}"), text
            shown = [float(part) for part in text.split(" mm")[0].split(",")]
            np.testing.assert_allclose(shown, structure["middle_mm"], rtol=0, atol=0.051)  # one decimal is shown


def test_the_page_asks_for_nothing_and_complains_of_nothing(page: Page, written: Path) -> None:
    """After all that the tests above did; a later request would be refused by the page itself."""
    assert written.resolve().as_uri() in page.requests
    assert {url.split(":")[0] for url in page.requests} <= {"file", "data", "blob"}
    assert len([url for url in page.requests if url.startswith("file:")]) == 1
    assert page.errors == []


def test_the_browser_would_notice(written: Path, tmp_path: Path) -> None:
    """The same page with an error, a request, and the prohibition of requests taken out."""
    text = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", written.read_text(encoding="utf-8"))
    bad = tmp_path / "bad.html"
    bad.write_text(text.replace("</body>", '<img src="http://127.0.0.1:9/a.png"><script>nothing()</script></body>'))
    with open_page(bad, tmp_path / "profile", SMALL) as opened:
        assert "http://127.0.0.1:9/a.png" in opened.requests
        assert any("nothing is not defined" in error for error in opened.errors)


def test_a_browser_without_webgl_says_so_and_shows_the_rest(written: Path, tmp_path: Path) -> None:
    with open_page(written, tmp_path / "profile", SMALL, NO_WEBGL) as opened:
        assert opened.evaluate("document.createElement('canvas').getContext('webgl2')") is None
        opened.wait_for("document.body.dataset.state !== 'static'")
        assert opened.evaluate("document.body.dataset.state") == "no-webgl"
        assert opened.evaluate("document.getElementById('message').innerText") == (
            "This browser has no WebGL 2, so that the viewer cannot run. The picture is below."
        )
        assert not visible(opened, "#tools") and not visible(opened, ".help") and not visible(opened, "#readout")
        assert visible(opened, "#message") and visible(opened, ".picture img") and visible(opened, "#structures")
        assert not visible(opened, "#structures input")
        assert len(np.unique(opened.screenshot(".picture img"))) > 50
        assert opened.errors == []


def test_a_browser_without_scripts_says_so(written: Path, tmp_path: Path) -> None:
    with open_page(written, tmp_path / "profile", SMALL) as opened:
        opened.send("Emulation.setScriptExecutionDisabled", value=True)
        opened.send("Page.reload")
        opened.wait_for("document.querySelector('noscript p') !== null")
        assert "Scripts are switched off" in opened.evaluate("document.querySelector('noscript p').innerText")
        assert visible(opened, "noscript p") and visible(opened, ".picture img") and not visible(opened, ".canvas")


def visible(page: Page, selector: str) -> bool:
    return bool(page.evaluate(f"document.querySelector({selector!r}).checkVisibility()"))


def test_the_tables_say_what_the_record_says(written: Path) -> None:
    text = written.read_text(encoding="utf-8")
    record = json.loads(written.with_name("scan_seg.json").read_text(encoding="utf-8"))
    for label in record["labels"]:
        assert f'{label["name"]}</button></td><td class="number">{label["volume_ml"]:.2f}</td>' in text
        assert label["volume_ml"] > 0
    embedded = json.loads(html.unescape(re.search(r"As JSON</summary><pre>(.*?)</pre>", text, re.DOTALL)[1]))
    assert {key: embedded[key] for key in embedded if key != "timings_s"} == {
        key: record[key] for key in record if key != "timings_s"
    }
    assert record["input"]["sha256"] in text and "Research use only" in text
    assert record["warnings"] == ["the header names no unit of length: taken as mm"]
    assert f"<li>{record['warnings'][0]}</li>" in text
    assert "http://" not in text.split("<script>")[0] and "default-src 'none'" in text


@pytest.mark.usefixtures("home")
def test_four_files_or_none(scan: Path, model_file: Path, out: Path) -> None:
    (out / "scan_report.html").mkdir()
    assert infer(scan, model_file, out, "--report").exit_code == 6
    assert [entry.name for entry in out.iterdir()] == ["scan_report.html"]
    (out / "scan_report.html").rmdir()
    done = infer(scan, model_file, out, "--report")
    assert done.stdout.splitlines()[-1] == f"wrote {out}/scan_seg.nii.gz"
    assert sorted(entry.name for entry in out.iterdir()) == sorted(f"scan{ending}" for ending in RESULTS)


@pytest.mark.usefixtures("home")
def test_without_the_viewer_the_report_says_so(scan, model_file, out, monkeypatch) -> None:
    monkeypatch.setattr(report, "has_viewer", lambda: False)
    monkeypatch.setattr("dropgen_rt.infer.has_viewer", lambda: False)
    done = infer(scan, model_file, out, "--report")
    assert f"warning: {report.NO_VIEWER}" in done.stdout.splitlines()
    text = (out / "scan_report.html").read_text(encoding="utf-8")
    assert html.escape(report.NO_VIEWER) in text and "<script" not in text
    picture = base64.b64encode((out / "scan_seg.png").read_bytes()).decode()
    assert picture in text and "medium</button>" in text and "As JSON" in text


@pytest.mark.usefixtures("home")
def test_names_cannot_become_code(make, tiny, tmp_path: Path, out: Path) -> None:
    evil = "<img src=x onerror=alert(1)>"
    labels = tuple(type(item)(item.value, f"{evil}{item.value}", item.colour) for item in tiny.manifest().labels)
    model = tiny.write(tmp_path / "evil.onnx", name="<b>m</b>", labels=labels, notice="</script><script>alert(2)")
    done = infer(write_scan(make, tmp_path / f"{evil}.nii.gz"), model, out, "--report")
    assert done.exit_code == 0, done.output
    text = (out / f"{evil}_report.html").read_text(encoding="utf-8")
    assert "<img src=x" not in text and "<b>m</b>" not in text and "<script>alert(2)" not in text
    assert text.count(html.escape(evil)) >= 4


def oblique(size: tuple[int, int, int]) -> Geometry:
    a, b = np.cos(0.3), np.sin(0.3)
    return Geometry(size, (0.7, 1.1, 2.3), (-101.25, 33.5, 7.125), (a, -b, 0, b, a, 0, 0, 0, -1))


def opened(text: str) -> tuple[np.ndarray, np.ndarray, nibabel.Nifti1Image]:
    """Array (z, y, x) and affine in LPS, as nibabel understands an embedded volume."""
    image = nibabel.Nifti1Image.from_bytes(gzip.decompress(base64.b64decode(text)))
    return image.get_fdata().T, np.diag([-1.0, -1.0, 1.0, 1.0]) @ image.affine, image


def pack(array: np.ndarray, geometry: Geometry, labels: np.ndarray | None = None) -> report_volumes.PackedVolumes:
    marked = np.zeros(geometry.shape, np.uint8) if labels is None else labels
    return report_volumes.pack(Volume(array[None].astype(np.float32), geometry), Volume(marked[None], geometry))


def test_whole_numbers_and_labels_are_embedded_exactly() -> None:
    geometry = oblique((9, 8, 7))
    rng = np.random.default_rng(0)
    array, labels = rng.integers(-1000, 3000, geometry.shape), rng.integers(0, 300, geometry.shape, np.uint16)
    packed = pack(array, geometry, labels)
    assert packed.notes == ()
    for text, expected in ((packed.scan, array), (packed.labels, labels)):
        values, affine, _ = opened(text)
        np.testing.assert_array_equal(values, expected)
        corners = np.array(list(np.ndindex(2, 2, 2))) * 6
        ends = corners @ affine[:3, :3].T + affine[:3, 3]
        np.testing.assert_allclose(ends, geometry.to_world(corners), rtol=0, atol=1e-3)  # float32 headers
    assert opened(packed.labels)[2].header["intent_code"] == 1002


def test_other_numbers_are_rounded_and_the_page_says_so() -> None:
    geometry = oblique((9, 8, 7))
    array = np.random.default_rng(0).normal(0, 1e-3, geometry.shape)
    packed = pack(array, geometry)
    assert packed.notes == ("the viewer shows intensities rounded to 16 bits",)
    # half a step of 65535, and the float32 header's rounding of the largest value
    step = np.ptp(array) / 65535
    np.testing.assert_allclose(opened(packed.scan)[0], array, rtol=0, atol=0.6 * step)


def test_scans_too_large_are_thinned_and_the_page_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    geometry = oblique((40, 30, 20))
    rng = np.random.default_rng(0)
    array, labels = rng.normal(0, 1, geometry.shape), rng.integers(0, 3, geometry.shape, np.uint8)
    monkeypatch.setattr(report_volumes, "SCAN_BYTES", 30_000)
    eight = pack(array, geometry, labels)
    assert len(eight.notes) == 1 and "in 256 steps from " in eight.notes[0]
    low, high = np.percentile(array, (0.1, 99.9))
    values = opened(eight.scan)[0]
    np.testing.assert_allclose(values, np.clip(array, low, high), rtol=0, atol=0.6 * (high - low) / 255)
    monkeypatch.setattr(report_volumes, "SCAN_BYTES", 7_000)
    thin = pack(array, geometry, labels)
    assert thin.notes[1] == "the viewer shows one voxel of 2 x 2 x 1 (x, y, z); volumes are those of all voxels"
    values, affine, _ = opened(thin.labels)
    np.testing.assert_array_equal(values, labels[:, ::2, ::2])
    np.testing.assert_allclose(affine[:3, 3], geometry.origin_mm, rtol=0, atol=1e-3)
    monkeypatch.setattr(report_volumes, "SHOWN_VOXELS", 1500)
    assert opened(pack(array, geometry, labels).labels)[0].size <= 1500


@pytest.mark.slow
def test_a_scan_of_256_cubed(tiny, tmp_path: Path) -> None:
    """Noise, which nothing compresses, is the worst case."""
    geometry = Geometry((256, 256, 256), (1.0, 1.0, 1.0), (0.0, 0.0, 0.0), IDENTITY)
    scan = np.random.default_rng(0).normal(100, 10, (1, *geometry.shape)).astype(np.float32)
    labels = np.zeros((1, *geometry.shape), np.uint8)
    labels[0, 80:180, 80:180, 80:180] = 1
    labels[0, 110:150, 110:150, 110:150] = 2
    manifest = tiny.manifest()
    record = Record({}, {}, {}, {}, 1, label_volumes(labels, geometry, manifest.labels), {}, {})
    text = report.render("noise", Volume(scan, geometry), Volume(labels, geometry), manifest, record, b"")
    path = tmp_path / "noise_report.html"
    path.write_text(text, encoding="utf-8")
    assert path.stat().st_size < LARGEST_PAGE_BYTES
    with open_page(path, tmp_path / "profile", (640, 400)) as opened_page:
        opened_page.wait_for("document.body.dataset.state === 'ready'")
        pixels = opened_page.screenshot("#canvas")
        assert all(of_label(pixels, colour).mean() > 0.001 for colour in tiny.colours)
        assert opened_page.errors == []

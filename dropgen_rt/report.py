"""One HTML file of a result, which needs nothing else: viewer, scan, labels, volumes, record, warnings.

The page forbids itself every connection (its Content-Security-Policy), so that it is as safe on a hospital's
workstation as a picture is.
"""

import base64
import html
import itertools
import json
from collections.abc import Iterable
from importlib import resources
from string import Template
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dropgen_rt.geometry import Geometry
from dropgen_rt.manifest import Label, Manifest
from dropgen_rt.record import LabelVolume, Record
from dropgen_rt.report_volumes import PackedVolumes, bounds, pack
from dropgen_rt.volume import Volume

#: What a page says where the viewer is not part of the installation.
NO_VIEWER = (
    "The interactive viewer is not part of this installation, so that only the picture is shown. In a checkout "
    "bring it in with “make viewer”, elsewhere install a wheel that was built where npm is; then run infer again."
)

# The window of grey values at first: what the picture uses.
_GREY_PERCENTILES = (0.5, 99.5)

_FILES = resources.files("dropgen_rt.viewer")


def has_viewer() -> bool:
    """Whether niivue was brought in when this package was built, or by ``make viewer``."""
    return (_FILES / "niivue.umd.js").is_file() and (_FILES / "niivue.licences.txt").is_file()


def render(title: str, scan: Volume, labels: Volume, manifest: Manifest, record: Record, picture: bytes) -> str:
    """The page. ``scan`` (C, z, y, x; channel 0 is shown) and ``labels`` (1, z, y, x) share one grid.

    ``title`` names the scan to a reader; ``picture`` is a PNG file's bytes. Without the viewer the page says so, and
    shows picture and tables.
    """
    shown = has_viewer()
    packed = pack(scan, labels) if shown else PackedVolumes("", "", ())
    data = _page_data(scan, labels, manifest.labels, record.labels) if shown else {}
    return Template(_text("report.html")).substitute(
        title=html.escape(title),
        model=html.escape(manifest.name),
        style=_text("report.css"),
        warnings=_warnings(record.warnings),
        viewer=_text("viewer.html") if shown else f'<p class="note">{html.escape(NO_VIEWER)}</p>',
        notes="".join(f"<li>{html.escape(note)}</li>" for note in packed.notes),
        structures=_structures(manifest.labels, record.labels),
        picture=base64.b64encode(picture).decode("ascii"),
        record=_record_tables(record, manifest.notice),
        json=html.escape(record.to_json()),
        licences=_licences() if shown else "",
        scripts=_scripts(packed, data) if shown else "",
    )


def _text(name: str) -> str:
    return (_FILES / name).read_text(encoding="utf-8")


def _page_data(
    scan: Volume, labels: Volume, names: tuple[Label, ...], volumes: tuple[LabelVolume, ...]
) -> dict[str, Any]:
    """What the script must know beside the two volumes."""
    low, high = bounds(scan.array[0], _GREY_PERCENTILES)
    middles = _middles(labels.array[0], labels.geometry, len(names))
    structures = [
        {"value": label.value, "name": label.name, "colour": label.colour, "voxels": volume.voxels, "middle_mm": middle}
        for label, volume, middle in zip(names, volumes, middles, strict=True)
    ]
    return {"structures": structures, "window": [low, high]}


def _middles(labels: NDArray[np.unsignedinteger], geometry: Geometry, count: int) -> list[list[float] | None]:
    """Per label 1 … count, LPS millimetres of its voxel that is nearest to its centre of mass; None if it has none."""
    places = np.flatnonzero(labels)
    values = labels.ravel()[places]
    order = places[np.argsort(values, kind="stable")]
    bounds = np.searchsorted(np.sort(values), np.arange(1, count + 2))
    found: list[list[float] | None] = []
    for first, last in itertools.pairwise(bounds):
        if first == last:
            found.append(None)
            continue
        voxels = np.column_stack(np.unravel_index(order[first:last], labels.shape))[:, ::-1]  # x, y, z
        apart = (voxels - voxels.mean(axis=0)) * geometry.spacing_mm
        nearest = voxels[int(np.argmin((apart**2).sum(axis=1)))]
        found.append([round(float(mm), 3) for mm in np.ravel(geometry.to_world(nearest[None]))])
    return found


def _warnings(lines: Iterable[str]) -> str:
    items = "".join(f"<li>{html.escape(line)}</li>" for line in lines)
    return f'<ul class="warnings" aria-label="Warnings">{items}</ul>' if items else '<p class="quiet">No warnings.</p>'


def _structures(names: tuple[Label, ...], volumes: tuple[LabelVolume, ...]) -> str:
    """Rows of the table; the script finds the controls by ``data-value``."""
    rows = []
    for label, volume in zip(names, volumes, strict=True):
        colour, name = "#{:02x}{:02x}{:02x}".format(*label.colour), html.escape(label.name)
        absent = "" if volume.voxels else ' class="absent"'
        rows.append(
            f'<tr data-value="{label.value}"{absent}>'
            f'<td class="control"><input type="checkbox" checked aria-label="show {name}"></td>'
            f'<td><span class="swatch" style="background:{colour}"></span><button type="button">{name}</button></td>'
            f'<td class="number">{volume.volume_ml:.2f}</td><td class="number">{volume.voxels}</td>'
            f'<td class="control"><input type="range" min="0" max="100" value="60" aria-label="opacity of {name}"></td>'
            "</tr>"
        )
    return "\n".join(rows)


def _record_tables(record: Record, notice: str) -> str:
    """Input, model, engine, settings, timings and versions, each a small table of words."""
    seconds = {name: f"{value:.2f} s" for name, value in record.timings_s.items()}
    settings = {**record.settings, "windows": record.windows}
    model = record.model | ({"notice": notice} if notice else {})
    parts = {
        "Scan": record.input, "Model": model, "Engine": record.engine, "Settings": settings, "Time": seconds,
        "Versions": record.versions,
    }  # fmt: skip
    return "\n".join(_table(title, values) for title, values in parts.items())


def _table(title: str, values: dict[str, Any]) -> str:
    rows = "".join(
        f"<tr><th>{html.escape(key.replace('_', ' '))}</th><td>{html.escape(_word(value))}</td></tr>"
        for key, value in values.items()
    )
    return f"<section><h3>{title}</h3><table>{rows}</table></section>"


def _word(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return " x ".join(_word(item) for item in value)
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _scripts(packed: PackedVolumes, data: dict[str, Any]) -> str:
    """The data as inert text, the viewer, and the page's own script."""
    embedded = json.dumps(data).replace("<", "\\u003c")
    return "\n".join(
        (
            f'<script type="application/json" id="page-data">{embedded}</script>',
            f'<script type="text/plain" id="scan-data">{packed.scan}</script>',
            f'<script type="text/plain" id="labels-data">{packed.labels}</script>',
            f"<script>{_text('niivue.umd.js')}</script>",
            f"<script>{_text('report.js')}</script>",
        )
    )


def _licences() -> str:
    text = html.escape(_text("niivue.licences.txt"))
    return f"<details><summary>Licences of the viewer</summary><pre>{text}</pre></details>"

"""What ``models list`` and ``models show`` print."""

from collections.abc import Iterator

from dropgen_rt.build import PLANNED
from dropgen_rt.engine_files import EngineRecord, readable_records
from dropgen_rt.errors import DropgenError
from dropgen_rt.manifest import intensity_told
from dropgen_rt.store import default_name, engine_keys, installed, open_named, superseded
from dropgen_rt.words import by


def table() -> Iterator[str]:
    """One row a model; one that cannot be opened says why instead of its labels. Then one of each damaged record."""
    known, wrong = readable_records()
    for name in installed():
        mark = "*" if name == default_name() else " "
        try:
            model = open_named(name)
        except DropgenError as error:
            yield f"{mark} {name}  {error}"
            continue
        engines = [_short(known[key]) for key in engine_keys(name) if key in known]
        labels = f"{len(model.manifest.labels)} labels, {by(model.manifest.spacing_mm)} mm"
        yield f"{mark} {name}  {labels}  {', '.join(engines) or 'no engine built: openvino fp32'}"
        if superseded(name):
            yield f"  {name} is kept as it was built; for the package's newer one: dropgen-rt models remove {name}"
    yield from (f"warning: {error}" for error in wrong)


def describe(name: str | None) -> Iterator[str]:
    """Manifest and engine records. Raises ModelError."""
    model = open_named(name)
    manifest = model.manifest
    yield f"{name or default_name()}: {manifest.name}, schema {manifest.schema}"
    yield f"  file       {model.path}, {len(model.content) / 1e6:.1f} MB, sha256 {model.sha256}"
    yield f"  input      {', '.join(manifest.channels)}; {manifest.orientation}, {by(manifest.spacing_mm)} mm"
    fixed = f"multiples of {manifest.stride}, usually " if manifest.dynamic_window else ""
    yield f"  window     {fixed}{by(manifest.window)} voxels (z, y, x)"
    yield f"  overlap    {manifest.overlap}, {manifest.blend} blend"
    yield f"  components {manifest.components}"
    yield f"  intensity  {intensity_told(manifest.intensity, manifest.channels)}"
    yield f"  labels     {', '.join(f'{label.value} {label.name}' for label in manifest.labels)}"
    yield f"  golden     {manifest.golden_sha256 or 'none: the gate makes its own windows'}"
    if manifest.notice:
        yield f"  notice     {manifest.notice}"
    known, wrong = readable_records()
    for key in engine_keys(model.name) if model.name else ():
        if key in known:
            yield from _record(known[key])
    yield from (f"warning: {error}" for error in wrong)


def _record(record: EngineRecord) -> Iterator[str]:
    yield f"engine {_short(record)}"
    yield f"  library    {record.engine} {record.version}, built {record.built_utc}"
    yield f"  file       {record.bytes / 1e6:.1f} MB, sha256 {record.engine_sha256}"
    yield f"  key        {record.key}"
    batch = f"{record.batch[0]} to {record.batch[2]}" if record.batch[2] > 1 or record.engine in PLANNED else "any"
    yield f"  window     {by(record.window)}, batch {batch}"
    for name, values in (("host", record.host), ("flags", record.flags)):
        if values:
            yield f"  {name:<9}  {', '.join(f'{key} {value}' for key, value in values.items())}"
    yield f"  gate       {_gate(record)}"


def _gate(record: EngineRecord) -> str:
    if record.gate is None:
        return "not yet: it runs when the engine is first loaded"
    return f"label agreement {record.gate['agreement']:.6f} with {record.gate['referee']}"


def _short(record: EngineRecord) -> str:
    where = " ".join(f"sm_{item}" for item in record.arch) or record.device
    return f"{record.engine} {record.precision} ({where})"

"""``build-engine``: compile a model, hold it against fp32 with its golden windows, and only then install it."""

import hashlib
import logging
import platform
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from dropgen_rt.engine_files import EngineRecord, now, runtime_cache, save, supersede, sweep
from dropgen_rt.engines.choose import Choice, choose, create
from dropgen_rt.engines.contract import Engine, Kind, Precision
from dropgen_rt.errors import EngineError, ModelError, PrecisionError, UsageError, VerificationError
from dropgen_rt.gate import GateReport, judge
from dropgen_rt.model import Model
from dropgen_rt.store import check_home, check_name, default_name, install, lock, open_named
from dropgen_rt.survey import library_version, survey
from dropgen_rt.verify import golden_of

GPU_BATCH = 4
# Engines that are built for a largest batch; the others take any.
PLANNED = ("tensorrt", "rtx")


@dataclass(frozen=True)
class BuildOptions:
    """What the command line says; "auto" is resolved here. ``arch`` names GPU capabilities ("86") to build for."""

    engine: str = "auto"
    precision: str = "auto"
    arch: tuple[str, ...] = ()
    batch: str = "auto"
    name: str | None = None
    make_default: bool = True
    threads: int | None = None
    device: str = "auto"


def build(name_or_path: Path | str, options: BuildOptions, line: Callable[[str], None]) -> EngineRecord:
    """Build, judge and install; ``line`` gets what is to be printed. An installed name keeps it, unless told otherwise.

    Raises ModelError, UsageError, ResourceError, VerificationError or OutputError; then nothing is installed.
    """
    model = open_named(str(name_or_path))
    name = check_name(options.name) if options.name is not None else model.name or _name_of(model)
    check_home()
    if options.arch and options.engine != "rtx":
        raise UsageError("--arch names GPUs to build for ahead of time, which --engine rtx alone can do")
    batch = _batch(options.batch)
    if options.arch and options.device != "auto":
        raise UsageError(f"--device {options.device}: with --arch an engine is built for GPUs elsewhere; leave one out")
    if options.engine == "rtx" and (options.arch or (options.device == "auto" and not survey().gpus)):
        record, content = _ahead_of_time(model, options, batch, line)
    else:
        choice = choose(options.engine, options.precision, options.device)
        line(f"engine {choice.kind} on {choice.device}: {choice.reason}")
        if options.threads is not None and choice.device != "cpu":
            raise UsageError(f"--threads {options.threads}: for engines on the CPU; this one runs on {choice.device}")
        if batch is not None and choice.kind not in PLANNED:
            line(f"--batch {batch} changes nothing: {choice.kind} takes any number of windows at once")
        record, content = _climb(model, choice, options, batch, line)
    before = default_name()
    with lock():
        save(record, content)
        entry = install(model, name, options.make_default, (record.key,))
        sweep()
    default = ", the default model" + (f" in place of {before}" if before != name else "")
    line(f"installed {name} in {entry}" + (default if options.make_default else ""))
    return record


def _name_of(model: Model) -> str:
    try:
        return check_name(model.manifest.name)
    except UsageError as error:  # the file's fault, not the command line's
        raise ModelError(f"{model.path}: its manifest gives the {error}; choose another with --name") from error


def _batch(given: str) -> int | None:
    if given == "auto":
        return None
    if not (given.isascii() and given.isdigit() and 1 <= int(given[:9]) <= 64):
        raise UsageError(f"--batch {given}: accepted are auto and 1 to 64")
    return int(given)


def _climb(
    model: Model, choice: Choice, options: BuildOptions, batch: int | None, line: Callable[[str], None]
) -> tuple[EngineRecord, bytes]:
    """Try the precisions in order until one passes the gate; with an explicit precision there is one to try.

    A narrow precision is not chosen by itself where the gate could not judge every label.
    """
    for place, precision in enumerate(choice.precisions):
        last = place + 1 == len(choice.precisions)
        try:
            record, content, report = _make(model, choice.kind, precision, choice.device, batch, options.threads, line)
        except PrecisionError as error:  # what the machine has, this network may have no use for
            if last:
                raise
            line(f"{error}; trying {choice.precisions[place + 1]}")
            continue
        for row in report.lines(model.manifest):
            line(row)
        if report.passed and (last or not report.unjudged):
            return record, content
        if not last:
            what = "is not judged for every label" if report.passed else "fails the gate"
            line(f"precision {precision} {what}; trying {choice.precisions[place + 1]}")
    raise VerificationError(
        f"{model.path}: {choice.kind} {precision} fails the gate ({'; '.join(report.failures)}); nothing was "
        "installed; try a wider --precision, or auto"
    )


def _make(
    model: Model, kind: Kind, precision: Precision, device: str, batch: int | None, threads: int | None,
    line: Callable[[str], None],
) -> tuple[EngineRecord, bytes, GateReport]:  # fmt: skip
    content = b""
    if kind in PLANNED:
        from dropgen_rt.engines.nvidia_build import build_plan

        content = build_plan(model, kind, precision, _batches(model, kind, batch), (), line)
    with create(model, kind, precision, device, threads=threads, compiled=content or None) as engine:
        report = judge(engine, golden_of(model), model.manifest)
        content = content or _serialised(engine)
    record = _record(model, kind, precision, device, batch, (), content)
    if threads is not None:
        record = replace(record, flags=record.flags | {"threads": str(threads)})
    return replace(record, gate=report.to_dict()), content, report


def _serialised(engine: Engine) -> bytes:
    """What to keep of an engine: its compiled form, or, where there is none, a word that says so."""
    kept = getattr(engine, "serialised", None)
    return kept() if kept else f"{engine.name} opens the model itself\n".encode()


def _ahead_of_time(
    model: Model, options: BuildOptions, batch: int | None, line: Callable[[str], None]
) -> tuple[EngineRecord, bytes]:
    from dropgen_rt.engines.nvidia_build import build_plan, check_arch

    if options.threads is not None:
        raise UsageError(f"--threads {options.threads}: for engines on the CPU; this one is built for GPUs")
    if library_version("rtx") is None:
        choose("rtx", options.precision)  # says how to install it
    arch = check_arch(options.arch)
    precision: Precision = "fp16" if options.precision == "auto" else choose_ahead(options.precision)
    line(f"engine rtx ahead of time for {', '.join(f'sm_{item}' for item in arch)}, {precision}")
    content = build_plan(model, "rtx", precision, _batches(model, "rtx", batch), arch, line)
    record = _record(model, "rtx", precision, "cuda", batch, arch, content)
    line(f"built {len(content) / 1e6:.1f} MB; its gate runs when it is first loaded on such a GPU")
    return record, content


def choose_ahead(precision: str) -> Precision:
    """A precision for a GPU that is not here."""
    for item in ("fp32", "fp16", "bf16"):
        if item == precision:
            return item
    raise UsageError(f"precision {precision!r}: accepted are auto, fp32, fp16 and bf16")


def _batches(model: Model, kind: Kind, batch: int | None) -> tuple[int, int, int]:
    """Smallest, usual and largest; of engines that take any number a constant, so that their key does not change."""
    if kind not in PLANNED:
        return (1, 1, 1)
    largest = min(batch or GPU_BATCH, model.manifest.largest_batch or GPU_BATCH * 64)
    return (1, largest, largest)


def _record(
    model: Model,
    kind: Kind,
    precision: Precision,
    device: str,
    batch: int | None,
    arch: tuple[str, ...],
    content: bytes,
) -> EngineRecord:
    return EngineRecord(
        engine=kind,
        version=library_version(kind) or "",
        precision=precision,
        device=device,
        model_sha256=model.sha256,
        engine_sha256=hashlib.sha256(content).hexdigest(),
        bytes=len(content),
        window=model.manifest.window,
        batch=_batches(model, kind, batch),
        arch=arch,
        host=_host(kind, device, arch),
        flags=_flags(kind, precision, device),
        built_utc=now(),
    )


def _flags(kind: Kind, precision: Precision, device: str) -> dict[str, str]:
    """What else of how an engine is built changes its answer."""
    if device != "cpu":
        return {"tf32": "off"}
    if kind != "openvino":
        return {}
    own = {"fp32": {"means": "axis by axis"}, "int8": {"steps": "by golden windows"}}
    return {"upsampling": "taps joined"} | own.get(precision, {})


def _host(kind: Kind, device: str, arch: tuple[str, ...]) -> dict[str, str]:
    """What of this machine an engine depends on. An ahead-of-time one depends on its architectures alone."""
    if arch:
        return {}
    if device == "cpu":
        from dropgen_rt.survey import cpu_name

        return {"cpu": cpu_name(), "machine": platform.machine()}
    found = survey()
    gpu = found.gpus[int(device.partition(":")[2] or 0)]
    return {"gpu": gpu.name, "capability": gpu.capability, "driver": found.driver, "driver_cuda": found.driver_cuda}


def current(record: EngineRecord, device: str) -> EngineRecord:
    """What this record would be if it were built here now."""
    return replace(record, version=library_version(record.engine) or "", host=_host(record.engine, device, record.arch))


def rebuild(model: Model, record: EngineRecord, wanted: EngineRecord, device: str, threads: int | None) -> Engine:
    """Build an engine that no longer fits again, in its own precision, judge it, and open it.

    Raises EngineError where it cannot be built here, VerificationError if it fails the gate.
    """
    changes = [f"{old} is now {new}" for old, new in _changes(record, wanted)]
    reason = "; ".join(changes) or "its file could not be read"
    threads = threads or threads_of(record)
    if record.arch:
        raise EngineError(
            f"{record.engine} engine of {model.manifest.name}: {reason}; build it again where it was built, with "
            f"--arch {','.join(record.arch)}"
        )
    choice = choose(record.engine, record.precision, device)
    made, content, report = _make(
        model, choice.kind, record.precision, choice.device, record.batch[2], threads, lambda text: None
    )
    if not report.passed:
        raise VerificationError(
            f"{record.engine} {record.precision} of {model.manifest.name}, built again because {reason}: "
            f"{'; '.join(report.failures)}; run dropgen-rt build-engine"
        )
    # Nobody asked for this build, so it is said where it cannot be missed.
    logging.getLogger("dropgen_rt").warning(
        "engine %s %s of %s was built again: %s", made.engine, made.precision, model.manifest.name, reason
    )
    supersede(record, made, content)
    return create(
        model, made.engine, made.precision, device, threads=threads, compiled=content,
        runtime_cache=runtime_cache(made),
    )  # fmt: skip


def threads_of(record: EngineRecord) -> int | None:
    return int(record.flags["threads"]) if "threads" in record.flags else None


def _changes(record: EngineRecord, wanted: EngineRecord) -> list[tuple[str, str]]:
    pairs = [(f"{record.engine} {record.version}", wanted.version)] if record.version != wanted.version else []
    keys = sorted(record.host.keys() | wanted.host.keys())
    return pairs + [
        (record.host.get(key, "nothing"), wanted.host.get(key, "nothing"))
        for key in keys
        if record.host.get(key) != wanted.host.get(key)
    ]

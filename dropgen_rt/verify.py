"""``verify``: the gate at any time, and on a real scan the comparison with fp32 reference mode."""

from collections.abc import Callable
from pathlib import Path

from dropgen_rt.engines.choose import create, open_engine
from dropgen_rt.errors import VerificationError
from dropgen_rt.gate import LIMITS, GateReport, judge
from dropgen_rt.golden import Golden, answered, stored, synthetic_windows
from dropgen_rt.model import Model
from dropgen_rt.survey import library_version


def golden_of(model: Model) -> Golden:
    """The golden windows that the model carries, or, for one that carries none, synthetic ones answered here in fp32.

    Raises ModelError for golden windows that the manifest does not name.
    """
    return stored(model.content, model.manifest) or live_golden(model, None)


def live_golden(model: Model, stored: Golden | None) -> Golden:
    """Windows (the stored ones, else synthetic) answered on this machine in fp32: by ONNX Runtime if it is here."""
    kind = "onnxruntime" if library_version("onnxruntime") is not None else "openvino"
    windows = synthetic_windows(model.manifest) if stored is None else stored.windows
    source = "synthetic" if stored is None else stored.source
    with create(model, kind, "fp32", "cpu") as referee:  # type: ignore[arg-type]
        return answered(windows, referee.infer, source, f"{referee.name} {referee.version} fp32, here")


def verify(model: Model, device: str, line: Callable[[str], None], scan: Path | None = None) -> GateReport:
    """Run the gate on the engine that ``infer`` would use, and on a scan if one is given.

    Raises VerificationError if the engine, or the referee itself on this machine, fails.
    """
    with open_engine(model, device) as engine:  # first: a device that is not there is found before any work
        golden = golden_of(model)
        if model.manifest.golden_sha256 and library_version("onnxruntime") is not None:
            with create(model, "onnxruntime", "fp32", "cpu") as referee:
                _require(judge(referee, golden, model.manifest), model, line)
        report = judge(engine, golden, model.manifest)
        _require(report, model, line)
        if scan is not None:
            from dropgen_rt.verify_scan import compare_scan

            compare_scan(scan, model, engine, line)
    return report


def _require(report: GateReport, model: Model, line: Callable[[str], None]) -> None:
    for row in report.lines(model.manifest):
        line(row)
    if not report.passed:
        raise VerificationError(
            f"{report.engine} {report.precision} of {model.manifest.name}: {'; '.join(report.failures)}; "
            f"limits: {LIMITS[report.precision].agreement} and {LIMITS[report.precision].dice}; build the engine again"
        )

"""What every results file says beside its figures."""

import json
import platform
import shlex
import shutil
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import dropgen_rt


def machine() -> dict[str, object]:
    cpu = next(
        (line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line),
        platform.processor(),
    )
    import os

    return {"cpu": cpu, "cores": len(os.sched_getaffinity(0)), "system": platform.platform(terse=True)}


def commit() -> str | None:
    """The commit whose Python runs, "-dirty" where more than results differed; the version is the installation's."""
    if not shutil.which("git"):
        return None

    def git(*words: str) -> str:
        command = ["git", "-C", str(Path(__file__).parents[1]), *words]
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()

    changed = git("status", "--porcelain", "--untracked-files=no", "--", ".", ":!benchmarks/results")
    return (git("rev-parse", "--short", "HEAD") + ("-dirty" if changed else "")) or None


COMMIT = commit()  # now, not when hours have passed


def write(out: Path, figures: dict[str, object]) -> None:
    """Write ``figures`` with their provenance to ``out``."""
    document = {
        "command": "python " + shlex.join([Path(sys.argv[0]).as_posix(), *sys.argv[1:]]),
        "date": datetime.now(UTC).date().isoformat(),
        "version": dropgen_rt.__version__,
        "commit": COMMIT,
        "machine": machine(),
        **figures,
    }
    out.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    print(f"wrote {out}")

"""Bring niivue, in the version of package.json and of the digests in package-lock.json, into this folder.

    python dropgen_rt/viewer/fetch.py [--optional]

It needs npm, and its registry or cache. ``make viewer`` runs it, and the build of wheel and sdist, with
``--optional``: then a viewer that cannot be had is said and not fatal. Standard library only.
"""

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

FOLDER = Path(__file__).parent
SCRIPT, LICENCES = FOLDER / "niivue.umd.js", FOLDER / "niivue.licences.txt"
PACKAGE = "@niivue/niivue"

# niivue's label shader knows only shown and hidden structures. Three lines of it are changed, so that each has an
# opacity of its own, and none that is hidden leaves its colour, or an outline, where its neighbours begin.
_CHANGES = (
    ("clr.a = 1.0;\n\tclr.a *= opacity;\n\treturn clr;\n}\nvoid", "clr.a *= opacity;\n\treturn clr;\n}\nvoid"),
    ("FragColor.a /= 7.0;", "FragColor = centerColor.a > 0.0 ? vec4(FragColor.rgb, FragColor.a / 7.0) : vec4(0.0);"),
    ("FragColor.a = xyzaFrac.a;", "FragColor.a = centerColor.a > 0.0 ? xyzaFrac.a : 0.0;"),
)
_NPM = ("ci", "--ignore-scripts", "--no-audit", "--no-fund", "--omit=dev", "--omit=optional", "--fetch-retries=1",
        "--loglevel=error")  # fmt: skip

# A registry that does not answer must not hold up a build.
_PATIENCE_S = 180


def heading() -> str:
    """The first line of the licence file: it tells which version, with which changes, lies here."""
    version = json.loads((FOLDER / "package.json").read_text(encoding="utf-8"))["dependencies"][PACKAGE]
    changes = hashlib.sha256(repr(_CHANGES).encode()).hexdigest()[:8]
    return f"niivue {version}, its label shader changed ({changes}), and the packages inside it"


def is_present() -> bool:
    """Whether the version that package.json names lies here already."""
    if not (SCRIPT.is_file() and LICENCES.is_file()):
        return False
    with LICENCES.open(encoding="utf-8") as file:
        return file.readline().rstrip("\n") == heading()


def fetch() -> None:
    """Install into a temporary folder, keep the script and the licences. Raises OSError or SubprocessError."""
    npm = shutil.which("npm")
    if npm is None:
        raise FileNotFoundError("npm is not installed")
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        for name in ("package.json", "package-lock.json"):
            shutil.copyfile(FOLDER / name, folder / name)
        subprocess.run([npm, *_NPM], cwd=folder, check=True, capture_output=True, text=True, timeout=_PATIENCE_S)
        modules = folder / "node_modules"
        _put(LICENCES, _licences(modules))
        _put(SCRIPT, _changed((modules / PACKAGE / "dist" / "niivue.umd.js").read_text(encoding="utf-8")))


def _changed(script: str) -> str:
    for old, new in _CHANGES:
        if script.count(old) != 1:
            raise OSError(f"another niivue than {heading()}: {old!r} is in it {script.count(old)} times")
        script = script.replace(old, new)
    return script


def _licences(modules: Path) -> str:
    """Every package's own text; niivue's package carries none, so its repository's stands here."""
    parts = [heading(), f"{PACKAGE}\n\n{(FOLDER / 'LICENSE.niivue').read_text(encoding='utf-8')}"]
    for description in sorted([*modules.glob("*/package.json"), *modules.glob("@*/*/package.json")]):
        package = json.loads(description.read_text(encoding="utf-8"))
        if package["name"] == PACKAGE:
            continue
        found = [entry for entry in description.parent.iterdir() if entry.name.lower().startswith("licen")]
        text = found[0].read_text(encoding="utf-8") if found else f"Licence: {package['license']}\n"
        parts.append(f"{package['name']} {package['version']}\n\n{text}")
    return "\n\n----------------------------------------\n\n".join(part.strip() for part in parts) + "\n"


def _put(final: Path, text: str) -> None:
    temporary = final.with_name(f".{final.name}.{os.getpid()}")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(final)


def main() -> int:
    parser = argparse.ArgumentParser(description="Bring the report's viewer into the package.")
    parser.add_argument("--optional", action="store_true", help="go on without it where it cannot be had")
    optional = parser.parse_args().optional
    if is_present():
        return 0
    try:
        fetch()
    except (OSError, subprocess.SubprocessError) as error:
        said = error.stderr if isinstance(error, subprocess.CalledProcessError) else ""
        reason = (said.strip() or str(error)).splitlines()[0]
        print(f"the report's viewer was not brought in ({reason}); install npm, then: make viewer", file=sys.stderr)
        return 0 if optional else 1
    print(f"wrote {SCRIPT.name} and {LICENCES.name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""What the documents say exists: links, files, verbs, options."""

import re
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from dropgen_rt.cli import main

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("dropgen_rt/models/*.md")])


def commands() -> list[tuple[str, str]]:
    """(page, command) of every dropgen-rt command in a fenced block."""
    found = []
    for page in PAGES:
        for block in re.findall(r"```sh\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL):
            lines = block.replace("\\\n", " ").splitlines()
            found += [(page.name, line.split("#")[0].strip()) for line in lines if line.startswith("dropgen-rt ")]
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", page.read_text(encoding="utf-8")):
        if not target.startswith("http"):
            assert (page.parent / target).exists(), target


@pytest.mark.parametrize(("page", "command"), commands())
def test_commands_name_verbs_and_options_that_exist(page: str, command: str) -> None:
    words = command.split()
    verb = words[1:3] if isinstance(main.commands.get(words[1]), click.Group) else words[1:2]
    shown = CliRunner().invoke(main, [*verb, "--help"])
    assert shown.exit_code == 0, command
    for option in (word for word in words if re.fullmatch(r"--?[a-z-]+", word)):
        assert re.search(rf"(^|[\s,]){option}\b", shown.output), f"{page}: {option}"


def test_makefile_has_the_readme_verbs() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for verb in re.findall(r"^make (.+?)(?:\s+#.*)?$", (ROOT / "README.md").read_text(encoding="utf-8"), re.MULTILINE):
        for word in verb.split():
            assert f"\n{word}:" in makefile


def test_ci_calls_the_readme_test_command() -> None:
    assert "make test" in (ROOT / "README.md").read_text(encoding="utf-8")
    assert "make test" in (ROOT / ".ci" / "run").read_text(encoding="utf-8")

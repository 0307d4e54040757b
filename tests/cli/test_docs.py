"""The reference names every command and flag, the README only things that exist."""

from __future__ import annotations

import re
from pathlib import Path

import typer

from effc.cli.app import app

ROOT = Path(__file__).parents[2]


def options() -> dict[str, set[str]]:
    """Long flags by command."""
    command = typer.main.get_command(app)
    found = {}
    for name, sub in command.commands.items():  # type: ignore[attr-defined]
        flags = {flag for p in sub.params for flag in (*p.opts, *p.secondary_opts)}
        found[name] = {flag for flag in flags if flag.startswith("--")}
    return found


def test_reference_names_every_command_and_flag() -> None:
    text = (ROOT / "docs" / "REFERENCE.md").read_text()
    for command, flags in options().items():
        assert f"effc {command}" in text, command
        for flag in flags:
            assert flag in text, f"{command} {flag}"


def test_documents_name_only_flags_that_exist() -> None:
    known = {flag for flags in options().values() for flag in flags} | {"--version", "--help"}
    for name in ("README.md", "docs/REFERENCE.md", "docs/ERRORS.md", "examples/digits/demo.py"):
        used = set(re.findall(r"(?<![\w-])--[a-z][a-z-]*[a-z]", (ROOT / name).read_text()))
        assert used <= known, f"{name}: {used - known}"


def test_links_lead_somewhere() -> None:
    for path in (ROOT / "README.md", *ROOT.glob("docs/*.md")):
        for target in re.findall(r"\]\(([^)#]+)\)", path.read_text()):
            if "://" not in target:
                assert (path.parent / target).exists(), f"{path.name}: {target}"

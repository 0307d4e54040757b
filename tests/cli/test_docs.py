"""The reference names every command and flag, the README only things that exist."""

from __future__ import annotations

import re
from pathlib import Path

import typer

from effc.cli.app import app
from effc.packages.formats import FORMATS

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
    sections: dict[str, str] = {}
    for text in (ROOT / "docs" / "REFERENCE.md").read_text().split("\n### ")[1:]:
        for command in re.findall(r"`effc (\w+)", text.partition("\n")[0]):
            sections[command] = text
    sections["compile"] += sections["compress"]  # it takes those too, and says so
    for command, flags in options().items():
        for flag in flags - {"--json", "--quiet", "--verbose", "--help"}:
            assert flag in sections[command], f"{command} {flag}"


def test_export_formats_are_documented() -> None:
    flags = typer.main.get_command(app).commands["export"].params  # type: ignore[attr-defined]
    (help_text,) = [p.help for p in flags if "--as" in p.opts]
    for name in ("EXPORT.md", "REFERENCE.md"):
        text = (ROOT / "docs" / name).read_text()
        for format in FORMATS:
            assert f"`{format}`" in text, f"{name}: {format}"
            assert format in help_text


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

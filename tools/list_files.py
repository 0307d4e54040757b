"""Write docs/FILES.md: every source file and what it is for, from the first line of each.

python tools/list_files.py
"""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parent.parent
FOLDERS = ("compiler", "passes", "kernels", "devices", "runtimes", "benchmarks", "tools")
SUFFIXES = (".py", ".c", ".h", ".hpp", ".sh", ".toml")

HEAD = """\
# Files

What every source file is for: the first line of each, by folder. Made by `tools/list_files.py`. How
the parts work together is in [ARCHITECTURE.md](ARCHITECTURE.md).
"""


def main() -> None:
    """Write the page."""
    parts = [HEAD]
    folders = {path.parent for top in FOLDERS for path in (ROOT / top).rglob("*")}
    for folder in sorted(folders):
        rows = [row for path in sorted(folder.iterdir()) if (row := _row(path)) is not None]
        if rows:
            parts.append(f"## {folder.relative_to(ROOT)}/\n")
            about = _first_sentence(folder / "__init__.py")
            parts += [f"{about}\n"] if about else []
            parts.append("\n".join(["| file | what for |", "|---|---|", *rows]) + "\n")
    (ROOT / "docs" / "FILES.md").write_text("\n".join(parts), "utf-8")


def _row(path: Path) -> str | None:
    if path.suffix not in SUFFIXES or path.name == "__init__.py":
        return None
    return f"| `{path.name}` | {_first_sentence(path)} |"


def _first_sentence(path: Path) -> str:
    """The first paragraph of a module's docstring or of a file's comment, up to its first stop."""
    if not path.is_file():
        return ""
    text = path.read_text("utf-8")
    if path.suffix == ".py":
        text = ast.get_docstring(ast.parse(text)) or ""
    elif path.suffix in (".sh", ".toml"):
        lines = [line for line in text.splitlines() if not line.startswith("#!")]
        text = "\n".join(line.lstrip("# ") for line in lines if line.startswith("#"))
    else:
        comment = re.match(r"\s*/\*(.*?)\*/|\s*((?://[^\n]*\n)+)", text, re.DOTALL)
        text = "" if comment is None else re.sub(r"(?m)^\s*(\*|//) ?", "", comment[1] or comment[2])
    paragraph = " ".join(text.strip().split("\n\n")[0].split())
    paragraph = re.sub(rf"^{re.escape(path.name)}[^-]* - ", "", paragraph)
    sentence = re.split(r"(?<=[a-z0-9)`%])[.:](?= [A-Z`(]|$)", paragraph)[0]
    return sentence.rstrip(".:").replace("``", "`").replace("|", "\\|")


if __name__ == "__main__":
    main()

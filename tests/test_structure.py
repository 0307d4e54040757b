"""Folders and modules: what is installed, what they import, and that they say what they are for."""

from __future__ import annotations

import ast
import tomllib
from pathlib import Path

import networkx as nx
import pytest

ROOT = Path(__file__).parent.parent
SETTINGS = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
FOLDERS = SETTINGS["package-dir"]


MAY_IMPORT = {
    "devices": {"effc.errors"},
    "passes": {"effc.errors"},
    "kernels": {"effc.errors", "effc.devices"},
    "runtimes": {"effc.errors"},
}


def package_of(folder: Path) -> str:
    """Name of the package in a folder of the repository."""
    name, base = next((n, ROOT / f) for n, f in FOLDERS.items() if folder.is_relative_to(ROOT / f))
    return ".".join([name, *folder.relative_to(base).parts])


@pytest.mark.parametrize("folder", sorted(FOLDERS.values()))
def test_every_folder_with_modules_is_a_package(folder: str) -> None:
    found = {package_of(path.parent) for path in (ROOT / folder).rglob("__init__.py")}
    assert found
    assert found <= set(SETTINGS["packages"])


@pytest.mark.parametrize("folder", sorted(FOLDERS.values()))
def test_every_file_of_data_is_package_data(folder: str) -> None:
    data = {
        path
        for package, patterns in SETTINGS["package-data"].items()
        for pattern in patterns
        for path in _folder_of(package).glob(pattern)
    }
    files = {
        path
        for path in (ROOT / folder).rglob("*")
        if path.is_file() and path.suffix != ".py" and "__pycache__" not in path.parts
    }
    assert files <= data


def _folder_of(package: str) -> Path:
    base = max((n for n in FOLDERS if f"{package}.".startswith(f"{n}.")), key=len)
    return ROOT.joinpath(FOLDERS[base], *package.removeprefix(base).strip(".").split("."))


@pytest.mark.parametrize(("folder", "allowed"), MAY_IMPORT.items())
def test_folders_import_what_stands_below_them(folder: str, allowed: set[str]) -> None:
    found = set()
    for path in (ROOT / folder).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom):
                names = [node.module or ""]
                names += [f"effc.{alias.name}" for alias in node.names if node.module == "effc"]
            found |= {".".join(n.split(".")[:2]) for n in names if n.split(".")[0] == "effc"}
    assert found - {"effc"} <= allowed | {f"effc.{folder}"}


def test_every_module_says_what_it_is_for() -> None:
    silent = [
        path
        for folder in FOLDERS.values()
        for path in (ROOT / folder).rglob("*.py")
        if not ast.get_docstring(ast.parse(path.read_text()))
    ]
    assert not silent


def test_no_module_imports_itself_through_others() -> None:
    """Not even by imports inside functions."""
    paths = {
        package_of(path.with_suffix("")).removesuffix(".__init__"): path
        for folder in FOLDERS.values()
        for path in (ROOT / folder).rglob("*.py")
    }
    graph = nx.DiGraph()
    for name, path in paths.items():
        tree = ast.parse(path.read_text())
        typing_only = {
            id(node)
            for branch in ast.walk(tree)
            if isinstance(branch, ast.If) and "TYPE_CHECKING" in ast.dump(branch.test)
            for node in ast.walk(branch)
        }
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and id(node) not in typing_only:
                for alias in node.names:
                    found = f"{node.module}.{alias.name}"
                    graph.add_edge(name, found if found in paths else node.module)
    assert not list(nx.simple_cycles(graph))

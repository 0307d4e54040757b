"""What is installed is all that is in the folders."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SETTINGS = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
FOLDERS = SETTINGS["package-dir"]


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

"""What every package format starts from, and how packages are written."""

from __future__ import annotations

import errno
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from importlib import resources
from pathlib import Path
from typing import Any

from effc.artifact import Artifact
from effc.errors import UsageError

__all__ = [
    "Binary",
    "Package",
    "argument_names",
    "copy",
    "module_text",
    "render",
    "runtime_text",
    "staged",
    "write",
]

_VERSION = re.compile(r"(0|[1-9]\d*)\.(0|[1-9]\d*)\.(0|[1-9]\d*)")
_GROUP = re.compile(r"[a-z][a-z0-9_]*(\.[a-z][a-z0-9_]*)*")
_SYSTEMS = {
    "linux": "Linux",
    "android": "Android",
    "apple": "Apple's systems",
    "none": "a microcontroller, or C source",
}
"""Operating systems of targets, for messages."""


@dataclass(frozen=True)
class Binary:
    """A library of an artifact.

    Attributes:
        target: Name of the target it was compiled for.
        abi: ``arm64-v8a``, ``x86_64-linux-gnu`` ...
        path: The file.
        machine: What it was compiled for, as in the manifest.
    """

    target: str
    abi: str
    path: Path
    machine: Mapping[str, Any]


@dataclass(frozen=True)
class Package:
    """An artifact on its way into a package.

    Attributes:
        artifact: What is packed.
        output: Folder that the package is for; what lies there already stays.
        version: Of the package, three numbers.
        group: Maven group and Java package, ``com.example.models``.

    Raises:
        UsageError: The version or the group has another form.
    """

    artifact: Artifact
    output: Path
    version: str = "1.0.0"
    group: str = "effc.models"

    def __post_init__(self) -> None:
        if not _VERSION.fullmatch(self.version):
            raise UsageError(
                "the version of the package has another form",
                where="--package-version",
                expected="three numbers, for example 1.2.0",
                got=repr(self.version),
            )
        if not _GROUP.fullmatch(self.group):
            raise UsageError(
                "the group is no Java package name",
                where="--group",
                expected="lower-case words with dots between, for example com.example.models",
                got=repr(self.group),
            )

    @property
    def name(self) -> str:
        """C prefix of the model, and the name of every package."""
        return self.artifact.name

    @property
    def manifest(self) -> Mapping[str, Any]:
        return self.artifact.manifest

    @cached_property
    def binaries(self) -> tuple[Binary, ...]:
        """The libraries, the artifact's first one first."""
        return tuple(
            Binary(m["target"], m["abi"], self.artifact.folder / m["library"], m["machine"])
            for m in self.artifact.libraries
        )

    @property
    def weights(self) -> Path | None:
        """The file of weights that the libraries share; ``None`` if each has its own."""
        name = self.manifest["weights_file"]
        return self.artifact.folder / name if name else None

    @cached_property
    def headers(self) -> tuple[Path, ...]:
        """``NAME.h``, ``effc.h`` and, with a file of weights, ``effc_weights.h``."""
        return tuple(sorted((self.artifact.folder / "include").glob("*.h")))

    def require_os(self, *systems: str, format: str) -> None:
        """Refuse an artifact that is for another operating system than the format.

        Raises:
            UsageError: It is.
        """
        found = {binary.machine["os"] for binary in self.binaries}
        if not found <= set(systems):
            raise UsageError(
                f"the artifact cannot be packed as {format}",
                where=str(self.artifact.path),
                expected=f"one for {' or '.join(_SYSTEMS[system] for system in systems)}",
                got=f"one for {self.manifest['target']}",
                hint="compile the model for such a target first",
            )


def argument_names(ports: Sequence[Mapping[str, Any]]) -> list[str]:
    """Different names for tensors that no programming language reserves: ``imageData`` ..."""
    names: list[str] = []
    for port in ports:
        stem = re.sub(r"\W+", "_", port["name"], flags=re.ASCII).strip("_") or "tensor"
        name = f"{stem[0].lower()}{stem[1:]}Data" if stem[0].isalpha() else f"tensor{stem}Data"
        while name in names:
            name += "_"
        names.append(name)
    return names


def render(template: str, **values: Any) -> str:
    """A text from ``templates/packages/``; nothing is escaped, so values must be plain names."""
    import jinja2

    environment = jinja2.Environment(
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        undefined=jinja2.StrictUndefined,
        loader=jinja2.FunctionLoader(_template),
    )
    return environment.get_template(template).render(**values)


def _template(name: str) -> str:
    return resources.files("effc").joinpath(f"templates/packages/{name}").read_text("utf-8")


def runtime_text(name: str) -> str:
    """A file of ``runtimes/``."""
    return resources.files("effc.runtimes").joinpath(name).read_text("utf-8")


def module_text(folder: str, name: str) -> str:
    """Source of a module of effc."""
    return resources.files("effc." + folder if folder else "effc").joinpath(name).read_text("utf-8")


@contextmanager
def staged(output: Path) -> Iterator[Path]:
    """A hidden folder beside ``output``, whose files move into it when the block ends well.

    Files already at ``output`` stay, those of the same name are replaced one by one.

    Raises:
        UsageError: ``output`` is a file or cannot be written.
    """
    output = output.absolute()
    if output.exists() and not output.is_dir():
        raise UsageError("in the way: not a folder", where=f"-o {output}")
    if not output.parent.is_dir():
        raise UsageError("the output's folder does not exist", where=f"-o {output}")
    try:
        with tempfile.TemporaryDirectory(prefix=f".{output.name}.", dir=output.parent) as name:
            folder = Path(name)
            yield folder
            _move(folder, output)
    except OSError as error:
        raise UsageError(
            f"cannot write the package: {(error.strerror or str(error)).lower()}",
            where=f"-o {output}",
            hint="free some space" if error.errno in (errno.ENOSPC, errno.EDQUOT) else None,
        ) from error


def _move(folder: Path, output: Path) -> None:
    for file in sorted(folder.rglob("*")):
        target = output / file.relative_to(folder)
        if file.is_dir():
            target.mkdir(parents=True, exist_ok=True)
        else:
            target.parent.mkdir(parents=True, exist_ok=True)
            os.replace(file, target)


def copy(source: Path, target: Path) -> None:
    """Copy a file, making the folders above it; permissions are the plain ones."""
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)


def write(target: Path, text: str) -> None:
    """Write a text file, making the folders above it."""
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(text, encoding="utf-8")

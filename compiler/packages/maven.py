"""A Maven repository in a folder, with the AAR in it.

Layout: maven.apache.org, "Maven 2 Repository Layout" and "Repository Metadata"; Gradle and Maven
check the checksums beside every file.
"""

from __future__ import annotations

import hashlib
import xml.etree.ElementTree as ElementTree
from pathlib import Path

from effc.errors import UsageError
from effc.packages import aar
from effc.packages.package import Package, render, write

__all__ = ["usage", "write_package"]

_CHECKSUMS = ("md5", "sha1", "sha256", "sha512")
_METADATA = "maven-metadata.xml"


def write_package(package: Package, folder: Path) -> None:
    """Fill a repository; versions that the output folder already holds stay listed.

    Raises:
        UsageError: The artifact is not for Android, or the folder's list is damaged.
        ToolError: There is no javac.
    """
    place = f"{package.group.replace('.', '/')}/{package.name}"
    target = folder / place / package.version
    target.mkdir(parents=True)
    aar.write_package(package, target)
    values = {
        "group": package.group,
        "name": package.name,
        "version": package.version,
        "target": package.manifest["target"],
        "versions": _versions(package, place),
    }
    pom = target / f"{package.name}-{package.version}.pom"
    write(pom, render("aar/pom.xml.j2", **values))
    write(folder / place / _METADATA, render("aar/maven-metadata.xml.j2", **values))
    for file in [file for file in folder.rglob("*") if file.is_file()]:
        for algorithm in _CHECKSUMS:
            digest = hashlib.new(algorithm, file.read_bytes()).hexdigest()
            write(file.with_name(f"{file.name}.{algorithm}"), digest)


def usage(package: Package) -> str:
    """Gradle lines, and a call in Kotlin."""
    return (
        f'repositories {{ maven {{ url = uri("{package.output}") }} }}   // settings.gradle.kts\n'
        f'dependencies {{ implementation("{package.group}:{package.name}:{package.version}") }}\n'
        + aar.calls(package)
    )


def _versions(package: Package, place: str) -> list[str]:
    """All versions in the repository, oldest first."""
    file = package.output / place / _METADATA
    versions = {package.version}
    if file.is_file():
        try:
            found = ElementTree.parse(file).getroot().findall("versioning/versions/version")
            versions |= {version.text or "" for version in found}
            return sorted(versions, key=lambda text: [int(part) for part in text.split(".")])
        except (ElementTree.ParseError, ValueError) as error:
            raise UsageError(
                "the repository's list of versions is damaged", where=str(file), got=error
            ) from error
    return sorted(versions)

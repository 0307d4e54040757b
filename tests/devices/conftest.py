"""Devices for tests: this machine, one behind a real sshd, and the double of a phone."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from adb_double import AdbDouble
from places import Place, make_phone, need
from sshd import HOST, Sshd


@pytest.fixture(scope="session")
def sshd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sshd]:
    """A server for all tests; its client's configuration may be changed."""
    need("sshd", "openssh-server")
    need("ssh", "openssh-client")
    with Sshd(tmp_path_factory.mktemp("sshd") / "server") as server:
        yield server


@pytest.fixture
def ssh_place(sshd: Sshd, monkeypatch: pytest.MonkeyPatch) -> Place:
    sshd.configure(sshd.port)
    monkeypatch.setenv("PATH", f"{sshd.path}:{os.environ['PATH']}")
    return Place(f"ssh:{HOST}", sshd.folder / "cache" / "effc" / "device", sshd=sshd)


@pytest.fixture
def adb_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    need("adb", "adb")
    phone = make_phone(tmp_path / "phone")
    with AdbDouble(phone) as double:
        for name, value in double.environment.items():
            monkeypatch.setenv(name, value)
        base = phone.path(f"/data/local/tmp/effc-{os.getuid()}")
        yield Place(f"adb:{phone.serial}", base, phone=phone)


@pytest.fixture
def local_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return Place("local", tmp_path / "cache" / "effc" / "device")


@pytest.fixture(params=["local", "ssh", "adb"])
def place(request: pytest.FixtureRequest) -> Place:
    """Each kind of device in turn."""
    found = request.getfixturevalue(f"{request.param}_place")
    assert isinstance(found, Place)
    return found

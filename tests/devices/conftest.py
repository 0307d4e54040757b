"""Devices for tests: this machine, one behind a real sshd, and the double of a phone."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from adb_double import AdbDouble, Phone
from places import Place, arm_tools, make_arm_phone, make_phone, need
from sshd import HOST, Sshd

from effc import zig
from effc.devices.probe import facts_of


@pytest.fixture(scope="session")
def sshd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sshd]:
    """A server for all tests; its client's configuration may be changed."""
    need("sshd", "openssh-server")
    need("ssh", "openssh-client")
    with Sshd(tmp_path_factory.mktemp("sshd") / "server") as server:
        yield server


@pytest.fixture(scope="session")
def foreign(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The library that lets a device's shell start programs for 64-bit Arm."""
    qemu = need("qemu-aarch64", "qemu-user")
    library = tmp_path_factory.mktemp("foreign") / "foreign.so"
    source = Path(__file__).parent / "foreign.c"
    flags = ["-shared", "-fPIC", "-O1", "-Wall", "-Werror", f'-DQEMU="{qemu}"']
    zig.run_tool([str(zig.zig_path()), "cc", *flags, str(source), "-o", str(library)])
    return library


@pytest.fixture
def ssh_place(sshd: Sshd, monkeypatch: pytest.MonkeyPatch) -> Place:
    return reach(sshd, monkeypatch)


@pytest.fixture
def arm_ssh_place(
    tmp_path: Path, foreign: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Place]:
    """As ``ssh_place``, but a machine with 64-bit Arm."""
    need("sshd", "openssh-server")
    with Sshd(tmp_path / "server", {"LD_PRELOAD": str(foreign)}) as server:
        arm_tools(server.tools)
        yield reach(server, monkeypatch)


def reach(server: Sshd, monkeypatch: pytest.MonkeyPatch) -> Place:
    server.configure(server.port)
    shutil.rmtree(server.folder / "cache", ignore_errors=True)
    facts_of.cache_clear()
    monkeypatch.setenv("PATH", f"{server.path}:{os.environ['PATH']}")
    return Place(f"ssh:{HOST}", server.folder / "cache" / "effc" / "device", sshd=server)


@pytest.fixture
def adb_double(monkeypatch: pytest.MonkeyPatch) -> Iterator[AdbDouble]:
    """adb's server, without phones yet."""
    need("adb", "adb")
    with AdbDouble() as double:
        for name, value in double.environment.items():
            monkeypatch.setenv(name, value)
        yield double


@pytest.fixture
def adb_place(adb_double: AdbDouble, tmp_path: Path) -> Place:
    return plug_in(make_phone(tmp_path / "phone"), adb_double)


@pytest.fixture
def arm_adb_place(adb_double: AdbDouble, tmp_path: Path, foreign: Path) -> Place:
    """As ``adb_place``, but a phone with 64-bit Arm."""
    return plug_in(make_arm_phone(tmp_path / "phone", foreign), adb_double)


def plug_in(phone: Phone, double: AdbDouble) -> Place:
    double.phones.append(phone)
    facts_of.cache_clear()
    base = phone.path(f"/data/local/tmp/effc-{os.getuid()}")
    return Place(f"adb:{phone.serial}", base, phone=phone)


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

"""The scripts of devices with the shells and tools that devices have, and nothing else."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from adb_double import AdbDouble
from places import Place, make_phone, need

from effc.devices.process import Finished
from effc.devices.session import Session
from effc.devices.transport import open_device
from effc.errors import DeviceError

TOOLS = ["cat", "chmod", "df", "env", "find", "id", "ln", "mkdir", "mv", "printf", "readlink", "rm"]
TOOLS += ["setsid", "sha256sum", "sleep", "tar", "touch", "tr", "uname"]
LONG = str(20_000_000 + os.getpid())


def android(folder: Path) -> None:
    """mksh and toybox, as in Android since 6."""
    (folder / "sh").symlink_to(need("mksh", "mksh"))
    toybox = need("toybox", "toybox")
    known = subprocess.run([toybox], capture_output=True, text=True, check=True).stdout.split()
    for tool in TOOLS:
        if tool in known:
            (folder / tool).symlink_to(toybox)


def busybox(folder: Path) -> None:
    """BusyBox, as in small Linux systems."""
    program = need("busybox", "busybox")
    for tool in ("sh", *TOOLS):
        (folder / tool).symlink_to(program)


def bash(folder: Path) -> None:
    (folder / "sh").symlink_to(need("bash", "bash"))
    for tool in TOOLS:
        (folder / tool).symlink_to(need(tool, "coreutils"))


def dash_without_setsid(folder: Path) -> None:
    (folder / "sh").symlink_to(need("dash", "dash"))
    for tool in TOOLS:
        if tool != "setsid":
            (folder / tool).symlink_to(need(tool, "coreutils"))


@pytest.mark.parametrize("install", [android, busybox, bash, dash_without_setsid])
def test_a_session(install: object, adb_double: AdbDouble, tmp_path: Path) -> None:
    tools = tmp_path / "tools"
    tools.mkdir()
    install(tools)  # type: ignore[operator]
    phone = make_phone(tmp_path / "phone")
    phone.environment["PATH"] = str(tools)
    adb_double.phones.append(phone)
    place = Place(f"adb:{phone.serial}", phone.path(f"/data/local/tmp/effc-{os.getuid()}"))
    program = b'#!/bin/sh\nread -r word; echo "$word $1 $X" >out; echo done; exit 7\n'
    results: list[str] = []

    def job(session: Session) -> Finished:
        session.push({"program": program, "twin": program}, keep=True)
        session.push({"in": b"a\n"})
        environment = {"X": "c  '$(id)"}
        done = session.run(["program", "b *"], 30, stdin="in", environment=environment)
        session.pull(["out"], tmp_path)
        results.append((tmp_path / "out").read_text())
        assert "machine" in session.probe()
        session.push({"hang": f"#!/bin/sh\nexec {need('sleep', 'coreutils')} {LONG}\n".encode()})
        with pytest.raises(DeviceError, match="did not finish"):
            session.run(["hang"], 1)
        return done

    with open_device(place.device) as device:
        done = device.call(job)
        assert (done.code, done.out) == (7, b"done\n")
        assert results == ["a b * c  '$(id)\n"]
        device.call(Session.clean)
    assert [f.name for f in place.base.rglob("*")] == ["cache"]
    place.assert_clean()

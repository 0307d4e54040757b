"""Sessions on devices of each kind: files there and back, programs, limits, nothing left."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from places import Place, need, processes
from sshd import HOST, Sshd

from effc.devices.address import Address, parse_device
from effc.devices.process import Finished
from effc.devices.session import Session
from effc.devices.transport import open_device
from effc.errors import DeviceError, InternalError, UsageError

ECHO = b'#!/bin/sh\nfor word; do printf "<%s>" "$word"; done; echo " $MARK"; cat; exit 3\n'
LONG = str(10_000_000 + os.getpid())
"""Seconds that programs of this run sleep, and by which they are known."""

NASTY = ["a b", "$(id)", "`id`", "'\"\\", ";", "", "-n", "*", "ü\n2"]


def within(device: str, job: object) -> object:
    with open_device(device) as opened:
        return opened.call(job)  # type: ignore[arg-type]


def test_files_and_programs(place: Place, tmp_path: Path) -> None:
    data = os.urandom(300_000)
    lines: list[str] = []

    def job(session: Session) -> Finished:
        session.push({"echo": ECHO}, keep=True)
        session.push({"data.bin": data})
        done = session.run(
            ["echo", *NASTY],
            60,
            environment={"MARK": "$(id) 'x'"},
            stdin="data.bin",
        )
        session.push({"lines": b"#!/bin/sh\necho one; echo two >&2; printf three"})
        session.run(["lines"], 60, on_line=lines.append)
        session.pull(["data.bin", "echo"], tmp_path)
        return done

    done = within(place.device, job)
    assert isinstance(done, Finished)
    words = "".join(f"<{word}>" for word in NASTY)
    assert done.code == 3
    assert done.out == f"{words} $(id) 'x'\n".encode() + data
    assert [line.strip() for line in lines] == ["one", "three"]
    assert (tmp_path / "data.bin").read_bytes() == data
    assert (tmp_path / "echo").read_bytes() == ECHO
    place.assert_clean()


def test_talkative_login_shell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What ``~/.bashrc`` prints before a command is not taken for its output."""
    need("sshd", "openssh-server")
    with Sshd(tmp_path / "server", {"HOME": str(tmp_path)}) as server:
        (tmp_path / ".bashrc").write_text("echo Welcome; printf 'no end of line'\n")
        monkeypatch.setenv("PATH", f"{server.path}:{os.environ['PATH']}")
        lines: list[str] = []

        def job(session: Session) -> Finished:
            session.push({"echo": ECHO, "in": b"x\n"})
            session.pull(["in"], tmp_path)
            return session.run(["echo", "a"], 60, stdin="in", on_line=lines.append)

        done = within(f"ssh:{HOST}", job)
    assert isinstance(done, Finished)
    assert done.out == b"<a> \nx\n"
    assert lines == ["<a> \n", "x\n"]
    assert (tmp_path / "in").read_bytes() == b"x\n"


def test_kept_files_are_pushed_once(place: Place) -> None:
    """Contents that the device has are not sent, whatever their name."""
    cache = place.base / "cache"
    inodes = set()
    for names in (["big", "twin"], ["other"]):

        def job(session: Session, names: list[str] = names) -> None:
            session.push({name: b"#!/bin/sh\necho 1\n" * 1000 for name in names}, keep=True)
            assert session.run([names[0]], 60).code == 0

        within(place.device, job)
        assert len(list(cache.iterdir())) == 1
        inodes.add(next(cache.iterdir()).stat().st_ino)
        if place.phone:
            assert place.phone.pushed == [file.name for file in cache.iterdir()]
    assert len(inodes) == 1
    old = time.time() - 9 * 86400
    os.utime(next(cache.iterdir()), (old, old))
    within(place.device, lambda session: None)
    assert list(cache.iterdir()) == []
    place.assert_clean()


def test_time_limit(place: Place) -> None:
    """A program that hangs is killed on the device, with what it has started."""
    program = f"#!/bin/sh\nsleep {LONG} & wait\n".encode()

    def job(session: Session) -> None:
        session.push({"hang": program})
        session.run(["hang"], 1)

    with pytest.raises(DeviceError, match="did not finish"):
        within(place.device, job)
    place.assert_clean()
    assert processes(f"sleep\0{LONG}") == []


def test_missing_result(place: Place, tmp_path: Path) -> None:
    with pytest.raises(DeviceError):
        within(place.device, lambda session: session.pull(["nothing"], tmp_path))
    place.assert_clean()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_interrupt(place: Place, number: signal.Signals) -> None:
    """However this side ends, the program and its folder go."""
    text = (
        "import sys, signal\n"
        "from effc.devices.transport import open_device\n"
        "signal.signal(signal.SIGTERM, lambda *a: sys.exit(1))\n"
        "def job(session):\n"
        f"    session.push({{'hang': b'#!/bin/sh\\necho up; exec sleep {LONG}\\n'}})\n"
        "    session.run(['hang'], 100, on_line=lambda line: print(line, flush=True))\n"
        f"with open_device({place.device!r}) as device:\n"
        "    device.call(job)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", text], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline().strip() == "up"
    process.send_signal(number)
    assert process.wait(30) != 0
    process.stdout.close()
    place.assert_clean()
    assert processes(f"sleep\0{LONG}") == []


def test_two_at_once(place: Place) -> None:
    """Sessions on one device leave each other alone."""
    started = threading.Barrier(3)

    def work(number: int) -> Finished:
        def job(session: Session) -> Finished:
            session.push({"echo": ECHO}, keep=True)
            session.push({"in": str(number).encode()})
            started.wait(30)
            done = session.run(["echo"], 60, stdin="in")
            started.wait(30)
            return done

        with open_device(place.device) as device:
            return device.call(job)

    with ThreadPoolExecutor() as pool:
        results = [pool.submit(work, number) for number in range(2)]
        started.wait(30)
        within(place.device, lambda session: None)  # comes and goes meanwhile
        started.wait(30)
        assert [r.result().out for r in results] == [b" \n0", b" \n1"]
    place.assert_clean()


def test_dead_keeper(place: Place) -> None:
    """What a session left on a device whose keeper was killed goes with the next session."""

    def job(session: Session) -> None:
        session.push({"hang": f"#!/bin/sh\nsleep {LONG} &\nexec sleep {LONG}\n".encode()})
        if not any(place.base.glob("mark")):
            (place.base / "mark").touch()
            name = Path(session.folder).name.split(".")[1]
            for pid in processes(name):
                words = Path(f"/proc/{pid}/cmdline").read_bytes()
                if b"ready" in words and b"ssh" not in words.split(b"\0")[0]:
                    os.kill(pid, signal.SIGKILL)
            session.run(["hang"], 5)

    with contextlib.suppress(DeviceError):  # ssh's connection ends with it, adb's does not
        within(place.device, job)
    within(place.device, job)
    (place.base / "mark").unlink()
    place.assert_clean()
    assert processes(f"sleep\0{LONG}") == []


@pytest.mark.parametrize("name", ["../x", "a b", "-x", "", "a/b", ".hidden", "x;y"])
def test_bad_names(local_place: Place, name: str, tmp_path: Path) -> None:
    with pytest.raises(InternalError, match="bad name"):
        within("local", lambda session: session.push({name: b""}))
    with pytest.raises(InternalError, match="bad name"):
        within("local", lambda session: session.pull([name], tmp_path))
    local_place.assert_clean()


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("local", Address("local")),
        ("qemu", Address("qemu")),
        ("adb", Address("adb")),
        ("adb:emulator-5554", Address("adb", serial="emulator-5554")),
        ("adb:192.168.1.7:5555", Address("adb", serial="192.168.1.7:5555")),
        ("ssh:pi", Address("ssh", host="pi")),
        ("ssh:me@pi.local:2222", Address("ssh", host="pi.local", user="me", port=2222)),
        ("ssh:[fe80::1%eth0]:22", Address("ssh", host="fe80::1%eth0", port=22)),
    ],
)
def test_addresses(text: str, address: Address) -> None:
    assert parse_device(text) == address
    assert str(address) == text


@pytest.mark.parametrize(
    "text",
    [
        *("", "phone", "ssh", "ssh:", "adb:", "local:1", "ssh:-oProxyCommand=id", "ssh:a b"),
        *("ssh:-x@host", "ssh:h:99999", "ssh:h:x", "adb:-e", "adb:a b", "adb:a\nb", "ssh:$(id)"),
        *("ssh:h;id", "ssh:h`id`", "serial:1"),
    ],
)
def test_bad_addresses(text: str) -> None:
    with pytest.raises(UsageError, match="unknown device"):
        parse_device(text)

"""A hundred faults between this machine and a device.

Each ends in success, after one more try where that can help, or in a ``DeviceError`` (exit code 5),
within its time limit, and leaves neither a process nor a file, but whole ones in the cache.
"""

from __future__ import annotations

import hashlib
import os
import random
import re
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from adb_double import Fault, Phone, cut_after, full_after, hang
from places import Place, make_phone, processes
from proxy import Proxy, Trouble
from sshd import HOST, Sshd, free_port

from effc.devices import session as session_module
from effc.devices import transport as transport_module
from effc.devices.process import Finished
from effc.devices.session import Session
from effc.devices.transport import open_device
from effc.errors import DeviceError

LIMIT_S = 60.0
SECONDS = 2.0
"""Limits of single steps in these tests; ssh on a busy machine needs about half."""

AWAY_S = 0.3
"""How long a phone is away that comes back before the second try."""

BIG = random.Random(1).randbytes(300_000)
PROGRAM = b"""#!/bin/sh
i=0; while [ $i -lt 500 ]; do echo "line $i"; i=$((i + 1)); done
sleep 0.3
cat big input.bin >output.bin
"""
KEEPER, LACK, STORE, RUN = "end_session", "touch", "sha256sum", "watch="
SHELLS = (KEEPER, LACK, STORE, RUN)


@dataclass
class Scene:
    """What a fault may change: the device, what is in between, what happens in the middle."""

    place: Place
    proxy: Proxy | None
    double_phones: list[Phone]
    tmp_path: Path
    device: str
    during: Callable[[], None] | None = None

    @property
    def phone(self) -> Phone:
        assert self.place.phone is not None
        return self.place.phone

    @property
    def line(self) -> Proxy:
        assert self.proxy is not None
        return self.proxy


@dataclass(frozen=True)
class Case:
    """A fault.

    Attributes:
        name: Of the test.
        kind: Of the device.
        set_up: Makes it happen.
        error: Pattern of the error; empty: success; ``*``: either.
    """

    name: str
    kind: str
    set_up: Callable[[Scene], None]
    error: str = ""


def faults(
    service: str, act: Callable[[int], None], times: int, skip: int = 0
) -> Callable[[Scene], None]:
    return lambda scene: scene.phone.faults.append(Fault(service, act, times, skip))


def state(name: str) -> Callable[[Scene], None]:
    def set_up(scene: Scene) -> None:
        scene.phone.state = name

    return set_up


def transient(name: str) -> Callable[[Scene], None]:
    """A state that passes before the second try."""

    def set_up(scene: Scene) -> None:
        scene.phone.state = name
        threading.Timer(AWAY_S, lambda: setattr(scene.phone, "state", "device")).start()

    return set_up


def two_phones(scene: Scene) -> None:
    scene.double_phones.append(make_phone(scene.tmp_path / "other", "OTHER"))
    scene.device = "adb"


def old_android(scene: Scene) -> None:
    scene.phone.features = b"cmd"


def no_phone(scene: Scene) -> None:
    scene.double_phones.clear()
    scene.device = "adb"


def another(device: str) -> Callable[[Scene], None]:
    return lambda scene: setattr(scene, "device", device)


def killed(text: str, ours: bool, times: int = 1) -> Callable[[Scene], None]:
    """Kill processes in the middle of the run.

    Args:
        text: In the command line.
        ours: Whether of this machine's clients, or of the device.
        times: In how many runs.
    """

    def set_up(scene: Scene) -> None:
        left = [times]

        def during() -> None:
            if left[0] > 0:
                left[0] -= 1
                for pid in processes(text):
                    first = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[0]
                    if first.endswith((b"/adb", b"/ssh")) == ours:
                        os.kill(pid, signal.SIGKILL)

        scene.during = during

    return set_up


def rebooted(scene: Scene) -> None:
    """All programs of the phone die, and it is away for a moment."""

    def during() -> None:
        scene.during = None
        scene.phone.state = "offline"
        for pid in processes(f"{scene.phone.root}/"):
            os.kill(pid, signal.SIGKILL)
        threading.Timer(AWAY_S, lambda: setattr(scene.phone, "state", "device")).start()

    scene.during = during


def connection(trouble: Trouble, always: bool = False) -> Callable[[Scene], None]:
    def set_up(scene: Scene) -> None:
        if always:
            scene.line.always = trouble
        else:
            scene.line.troubles.append(trouble)

    return set_up


def client(port: int = 0, key: str = "user", known: str = "known") -> Callable[[Scene], None]:
    def set_up(scene: Scene) -> None:
        assert scene.place.sshd is not None
        (scene.place.sshd.folder / "empty").touch()
        scene.place.sshd.configure(port or scene.line.port, key, known)

    return set_up


def no_space(scene: Scene) -> None:
    """The device's ``tar`` says so; it lies where its sessions look first."""
    assert scene.place.sshd is not None
    tar = scene.place.sshd.tools / "tar"
    tar.write_text("#!/bin/sh\necho 'tar: big: Wrote only 512 bytes: No space left on device' >&2\n"
                   "exit 2\n")  # fmt: skip
    tar.chmod(0o755)


def cases() -> Iterator[Case]:
    for name, error in (
        ("offline", "offline"),
        ("unauthorized", "does not trust"),
        ("authorizing", "offline"),
        ("connecting", "offline"),
        ("no permissions", "may not be opened"),
    ):
        yield Case(f"state-{name}", "adb", state(name), error)
    for name in ("offline", "connecting"):
        yield Case(f"transient-{name}", "adb", transient(name))
    yield Case("android-6", "adb", old_android, "too old")
    yield Case("two-phones", "adb", two_phones, "several phones")
    yield Case("no-phone", "adb", no_phone, "no phone is connected")
    yield Case("wrong-serial", "adb", another("adb:NONE"), "not connected")
    for service in (*SHELLS, "^sync:"):
        yield Case(f"cut-once-{service}", "adb", faults(service, cut_after(0), 1))
        yield Case(f"cut-twice-{service}", "adb", faults(service, cut_after(0), 2), "broke")
    for after in (1, 65_536, 131_072, 200_000, 262_144, 300_000):
        yield Case(f"push-cut-{after}", "adb", faults("^sync:", cut_after(after), 1))
        yield Case(f"push-cut-twice-{after}", "adb", faults("^sync:", cut_after(after), 2), "broke")
    for after in (1, 131_072, 300_000):
        yield Case(f"full-{after}", "adb", faults("^sync:", full_after(after), 9), "is full")
    for after in (1, 100, 2000, 4000):
        yield Case(f"run-cut-{after}", "adb", faults(RUN, cut_after(after), 1))
    yield Case("run-cut-twice", "adb", faults(RUN, cut_after(2000), 2), "broke")
    for after in (1, 100_000, 250_000, 300_005):
        yield Case(f"pull-cut-{after}", "adb", faults("^sync:", cut_after(after), 1, skip=2))
    yield Case("pull-hang", "adb", faults("^sync:", hang, 1, skip=2))
    for service in (KEEPER, LACK, STORE, "^sync:"):
        yield Case(f"hang-once-{service}", "adb", faults(service, hang, 1))
    yield Case("hang-in-run", "adb", faults(RUN, hang, 1), "did not finish")
    yield Case("hang-always", "adb", faults(KEEPER, hang, 9), ".")
    yield Case("reboot", "adb", rebooted)
    for kind in ("adb", "ssh", "local"):
        yield Case(f"{kind}-program-killed", kind, killed("/program", False, 9), "died|broke")
        yield Case(f"{kind}-run-script-killed", kind, killed(RUN, False))
        yield Case(f"{kind}-keeper-killed", kind, killed(KEEPER, False), "*")
    for kind in ("adb", "ssh"):
        yield Case(f"{kind}-client-killed", kind, killed(RUN, True))
        yield Case(f"{kind}-client-of-keeper-killed", kind, killed(KEEPER, True), "*")
        yield Case(f"{kind}-client-killed-twice", kind, killed(RUN, True, 2), ".")

    for after in (0, 20, 1000, 2500, 4000, 5000, 8000, 50_000, 150_000, 250_000, 305_000, 307_000):
        yield Case(f"up-cut-{after}", "ssh", connection(Trouble("cut", after)))
    for after in (0, 20, 1000, 2500, 3500, 5000, 8000, 12_000):
        yield Case(f"down-cut-{after}", "ssh", connection(Trouble("cut", after, upward=False)))
    for after in (0, 1000, 4000, 100_000, 305_000):
        trouble = connection(Trouble("cut", after), always=True)
        yield Case(f"up-cut-always-{after}", "ssh", trouble, ".")
    for after in (0, 3000, 100_000):
        yield Case(f"hang-{after}", "ssh", connection(Trouble("hang", after)))
    always = connection(Trouble("hang", 100_000), always=True)
    yield Case("hang-always", "ssh", always, ".")
    yield Case("closed-port", "ssh", client(port=free_port()), "does not answer")
    yield Case("wrong-key", "ssh", client(key="stranger"), "refuses the login")
    yield Case("missing-key", "ssh", client(key="nothing"), "refuses the login")
    yield Case("unknown-host-key", "ssh", client(known="empty"), "host key is unknown")
    yield Case("unknown-host", "ssh", another("ssh:nothing.invalid"), "host name is unknown")
    yield Case("full", "ssh", no_space, "is full")


CASES = list(cases())


def test_their_number() -> None:
    assert len(CASES) >= 100


@pytest.fixture(scope="module")
def faulty_sshd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Sshd, Proxy]]:
    folder = tmp_path_factory.mktemp("faulty") / "server"
    with Sshd(folder) as server, Proxy(server.port) as proxy:
        yield server, proxy


@pytest.fixture
def scene(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Scene]:
    """The device of the case, with short limits."""
    for name in ("_OPEN_S", "_CLOSE_S", "_SCRIPT_S"):
        monkeypatch.setattr(session_module, name, SECONDS * (2 if name == "_OPEN_S" else 1))
    monkeypatch.setattr(transport_module, "_PAUSE_S", AWAY_S + 0.1)
    kind = request.param
    if kind == "ssh":
        server, proxy = request.getfixturevalue("faulty_sshd")
        server.configure(proxy.port)
        monkeypatch.setenv("PATH", f"{server.path}:{os.environ['PATH']}")
        place = Place(f"ssh:{HOST}", server.folder / "cache" / "effc" / "device", sshd=server)
        yield Scene(place, proxy, [], tmp_path, place.device)
        proxy.calm()
        for file in server.tools.iterdir():
            file.unlink()
        return
    place = request.getfixturevalue(f"{kind}_place")
    phones = request.getfixturevalue("adb_double").phones if kind == "adb" else []
    yield Scene(place, None, phones, tmp_path, place.device)


@pytest.mark.parametrize(
    ("case", "scene"),
    [pytest.param(case, case.kind, id=f"{case.kind}-{case.name}") for case in CASES],
    indirect=["scene"],
)
def test_fault(case: Case, scene: Scene) -> None:
    for file in scene.place.base.glob("cache/*"):
        file.unlink()
    case.set_up(scene)

    def job(session: Session) -> Finished:
        session.push({"program": PROGRAM, "big": BIG}, keep=True)
        session.push({"input.bin": b"input"})

        def on_line(line: str) -> None:
            if line == "line 499\n" and scene.during is not None:
                scene.during()

        done = session.run(["program"], SECONDS * 3, on_line=on_line)
        if done.code != 0:
            raise DeviceError("the program died", got=done)
        session.pull(["output.bin"], scene.tmp_path, SECONDS * 2)
        return done

    begin = time.monotonic()
    error: DeviceError | None = None
    try:
        with open_device(scene.device) as device:
            done = device.call(job)
    except DeviceError as caught:
        error = caught
    if error is not None:
        assert error.exit_code == 5
        assert case.error, error
        assert case.error == "*" or re.search(case.error, str(error)), error
    else:
        assert case.error in ("", "*")
        assert done.out.count(b"\n") == 500
        assert (scene.tmp_path / "output.bin").read_bytes() == BIG + b"input"
    assert time.monotonic() - begin < LIMIT_S
    if scene.proxy is not None:
        scene.proxy.calm()
    scene.place.assert_clean()
    for file in scene.place.base.glob("cache/*"):
        assert hashlib.sha256(file.read_bytes()).hexdigest() == file.name

"""Kernels measured on devices: batches, bad candidates, devices that go away."""

from __future__ import annotations

import json
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from adb_double import Fault
from places import Place
from scale_template import scale_choices, scale_region

from effc.devices.address import parse_device
from effc.devices.catalog import get_target
from effc.devices.target import Target
from effc.errors import DeviceError
from effc.kernels import registry
from effc.tuning import testbed as testbed_module
from effc.tuning import tuner
from effc.tuning.testbed import RemoteTestbed, ThisMachine, open_testbed


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> Target:
    """This machine's kind, with one template; short patience."""
    monkeypatch.setattr(registry, "choices", scale_choices)
    monkeypatch.setattr(testbed_module, "_POLL_S", 0.2)
    monkeypatch.setattr(testbed_module, "_PATIENCE_S", 1.0)
    target = get_target("host")
    if ThisMachine().refusal(target) is not None:
        pytest.skip(f"this machine cannot measure: {ThisMachine().refusal(target)}")
    return target


@pytest.fixture(params=["ssh", "adb"])
def place(request: pytest.FixtureRequest) -> Place:
    found = request.getfixturevalue(f"{request.param}_place")
    assert isinstance(found, Place)
    return found


@pytest.fixture
def testbed(place: Place) -> Iterator[RemoteTestbed]:
    opened = open_testbed(parse_device(place.device), get_target("host"))
    assert isinstance(opened, RemoteTestbed)
    yield opened
    opened.close()
    place.assert_clean()


def times(database: Path) -> Counter[str]:
    """How often each candidate has a time."""
    records = map(json.loads, database.read_text().splitlines())
    return Counter(f"{r['key']} {r['config']}" for r in records if r["kind"] == "time")


def test_measured_there(host: Target, place: Place, testbed: RemoteTestbed, tmp_path: Path) -> None:
    """Measured time beats the prediction; a batch is pushed at once."""
    database = tmp_path / "db.jsonl"
    regions = [scale_region(1, 40 + n, name=f"r{n}") for n in range(3)]
    chosen, info = tuner.tune(regions, host, 6, database, 1, testbed=testbed)
    assert [choices[0].config for choices in chosen.values()] == [{"repeat": 1}] * 3
    assert info["measured_candidates"] == 6
    if place.phone is not None:
        assert place.phone.services.count("sync:") == 1
    (context,) = (r for r in map(json.loads, database.read_text().splitlines())
                  if r["kind"] == "context")  # fmt: skip
    assert context["details"]["device"] == testbed.facts.identity
    if place.sshd is not None:  # the same as if effc ran there
        assert testbed.name == ThisMachine().name


def test_another_processor(arm_adb_place: Place) -> None:
    address = parse_device(arm_adb_place.device)
    with pytest.raises(DeviceError, match="x86_64 does not run on aarch64"):
        open_testbed(address, get_target("linux-x86_64"))
    with pytest.raises(DeviceError, match="lacks bf16, i8mm"):
        open_testbed(address, get_target("pixel-8"))
    assert isinstance(open_testbed(address, get_target("android")), RemoteTestbed)


@pytest.mark.parametrize("place", ["adb"], indirect=True)
def test_crash_of_a_candidate(host: Target, testbed: RemoteTestbed, tmp_path: Path) -> None:
    region = scale_region(2, 16, 40)
    chosen, info = tuner.tune([region], host, 3, tmp_path / "db.jsonl", 1, testbed=testbed)
    assert chosen[region.key][0].config == {"repeat": 2}
    assert (info["measured_candidates"], info["failed_candidates"]) == (2, 1)
    assert "exit code 139" in (tmp_path / "db.jsonl").read_text()


@pytest.mark.parametrize("place", ["adb"], indirect=True)
def test_reboot(host: Target, place: Place, testbed: RemoteTestbed, tmp_path: Path) -> None:
    """A phone that is away for a while does not end the search."""
    phone = place.phone
    assert phone is not None

    def reboot(passed: int) -> None:
        phone.state = "offline"
        threading.Timer(2.0, lambda: setattr(phone, "state", "device")).start()
        raise BrokenPipeError

    testbed_module._PATIENCE_S = 20.0
    phone.faults.append(Fault("watch=", reboot, skip=1))
    regions = [scale_region(1, 40 + n, name=f"r{n}") for n in range(3)]
    _, info = tuner.tune(regions, host, 6, tmp_path / "db.jsonl", 1, testbed=testbed)
    assert info["measured_candidates"] == 6
    assert set(times(tmp_path / "db.jsonl").values()) == {1}


@pytest.mark.parametrize("place", ["adb"], indirect=True)
def test_lost_for_good(host: Target, place: Place, testbed: RemoteTestbed, tmp_path: Path) -> None:
    """What was measured before is in the database; the same command continues."""
    phone, database = place.phone, tmp_path / "db.jsonl"
    assert phone is not None

    def unplug(passed: int) -> None:
        phone.state = "offline"
        raise BrokenPipeError

    phone.faults.append(Fault("watch=", unplug, skip=1))
    regions = [scale_region(1, 40 + n, name=f"r{n}") for n in range(3)]
    with pytest.raises(DeviceError, match=r"broke|offline"):
        tuner.tune(regions, host, 6, database, 1, testbed=testbed)
    assert sum(times(database).values()) == 2
    phone.state = "device"
    _, info = tuner.tune(regions, host, 6, database, 1, testbed=testbed)
    assert info["measured_candidates"] == 6
    assert set(times(database).values()) == {1}

"""What devices say about themselves, known and unknown devices, the user's catalog."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from effc.devices.catalog import Cluster, forget, get_target, list_targets, user_catalog
from effc.devices.cores import core_name, llvm_name
from effc.devices.discovery import entry_of, remember, target_of
from effc.devices.probe import Facts, read_facts
from effc.errors import UsageError

RASPBERRY_PI = """
== machine
aarch64

== system
Linux
6.6.51+rpt-rpi-2712

== cpuinfo
processor\t: 0
BogoMIPS\t: 108.00
Features\t: fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm asimddp
CPU implementer\t: 0x41
CPU architecture: 8
CPU variant\t: 0x4
CPU part\t: 0xd0b
CPU revision\t: 1

processor\t: 1
BogoMIPS\t: 108.00
Features\t: fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm asimddp
CPU implementer\t: 0x41
CPU architecture: 8
CPU variant\t: 0x4
CPU part\t: 0xd0b
CPU revision\t: 1

Revision\t: c04170
Model\t\t: Raspberry Pi 5 Model B Rev 1.0

== memory
MemTotal:        4147712 kB

== storage
Filesystem     1K-blocks    Used Available Use% Mounted on
/dev/mmcblk0p2  30306464 9651236  19373900  34% /

== cores
0 0x00000000414fd0b1 2400000
1 0x00000000414fd0b1 2400000

== caches
0 1 Data 64K
0 1 Instruction 64K
0 2 Unified 512K
0 3 Unified 2048K
1 1 Data 64K
1 1 Instruction 64K
1 2 Unified 512K
1 3 Unified 2048K

== properties

== model
Raspberry Pi 5 Model B Rev 1.0

== release
PRETTY_NAME="Debian GNU/Linux 12 (bookworm)"
NAME="Debian GNU/Linux"

== gpu
DRIVER=v3d
DRIVER=vc4-drm

"""

PHONE = Facts(
    arch="aarch64",
    os="android",
    model='Nord "3"\n[*]',
    maker="OnePlus",
    soc="MediaTek MT6983",
    clusters=(Cluster("Cortex-X2", 1, 3.05), Cluster("Cortex-A710", 3, 2.85),
              Cluster("Cortex-A510", 4, 1.8)),
    features=("+neon", "+dotprod", "+fullfp16", "-i8mm", "+sve", "+sve2"),
    cpu="x",
)  # fmt: skip


@pytest.fixture(autouse=True)
def catalog(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    forget()
    yield user_catalog()
    monkeypatch.undo()
    forget()


def test_raspberry_pi() -> None:
    facts = read_facts(RASPBERRY_PI)
    assert target_of(facts) == "raspberry-pi-5"
    assert facts.clusters == (Cluster("Cortex-A76", 2, 2.4),)
    assert (facts.l1_bytes, facts.l2_bytes, facts.last_cache_bytes) == (65536, 524288, 2 << 20)
    assert facts.free_bytes == 19373900 << 10
    assert facts.release == "Debian GNU/Linux 12 (bookworm)"
    assert facts.gpu == "v3d, vc4-drm"
    assert facts.identity == "0x41, 0xd0b, 1"
    assert facts.cpus == (0, 1)


def test_a_device_that_says_nothing() -> None:
    facts = read_facts("== machine\nriscv64\n")
    assert (facts.arch, facts.os, facts.clusters, facts.features) == ("riscv64", "linux", (), ())
    assert target_of(facts) is None
    assert entry_of(facts) is None
    assert remember(facts) is None


def test_unknown_phone(catalog: Path) -> None:
    """Its entry is a target, is found again, and survives odd names."""
    assert target_of(PHONE) is None
    assert remember(PHONE) == ("oneplus-nord-3", catalog)
    assert target_of(PHONE) == "oneplus-nord-3"
    target = get_target("oneplus-nord-3")
    assert (target.os, target.cpu, target.cores) == ("android", "cortex-a710", 3)
    assert target.has("dotprod")
    assert not target.has("sve")
    assert not target.has("sve2")
    assert target.vector_bits == 128
    entry = next(e for e in list_targets() if e.name == "oneplus-nord-3")
    assert entry.clusters == PHONE.clusters
    other = replace(PHONE, model="Nord 4")
    assert remember(other) is not None
    assert {target_of(PHONE), target_of(other)} == {"oneplus-nord-3", "oneplus-nord-4"}


def test_other_processors(catalog: Path) -> None:
    server = Facts("x86_64", "linux", model="Box", features=("+avx2", "+fma", "-avx512f"))
    assert remember(server) is not None
    assert get_target("box").vector_bits == 256
    unknown = Facts("aarch64", "linux", model="Mystery", clusters=(Cluster("core 0x1:0x2", 2, 0),),
                    features=("+neon",))  # fmt: skip
    assert remember(unknown) is not None
    assert get_target("mystery").cpu == get_target("linux-arm64").cpu


@pytest.mark.parametrize("text", ["no toml", "[x]\nbase = 'android'\n", "[x]\nbase = 'moon'\n"
                                  "summary = 'x'\n", "[x]\nbase = 'android'\nsummary = 'x'\n"
                                  "speed = 1\n"])  # fmt: skip
def test_damaged_catalog(catalog: Path, text: str) -> None:
    catalog.parent.mkdir(parents=True)
    catalog.write_text(text)
    with pytest.raises(UsageError, match=r"devices\.toml"):
        list_targets()


def test_models_are_told_apart() -> None:
    for model, name in (
        ("Pixel 8", "pixel-8"),
        ("Pixel 8 Pro", "pixel-8"),
        ("Pixel 80", None),
        ("SM-S911B", "galaxy-s23"),
        ("Raspberry Pi 4 Model B Rev 1.4", "raspberry-pi-4"),
        ("", None),
    ):
        assert target_of(Facts("aarch64", "android", model=model)) == name


def test_cores() -> None:
    from tvm.target import codegen

    assert core_name(0x41, 0xD0B) == "Cortex-A76"
    assert core_name(0x51, 0x804) == "Cortex-A76"
    assert core_name(0x99, 1) == "core 0x99:0x1"
    assert llvm_name("core 0x99:0x1") == ""
    import tvm

    known = set()
    for triple in ("aarch64-linux-gnu", "armv7a-linux-gnueabihf"):
        known |= set(
            codegen.llvm_get_cpu_archlist(tvm.target.Target({"kind": "llvm", "mtriple": triple}))
        )
    from effc.devices.cores import _CORES

    assert {llvm_name(core) for core in _CORES.values()} <= {str(name) for name in known}

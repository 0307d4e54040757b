"""The target catalog: complete, consistent, quick to import."""

from __future__ import annotations

import subprocess
import sys

import pytest

from effc.devices.catalog import get_target, list_targets, targets_of
from effc.errors import UsageError

FAMILIES = {
    "host",
    "android",
    "android-armv7",
    "android-x86_64",
    "linux-arm64",
    "linux-armv7",
    "linux-x86_64",
    "ios",
    "ios-simulator",
    "ios-simulator-x86_64",
    "macos",
    "macos-x86_64",
    "cortex-m0plus",
    "cortex-m4",
    "cortex-m7",
    "cortex-m33",
    "cortex-m55",
    "riscv32",
    "c",
}

PARTS = {"android-armv8.2"}
"""Parts of families: they have a base, but are no device."""


def test_families_are_there() -> None:
    assert {e.name for e in list_targets() if e.base is None} == FAMILIES


@pytest.mark.parametrize("name", [e.name for e in list_targets()])
def test_every_entry_is_consistent(name: str) -> None:
    target = get_target(name)
    assert target.name == name
    assert all(f[0] in "+-" for f in target.features)
    source = target.arch == "c"  # for no processor in particular
    widths = (0,) if source else (32, 128) if target.bare else (128, 256, 512)
    assert target.vector_bits in widths
    assert target.l1_bytes <= target.l2_bytes
    assert target.cores >= 1
    assert (target.android_api >= 21) == (target.os == "android")
    names = {"arm": "armv7a"} if target.os != "apple" else {"aarch64": "arm64"}
    assert target.triple.startswith("" if source else names.get(target.arch, target.arch))
    assert (target.runner_target == "") == (target.os == "apple" or source)
    assert ("hf" in target.runner_target) == ("hf" in target.clang_target)
    assert bool(target.machine) == (target.bare and not source)
    assert source or bool(target.clock_mhz) == target.bare


def test_devices_have_a_chip_with_enough_cores() -> None:
    for entry in list_targets():
        if entry.base is not None and entry.name not in PARTS:
            assert entry.soc
            assert sum(c.count for c in entry.clusters) >= get_target(entry.name).cores


def test_boards_have_memory() -> None:
    for entry in list_targets():
        target = get_target(entry.name)
        if target.bare and entry.base is not None:
            assert 0 < target.ram_bytes <= target.flash_bytes
            assert target.clock_mhz == round(1000 * entry.clusters[0].ghz)


def test_device_inherits_from_its_family() -> None:
    phone, family = get_target("pixel-8"), get_target("android")
    assert (phone.abi, phone.android_api) == (family.abi, family.android_api)
    assert phone.has("dotprod")
    assert not family.has("dotprod")
    assert phone.cpu != family.cpu


def test_part_of_a_family_promises_what_variants_have() -> None:
    part, family = get_target("android-armv8.2"), get_target("android")
    assert part.abi == family.abi
    assert part.half_arithmetic
    assert not family.half_arithmetic
    assert family.variants
    assert not part.variants
    assert targets_of("android", (part.abi,)) == (family,)


def test_unknown_name_lists_near_matches() -> None:
    with pytest.raises(UsageError, match="raspberry-pi-4"):
        get_target("rasberry-pi4")
    with pytest.raises(UsageError, match="effc targets"):
        get_target("zzzzzz")


def test_import_is_light() -> None:
    code = (
        "import sys, effc.devices.catalog as c; c.list_targets(); c.get_target('android');"
        "sys.exit(any(m in sys.modules for m in ('tvm', 'onnx', 'numpy')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_host_has_what_it_claims() -> None:
    host = get_target("host")
    assert host.lanes * 32 == host.vector_bits
    assert host.cpu
    if host.vector_bits == 512:
        assert host.has("avx512f")


def test_targets_of_several_abis() -> None:
    phone = get_target("pixel-8")
    assert targets_of("pixel-8", ()) == (phone,)
    wanted = ("x86_64", "arm64-v8a", "armeabi-v7a")
    names = [target.name for target in targets_of("pixel-8", wanted)]
    assert names == ["android-x86_64", "pixel-8", "android-armv7"]
    assert [t.abi for t in targets_of("android", wanted)] == list(wanted)
    with pytest.raises(UsageError, match=r"no such ABI; expected arm64-v8a, .*; got mips"):
        targets_of("android", ("arm64-v8a", "mips"))
    with pytest.raises(UsageError, match="no such ABI"):
        targets_of("linux-arm64", ("arm64-v8a",))

"""Synthetic sys/ trees like those of phones and boards."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

CLUSTERS = ((4, 250, 1_800_000), (3, 760, 2_400_000), (1, 1024, 2_900_000))


def write(root: Path, files: dict[str, object]) -> None:
    for name, value in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{value}\n")


def phone(
    root: Path,
    *,
    clusters: Sequence[tuple[int, int, int]] = CLUSTERS,
    governor: str = "schedutil",
    limit: float = 1.0,
) -> Path:
    """A phone: clusters of (cores, capacity, highest kHz), two zones, a cooling device at rest."""
    count = sum(cores for cores, _, _ in clusters)
    write(
        root,
        {"sys/devices/system/cpu/present": f"0-{count - 1}", "proc/loadavg": "0.25 0.1 0.1 1/9 7"},
    )
    cpu = 0
    for cores, capacity, highest in clusters:
        for _ in range(cores):
            base = f"sys/devices/system/cpu/cpu{cpu}"
            write(
                root,
                {
                    f"{base}/cpu_capacity": capacity,
                    f"{base}/cpufreq/cpuinfo_max_freq": highest,
                    f"{base}/cpufreq/cpuinfo_min_freq": 300_000,
                    f"{base}/cpufreq/scaling_max_freq": int(highest * limit),
                    f"{base}/cpufreq/scaling_cur_freq": highest // 2,
                    f"{base}/cpufreq/scaling_governor": governor,
                },
            )
            cpu += 1
    thermal = "sys/class/thermal"
    write(
        root,
        {
            f"{thermal}/thermal_zone0/type": "cpu-little",
            f"{thermal}/thermal_zone0/temp": 41_500,
            f"{thermal}/thermal_zone2/type": 'skin "top"',
            f"{thermal}/thermal_zone2/temp": -2_000,
            f"{thermal}/thermal_zone5/type": "no reading",
            f"{thermal}/cooling_device0/type": "cpufreq-cpu4",
            f"{thermal}/cooling_device0/cur_state": 0,
            f"{thermal}/cooling_device0/max_state": 12,
        },
    )
    return root

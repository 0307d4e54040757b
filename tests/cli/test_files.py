"""Files of commands appear as a whole or not at all."""

from __future__ import annotations

import errno
import sys
import tempfile
from pathlib import Path

import pytest

from effc.cli.files import output_file
from effc.errors import UsageError
from effc.zig import run_tool

from .conftest import Effc


def test_a_file_is_replaced_when_all_is_well(tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to("there")
    (tmp_path / "there").write_text("old")
    with output_file(link, "-o") as file:
        file.write_text("new")
        assert link.read_text() == "old"
    assert link.is_symlink()
    assert link.read_text() == "new"
    assert {path.name for path in tmp_path.iterdir()} == {"link", "there"}


def test_a_full_disk_leaves_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "y.npz"
    path.write_text("old")

    def write() -> None:
        with output_file(path, "-o") as file:
            file.write_text("ne")
            raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(UsageError, match="no space left on device") as caught:
        write()
    assert caught.value.hint == "free some space"
    assert caught.value.where == f"-o {path}"
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_tool_that_meets_a_full_disk() -> None:
    say = "print('a.s: No space left on device', file=__import__('sys').stderr); exit(1)"
    with pytest.raises(OSError, match="No space left") as caught:
        run_tool([sys.executable, "-c", say])
    assert caught.value.filename == tempfile.gettempdir()


@pytest.mark.parametrize("place", ["/dev/null", "/proc/y.npz", ".", "missing/y.npz"])
def test_devices_and_folders_stay(tmp_path: Path, place: str) -> None:
    with pytest.raises(UsageError), output_file(tmp_path / place, "--report"):
        raise AssertionError("nothing may be written")


def test_a_report_that_cannot_be_written_keeps_the_result(
    effc: Effc, artifact: Path, tmp_path: Path
) -> None:
    tmp_path.joinpath("sitecustomize.py").write_text(
        "import effc.benchmark.report as report\n"
        "def full(*a, **k): raise OSError(28, 'No space left on device')\n"
        "report.render_bench = full\n"
    )
    answer = effc(
        *("bench", artifact, "--runs", 3, "--report", "x.html", "--json"), PYTHONPATH=str(tmp_path)
    )
    assert answer.code == 2
    assert answer.json["latency_ms"]["median"] > 0
    assert "--report x.html" in answer.err
    assert not (tmp_path / "x.html").exists()

"""ulimit -n 256 and 800 files; -n 20 and ulimit -f: the daemon fits itself into the limit, or names it."""

from __future__ import annotations

import os
import resource
import subprocess
import time
from pathlib import Path

import pytest

from snapfs.base.errors import UserError
from snapfs.base.process_limits import MIN_OPEN_FILES, OTHERS, divide
from tests.conftest import SNAPFS, Mounted, run_snapfs
from tests.fakes.patience import PATIENCE_S

FILES = 800


@pytest.mark.parametrize("limit", [MIN_OPEN_FILES, 100, 128, 256, 1024, 20_000, 1 << 62])
@pytest.mark.parametrize("wanted", [16, 512, 100_000])
def test_the_shares_stay_below_the_limit(limit: int, wanted: int) -> None:
    shares = divide(limit, wanted)
    assert shares.backing + shares.readers + shares.segments + OTHERS <= max(limit, OTHERS + 16)
    assert 4 <= shares.backing <= wanted
    assert shares.readers >= 4
    assert shares.segments >= 8


def limited(which: int, limit: int, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    def lower() -> None:
        resource.setrlimit(which, (limit, limit))

    return subprocess.run(
        [*SNAPFS, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE_S,
        preexec_fn=lower,
    )


@pytest.mark.usefixtures("data_path")
@pytest.mark.parametrize("limit", [MIN_OPEN_FILES, 256])
def test_snapshots_of_more_files_than_may_be_open(volume_dir: Path, mountpoint: Path, limit: int) -> None:
    done = limited(resource.RLIMIT_NOFILE, limit, "mount", volume_dir, mountpoint)
    assert done.returncode == 0, done.stderr
    mounted = Mounted(volume_dir, mountpoint)
    for number in range(FILES):
        (mountpoint / str(number)).write_bytes(b"%d" % number)
    mounted.snapshot("first")
    for number in range(FILES):
        with open(mountpoint / str(number), "r+b") as file:
            file.write(b"again")
    for number in range(20):
        (mountpoint / "one").write_bytes(b"%d" % number)
        mounted.snapshot(f"n{number}")
    assert (mountpoint / ".snapfs/snapshots/n19/7").read_bytes() == b"again"
    assert len(os.listdir(f"/proc/{mounted.status()['pid']}/fd")) < limit
    time.sleep(1.5)  # the logs retire
    mounted.snapshot("last")
    run_snapfs("verify", mountpoint)
    run_snapfs("umount", mountpoint)


@pytest.mark.parametrize(
    ("which", "limit", "word"),
    [(resource.RLIMIT_NOFILE, 20, "ulimit -n"), (resource.RLIMIT_FSIZE, 100 << 10, "ulimit -f")],
)
def test_too_small_a_limit_is_named_and_nothing_is_made(
    volume_dir: Path, mountpoint: Path, which: int, limit: int, word: str
) -> None:
    done = limited(which, limit, "mount", volume_dir, mountpoint)
    assert done.returncode == UserError.exit_code, done.stderr
    assert word in done.stderr
    assert "internal error" not in done.stderr
    assert not volume_dir.exists()

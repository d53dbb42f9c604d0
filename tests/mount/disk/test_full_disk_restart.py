"""A daemon that dies on a full disk: the next one starts there, and the mount goes on, again and again."""

from __future__ import annotations

import errno
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.fakes.disks.small_ext4 import small_ext4
from tests.fakes.patience import PATIENCE_S

DEATHS = 3


@pytest.fixture
def volume_dir(tmp_path: Path) -> Iterator[Path]:
    """On an ext4 of 64 MiB."""
    with small_ext4(tmp_path, 64) as folder:
        yield folder / "volume"


def fill(place: Path) -> None:
    """Leave not a single block."""
    with open(place, "ab", buffering=0) as file:
        for size in (1 << 20, 1 << 12, 1 << 9):
            with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)):
                while True:
                    file.write(bytes(size))
        os.fsync(file.fileno())


def test_a_daemon_starts_on_a_full_disk(mounted: Any, mount: Callable[..., Any], snapfs: Any) -> None:
    (mounted.path / "file").write_bytes(b"kept")
    filler = mounted.volume.parent / "filler"
    for death in range(DEATHS):
        fill(filler)
        before = mounted.status()
        if before["supervisor"] is None:
            pytest.skip("a mount ends with its daemon here")
        os.kill(before["pid"], signal.SIGKILL)
        assert (mounted.path / "file").read_bytes() == b"kept"
        assert mounted.status()["daemons_before"] == death + 1
    fill(filler)
    mounted.kill()
    mounted = mount()
    assert (mounted.path / "file").read_bytes() == b"kept"
    (mounted.path / "file").unlink()
    filler.unlink()
    deadline = time.monotonic() + PATIENCE_S
    while True:  # until the host has given the room back
        try:
            (mounted.path / "new").write_bytes(b"x" * 100_000)
            break
        except OSError:
            assert time.monotonic() < deadline
    assert mounted.snapshot()["ok"]
    snapfs("umount", mounted.path)

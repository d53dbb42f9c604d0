"""What a life uses most is known, travels with its snapshots, and is what the next one brings in first."""

from __future__ import annotations

import os
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from snapfs.blocks import CHUNK_SIZE, Ino
from snapfs.store.wire import unpack_hot
from snapfs.transfer.hot import HotKeeper, resident
from snapfs.transfer.sources import FolderSource
from tests.conftest import Mounted, run_snapfs


def test_what_the_host_has_in_memory_of_a_file(tmp_path: Path) -> None:
    with open(tmp_path / "file", "w+b") as file:
        file.write(os.urandom(20 * CHUNK_SIZE))
        file.flush()
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_RANDOM)
        if resident(file.fileno()):
            pytest.skip("this filesystem keeps the pages whatever is advised")
        os.pread(file.fileno(), 10, 7 * CHUNK_SIZE)
        os.pread(file.fileno(), 10, 8 * CHUNK_SIZE + 5000)
        assert resident(file.fileno()) == [(7, 2)]
        file.truncate(0)
        assert resident(file.fileno()) == []


def test_files_in_use_gain_and_the_others_lose(tmp_path: Path) -> None:
    opened: list[Ino] = [Ino(5)]
    tree: Any = SimpleNamespace(open_files=lambda: opened)
    keeper = HotKeeper(tree, str(tmp_path))
    keeper.note()
    opened[:] = [Ino(6)]
    keeper.note()
    keeper.note()
    assert [ino for ino, _ in keeper._scores.most_common()] == [6, 5]


def test_a_mounted_volume_writes_its_list_and_a_source_tells_it(mounted: Mounted) -> None:
    with open(mounted.path / "used", "w+b") as file:
        file.write(os.urandom(3 * CHUNK_SIZE))
        file.flush()
        os.fsync(file.fileno())
        mounted.snapshot()
        place = mounted.volume / "hot"
        deadline = time.monotonic() + 30
        while not place.exists() and time.monotonic() < deadline:
            os.pread(file.fileno(), 3 * CHUNK_SIZE, 0)  # another test may drop all that is in memory
            time.sleep(0.05)
        ino = os.stat(mounted.path / "used").st_ino
    assert (ino, 0, 3) in unpack_hot(place.read_bytes())
    run_snapfs("umount", mounted.path)
    source = FolderSource(str(mounted.volume))
    try:
        assert (ino, 0, 3) in source.hot(source.snapshots()[-1])
    finally:
        source.close()

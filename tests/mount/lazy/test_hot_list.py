"""What a life uses most is known, travels with its snapshots, and is what the next one brings in first."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from snapfs.base.blocks import CHUNK_SIZE, Disk, Ino
from snapfs.store.protocol.hint_files import HOT
from snapfs.store.protocol.hot_codec import unpack_hot
from snapfs.transfer.lazy.hot_list import HotKeeper, resident
from snapfs.transfer.sources.folder_source import FolderSource
from tests.conftest import Mounted, run_snapfs
from tests.fakes.patience import eventually


def test_what_the_host_has_in_memory_of_a_file(tmp_path: Path) -> None:
    with open(tmp_path / "file", "w+b") as file:
        file.write(os.urandom(20 * CHUNK_SIZE))
        file.flush()
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_RANDOM)
        if resident(file.fileno()):
            pytest.skip("this filesystem keeps the pages whatever is advised")

        def reads() -> bool:
            """Another test may drop all that is in memory, in between as well."""
            os.pread(file.fileno(), 10, 7 * CHUNK_SIZE)
            os.pread(file.fileno(), 10, 8 * CHUNK_SIZE + 5000)
            return resident(file.fileno()) == [(7, 2)]

        eventually(reads, "what was read")
        file.truncate(0)
        assert resident(file.fileno()) == []


def test_files_in_use_gain_and_the_others_lose(tmp_path: Path) -> None:
    opened: list[Ino] = [Ino(5)]
    tree: Any = SimpleNamespace(open_files=lambda: opened)
    keeper = HotKeeper(tree, str(tmp_path), Disk())
    keeper.note()
    opened[:] = [Ino(6)]
    keeper.note()
    keeper.note()
    assert [ino for ino, _ in keeper._scores.most_common()] == [6, 5]


def test_a_list_of_a_later_snapfs_is_left_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keeper = HotKeeper(SimpleNamespace(), str(tmp_path), Disk())  # type: ignore[arg-type]
    monkeypatch.setattr(keeper, "list", lambda: [(Ino(7), 0, 3)])
    keeper.write()
    assert unpack_hot(HOT.read(str(tmp_path / "hot")) or b"") == [(7, 0, 3)]
    later = replace(HOT, version=99).encode(b"of another form")
    (tmp_path / "hot").write_bytes(later)
    again = HotKeeper(SimpleNamespace(), str(tmp_path), Disk())  # type: ignore[arg-type]
    monkeypatch.setattr(again, "list", lambda: [(Ino(8), 0, 3)])
    again.write()
    again.write()
    assert (tmp_path / "hot").read_bytes() == later


def test_a_mounted_volume_writes_its_list_and_a_source_returns_it(mounted: Mounted) -> None:
    with open(mounted.path / "used", "w+b") as file:
        file.write(os.urandom(3 * CHUNK_SIZE))
        file.flush()
        os.fsync(file.fileno())
        mounted.snapshot()
        place = mounted.volume / "hot"
        ino = os.stat(mounted.path / "used").st_ino

        def is_listed() -> bool:
            os.pread(file.fileno(), 3 * CHUNK_SIZE, 0)  # another test may drop all that is in memory
            return place.exists() and (ino, 0, 3) in unpack_hot(HOT.read(str(place)) or b"")

        eventually(is_listed, "the list")
    run_snapfs("umount", mounted.path)
    source = FolderSource(str(mounted.volume))
    try:
        assert (ino, 0, 3) in source.hot(source.snapshots()[-1])
    finally:
        source.close()

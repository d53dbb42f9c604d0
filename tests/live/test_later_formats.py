"""Every file of a live tree that a later snapfs wrote is refused before anything is touched."""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest

from snapfs.base.blocks import CHUNK_SIZE, Disk, Epoch, Ino
from snapfs.base.errors import VersionError
from snapfs.live.backing import host_life
from snapfs.live.database import high_water_mark, page_checksums
from snapfs.live.database.namespace_rows import AbsentFile
from snapfs.live.format_versions import refuse_later
from snapfs.live.intents import intent_records, intents_mark
from snapfs.live.namespace.namespace import Namespace
from snapfs.live.residency import residency_pages
from snapfs.live.residency.residency import Residency


def later_database(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[60:64] = struct.pack(">I", 99)
    path.write_bytes(data)


def later_slots(path: Path, places: tuple[int, ...], size: int) -> None:
    """Set the version, 8 bytes after the magic, and the checksum that follows `size` bytes."""
    data = bytearray(path.read_bytes())
    for at in places:
        data[at + 8] = 99
        data[at + size : at + size + 4] = struct.pack("<I", zlib.crc32(data[at : at + size]))
    path.write_bytes(data)


def later_presence(path: Path) -> None:
    data = bytearray(path.read_bytes())
    head = residency_pages.HEAD
    data[8] = 99
    fields = head.unpack_from(data)
    checksum = zlib.crc32(data[head.size : residency_pages.PAGE_BYTES], zlib.crc32(head.pack(*fields[:-1], 0)))
    data[: head.size] = head.pack(*fields[:-1], checksum)
    path.write_bytes(data)


LATER: dict[str, Callable[[Path], None]] = {
    "namespace.db": later_database,
    "namespace.db-mark": lambda path: later_slots(path, (0, high_water_mark.SLOT_BYTES), high_water_mark.SLOT.size),
    "namespace.db-sums": lambda path: later_slots(path, (0, page_checksums.HEADER_BYTES), page_checksums.HEADER.size),
    "life": lambda path: later_slots(path, (0,), host_life.RECORD.size),
    "intents-mark": lambda path: later_slots(path, (0,), intents_mark.HEADER.size),
    "intents/1.log": lambda path: later_slots(path, (0,), intent_records.HEADER.size),
    "presence/46": later_presence,
}


@pytest.fixture
def live(tmp_path: Path) -> Path:
    """One of each file."""
    folder = tmp_path / "live"
    for name in ("intents", "presence"):
        (folder / name).mkdir(parents=True)
    names = Namespace(str(folder / "namespace.db"), Disk())
    names.start_mark()
    names.close()
    host_life.HostLife(str(folder), Disk(), "a boot").close()
    (folder / "intents/1.log").write_bytes(intent_records.pack_header("a boot", Epoch(1), Ino(5)))
    intents_mark.IntentsMark(str(folder / "intents-mark")).begin("a boot")
    absent = AbsentFile(9 * CHUNK_SIZE, 1, 2, b"where")
    Residency.stage(str(folder / "presence/46"), absent, Disk(), "a boot", 1, 1)
    return folder


def everything(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("name", LATER)
def test_a_later_file_is_refused_by_its_name_and_nothing_touched(live: Path, name: str) -> None:
    refuse_later(str(live))
    LATER[name](live / name)
    before = everything(live)
    with pytest.raises(VersionError, match=f"{os.path.basename(name)} has .*format 99"):
        refuse_later(str(live))
    assert everything(live) == before


def test_all_files_of_a_live_tree_are_known_here(live: Path) -> None:
    """A new file needs a function here that makes a later version of it."""
    assert set(everything(live)) - {"namespace.db-reserve"} == set(LATER)

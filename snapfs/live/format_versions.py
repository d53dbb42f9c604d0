"""The versions of all files of a live tree, read before any of them is opened: a volume of a later one is not touched.

Each file has its version near its beginning, under the checksum that this version has there, and every later format
will. Where that does not check out the file is damaged, which its own reader reports with what is lost.
"""

from __future__ import annotations

import contextlib
import os
import struct
from collections.abc import Iterator

from snapfs.base.blocks import Disk
from snapfs.base.errors import VersionError
from snapfs.base.volumes.volume_files import NAMESPACE_DB
from snapfs.live.backing import host_life
from snapfs.live.database import high_water_mark, page_checksums, schema
from snapfs.live.intents import intent_records, intents_mark
from snapfs.live.residency import residency_pages

_SQLITE_HEADER = struct.Struct(">16s44xI")  # magic, user_version


def refuse_later(live_dir: str) -> None:
    """VersionError if a newer snapfs wrote any file of this tree. OSError."""
    page_checksums.Sums(os.path.join(live_dir, "namespace.db-sums"), Disk(), schema.PAGE_SIZE).load()
    high_water_mark.read_claim(os.path.join(live_dir, "namespace.db-mark"))
    path = os.path.join(live_dir, NAMESPACE_DB)
    head = _head(path, _SQLITE_HEADER.size)
    if len(head) == _SQLITE_HEADER.size:
        magic, version = _SQLITE_HEADER.unpack(head)
        if magic == schema.MAGIC and version > schema.SCHEMA_VERSION:
            raise VersionError(schema.later(path, version))
    path = os.path.join(live_dir, "life")
    host_life.unpack(path, _head(path, host_life.RECORD_SIZE))
    path = intents_mark.path_of(os.path.join(live_dir, "intents"))
    intents_mark.read_header(path, _head(path, intents_mark.HEADER_BYTES))
    for path in _in(live_dir, "intents"):
        intent_records.read_header(path, _head(path, intent_records.HEADER_SIZE))
    for path in _in(live_dir, "presence"):
        residency_pages.refuse_later_page(path, _head(path, residency_pages.PAGE_BYTES))


def _head(path: str, size: int) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read(size)
    except (FileNotFoundError, IsADirectoryError):
        return b""


def _in(live_dir: str, name: str) -> Iterator[str]:
    folder = os.path.join(live_dir, name)
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        yield from (os.path.join(folder, each) for each in sorted(os.listdir(folder)))

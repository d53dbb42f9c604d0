"""Tombstones: lists of keys that no head will name again, and what may be removed at all."""

from __future__ import annotations

import re
from typing import Final

import msgspec

from snapfs.base.errors import CorruptionError
from snapfs.store.bucket.bucket_layout import SEGMENTS
from snapfs.store.bucket.checked_body import check_format, checked_body_of, with_checksum
from snapfs.store.bucket.segment_names import info_of, segment_path
from snapfs.store.objects import format as fmt

TOMBSTONE_FORMAT: Final = 1

_OTHERS: Final = re.compile(r"catalog/[0-9a-f]{64}\.zst|hot/[0-9a-f]{4}-[0-9a-f]{16}|probe/[0-9a-f]+")


class Tombstone(msgspec.Struct, frozen=True):
    """garbage/...: `keys` will not be used again; so it was at `at_s`."""

    at_s: float
    keys: list[str]


def decode_tombstone(data: bytes, key: str) -> Tombstone:
    """Raises VersionError, CorruptionError."""
    try:
        check_format(data, key, TOMBSTONE_FORMAT)
        return msgspec.json.decode(checked_body_of(data), type=Tombstone)
    except (msgspec.MsgspecError, ValueError) as error:
        raise CorruptionError(key, "the object store", str(error)) from None


def encode_tombstone(tombstone: Tombstone) -> bytes:
    return with_checksum(TOMBSTONE_FORMAT, msgspec.json.encode(tombstone))


def may_be_garbage(path: str) -> bool:
    """Whether it has a name as a writer gives them: nothing else is ever removed."""
    folder, _, name = path.partition("/")
    if folder == SEGMENTS:
        try:
            return segment_path(info_of(name.removesuffix(fmt.SEGMENT_SUFFIX)).path) == path
        except ValueError:
            return False
    return bool(_OTHERS.fullmatch(path))

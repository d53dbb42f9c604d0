"""gates.json: which gates the snapshots of an object store have passed (bucket_layout.py: GATES)."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from snapfs.base.errors import VersionError
from snapfs.store.bucket.bucket_layout import GATES
from snapfs.store.bucket.checked_body import check_format, checked_body_of, with_checksum
from snapfs.store.gates.gate_entries import FORMAT, GateEntry, GateList


def encode_gates(entries: Sequence[GateEntry]) -> bytes:
    return with_checksum(FORMAT, msgspec.json.encode(GateList(list(entries))))


def decode_gates(data: bytes) -> list[GateEntry]:
    """None at all of what cannot be understood: damaged, or of a later format. What no gate says is not required."""
    try:
        check_format(data, GATES, FORMAT)
        return msgspec.json.decode(checked_body_of(data), type=GateList).entries
    except (ValueError, VersionError, UnicodeDecodeError, RecursionError):  # msgspec's errors are ValueErrors
        return []

"""Lines of snapshots.log: their layout, checksum and the fields that are relied on (snapshot_log.py has the chain).

A line is a JSON object with "kind" and "time_ns" first, then the event's fields, then "prev" (SHA-256 of the line
before) and "sum" (XXH3-64 of the line up to `,"sum":`). Lines of earlier versions have no sum.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Final

import msgspec
import xxhash

from snapfs.base.errors import CorruptionError
from snapfs.store.log import snapshot_records

_TAIL: Final = re.compile(rb',"prev":"(?:[0-9a-f]{64})?"(,"sum":"([0-9a-f]{16})")?\}')
_SUM_BYTES: Final = len(b',"sum":""}') + 16
_NUMBERS: Final = {
    "dropped": ("snapshot",), "damaged": ("snapshot",), "repaired": ("snapshot",), "aside": ("snapshot",),
    "held": ("snapshot",), "released": ("snapshot",), "given-up": ("snapshot",),
    "claimed": ("generation",), "remounted": ("generation",), "taken-over": ("generation",),
}  # fmt: skip
"""The fields that are relied on, by the kind of event: numbers above 0."""
_encode: Final = msgspec.json.Encoder().encode


@dataclass(frozen=True, slots=True)
class Event:
    """One line of the log. `fields` is everything but kind, time and chain."""

    kind: str
    time_ns: int
    fields: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Line:
    """A line that checks out. `record_fields`: the record's fields in one that begins a snapshot, else None."""

    kind: str
    time_ns: int
    prev: str
    record_fields: snapshot_records.Fields | None
    data: bytes

    @property
    def event(self) -> Event:
        """The whole of it, decoded anew each time."""
        fields = msgspec.json.decode(self.data, type=dict[str, Any])
        for name in ("kind", "time_ns", "prev", "sum"):
            fields.pop(name, None)
        return Event(self.kind, self.time_ns, fields)


def encode_line(event: Event, head: str) -> bytes:
    """Without its newline."""
    summed = _encode({"kind": event.kind, "time_ns": event.time_ns, **event.fields, "prev": head})[:-1]
    return summed + b',"sum":"%s"}' % xxhash.xxh3_64_hexdigest(summed).encode()


class _Head(msgspec.Struct):
    """What every line has."""

    kind: str
    time_ns: int
    prev: str


_decode_head: Final = msgspec.json.Decoder(_Head).decode


def parse_line(line: bytes, where: str) -> Line:
    """Raises CorruptionError. Of a line with a checksum that begins a snapshot only what is relied on is decoded."""
    tail = _TAIL.search(line, max(len(line) - 110, 0))
    if tail is None or tail.end() != len(line):
        raise CorruptionError("a record", where, "it does not end as one")
    if tail[1] is not None and xxhash.xxh3_64_hexdigest(line[:-_SUM_BYTES]).encode() != tail[2]:
        raise CorruptionError("a record", where, "wrong checksum")
    try:
        head, record_fields = _decode_head(line), None
        if head.kind in ("snapshot", "cloned"):
            record_fields = snapshot_records.fields_in(line)
        if record_fields is None or tail[1] is None:
            _check_fields(head.kind, msgspec.json.decode(line, type=dict[str, Any]))
    except (msgspec.MsgspecError, UnicodeDecodeError, KeyError, TypeError, ValueError, RecursionError) as error:
        raise CorruptionError("a record", where, f"it is no record ({' '.join(str(error).split())})") from None
    return Line(head.kind, head.time_ns, head.prev, record_fields, line)


def _check_fields(kind: str, fields: dict[str, Any]) -> None:
    """Raises KeyError, TypeError, ValueError where what is relied on is not there."""
    if kind in ("snapshot", "cloned"):
        snapshot_records.from_fields(fields)
    elif kind == "created":
        if type(fields["format"]) is not int or type(fields["volume"]) is not str:
            raise TypeError("format and volume")
    elif kind == "aside":
        if type(fields["branch"]) is not str:
            raise TypeError("branch")
        snapshot_records.from_fields(fields["record"])
    elif kind == "claimed" and type(fields["holder"]) is not str:
        raise TypeError("holder")
    for name in _NUMBERS.get(kind, ()):
        if type(fields[name]) is not int or fields[name] < 0:
            raise ValueError(f"{name} {fields[name]!r}")

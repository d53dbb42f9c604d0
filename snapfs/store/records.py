"""What the log says of a snapshot, as a type, and its way to JSON and back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Final

from snapfs.blocks import Generation, Number, SnapshotNumber
from snapfs.errors import UserError
from snapfs.store.format import Pointer

GOOD: Final = "good"
DAMAGED: Final = "damaged"
_NAME_BYTES: Final = 255


@dataclass(frozen=True, slots=True)
class StoreIdentity:
    """Whose store it is. `volume_id`: a UUID4 in hex. `seed`: 64 bits, secret; proofs are made with it.

    `opaque`: it holds ciphertext (sealing.py), and proofs are made of that, with seed 0.
    """

    volume_id: str
    seed: int
    opaque: bool = False


@dataclass(frozen=True, slots=True)
class SealStats:
    """What a snapshot took. The counts are of changed things; `stored_bytes` is the size of its segment."""

    files: int = 0
    directories: int = 0
    inodes: int = 0
    dirty_bytes: int = 0
    new_objects: int = 0
    stored_bytes: int = 0
    seal_seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class SnapshotRecord:
    """A snapshot. Times are ns since 1970, UTC; `last_number` is the highest object number of its segment.

    `sealed`: in an opaque store, the whole record as ciphertext in hex (sealing.py), of which this is what may be seen.
    """

    number: SnapshotNumber
    name: str | None
    generation: Generation
    parent: SnapshotNumber | None
    cut_time_ns: int
    seal_time_ns: int
    trigger: str
    root: Pointer
    last_number: Number
    stats: SealStats
    state: str = GOOD
    sealed: str = ""

    def with_state(self, state: str) -> SnapshotRecord:
        return replace(self, state=state)


def to_fields(record: SnapshotRecord) -> dict[str, Any]:
    """The record as the fields of a log line; its state is not part of it."""
    fields = {
        "number": record.number,
        "name": record.name,
        "generation": record.generation,
        "parent": record.parent,
        "cut_time_ns": record.cut_time_ns,
        "seal_time_ns": record.seal_time_ns,
        "trigger": record.trigger,
        "root": [record.root.number, record.root.proof.hex()],
        "last_number": record.last_number,
        "stats": asdict(record.stats),
    }
    return {**fields, "sealed": record.sealed} if record.sealed else fields


def from_fields(fields: Mapping[str, Any]) -> SnapshotRecord:
    """The inverse of `to_fields`; fields it does not know are ignored. Raises KeyError, TypeError, ValueError."""
    number, proof = fields["root"]
    parent = fields["parent"]
    stats = {key: value for key, value in fields["stats"].items() if key in SealStats.__dataclass_fields__}
    return SnapshotRecord(
        number=SnapshotNumber(fields["number"]),
        name=fields["name"],
        generation=Generation(fields["generation"]),
        parent=None if parent is None else SnapshotNumber(parent),
        cut_time_ns=fields["cut_time_ns"],
        seal_time_ns=fields["seal_time_ns"],
        trigger=fields["trigger"],
        root=Pointer(Number(number), bytes.fromhex(proof)),
        last_number=Number(fields["last_number"]),
        stats=SealStats(**stats),
        sealed=fields.get("sealed", ""),
    )


def check_name(name: str) -> None:
    """Raises UserError if `name` cannot be a snapshot's: it is a file name, and no number."""
    if not name or name in (".", "..") or "/" in name or any(ord(char) < 32 for char in name):
        raise UserError(f"{name!r} cannot be a snapshot's name: it has to be a plain file name")
    if name.isdecimal():
        raise UserError(f"{name!r} cannot be a snapshot's name: numbers are the names they have anyway")
    if len(name.encode("utf-8", "surrogateescape")) > _NAME_BYTES:
        raise UserError("a snapshot's name has at most 255 bytes")

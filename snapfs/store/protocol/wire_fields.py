"""Types of the fields of messages, and the record of a snapshot as a field (`Commit.records`, `Snapshot.record`).

What a peer sends is checked against these types before anything else reads it.
"""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from msgspec import Meta

from snapfs.base.blocks import MAX_GENERATION
from snapfs.store.log.snapshot_records import CutFacts, SnapshotRecord, from_fields, to_fields
from snapfs.store.protocol.refusals import Refusal, refuse
from snapfs.store.protocol.wire import HOLD_NAME, WRITER_ID

HexId = Annotated[str, Meta(pattern="^[0-9a-f]{32}$")]
HexSeed = Annotated[str, Meta(pattern="^[0-9a-f]{16}$")]
GenerationField = Annotated[int, Meta(ge=1, le=MAX_GENERATION)]
NumberField = Annotated[int, Meta(ge=1)]  # and below 1 << 64, which msgspec cannot express: `check_numbers`
WriterIdField = Annotated[str, Meta(pattern=f"^{WRITER_ID.pattern}$")]
HoldNameField = Annotated[str, Meta(pattern=f"^{HOLD_NAME.pattern}$")]


def encode_record(record: SnapshotRecord) -> dict[str, Any]:
    """The fields of a record for Commit and Snapshot; its state is not part of them."""
    return to_fields(record)


def decode_record(fields: dict[str, Any]) -> SnapshotRecord:
    """The inverse, checked field by field. Raises RefusedError ("bad_request")."""
    try:
        checked = msgspec.convert(fields, _RecordFields)
        record = from_fields(fields)
    except (msgspec.MsgspecError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise refuse(Refusal.BAD_REQUEST, f"not a snapshot's record: {error}") from None
    if checked.root[0] > checked.last_number:
        raise refuse(Refusal.BAD_REQUEST, f"snapshot {checked.number} has a root above its last number")
    return record


class _RecordFields(msgspec.Struct):
    number: Annotated[int, Meta(ge=1, le=1 << 48)]
    name: Annotated[str, Meta(max_length=255)] | None
    generation: GenerationField
    parent: Annotated[int, Meta(ge=0, le=1 << 48)] | None
    cut_time_ns: Annotated[int, Meta(ge=-(1 << 63), le=(1 << 63) - 1)]
    seal_time_ns: Annotated[int, Meta(ge=-(1 << 63), le=(1 << 63) - 1)]
    trigger: Annotated[str, Meta(max_length=64)]
    root: tuple[NumberField, HexId]
    last_number: NumberField
    stats: dict[str, int | float]
    ciphertext: Annotated[str, Meta(max_length=8192, pattern="^([0-9a-f]{2})*$")] = msgspec.field(
        default="", name="sealed"
    )
    cut: CutFacts = CutFacts()

    def __post_init__(self) -> None:
        check_numbers(self.root[0], self.last_number)


def check_numbers(*numbers: int) -> None:
    if any(number >= 1 << 64 for number in numbers):
        raise ValueError("an object's number has 64 bits")

"""Requests and answers of the mirror protocol in JSON (wire.py has the table of operations).

Encoded names are those of version 1 and stay: where a field is called otherwise here, `name=` has the encoded one.
Unknown fields are ignored by both ends; a field that earlier peers do not send has a default.
"""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from msgspec import Meta

from snapfs.store.log.claims import Succession
from snapfs.store.log.holds import MAX_RECORDS as MAX_HOLD_RECORDS
from snapfs.store.log.holds import HoldRecord
from snapfs.store.log.peers import Peers
from snapfs.store.log.snapshot_records import SnapshotRecord
from snapfs.store.protocol.wire import (
    MAX_COMMIT_SNAPSHOTS,
    MAX_FIRST_NUMBERS,
    MAX_PART_BYTES,
    MAX_PART_OBJECTS,
    MAX_READ_BYTES,
    MAX_READ_NUMBERS,
    PROTOCOL_VERSION,
    Mode,
)
from snapfs.store.protocol.wire_fields import (
    GenerationField,
    HexId,
    HexSeed,
    HoldNameField,
    NumberField,
    WriterIdField,
    check_numbers,
    decode_record,
)


class Limits(msgspec.Struct, frozen=True):
    """What this mirror takes in one request; a pusher keeps to it."""

    part_bytes: int = MAX_PART_BYTES
    part_objects: int = MAX_PART_OBJECTS
    commit_snapshots: int = MAX_COMMIT_SNAPSHOTS
    read_numbers: int = MAX_READ_NUMBERS
    read_bytes: int = MAX_READ_BYTES
    window_parts: int = 4


class CreateVolume(msgspec.Struct, frozen=True):
    """Make the volume, or find it made; nothing of it ever changes. `seed`: 16 hex digits, in ENCRYPTED mode zeros."""

    volume_id: HexId
    seed: HexSeed
    mode: Mode = Mode.PLAIN


class Snapshot(msgspec.Struct, frozen=True, omit_defaults=True):
    """A snapshot as it is on the mirror. `record` has the fields of `records.to_fields`.

    `branch` is the name of the branch that it is on, "" for a snapshot of the history. `received_ns` is the
    mirror's clock at its commit.
    """

    record: dict[str, Any]
    state: str = "good"
    received_ns: int = 0
    branch: str = msgspec.field(default="", name="aside")

    def decoded(self) -> SnapshotRecord:
        """The record with its state. Raises RefusedError if it is none."""
        return decode_record(self.record).with_state(self.state)


class VolumeState(msgspec.Struct, frozen=True):
    """All that a pusher or a reader has to know first. `newest` is None for a volume without snapshots.

    `newest_number` is the highest object number of any snapshot that was ever here. `seed` is sent to readers: they
    check content hashes by it; it is zeros in ENCRYPTED mode. `staged_*` is what parts hold that no snapshot here needs
    yet.
    """

    name: str
    volume_id: str
    seed: str
    mode: Mode
    generation: int
    writer_id: str = msgspec.field(name="holder")
    revision: int
    newest: Snapshot | None
    newest_number: int
    snapshots: int
    stored_bytes: int
    staged_objects: int
    staged_bytes: int
    free_bytes: int
    limits: Limits
    protocol: int = PROTOCOL_VERSION
    lock_s: float = 0.0
    """How long the volume's lock is (locks.py), 0 without one."""
    successions: list[Succession] = []
    """Who took over, and from which snapshot they went on (claims.py)."""
    target_id: str = ""
    """What the volume here is recognised by, as one target among others."""
    peers: Peers | None = None
    """To which other targets the writer replicates (peers.py); None: not known."""


class VolumeList(msgspec.Struct, frozen=True):
    volumes: list[VolumeState]


class SnapshotList(msgspec.Struct, frozen=True):
    """Ascending by number. `revision` grows with every commit, drop, change of state, branch and claim, and lasts."""

    revision: int
    generation: int
    writer_id: str = msgspec.field(name="holder")
    snapshots: list[Snapshot]
    branches: list[Snapshot] = msgspec.field(default_factory=list, name="aside")


class Claim(msgspec.Struct, frozen=True):
    """Claim `generation` for `writer_id`. 409 "fenced", with the newest generation, if that is not lower."""

    generation: GenerationField
    writer_id: WriterIdField = msgspec.field(name="holder")
    note: Annotated[str, Meta(max_length=256)] = ""
    snapshot: Annotated[int, Meta(ge=0, le=1 << 48)] = 0
    """What a writer who takes over goes on from (claims.py); 0: not stated."""
    peers: Peers | None = None
    """To which other targets this writer replicates (peers.py); None: not sent, and what is known stays."""


class PartReceipt(msgspec.Struct, frozen=True):
    """What came of a part. All `objects` are durable and, but for `unverified`, verified; `known` were there before."""

    objects: int
    known: int
    stored_bytes: int
    unverified: int = 0


class Commit(msgspec.Struct, frozen=True, omit_defaults=True):
    """Snapshots to make visible, ascending; each with the fields of `records.to_fields`.

    Of an encrypted volume, besides: `needs`, the numbers that they need and that were not there before (`pack_needs`;
    empty where they are too many for one message, and the writer has sent LACKS for them); `ground`, a snapshot that
    must be there; `first`, what a mount of the last of them reads first, in that order; `whole`: whether `needs` are
    all that they need, and not only what is new.
    """

    records: Annotated[list[dict[str, Any]], Meta(min_length=1, max_length=MAX_COMMIT_SNAPSHOTS)]
    history: bool = False
    needs: str = ""
    ground: Annotated[int, Meta(ge=0, le=1 << 48)] = 0
    first: Annotated[list[NumberField], Meta(max_length=MAX_FIRST_NUMBERS)] = []
    whole: bool = False

    def __post_init__(self) -> None:
        check_numbers(*self.first)


class CommitReceipt(msgspec.Struct, frozen=True):
    """`committed`: those that this request added; the others of the request were there."""

    committed: list[int]
    revision: int
    newest: int
    newest_number: int


class Drop(msgspec.Struct, frozen=True, omit_defaults=True):
    """Snapshots that the source has dropped. One that is not there, the newest and held ones are passed over.

    `why`: the rule by which the writer, or who prunes there, drops them from this mirror; "" for what it dropped itself
    or a person named. An earlier mirror ignores it.
    """

    snapshots: Annotated[list[NumberField], Meta(max_length=1 << 16)]
    why: Annotated[str, Meta(max_length=400)] = ""


class KeptSnapshot(msgspec.Struct, frozen=True, omit_defaults=True):
    """A snapshot that was not dropped: `reason` is a `locks.Stays`; `until_ns`, by the mirror's clock, ends a lock."""

    snapshot: int
    reason: str
    until_ns: int = 0


class DropAnswer(msgspec.Struct, frozen=True):
    """A SnapshotList, for earlier pushers, with what was not dropped and why. Earlier mirrors do not send `kept`."""

    revision: int
    generation: int
    writer_id: str = msgspec.field(name="holder")
    snapshots: list[Snapshot]
    branches: list[Snapshot] = msgspec.field(default_factory=list, name="aside")
    kept: list[KeptSnapshot] = []


class BranchMessage(msgspec.Struct, frozen=True):
    """Move to the branch `name` all snapshots above `after` of an older generation than the claimed one."""

    after: Annotated[int, Meta(ge=0, le=1 << 48)]
    name: HoldNameField


class Collect(msgspec.Struct, frozen=True):
    """What of an encrypted volume lives: sent in several messages, of which the first `begins` and the last `ends`.

    With the last one the mirror frees what none of them named. `snapshots` are all that the writer knows to be there;
    if there are others, nothing is freed.
    """

    live: str
    begins: bool = False
    ends: bool = False
    snapshots: Annotated[list[NumberField], Meta(max_length=1 << 16)] = []


class Collected(msgspec.Struct, frozen=True):
    freed_bytes: int


class HoldMessage(msgspec.Struct, frozen=True):
    """Keep a snapshot until `seconds` from now have passed (at most a day at a time; again prolongs it)."""

    snapshot: NumberField
    seconds: Annotated[float, Meta(gt=0, le=86400)] = 3600.0


class HoldState(msgspec.Struct, frozen=True):
    name: str
    snapshot: int
    seconds_left: float


class HoldList(msgspec.Struct, frozen=True):
    """`people`: what people decided to hold, ends of holds too; an earlier mirror does not send it, and takes none."""

    holds: list[HoldState]
    people: list[HoldRecord] | None = None


class PutHolds(msgspec.Struct, frozen=True):
    """What people decided to hold, or not any more (store/log/holds.py). What the mirror knows better stays."""

    records: Annotated[list[HoldRecord], Meta(max_length=MAX_HOLD_RECORDS)]


class Promote(msgspec.Struct, frozen=True):
    """Fence the writer: the next generation is `writer_id`'s."""

    writer_id: WriterIdField = msgspec.field(default="promoted", name="holder")


class TokenState(msgspec.Struct, frozen=True):
    """The token of a request. `rights`: volume (or "*") to words joined by "+"; `expires`: UTC s, 0: never."""

    id: str
    rights: dict[str, str]
    expires: int = 0


class Health(msgspec.Struct, frozen=True):
    status: str
    version: str
    protocol: int = PROTOCOL_VERSION
    reason: str = ""

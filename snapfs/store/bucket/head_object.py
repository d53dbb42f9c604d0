"""head.json: the one object that is replaced, and the commit point (bucket_layout.py has its fields).

Encoded names are those of format 2 and stay; `name=` has them where a field is called otherwise here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from snapfs.base.blocks import MAX_GENERATION, Generation
from snapfs.base.errors import CorruptionError
from snapfs.store.bucket.bucket_layout import FORMAT, HEAD, new_id
from snapfs.store.bucket.checked_body import check_format, checked_body_of, with_checksum
from snapfs.store.log.claims import Succession, with_succession
from snapfs.store.log.holds import HoldRecord, latest
from snapfs.store.log.peers import Peers, with_peers
from snapfs.store.log.snapshot_records import StoreIdentity
from snapfs.store.protocol.refusals import Refusal, refuse


class BucketBranch(msgspec.Struct, frozen=True):
    """A snapshot that is no part of the history any more."""

    branch: str
    record: dict[str, Any]


class Head(msgspec.Struct, frozen=True, omit_defaults=True):
    """head.json."""

    format: int
    volume: Annotated[str, Meta(pattern="^[0-9a-f]{32}$")]
    seed: Annotated[str, Meta(pattern="^[0-9a-f]{1,16}$")]
    generation: Annotated[int, Meta(ge=0, le=MAX_GENERATION)] = 0
    writer_id: Annotated[str, Meta(max_length=256)] = msgspec.field(default="", name="holder")
    revision: int = 0
    pages: list[str] = []
    snapshots: list[dict[str, Any]] = []
    dropped: list[int] = []
    segments: list[str] = []
    gone: list[str] = []
    branches: list[BucketBranch] = msgspec.field(default_factory=list, name="aside")
    encrypted: bool = msgspec.field(default=False, name="opaque")
    keys: str = ""
    successions: list[Succession] = []
    target: Annotated[str, Meta(pattern="^([0-9a-f]{32})?$")] = ""
    peers: Peers | None = None
    holds: list[HoldRecord] = []
    """What people decided to hold. An earlier version that changes the head drops them; a later one sends them anew."""

    @property
    def identity(self) -> StoreIdentity:
        return StoreIdentity(self.volume, int(self.seed, 16), self.encrypted)

    def claimed(self, generation: Generation, writer_id: str, snapshot: int = 0, peers: Peers | None = None) -> Head:
        """The head in which this generation is claimed. RefusedError ("fenced") if a newer one, or another writer of
        this one, is the writer. `snapshot`: what a writer who takes over goes on from; `peers`: its other targets."""
        if generation < self.generation or (generation == self.generation and self.writer_id not in ("", writer_id)):
            raise self.fenced(generation)
        successions = with_succession(self.successions, Succession(generation, writer_id, snapshot))
        return msgspec.structs.replace(
            self,
            generation=generation,
            writer_id=writer_id,
            successions=successions,
            target=self.target or new_id(),
            peers=with_peers(self.peers, peers, writer_id),
        )

    def fenced(self, generation: Generation) -> Exception:
        """The refusal for the one that claimed `generation` and is no longer the writer."""
        return refuse(
            Refusal.FENCED,
            f"generation {self.generation} of {self.writer_id} writes there; {generation} is fenced off",
            generation=self.generation, writer_id=self.writer_id,
        )  # fmt: skip


def decode_head(data: bytes) -> Head:
    """Raises VersionError for a later format, CorruptionError for anything else that is none."""
    try:
        plain = data if check_format(data, HEAD, FORMAT) == 1 else checked_body_of(data)
        return msgspec.json.decode(plain, type=Head)
    except (msgspec.MsgspecError, ValueError) as error:
        raise CorruptionError(HEAD, "the object store", str(error)) from None


def encode_head(head: Head) -> bytes:
    return with_checksum(FORMAT, msgspec.json.encode(msgspec.structs.replace(head, format=FORMAT)))


def with_changes(
    head: Head,
    snapshots: Sequence[dict[str, Any]] = (),
    segments: Sequence[str] = (),
    dropped: Sequence[int] = (),
    gone: Sequence[str] = (),
) -> Head:
    """The head with this added. What it names itself and what is taken away cancel out."""
    away, lost = set(dropped), set(gone)
    kept = [fields for fields in head.snapshots if fields["number"] not in away]
    names = [name for name in head.segments if name not in lost]
    own = {fields["number"] for fields in head.snapshots}, set(head.segments)
    return msgspec.structs.replace(
        head,
        snapshots=[*kept, *snapshots],
        segments=[*names, *(name for name in segments if name not in names)],
        dropped=[*head.dropped, *(number for number in dropped if number not in own[0])],
        gone=[*head.gone, *(name for name in gone if name not in own[1])],
    )


def with_holds(head: Head, records: Sequence[HoldRecord]) -> Head:
    """The head that knows these as well; of one snapshot the latest record counts. What ended is kept only in the place
    of what did not."""
    known = {record.snapshot for record in head.holds}
    new = [record for record in records if record.snapshot in known or not record.released]
    found = latest([*head.holds, *new])
    return msgspec.structs.replace(head, holds=[record for _, record in sorted(found.items())])


def held_in(head: Head, now_ns: int) -> frozenset[int]:
    """What people hold at that time, there or not."""
    return frozenset(record.snapshot for record in head.holds if record.keeps(now_ns))


def without(head: Head, numbers: Sequence[int], now_ns: int | None = None) -> Head:
    """The head without these snapshots, and without what was decided about them. `now_ns`: but for those that are held
    at that time; None: whatever is held (they go to a branch)."""
    held = held_in(head, now_ns) if now_ns is not None else frozenset()
    gone = set(numbers) - held
    changed = with_changes(head, dropped=[number for number in numbers if number in gone])
    return msgspec.structs.replace(changed, holds=[each for each in head.holds if each.snapshot not in gone])

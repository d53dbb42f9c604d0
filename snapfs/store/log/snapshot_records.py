"""The record of a snapshot as a type, and its way to JSON and back.

In memory a record that is not in use is packed: a msgpack array of some eighty bytes, without number, root and state.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Annotated, Any, Final

import msgspec
from msgspec import Meta

from snapfs.base.blocks import MAX_GENERATION, Generation, Number, SnapshotNumber
from snapfs.base.errors import UserError
from snapfs.base.settings import exclusion
from snapfs.store.objects.format import Pointer

GOOD: Final = "good"
DAMAGED: Final = "damaged"
CRASH: Final = "crash"
APPLICATION: Final = "application"
WRITTEN: Final = "written"
MAX_MEMBERS: Final = 64
MAX_ERROR: Final = 200
_NAME_BYTES: Final = 255
CONTENT_HASH_BYTES: Final = 16
_CUT: Final = re.compile("[0-9a-f]{32}")
LOG_HEAD_BYTES: Final = 16
_encode_packed: Final = msgspec.msgpack.Encoder().encode
_decode_packed: Final = msgspec.msgpack.Decoder().decode
_Int64 = Annotated[int, Meta(ge=-(1 << 63), le=(1 << 63) - 1)]


@dataclass(frozen=True, slots=True)
class StoreIdentity:
    """Whose store it is. `volume_id`: a UUID4 in hex. `seed`: 64 bits, secret; content hashes are made with it.

    `encrypted`: it holds ciphertext (encryption.py), and content hashes are made of that, with seed 0.
    """

    volume_id: str
    seed: int
    encrypted: bool = False


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


_STATS: Final = len(fields(SealStats))


@dataclass(frozen=True, slots=True)
class GroupCut:
    """The instant that the snapshot shares with snapshots of other volumes.

    `group`: the group's name; `cut`: 32 hex digits, of this one instant; `members`: names and ids of all its volumes.
    `promise`: which writes are ordered over all members: "written" (snapfs-operations(7)), or a later version's word.
    """

    group: str
    cut: str
    members: tuple[tuple[str, str], ...]
    promise: str = WRITTEN

    def __post_init__(self) -> None:
        """ValueError for what a peer may not send."""
        fits = len(self.group) <= _NAME_BYTES and _CUT.fullmatch(self.cut) and 0 < len(self.members) <= MAX_MEMBERS
        ids = all(len(name) <= _NAME_BYTES and _CUT.fullmatch(volume_id) for name, volume_id in self.members)
        if not (fits and ids and self.promise.isalpha() and len(self.promise) <= 20):
            raise ValueError(f"not a group's cut: {self.group!r} {self.cut!r}")


@dataclass(frozen=True, slots=True)
class CutFacts:
    """How the cut was made. `held_s`: how long the application was held, for hooks and pause together.

    `consistency`: APPLICATION if the hook `before` succeeded, else CRASH; `hook_error` has why it did not, "" where
    none was to run. `pause_s`: no request was answered for so long; 0 where that is not written down.
    """

    consistency: str = CRASH
    hook_error: str = ""
    held_s: float = 0.0
    pause_s: float = 0.0
    group: GroupCut | None = None
    exclude: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """ValueError for what a peer may not send."""
        long = any(len(pattern) > exclusion.MOST_CHARACTERS for pattern in self.exclude)
        if long or len(self.exclude) > exclusion.MOST_PATTERNS:
            raise ValueError(f"not the patterns of a cut: {len(self.exclude)} of them")
        if self.consistency not in (CRASH, APPLICATION) or len(self.hook_error) > MAX_ERROR:
            raise ValueError(f"not the facts of a cut: {self.consistency!r}")


@dataclass(frozen=True, slots=True)
class AskedBy:
    """The process that asked for it: a process of the host that made the snapshot."""

    uid: int
    gid: int
    pid: int


@dataclass(frozen=True, slots=True)
class SnapshotRecord:
    """A snapshot. Times are ns since 1970, UTC; `last_number` is the highest object number of its segment.

    `ciphertext`: in an encrypted store, the whole record, encrypted, in hex (encryption.py); the other fields are what
    the store may see. `branch`: the branch it was moved to, "" for a snapshot of the history; like `state` it is not
    part of what is written.
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
    ciphertext: str = ""
    branch: str = ""
    cut: CutFacts = CutFacts()
    log_head: str = field(default="", compare=False)
    """What its writer's log was before this record: the first 128 bits, in hex, of the SHA-256 of the line before,
    which depends on all lines before that. It travels with the record: each target witnesses the log. "": unknown."""
    by: AskedBy | None = field(default=None, compare=False)
    """Of one that was asked for, and not made by a rule, if that is known."""

    def with_state(self, state: str) -> SnapshotRecord:
        return replace(self, state=state)

    def on_branch(self, branch: str) -> SnapshotRecord:
        return replace(self, branch=branch)


class Fields(msgspec.Struct, frozen=True):
    """A record's fields in a log line, a segment or a message, with their types."""

    number: Annotated[int, Meta(ge=1)]
    name: str | None
    generation: Annotated[int, Meta(ge=0, le=MAX_GENERATION)]
    parent: _Int64 | None
    cut_time_ns: _Int64
    seal_time_ns: _Int64
    trigger: str
    root: tuple[int, str]
    last_number: int
    stats: SealStats
    ciphertext: str = msgspec.field(default="", name="sealed")
    cut: CutFacts = CutFacts()
    log_head: Annotated[str, Meta(max_length=2 * LOG_HEAD_BYTES)] = ""
    by: AskedBy | None = None


_decode_fields: Final = msgspec.json.Decoder(Fields).decode


def to_fields(record: SnapshotRecord) -> dict[str, Any]:
    """The record as the fields of a log line; its state is not part of it."""
    known: dict[str, Any] = {
        "number": record.number,
        "name": record.name,
        "generation": record.generation,
        "parent": record.parent,
        "cut_time_ns": record.cut_time_ns,
        "seal_time_ns": record.seal_time_ns,
        "trigger": record.trigger,
        "root": [record.root.number, record.root.content_hash.hex()],
        "last_number": record.last_number,
        "stats": asdict(record.stats),
    }
    if record.ciphertext:
        known["sealed"] = record.ciphertext
    if record.cut != CutFacts():
        known["cut"] = cut_fields(record.cut)
    if record.by is not None:
        known["by"] = asdict(record.by)
    if record.log_head:
        known["log_head"] = record.log_head
    return known


def cut_fields(cut: CutFacts) -> dict[str, Any]:
    """What is not at its default, as JSON."""
    return {name: value for name, value in msgspec.to_builtins(cut).items() if value}


def head_of(_lines: int, head: str) -> dict[str, Any]:
    """The field of a record that is about to follow this end of its writer's log (`SnapshotLog.append`)."""
    return {"log_head": head[: 2 * LOG_HEAD_BYTES]}


def from_fields(fields: Mapping[str, Any]) -> SnapshotRecord:
    """The inverse of `to_fields`; fields it does not know are ignored. Raises ValueError for what is no record."""
    try:
        checked = msgspec.convert(fields, Fields)
    except msgspec.ValidationError as error:
        raise ValueError(str(error)) from None
    return unpack(pack_fields(checked), checked.number, root_of(checked))


def fields_in(line: bytes) -> Fields:
    """Those of a record among the members of a JSON object, others are passed over. Raises ValueError."""
    try:
        checked = _decode_fields(line)
    except msgspec.MsgspecError as error:
        raise ValueError(str(error)) from None
    root_of(checked)
    pack_fields(checked)
    return checked


def root_of(checked: Fields) -> Pointer:
    """Raises ValueError if numbers or content hash cannot be."""
    number, content_hash = checked.root[0], bytes.fromhex(checked.root[1])
    in_range = 0 < number < 1 << 64 and 0 < checked.last_number < 1 << 64 and checked.number < 1 << 64
    if len(content_hash) != CONTENT_HASH_BYTES or not in_range:
        raise ValueError(f"root {checked.root}, last number {checked.last_number}, snapshot {checked.number}")
    return Pointer(Number(number), content_hash)


def pack_fields(checked: Fields) -> bytes:
    """`pack` of checked fields, without a record in between. Raises ValueError."""
    return _packed(checked)


def pack(record: SnapshotRecord) -> bytes:
    """The record but for its number, root and state."""
    return _packed(record)


def _packed(checked: Fields | SnapshotRecord) -> bytes:
    stats = checked.stats
    try:
        return _encode_packed((
            checked.name, checked.generation, checked.parent, checked.cut_time_ns, checked.seal_time_ns,
            checked.trigger, checked.last_number, checked.ciphertext, checked.log_head,
            stats.files, stats.directories, stats.inodes, stats.dirty_bytes, stats.new_objects, stats.stored_bytes,
            stats.seal_seconds,
            *_packed_origin(checked),
        ))  # fmt: skip
    except OverflowError as error:
        raise ValueError(str(error)) from None


def _packed_origin(checked: Fields | SnapshotRecord) -> tuple[Any, ...]:
    """How the cut was made and who asked for it; nothing of a usual one."""
    if checked.by is not None:
        return cut_fields(checked.cut), (checked.by.uid, checked.by.gid, checked.by.pid)
    return (cut_fields(checked.cut),) if checked.cut != CutFacts() else ()


def unpack(packed: bytes, number: int, root: Pointer) -> SnapshotRecord:
    """The inverse of `pack`."""
    name, generation, parent, cut_ns, seal_ns, trigger, last, ciphertext, log_head, *rest = _decode_packed(packed)
    stats, cut, by = rest[:_STATS], rest[_STATS : _STATS + 1], rest[_STATS + 1 :]
    return SnapshotRecord(
        SnapshotNumber(number), name, Generation(generation), None if parent is None else SnapshotNumber(parent),
        cut_ns, seal_ns, trigger, root, Number(last), SealStats(*stats), GOOD, ciphertext,
        cut=msgspec.convert(cut[0], CutFacts) if cut else CutFacts(), log_head=log_head,
        by=AskedBy(*by[0]) if by else None,
    )  # fmt: skip


def check_name(name: str) -> None:
    """Raises UserError if `name` cannot be a snapshot's: it is a file name, and no number."""
    if not name or name in (".", "..") or "/" in name or any(ord(char) < 32 for char in name):
        raise UserError(f"{name!r} cannot be a snapshot's name: it has to be a plain file name")
    if name.isdecimal():
        raise UserError(f"{name!r} cannot be a snapshot's name: numbers are the names they have anyway")
    if len(name.encode("utf-8", "surrogateescape")) > _NAME_BYTES:
        raise UserError("a snapshot's name has at most 255 bytes")

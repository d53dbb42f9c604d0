"""Holds: snapshots that are not to be dropped for a while, because a process outside the daemon still needs them.

`store/holds/NAME.json` is one holder's wish, a JsonFile (snapfs/base/json_file.py): {"format": 1, "snapshots":
[numbers], "expires_ns": UTC since 1970, "why": a line for people}. `NAME.brief` is the same of a hold that need not
outlive a power cut, and is not synced. A replicator, for one, holds what it is sending, and the newest snapshot that
each of its targets has, which the next difference is made against.

Invariants:
1. A hold is one file, replaced in one step; after a crash it is the old or the new one (or none, if not durable).
2. It ends by itself when it has expired. So a holder that is gone for good costs space for a limited time. The file of
   an expired hold may be removed by any process. One that is damaged may hold anything: nothing is dropped until its
   holder or a person has replaced it. Of a brief hold, a file without content or of zeros is what a power cut leaves:
   it holds nothing.
3. A hold keeps a snapshot from being dropped; it does not bring one back. Who takes a hold looks afterwards whether the
   snapshot still exists: dropping reads the holds immediately before it acts, so that one of the two sees the other, or
   the holder finds the objects gone, which every reader of the store must be able to bear anyway.
"""

from __future__ import annotations

import contextlib
import os
import re
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Annotated, Final

import msgspec
from msgspec import Meta

from snapfs.base.blocks import Disk, SnapshotNumber
from snapfs.base.errors import SnapfsError
from snapfs.base.json_file import MAX_BYTES, JsonFile
from snapfs.store.log.log_lines import Event

FOLDER: Final = "holds"
PERSON_PREFIX: Final = "person."
"""Of the holders of `snapfs hold` (transfer/retention/named_holds.py)."""
FOR_EVER_S: Final = 100 * 365 * 86400.0
HELD: Final = "held"
RELEASED: Final = "released"
WHY_LENGTH: Final = 400
MAX_RECORDS: Final = 10_000
"""In one message, and of one target's head."""
_Int64 = Annotated[int, Meta(ge=0, le=(1 << 63) - 1)]
_NAME: Final = re.compile(r"[A-Za-z0-9._-]{1,100}")
_SUFFIX: Final = ".json"
_BRIEF_SUFFIX: Final = ".brief"


class _File(msgspec.Struct, frozen=True):
    format: int
    snapshots: list[int]
    expires_ns: int
    why: str = ""


HOLD: Final = JsonFile(
    "hold", _File, advice="nothing is dropped while it is not known what is held; remove it if nothing needs it"
)


@dataclass(frozen=True, slots=True)
class Hold:
    """Snapshots that `holder` needs until `expires_ns` (UTC since 1970)."""

    holder: str
    snapshots: frozenset[SnapshotNumber]
    expires_ns: int
    why: str


class Holds:
    """The holds in one store. Any process may read and write them."""

    def __init__(self, store_dir: str, disk: Disk, clock: Callable[[], int] = time.time_ns) -> None:
        self.folder = os.path.join(store_dir, FOLDER)
        self._disk, self._clock = disk, clock

    def take(
        self, holder: str, snapshots: Iterable[SnapshotNumber], seconds: float, why: str = "", *, durable: bool = True
    ) -> None:
        """Hold exactly these snapshots, and no others, for this holder from now on. Raises OSError.

        `holder`: letters, digits and `._-`, at most 100 of them. Not `durable`: a power cut may end the hold, which a
        holder that comes back with the machine does not mind, and each second's hold spares the disk a flush.
        """
        wanted = sorted(set(snapshots))
        if not wanted:
            self.release(holder)
            return
        with contextlib.suppress(FileExistsError):
            self._disk.mkdir("hold:folder", self.folder)
            self._disk.sync_dir("hold:folder", os.path.dirname(self.folder))
        held = _File(1, list(wanted), self._clock() + int(seconds * 1e9), why)
        durable_path, brief_path = self._paths(holder)
        if durable:
            HOLD.write("hold:take", durable_path, held, self._disk)
            self._remove(brief_path)
            return
        self._disk.replace_unsynced("hold:brief", brief_path, HOLD.encode(held))
        self._remove(durable_path)

    def release(self, holder: str) -> None:
        """Hold nothing any more for this holder. Raises OSError."""
        for path in self._paths(holder):
            self._remove(path)

    def all(self) -> list[Hold]:
        """The holds that have not expired. OSError, CorruptionError, VersionError: then nothing is to be dropped."""
        try:
            names = sorted(os.listdir(self.folder))
        except FileNotFoundError:
            return []
        found = (self._read(name) for name in names if name.endswith((_SUFFIX, _BRIEF_SUFFIX)))
        now_ns = self._clock()
        return [hold for hold in found if hold is not None and hold.expires_ns > now_ns]

    def held(self) -> frozenset[SnapshotNumber]:
        """The numbers of all snapshots that anybody holds. Raises as `all`."""
        return frozenset(number for hold in self.all() for number in hold.snapshots)

    def held_of(self, numbers: Iterable[SnapshotNumber]) -> frozenset[SnapshotNumber]:
        """Those of these snapshots that are held, all of them if that cannot be known. Raises OSError."""
        try:
            return self.held() & frozenset(numbers)
        except SnapfsError:
            return frozenset(numbers)

    def _paths(self, holder: str) -> tuple[str, str]:
        """Of the durable and of the brief hold."""
        if not _NAME.fullmatch(holder):
            raise ValueError(f"{holder!r} cannot be the name of a hold")
        path = os.path.join(self.folder, holder)
        return f"{path}{_SUFFIX}", f"{path}{_BRIEF_SUFFIX}"

    def _remove(self, path: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            self._disk.unlink("hold:release", path)

    def _read(self, name: str) -> Hold | None:
        path, is_brief = os.path.join(self.folder, name), name.endswith(_BRIEF_SUFFIX)
        try:
            with open(path, "rb") as file:
                data = file.read(MAX_BYTES)
        except FileNotFoundError:  # released a moment ago
            return None
        if is_brief and not data.strip(b"\0"):
            return None
        decoded = HOLD.decode(data, path)
        holder = name.removesuffix(_BRIEF_SUFFIX if is_brief else _SUFFIX)
        return Hold(
            holder, frozenset(SnapshotNumber(number) for number in decoded.snapshots), decoded.expires_ns, decoded.why
        )


def holder_of(number: int) -> str:
    """The holder of what people hold of a snapshot."""
    return f"{PERSON_PREFIX}{number}"


class HoldRecord(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a person last decided about a snapshot. Times are ns since 1970, UTC.

    `time_ns`: of two records of one snapshot the one with the higher time counts, of two of the same time the one that
    keeps. `until_ns`: when the hold ends, None for never. `released`: it was ended; the other fields mean nothing then.
    """

    snapshot: Annotated[int, Meta(ge=1, le=1 << 48)]
    time_ns: _Int64
    until_ns: _Int64 | None = None
    why: Annotated[str, Meta(max_length=WHY_LENGTH)] = ""
    released: bool = False

    def is_later(self, other: HoldRecord | None) -> bool:
        """Whether this one counts and not the other. Pure."""
        return other is None or (self.time_ns, not self.released) > (other.time_ns, not other.released)

    def keeps(self, now_ns: int) -> bool:
        """Whether the snapshot is held at that time."""
        return not self.released and (self.until_ns is None or self.until_ns > now_ns)

    def ends_before(self, other: HoldRecord | None, now_ns: int) -> bool:
        """Whether what the other one keeps at that time would be kept for less long. Pure."""
        if other is None or not other.keeps(now_ns):
            return False
        if self.released or self.until_ns is None:
            return self.released
        return other.until_ns is None or self.until_ns < other.until_ns


class HoldTable:
    """The records that count, by snapshot, as a log has them: as many as people ever held. One thread changes it, any
    may read."""

    def __init__(self) -> None:
        self._records: dict[int, HoldRecord] = {}

    def take(self, event: Event) -> None:
        """A line of kind "held" or "released". What a later version wrote, and cannot be understood, is passed over."""
        fields = {**event.fields, "time_ns": event.fields.get("decided_ns", event.time_ns)}
        with contextlib.suppress(msgspec.ValidationError):
            record = msgspec.convert({**fields, "released": event.kind == RELEASED}, HoldRecord)
            if record.is_later(self._records.get(record.snapshot)):
                self._records[record.snapshot] = record

    def get(self, number: int) -> HoldRecord | None:
        return self._records.get(number)

    def all(self) -> list[HoldRecord]:
        """Ascending by snapshot."""
        return [self._records[number] for number in sorted(self._records)]

    def forget(self, number: int) -> None:
        """It is on a branch now, where nothing is dropped, and its number may be given again. (Of a snapshot that was
        dropped the record stays: a target may not have heard of the end of its hold yet.)"""
        self._records.pop(number, None)

    def clear(self) -> None:
        self._records.clear()


def latest(records: Iterable[HoldRecord]) -> dict[int, HoldRecord]:
    """The ones that count, by snapshot. Pure."""
    found: dict[int, HoldRecord] = {}
    for record in records:
        if record.is_later(found.get(record.snapshot)):
            found[record.snapshot] = record
    return found


def to_send(ours: Iterable[HoldRecord], theirs: Iterable[HoldRecord], now_ns: int) -> list[HoldRecord]:
    """Those of ours that another place does not know yet, and that change something there. Pure."""
    there = latest(theirs)
    return [
        record for record in ours
        if record.is_later(there.get(record.snapshot)) and (record.snapshot in there or record.keeps(now_ns))
    ]  # fmt: skip

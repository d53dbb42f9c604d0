"""The lock of a target: what came less than so long ago does not leave it, whatever the token. Pure, and the file's
codec.

A lock is set on the target's side (`serve --lock`, `snapfs-replicator lock`), never by a push. The file `lock.json`,
beside the volume's history in a folder or a bucket, is {"format": 1, "seconds", "set_ns"}, checked as in
json_file.py.

Invariants:
1. The age of a snapshot is counted on the target's clock, from the instant at which the target received it. What the
   snapshot records as its own time does not count: its maker can write anything.
2. A lock file that cannot be read locks everything: LOCK.decode raises, and the caller drops nothing.
3. Setting a lock never shortens one, unless `shorten` is given.
4. A snapshot that is not dropped stays with a reason: `Stays`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated, Final

import msgspec
from msgspec import Meta

from snapfs.base.blocks import SnapshotNumber
from snapfs.base.errors import UserError
from snapfs.base.json_file import JsonFile

LOCK_FILE: Final = "lock.json"
LONGEST_SECONDS: Final = 100 * 365.0 * 86400


class Stays(StrEnum):
    """Why a target does not drop a snapshot that it was requested to drop."""

    LOCKED = "locked"  # until its time has come
    RIGHT = "right"  # the token may not drop (the right `prune`)
    HELD = "held"  # it has a hold
    NEWEST = "newest"  # the next difference is made against it


@dataclass(frozen=True, slots=True)
class LockedSnapshot:
    """A snapshot that stays although it was to be dropped. `until_ns`: the target's clock when a lock ends, else 0."""

    number: SnapshotNumber
    reason: str
    until_ns: int = 0


class Lock(msgspec.Struct, frozen=True):
    """lock.json. `set_ns`: when it was set, UTC since 1970, by the clock of the host that set it."""

    seconds: Annotated[float, Meta(ge=0, le=LONGEST_SECONDS)]
    set_ns: int
    format: int = 1


LOCK: Final = JsonFile("target lock", Lock, advice="set it anew with `snapfs-replicator lock`")


def changed(known: Lock | None, seconds: float, now_ns: int, *, shorten: bool) -> Lock:
    """The lock to be set in the place of `known`. Raises UserError if that one is longer and `shorten` is not given."""
    if seconds > LONGEST_SECONDS or seconds < 0:
        raise UserError("a lock is between 0 seconds and 100 years")
    if known is not None and seconds < known.seconds and not shorten:
        raise UserError(f"the lock there is longer ({known.seconds / 86400:g} days): give --shorten to make it shorter")
    return Lock(seconds, now_ns)


def kept_by(
    numbers: Iterable[SnapshotNumber], received_ns: Callable[[SnapshotNumber], int], lock_s: float, now_ns: int
) -> list[LockedSnapshot]:
    """Those that a lock of `lock_s` keeps at `now_ns`; both times are of the target's clock."""
    until = ((number, received_ns(number) + int(lock_s * 1e9)) for number in numbers) if lock_s else ()
    return [LockedSnapshot(number, Stays.LOCKED, until_ns) for number, until_ns in until if until_ns > now_ns]

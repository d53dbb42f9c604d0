"""Holds of people: `snapfs hold` and `snapfs release` (store/ingest/hold_writer.py writes them).

Invariants:
1. A hold ends by itself at `until_ns` (UTC since 1970); without one it is for FOR_EVER_S.
2. One hold a snapshot: another one takes its place. Who may hold and not release cannot shorten one that is there.
3. A snapshot that is held and is not here (a takeover brings only the newest) can be released, by its number: the
   record travels to the targets that have it.
"""

from __future__ import annotations

import contextlib
import errno
from typing import Final

from snapfs.base.blocks import SnapshotNumber
from snapfs.base.errors import UserError
from snapfs.store.ingest.hold_writer import decision_ns, write_hold
from snapfs.store.log.holds import FOR_EVER_S, WHY_LENGTH, Hold, HoldRecord, Holds, holder_of
from snapfs.store.repository.repository import Repository, SnapshotRecord

SHORTER: Final = "it is held for longer: who may not `release` may not shorten a hold (control.allow)"


def hold(
    repository: Repository, record: SnapshotRecord, why: str, seconds: float | None, *, may_shorten: bool = True
) -> Hold:
    """Hold a snapshot for so long, None for ever; the hold. Of the store's writer, while nobody drops.

    `may_shorten`: whether it may end before the one that is there. UserError; PermissionError; OSError.
    """
    if seconds is not None and seconds <= 0:
        raise UserError("the hold would have ended already: name a later end")
    check_reason(why)
    known, is_endless = _known(repository, record.number), seconds is None or seconds >= FOR_EVER_S
    until_ns = None if is_endless else repository.clock() + int((seconds or 0) * 1e9)
    ends_ns = known.expires_ns if known is not None else 0
    if not may_shorten and until_ns is not None and until_ns < ends_ns:
        raise PermissionError(errno.EPERM, SHORTER)
    write_hold(repository, HoldRecord(record.number, decision_ns(repository, record.number), until_ns, why))
    held = _known(repository, record.number)
    assert held is not None
    return held


def check_reason(why: str) -> None:
    """UserError for what cannot be the reason of a hold."""
    if len(why) > WHY_LENGTH or any(ord(char) < 32 for char in why):
        raise UserError(f"the reason of a hold is one line of at most {WHY_LENGTH} characters")


def release(repository: Repository, number: SnapshotNumber) -> None:
    """End the hold that a person took. Raises UserError if there is none; OSError."""
    if _known(repository, number) is None:
        raise UserError(f"nobody holds snapshot {number} by `snapfs hold`")
    write_hold(repository, HoldRecord(number, decision_ns(repository, number), released=True))


def held_number(repository: Repository, reference: str) -> SnapshotNumber:
    """The snapshot that is meant, which may be held and not be here. Raises UserError."""
    if reference.isdecimal() and _known(repository, SnapshotNumber(int(reference))) is not None:
        return SnapshotNumber(int(reference))
    return repository.find(reference).number


def release_dropped(holds: Holds, number: SnapshotNumber) -> None:
    """Remove what an ended hold of a snapshot that is gone left. Never raises."""
    with contextlib.suppress(OSError):
        holds.release(holder_of(number))


def until(hold: Hold, now_ns: int) -> int | None:
    """When it ends, ns since 1970; None for one that was taken for ever."""
    is_endless = hold.expires_ns - now_ns > FOR_EVER_S * 1e9 / 2
    return None if is_endless else hold.expires_ns


def _known(repository: Repository, number: SnapshotNumber) -> Hold | None:
    """The hold that is there, of a person."""
    holds = Holds(repository.store_dir, repository.disk, repository.clock).all()
    return next((each for each in holds if each.holder == holder_of(number)), None)

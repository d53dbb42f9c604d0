"""What a commit is checked for before anything is looked through: the order of its snapshots, and what is here."""

from __future__ import annotations

from snapfs.base.errors import UserError
from snapfs.store.log import snapshot_records
from snapfs.store.log.snapshot_records import SnapshotRecord
from snapfs.store.protocol.refusals import Refusal, refuse
from snapfs.store.repository.repository import Repository


def missing_of(repository: Repository, candidates: list[SnapshotRecord], *, history: bool) -> list[SnapshotRecord]:
    """Those that are not committed here. RefusedError for others of their numbers, and for a wrong order.

    `history`: they may be older than the newest one here.
    """
    missing = [record for record in _ascending(candidates) if not _is_there(repository, record)]
    if missing and not history:
        _check_order(repository, missing[0])
    return missing


def _ascending(candidates: list[SnapshotRecord]) -> list[SnapshotRecord]:
    numbers = [record.number for record in candidates]
    names = [record.name for record in candidates if record.name is not None]
    if numbers != sorted(set(numbers)) or len(names) != len(set(names)):
        raise refuse(Refusal.BAD_REQUEST, "the snapshots of a commit ascend by number, each name once")
    return candidates


def _is_there(repository: Repository, record: SnapshotRecord) -> bool:
    """Is it committed? Raises RefusedError if another one has its number."""
    if record.name is not None:
        _check_name(record.name)
    try:
        found = repository.find(str(record.number))
    except UserError:
        return False
    if (found.number, found.root, found.last_number) != (record.number, record.root, record.last_number):
        what = f"another snapshot {found.number} (generation {found.generation})"
        raise refuse(
            Refusal.DIVERGED, f"{what} is here: move it to a branch, or see who wrote it", snapshot=found.number
        )
    return True


def _check_name(name: str) -> None:
    try:
        snapshot_records.check_name(name)
    except UserError as error:
        raise refuse(Refusal.BAD_REQUEST, str(error)) from None


def _check_order(repository: Repository, first: SnapshotRecord) -> None:
    newest = repository.latest()
    if newest is None or first.number > newest.number:
        return
    why = f"snapshot {first.number} is older than the newest here, {newest.number}, and not sent as history"
    raise refuse(Refusal.BAD_REQUEST, why, snapshot=newest.number)

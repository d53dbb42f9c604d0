"""What people decide to hold at a mirror itself: as `snapfs hold` and `snapfs release` do on the volume's host.

The records are those of hold_writer.py, with the name of who asked, and travel to the host as any. Synchronous.
"""

from __future__ import annotations

from replicator.volumes.mirror_volume import MirrorVolume
from snapfs.base.errors import UserError
from snapfs.store.ingest.hold_writer import decision_ns, write_hold
from snapfs.store.log.holds import WHY_LENGTH, HoldRecord
from snapfs.store.protocol.refusals import Refusal, refuse


def hold(volume: MirrorVolume, number: int, why: str, seconds: float | None, by: str) -> None:
    """Hold a snapshot for so long, None: until it is released. RefusedError if there is none; UserError; OSError."""
    if len(why) > WHY_LENGTH or any(ord(char) < 32 for char in why):
        raise UserError(f"the reason of a hold is one line of at most {WHY_LENGTH} characters")
    with volume.receiver.lock:
        repository = volume.repository
        if number not in repository.catalog:
            raise refuse(Refusal.NOT_FOUND, f"there is no snapshot {number} of {volume.name} here")
        until_ns = None if seconds is None else repository.clock() + int(seconds * 1e9)
        write_hold(repository, HoldRecord(number, decision_ns(repository, number), until_ns, why), by)


def release(volume: MirrorVolume, number: int, by: str) -> None:
    """End what a person holds a snapshot for. UserError if nobody does; OSError."""
    with volume.receiver.lock:
        repository = volume.repository
        known = repository.catalog.hold_records.get(number)
        if known is None or not known.keeps(repository.clock()):
            raise UserError(f"nobody holds snapshot {number}")
        write_hold(repository, HoldRecord(number, decision_ns(repository, number), released=True), by)

"""A mirror's volume that takes the snapshots of a history one after another, each in a segment of its own."""

from __future__ import annotations

from pathlib import Path

from replicator.volumes.mirror_volume import MirrorVolume
from snapfs.base.blocks import Disk, Generation
from snapfs.store.protocol import messages
from tests.fakes.histories.history import IDENTITY, History

WRITER_ID = "host-a"
CREATE = messages.CreateVolume(IDENTITY.volume_id, f"{IDENTITY.seed:016x}")


def mirrored(path: Path, history: History, count: int) -> None:
    """Make it, with the first `count` snapshots acknowledged."""
    mirror = MirrorVolume.create(str(path), CREATE, Disk())
    mirror.claim(Generation(1), WRITER_ID, "")
    for number in range(1, count + 1):
        push(mirror, history, number)
    mirror.close()


def push(mirror: MirrorVolume, history: History, number: int) -> None:
    """Send what it lacks of this snapshot, and have it acknowledged."""
    record = history.records[number - 1]
    lacking = [each for each in history.numbers(record) if mirror.receiver.union.row(each) is None]
    part = mirror.part(Generation(1), WRITER_ID)
    part.feed(history.part(lacking))
    part.finish()
    mirror.commit([record], False, Generation(1), WRITER_ID)

"""A mount that learns that it was replaced while its disk is full: it refuses at once, and writes it down later."""

from __future__ import annotations

import errno
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
import trio

from snapfs.blocks import Disk, Generation
from snapfs.config import ReplicationSettings, TargetSettings
from snapfs.store import replicas
from snapfs.store.replicas import FencedFacts, ReplicaReader, Replication, TargetFacts
from snapfs.transfer import fencing
from snapfs.transfer.fencing import Fence, Surroundings, read_fenced
from tests.fakes.pushing import SourceVolume


class FullDisk(Disk):
    full = True

    def append(self, label: str, fd: int, data: bytes) -> None:
        if self.full:
            raise OSError(errno.ENOSPC, "no space left", label)
        super().append(label, fd, data)


@pytest.mark.parametrize("named_late", [False, True], ids=["", "its target was named after it was mounted"])
def test_a_full_disk_does_not_keep_a_fenced_mount_writing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, named_late: bool
) -> None:
    monkeypatch.setattr(fencing, "RETRY_SECONDS", 0.01)
    source = SourceVolume(tmp_path / "volume", 3)
    source.grow(1)
    told: list[str] = []
    refused: list[bool] = []
    disk = FullDisk()
    latest = source.records[0]
    snapshotter: Any = SimpleNamespace(generation=Generation(1))
    facts = TargetFacts("mirror", "url", "fenced", newest=latest.number, fenced_by=FencedFacts(2, "host-b"))
    status = Replication(source.identity.volume_id, 1, time.time_ns() if named_late else 1, 1, [facts])
    Path(replicas.path_of(str(source.path))).write_bytes(msgspec.json.encode(status))

    async def flush() -> None:
        return

    async def story() -> None:
        fence = Fence(
            ReplicationSettings(target=() if named_late else (TargetSettings("file:///x"),)),
            Surroundings(
                str(source.path), source.history.repository, snapshotter,
                ReplicaReader(str(source.path), source.identity.volume_id), disk, "host-a", flush, lambda: False,
                lambda: refused.append(True), lambda what, why, number: told.append(why),
            ),
        )  # fmt: skip
        async with trio.open_nursery() as nursery:
            nursery.start_soon(fence.run)
            with trio.fail_after(20):
                while len(told) < 3:
                    await trio.sleep(0.01)
            assert refused == [True]
            assert fence.refuses
            assert read_fenced(str(source.path)) is None
            assert "cannot be written down" in told[0]
            disk.full = False
            with trio.fail_after(20):
                while not (fence.fenced is not None and fence.fenced.kept):
                    await trio.sleep(0.01)
            assert read_fenced(str(source.path)) == fence.fenced
            nursery.cancel_scope.cancel()

    trio.run(story)
    source.close()

"""A mount that learns that it was replaced while its disk is full: it refuses at once, and writes it down later."""

from __future__ import annotations

import errno
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
import trio

from snapfs.base.blocks import Disk, Generation
from snapfs.base.settings.replication_settings import ReplicationSettings, TargetSettings
from snapfs.store.log import replica_state
from snapfs.store.log.replica_state import FencedFacts, ReplicaReader, Replication, TargetFacts
from snapfs.transfer.failover import fence as fencing
from snapfs.transfer.failover.fence import Fence, FenceContext
from snapfs.transfer.failover.fence_file import read_fenced
from tests.fakes.patience import PATIENCE_S
from tests.fakes.replication.push_source import SourceVolume


class FullDisk(Disk):
    full = True

    def __init__(self) -> None:
        self.threads: dict[str, int] = {}

    def fsync(self, label: str, fd: int) -> None:
        self.threads[label] = threading.get_ident()
        super().fsync(label, fd)

    def sync_dir(self, label: str, path: str) -> None:
        self.threads[label] = threading.get_ident()
        super().sync_dir(label, path)

    def append(self, label: str, fd: int, data: bytes) -> None:
        self.threads[label] = threading.get_ident()
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
    failures: list[str] = []
    refused: list[bool] = []
    disk = FullDisk()
    latest = source.records[0]
    snapshotter: Any = SimpleNamespace(generation=Generation(1))
    facts = TargetFacts("mirror", "url", "fenced", newest=latest.number, fenced_by=FencedFacts(2, "host-b"))
    status = Replication(source.identity.volume_id, 1, time.time_ns() if named_late else 1, 1, [facts])
    Path(replica_state.path_of(str(source.path))).write_bytes(msgspec.json.encode(status))

    async def flush() -> None:
        return

    async def story() -> None:
        fence = Fence(
            ReplicationSettings(target=() if named_late else (TargetSettings("file:///x"),)),
            FenceContext(
                str(source.path), source.history.repository, snapshotter,
                ReplicaReader(str(source.path), source.identity.volume_id), disk, "host-a", flush, lambda: False,
                lambda: refused.append(True), lambda what, why, number: failures.append(why),
            ),
        )  # fmt: skip
        async with trio.open_nursery() as nursery:
            nursery.start_soon(fence.run)
            with trio.fail_after(PATIENCE_S):
                while len(failures) < 3:
                    await trio.sleep(0.01)
            assert refused == [True]
            assert fence.refuses
            assert read_fenced(str(source.path)) is None
            assert "cannot be recorded" in failures[0]
            disk.full = False
            with trio.fail_after(PATIENCE_S):
                while not (fence.fenced is not None and fence.fenced.kept):
                    await trio.sleep(0.01)
            assert read_fenced(str(source.path)) == fence.fenced
            assert disk.threads
            assert threading.get_ident() not in disk.threads.values(), "no request is served while a flush waits"
            nursery.cancel_scope.cancel()

    trio.run(story)
    source.close()

"""What a claim at the mirrors leaves on this host's disk."""

from __future__ import annotations

from pathlib import Path

import pytest

from snapfs.base.blocks import Disk
from snapfs.base.volumes.volume import Volume
from snapfs.store.log.snapshot_records import StoreIdentity
from snapfs.store.repository.repository import Repository
from snapfs.transfer.failover import writer_claims
from snapfs.transfer.failover.fence_file import Fenced, read_fenced, write_fenced
from snapfs.transfer.failover.writer_claims import Claims, claim
from tests.fakes.disks.crashes import Crash, CrashDisk, PowerCutDisk


@pytest.fixture
def fenced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Volume:
    """A volume that was fenced, and whose only mirror grants it the next claim."""
    settings = {"replication": {"target": [{"url": "https://mirror/pg"}]}}
    volume = Volume.create(str(tmp_path / "volume"), Disk(), settings=settings)
    identity = StoreIdentity(volume.volume_id, volume.seed)
    Repository.create(volume.store_dir, identity, Disk()).close()
    write_fenced(volume.path, Fenced(1, 2, "host-b", "mirror", 10**18), Disk())
    monkeypatch.setattr(writer_claims, "claim_at_all", lambda *_: Claims(granted=["mirror"]))
    return volume


def test_a_fence_that_was_lifted_does_not_come_back_after_a_power_cut(fenced: Volume) -> None:
    """The file was unlinked without a sync of its folder: after a power cut the host was fenced again."""
    disk = PowerCutDisk(Path(fenced.path))
    assert claim(fenced, disk) == []
    disk.cut()
    assert read_fenced(fenced.path) is None


def test_a_crash_while_a_fence_is_lifted_leaves_one_that_the_next_claim_lifts(fenced: Volume) -> None:
    for at, is_there in ((0, True), (1, False)):
        write_fenced(fenced.path, Fenced(1, 2, "host-b", "mirror", 10**18), Disk())
        disk = CrashDisk(at)
        with pytest.raises(Crash, match="fence:lift"):
            claim(fenced, disk)
        assert (read_fenced(fenced.path) is not None) == is_there
        assert claim(fenced, Disk()) == []
        assert read_fenced(fenced.path) is None

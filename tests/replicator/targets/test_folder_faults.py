"""A folder as a target on a disk that fails once: each commit can be done again, without a restart."""

from __future__ import annotations

import asyncio
from contextlib import closing
from pathlib import Path

import pytest

from replicator.source.selection import Known
from replicator.targets.folder_target import DirectoryTarget
from snapfs.base.blocks import Disk
from tests.fakes.patience import PATIENCE_S
from tests.fakes.replication.push_source import GENERATION, WRITER_ID, SourceVolume, parts_of
from tests.fakes.targets.target_reader import reader_of


class _Disk(Disk):
    """Its next act of this label fails, after so many of them."""

    label, after = "", 0

    def _act(self, label: str) -> None:
        if label == self.label:
            self.after -= 1
            if self.after < 0:
                self.label = ""
                raise OSError(5, f"injected at {label}")

    def rename(self, label: str, source: str, target: str) -> None:
        self._act(label)
        super().rename(label, source, target)

    def sync_dir(self, label: str, path: str) -> None:
        self._act(label)
        super().sync_dir(label, path)


@pytest.mark.parametrize(
    ("label", "after"),
    [("publish:part", 0), ("publish:part", 1), ("publish:part", 2), ("publish:segments", 0), ("publish:incoming", 0)],
)
def test_a_commit_that_failed_at_its_segments_is_done_again(tmp_path: Path, label: str, after: int) -> None:
    """Parts that were renamed, and whose folder could not be synced, were looked for where they had been, for ever."""

    async def story() -> None:
        disk = _Disk()
        source = SourceVolume(tmp_path / "source", 3)
        target = DirectoryTarget(str(tmp_path / "target"), disk)
        source.grow(2)
        await target.open(source.identity)
        await target.claim(GENERATION, WRITER_ID)
        with closing(source.open()) as reading:
            parts = parts_of(reading, reading.select(source.records, Known()).numbers, 800)
        assert len(parts) > 3
        for part in parts:
            await target.send(part)
        disk.label, disk.after = label, after
        with pytest.raises(OSError, match="injected"):
            await target.commit(source.records)
        await target.commit(source.records)
        assert list((await target.open(source.identity)).snapshots) == source.records
        async with reader_of(target) as reader:
            for record in source.records:
                source.assert_equal(reader, record.number)
        await target.close()
        source.close()

    asyncio.run(asyncio.wait_for(story(), PATIENCE_S))

"""What is fetched ahead never keeps waiting who needs something now, and comes once."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from snapfs.base.blocks import ROOT_INO, Disk
from snapfs.base.volumes.volume import Volume
from snapfs.store.log.snapshot_records import StoreIdentity
from snapfs.store.objects.format import Pointer
from snapfs.store.repair.liveness import live_numbers
from snapfs.store.repository.repository import Repository
from snapfs.store.tables.snapshot import SnapshotTree
from snapfs.transfer.common.store_source import listing_of
from snapfs.transfer.lazy.attachment import Attachment
from snapfs.transfer.lazy.remount import remount
from snapfs.transfer.sources.fetcher import AHEAD_BATCH_OBJECTS, AHEAD_THREADS
from snapfs.transfer.sources.late_source import LateSource
from tests.fakes.patience import PATIENCE_S
from tests.fakes.replication.push_source import SourceVolume


class Slow:
    """The new volume's fetcher. Of its source, what is in no hurry does not come before `go`."""

    def __init__(self, folder: Path, source: SourceVolume) -> None:
        remount(str(folder / "new"), [str(source.path)], Disk())
        volume = Volume.open(str(folder / "new"), Disk())
        identity = StoreIdentity(volume.volume_id, volume.seed)
        self.repository = Repository.open(volume.store_dir, identity, Disk())
        attachment = Attachment.of(volume, self.repository, Disk())
        assert attachment is not None
        assert attachment.fetcher is not None
        self.attachment, self.fetcher = attachment, attachment.fetcher
        self.go, self.requested = threading.Event(), list[int]()
        for each in attachment.sources:
            assert isinstance(each, LateSource)
            self._hold_back(each)
        lazy = self.repository.lazy
        assert lazy is not None
        numbers = list(live_numbers(source.history.repository, source.records[-1:]))
        self.lacking = [Pointer(number, b"") for number in numbers if not lazy.places.has(number)]

    def _hold_back(self, source: LateSource) -> None:
        objects = source.objects

        def held(pointers: Sequence[Pointer], *, urgent: bool = True, bases: bool = True):  # type: ignore[no-untyped-def]
            self.requested += [pointer.number for pointer in pointers]
            assert urgent or self.go.wait(PATIENCE_S)
            return objects(pointers, urgent=urgent, bases=bases)

        source.objects = held  # type: ignore[method-assign]

    def close(self) -> None:
        self.go.set()
        self.attachment.close()
        self.repository.close()


@pytest.fixture
def slow(tmp_path: Path) -> Iterator[Slow]:
    source = SourceVolume(tmp_path / "source", seed=5)
    source.grow(1, steps=150)
    made = Slow(tmp_path, source)
    yield made
    made.close()
    source.close()


def test_who_needs_what_is_only_queued_does_not_wait_for_it(slow: Slow) -> None:
    begun = AHEAD_THREADS * AHEAD_BATCH_OBJECTS
    ahead, last = slow.lacking[: begun + 20], slow.lacking[begun + 19]
    slow.fetcher.prefetch(ahead)
    slow.fetcher.fetch([last])  # returns, although nothing that is fetched ahead has come
    places = slow.fetcher._objects.places
    assert places.has(last.number)
    assert not places.has(ahead[0].number)
    slow.go.set()
    slow.fetcher.fetch(ahead)
    assert all(places.has(pointer.number) for pointer in ahead)
    assert sorted(slow.requested) == sorted(pointer.number for pointer in ahead)
    assert slow.fetcher._ahead == 0
    assert not slow.fetcher._queued


def test_what_was_queued_fails_in_order_when_it_is_closed(slow: Slow) -> None:
    slow.fetcher.prefetch(slow.lacking[: 4 * AHEAD_BATCH_OBJECTS])
    slow.go.set()
    slow.fetcher.close()
    slow.fetcher.prefetch(slow.lacking)
    assert slow.fetcher._ahead == 0
    assert not slow.fetcher._under_way


def test_a_look_into_a_directory_fetches_its_small_files_ahead(slow: Slow) -> None:
    seen: list[Pointer] = []
    slow.go.set()
    slow.fetcher.prefetch = seen.extend  # type: ignore[method-assign]
    root = slow.attachment.tree().inode(ROOT_INO)
    assert root is not None
    source = slow.attachment.source()
    entries = source.names(listing_of(root))
    assert not seen
    assert source.names(listing_of(root), wanted=True) == entries
    tree = SnapshotTree(slow.repository, slow.attachment.record.root)
    records = [tree.inode(entry.inode.ino) for entry in entries if entry.absent is not None]
    small = {record.content for record in records if record is not None and record.height <= 1}
    assert seen
    assert set(seen) <= small

"""Reads back what a target holds, the plain way: everything, checked against its proofs."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from tempfile import TemporaryDirectory

from replicator.targets.base import Target
from replicator.targets.directory import DirectoryTarget
from replicator.targets.http import Access, HttpTarget
from replicator.targets.objects import ObjectStoreTarget, _parse_segment
from snapfs.blocks import Disk, Number
from snapfs.store import format as fmt
from snapfs.store.index import SegmentIndex
from snapfs.store.objects import Objects
from snapfs.store.records import StoreIdentity
from snapfs.store.repository import Repository
from snapfs.store.segment import SegmentWriter
from snapfs.store.tables import ObjectReader
from snapfs.volume import Volume


class ServedTarget(HttpTarget):
    """A volume on a mirror whose folder is at hand."""

    def __init__(self, url: str, access: Access, folder: Path) -> None:
        super().__init__(url, access)
        self.folder = folder


@contextlib.asynccontextmanager
async def reader_of(target: Target) -> AsyncIterator[ObjectReader]:
    """A reader of the objects of an open target."""
    if isinstance(target, DirectoryTarget):
        await target.settle()
        assert target.opened is not None
        target.opened.check_invariants()
        repository = target.opened.repository
        yield Objects(repository.index, repository.identity.seed, 1 << 20)
        return
    if isinstance(target, ServedTarget):
        volume = Volume.open(str(target.folder), Disk())
        identity = StoreIdentity(volume.volume_id, volume.seed)
        served = Repository.open(volume.store_dir, identity, Disk(), readonly=True, cache_bytes=1 << 20)
        yield served
        served.close()
        return
    assert isinstance(target, ObjectStoreTarget)
    with TemporaryDirectory() as folder:
        await _download(target, Path(folder))
        assert target._identity is not None
        index = SegmentIndex(folder, 8)
        yield Objects(index, target._identity.seed, 1 << 20)
        index.close()


async def _download(target: ObjectStoreTarget, folder: Path) -> None:
    identity = target._identity
    assert isinstance(identity, StoreIdentity)
    found = {}
    for info in target.segments():
        data = await target.read_segment(info.path)
        assert len(data) == info.size
        objects = _parse_segment(data, info)
        assert (objects[0][0].number, objects[-1][0].number, len(objects)) == (info.first, info.last, info.count)
        for row, framed in objects:
            known = found.setdefault(row.number, (row, framed))
            assert known[0].proof == row.proof
    await asyncio.to_thread(_write, folder, identity.volume_id, found, Disk())


def _write(folder: Path, volume_id: str, found: dict[Number, tuple[fmt.Row, bytes]], disk: Disk) -> None:
    generations = {fmt.generation_of(number) for number in found}
    for generation in generations:
        numbers = sorted(number for number in found if fmt.generation_of(number) == generation)
        writer = SegmentWriter(str(folder), disk, fmt.Header(volume_id, generation, numbers[0]))
        for number in numbers:
            writer.append_framed(*found[number])
        writer.finish()
        writer.close()

"""Reads back what a target holds, the plain way: everything, checked against its content hashes."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from tempfile import TemporaryDirectory

from replicator.targets.bucket_segments import parse_segment
from replicator.targets.encrypted_target import EncryptedTarget
from replicator.targets.folder_target import DirectoryTarget
from replicator.targets.mirror_target import HttpTarget
from replicator.targets.object_store_target import ObjectStoreTarget
from replicator.targets.target import Target
from snapfs.base.blocks import Disk, Number
from snapfs.base.mirror_access import MirrorAccess
from snapfs.base.volumes.volume import Volume
from snapfs.store.log.snapshot_records import StoreIdentity
from snapfs.store.objects import format as fmt
from snapfs.store.objects.format import Encoding, ObjectKind
from snapfs.store.objects.objects import Objects
from snapfs.store.objects.segment_index import SegmentIndex
from snapfs.store.objects.segment_writer import SegmentWriter
from snapfs.store.protocol.object_stream import Item
from snapfs.store.repository.repository import Repository
from snapfs.store.tables.table_pages import ObjectReader


class ServedTarget(HttpTarget):
    """A volume on a mirror whose folder is at hand."""

    def __init__(self, url: str, access: MirrorAccess, folder: Path) -> None:
        super().__init__(url, access)
        self.folder = folder


@contextlib.asynccontextmanager
async def reader_of(target: Target) -> AsyncIterator[ObjectReader]:
    """A reader of the objects of an open target."""
    if isinstance(target, EncryptedTarget):
        async with _opened(target) as reader:
            yield reader
        return
    if isinstance(target, DirectoryTarget):
        await target.settle()
        assert target.opened is not None
        target.opened.check_invariants()
        repository = target.opened.repository
        yield Objects(repository.index, repository.identity.seed, 1 << 20)
        return
    if isinstance(target, ServedTarget):
        volume = Volume.open(str(target.folder), Disk())
        identity = StoreIdentity(volume.volume_id, volume.seed, volume.holds_ciphertext)
        served = Repository.open(volume.store_dir, identity, Disk(), readonly=True, cache_bytes=1 << 20)
        yield served
        served.close()
        return
    assert isinstance(target, ObjectStoreTarget)
    with TemporaryDirectory() as folder:
        await _download(target, Path(folder))
        index = SegmentIndex(folder, 8)
        yield Objects(index, target._heads.identity.seed, 1 << 20)
        index.close()


@contextlib.asynccontextmanager
async def _opened(target: EncryptedTarget) -> AsyncIterator[ObjectReader]:
    """All that the inner target has, decrypted, as a store; nothing in it is as it is in the volume."""
    keys, found = target._keys, {}
    with TemporaryDirectory() as sealed, TemporaryDirectory() as plain:
        async with _raw(target.inner, Path(sealed)) as index:
            for info in index.segments():
                reader = index.reader(info.first)
                assert reader is not None
                for row in reader.rows():
                    framed = reader.frame(row)
                    assert (row.kind, row.encoding) in (
                        (ObjectKind.ENCRYPTED, Encoding.ENCRYPTED),
                        (ObjectKind.RECORD, Encoding.RAW),
                    )
                    item = keys.encryptor.decrypt(
                        Item(row.content_hash, fmt.unpack_frame(framed), framed), "the target"
                    )
                    found[row.number] = item.row(), item.framed
        await asyncio.to_thread(_write, Path(plain), keys._volume_id, found, Disk())
        opened = SegmentIndex(plain, 8)
        yield Objects(opened, keys._seed, 1 << 20)
        opened.close()


@contextlib.asynccontextmanager
async def _raw(target: object, folder: Path) -> AsyncIterator[SegmentIndex]:
    if isinstance(target, ObjectStoreTarget):
        await _download(target, folder)
        index = SegmentIndex(str(folder), 8)
        yield index
        index.close()
        return
    assert isinstance(target, DirectoryTarget | ServedTarget)
    async with reader_of(target) as reader:
        yield reader.index  # type: ignore[attr-defined]


async def _download(target: ObjectStoreTarget, folder: Path) -> None:
    identity = target._heads.identity
    found = {}
    for info in target.segments():
        data = await target.read_segment(info.path)
        assert len(data) == info.size
        objects = parse_segment(data, info)
        assert (objects[0][0].number, objects[-1][0].number, len(objects)) == (info.first, info.last, info.count)
        for row, framed in objects:
            known = found.setdefault(row.number, (row, framed))
            assert known[0].content_hash == row.content_hash
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

"""Wrote tests/golden/bucket-v1: run once, with the code of format 1 of head.json, which carried no checksum.

    python tests/golden/make_bucket_v1.py DIRECTORY

Seven snapshots in an object store: the head names some of them itself, the others are in pages. Later versions of
snapfs must read it for ever, so it is never made anew; a new format gets a new directory beside it.
"""

from __future__ import annotations

import asyncio
import sys
import tempfile
from contextlib import closing
from pathlib import Path

import obstore
from obstore.store import MemoryStore

from replicator.source.selection import Known
from replicator.targets.object_store_target import ObjectStoreTarget
from tests.fakes.replication.push_source import GENERATION, WRITER_ID, SourceVolume, parts_of


async def make(folder: Path, volume: Path) -> None:
    store, source = MemoryStore(), SourceVolume(volume, seed=11)
    target, known = ObjectStoreTarget(store, tail=4), Known()
    await target.open(source.identity)
    await target.claim(GENERATION, WRITER_ID)
    for _ in range(7):
        source.grow(1, steps=4)
        with closing(source.open()) as reading:
            selection = reading.select(source.records[-1:], known)
            parts = parts_of(reading, selection.numbers, 1 << 20)
        for part in parts:
            await target.send(part)
        await target.commit(source.records[-1:])
        known.take(selection)
    source.close()
    for batch in obstore.list(store):
        for meta in batch:
            path = folder / meta["path"]
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(bytes(obstore.get(store, meta["path"]).bytes()))


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        asyncio.run(make(Path(sys.argv[1]), Path(scratch) / "volume"))

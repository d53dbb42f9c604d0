"""Who waits for a read from a mirror is not behind those who read in bulk, even if these do not take their answers."""

from __future__ import annotations

import contextlib
import http.client
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from snapfs.base.blocks import CHUNK_SIZE, ChunkIndex, Disk, Generation, Ino
from snapfs.store.objects.format import Pointer
from snapfs.store.protocol import message_codec, read_objects, wire
from snapfs.store.repository.repository import Repository
from snapfs.store.tables.snapshot import InodeRecord, RootInfo, SnapshotWriter
from tests.fakes.histories.history import IDENTITY, History
from tests.fakes.targets.mirror_process import Client, MirrorProcess

CHUNKS = 320
"""More than the sockets between hold."""
READERS = 6


def make(folder: Path) -> Repository:
    """A store with one snapshot of a large file."""
    repository = Repository.create(str(folder), IDENTITY, Disk())
    transaction = repository.begin(Generation(1))
    writer, chance = SnapshotWriter(transaction, None), random.Random(1)

    def chunks() -> Iterator[tuple[ChunkIndex, Pointer]]:
        for index in range(CHUNKS):
            yield ChunkIndex(index), transaction.append(transaction.encode_chunk(chance.randbytes(CHUNK_SIZE), None))

    content, height = writer.update_map(None, CHUNKS * CHUNK_SIZE, chunks())
    size = CHUNKS * CHUNK_SIZE
    file = InodeRecord(Ino(1), 0o100644, 0, 0, 1, 0, size, 0, 0, 0, b"", (), content, height)
    root = writer.finish([(Ino(1), file)], extra=RootInfo(0))
    transaction.commit(root, parent=None, name=None, cut_time_ns=0, trigger="test")
    return repository


def push(client: Client, folder: Path) -> list[int]:
    """The numbers of what is there now."""
    history = object.__new__(History)
    history.repository = make(folder)
    try:
        client.create()
        client.claim(1)
        numbers = history.numbers(*history.records)
        for part in history.parts(numbers, 100):
            client.put(part)
        client.commit(history.records)
        return list(numbers)
    finally:
        history.close()


@pytest.fixture
def mirror(tmp_path: Path) -> Iterator[MirrorProcess]:
    made = MirrorProcess(tmp_path / "root")
    made.start()
    yield made
    made.stop()


def test_an_urgent_reader_passes_those_who_read_in_bulk(mirror: MirrorProcess, tmp_path: Path) -> None:
    client = mirror.client()
    numbers = push(client, tmp_path / "source")
    everything = message_codec.encode(read_objects.ReadObjects(runs=[(numbers[0], numbers[-1])]))
    path = wire.volume_path("pg", "objects")
    with contextlib.ExitStack() as stack:
        stuck: list[http.client.HTTPConnection] = []
        for _ in range(READERS):
            connection = client.connection()
            stack.callback(connection.close)
            headers = {**client.standard_headers(), wire.PRIORITY_HEADER: "bulk"}
            connection.request("POST", path, everything, headers)
            stuck.append(connection)
        assert stuck[0].getresponse().status == 200, "its answer has begun"
        _, (item,) = client.objects(read_objects.ReadObjects([numbers[-1]]))
        assert item.frame.number == numbers[-1]
        assert client.state().snapshots == 1

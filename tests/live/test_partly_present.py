"""Large absent files that change before they are here: against a model of bytes, through kills and power cuts."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from snapfs.blocks import CHUNK_SIZE, ROOT_INO, ChunkIndex, Disk, Ino
from snapfs.errors import CorruptionError
from snapfs.live.namespace import Namespace
from snapfs.live.presence import Presence
from snapfs.live.records import AbsentFile, Inode, LoadedEntry
from snapfs.live.tree import LiveTree

CHUNKS = 40
SIZE = CHUNKS * CHUNK_SIZE - 1234
FILE = Ino(70)


class CountingSource:
    """A store with one file; it counts what of it was asked for, and fails when told to."""

    def __init__(self, data: bytes) -> None:
        self.data, self.asked_bytes, self.fails = data, 0, False

    def read(self, ino: Ino, origin: bytes, offset: int, size: int) -> bytes:
        if self.fails:
            raise OSError(5, "the store is not there")
        data = self.data[offset : offset + size]
        self.asked_bytes += len(data)
        return data

    def chunks(self, ino: Ino, origin: bytes, first: int, count: int, urgent: bool) -> list[tuple[int, bytes]]:
        data = self.read(ino, origin, first * CHUNK_SIZE, count * CHUNK_SIZE)
        return [(first + at // CHUNK_SIZE, data[at : at + CHUNK_SIZE]) for at in range(0, len(data), CHUNK_SIZE)]

    def names(self, listing: bytes, wanted: bool = False) -> list[LoadedEntry]:
        raise NotImplementedError

    def fill(self, ino: Ino, origin: bytes, fd: int) -> None:
        os.pwrite(fd, self.read(ino, origin, 0, len(self.data)), 0)


class Bench:
    def __init__(self, tmp_path: Path, data: bytes) -> None:
        self.source, self.tmp_path, self.life, self.boot = CountingSource(data), tmp_path, 0, "boot-0"
        self.tree = self._fresh()

    def _fresh(self) -> LiveTree:
        folder = self.tmp_path / "life-0"
        folder.mkdir()
        names = Namespace(str(folder / "namespace.db"), Disk())
        with names.bulk(sealed=True) as bulk:
            bulk.put_inode(Inode(FILE, 0o100600, 0, 0, 0, 1, 5, 6, 7))
            bulk.put_entry(ROOT_INO, b"big", FILE)
            bulk.set_absent(FILE, AbsentFile(len(self.source.data), 111, 222, b"where"))
        return LiveTree(str(folder), names, Disk(), boot_id="boot-0", source=self.source, max_states=4)

    def reopen(self, *, power_cut: bool = False, clean: bool = False) -> None:
        """End this life at once (a copy of all that is on the disk) or in order, and begin the next."""
        if clean:
            self.tree.close()
        old, self.life = self.tree.live_dir, self.life + 1
        folder = f"{self.tmp_path}/life-{self.life}"
        shutil.copytree(old, folder)
        for path, _, files in os.walk(old):  # the times are part of what a file is
            for file in files:
                shutil.copystat(os.path.join(path, file), os.path.join(path.replace(old, folder, 1), file))
        if not clean:
            self.tree.close(clean=False)
        self.boot = f"boot-{self.life}" if power_cut else self.boot
        names = Namespace(f"{folder}/namespace.db", Disk())
        self.tree = LiveTree(folder, names, Disk(), boot_id=self.boot, source=self.source, max_states=4)

    def content(self) -> bytes:
        size = self.tree.getattr(FILE).size
        found = self.tree.read(FILE, 0, size)
        assert found is not None
        assert len(found) == size
        return found

    def presence(self) -> Presence:
        return self.tree._hydrator.partial[FILE]


@pytest.fixture
def make_bench(tmp_path: Path) -> Iterator[Callable[[bytes], Bench]]:
    made: list[Bench] = []

    def make(data: bytes) -> Bench:
        made.append(Bench(tmp_path, data))
        return made[-1]

    yield make
    for bench in made:
        if bench.tree.is_open:
            bench.tree.close(clean=False)


def content_with_holes(chance: random.Random) -> bytes:
    chunks = (bytes(CHUNK_SIZE) if chance.random() < 0.3 else chance.randbytes(CHUNK_SIZE) for _ in range(CHUNKS))
    return b"".join(chunks)[:SIZE]


@pytest.mark.parametrize("seed", range(12))
def test_random_changes_kills_and_power_cuts_against_a_model(make_bench: Callable[[bytes], Bench], seed: int) -> None:
    chance = random.Random(seed)
    original = content_with_holes(chance)
    bench, model = make_bench(original), bytearray(original)
    cut = None
    for _ in range(150):
        step, tree = chance.random(), bench.tree
        if step < 0.45:
            whole = chance.random() < 0.3
            offset = chance.randrange(CHUNKS) * CHUNK_SIZE if whole else chance.randrange(SIZE + CHUNK_SIZE)
            data = chance.randbytes(CHUNK_SIZE * chance.randrange(1, 3) if whole else chance.randrange(1, 9000))
            tree.prepare_write(FILE, offset, len(data))
            assert tree.ready_to_write(FILE, offset, len(data))
            assert tree.write(FILE, offset, data) == len(data)
            model.extend(bytes(max(offset + len(data) - len(model), 0)))
            model[offset : offset + len(data)] = data
        elif step < 0.55:
            size = chance.randrange(SIZE)
            size = chance.choice((size, len(model) + size // 8, 0 if chance.random() < 0.1 else size))
            tree.prepare_truncate(FILE, size)
            tree.setattr(FILE, size=size)
            del model[size:]
            model.extend(bytes(size - len(model)))
        elif step < 0.65:
            tree.hydrate(FILE, chance.randrange(1, 5))
        elif step < 0.75:
            offset, size = chance.randrange(SIZE), chance.randrange(200_000)
            assert tree.read(FILE, offset, size) == model[offset : offset + size]
        elif step < 0.8:
            tree.fsync(FILE)
        elif step < 0.9:
            if cut is None:
                cut, then = tree.cut(), bytes(model)
            else:
                check_cut(cut, then, original)
                cut.finish(chance.random() < 0.8)
                cut = None
        elif cut is None and step < 0.97:
            bench.reopen(clean=chance.random() < 0.3)
        elif cut is None:
            tree.fsync(FILE)
            bench.reopen(power_cut=True)
        else:
            tree.tidy()
            tree.sync_soon()
            tree.check_invariants()
    if cut is not None:
        cut.finish(False)
    assert bench.content() == model
    while not bench.tree.hydrate(FILE, 7):
        pass
    assert bench.content() == model
    bench.source.fails = True
    bench.reopen()
    assert bench.content() == model
    bench.tree.tidy()
    assert not bench.tree.partly_present
    assert not os.listdir(bench.tree._hydrator.folder)


def check_cut(cut, then: bytes, original: bytes) -> None:  # type: ignore[no-untyped-def]
    """What the cut calls changed and present is as it was at the cut; what it calls absent was never changed."""
    file = cut.open_file(FILE)
    assert file.size == len(then)
    for chunk, _ in list(file.dirty_chunks()):
        start = chunk * CHUNK_SIZE
        if file.is_absent(chunk):
            assert original[start : start + CHUNK_SIZE] == then[start : start + CHUNK_SIZE]
        else:
            assert file.read_chunk(ChunkIndex(chunk)) == then[start : start + CHUNK_SIZE]
    file.close()


def test_a_huge_file_is_writable_for_the_price_of_a_chunk(make_bench: Callable[[bytes], Bench]) -> None:
    bench = make_bench(os.urandom(SIZE))
    bench.tree.prepare_write(FILE, 5 * CHUNK_SIZE + 10, 3)
    bench.tree.write(FILE, 5 * CHUNK_SIZE + 10, b"new")
    assert bench.source.asked_bytes == CHUNK_SIZE
    bench.tree.prepare_write(FILE, 7 * CHUNK_SIZE, CHUNK_SIZE)
    bench.tree.write(FILE, 7 * CHUNK_SIZE, bytes(CHUNK_SIZE))
    assert bench.source.asked_bytes == CHUNK_SIZE
    assert bench.presence().missing == CHUNKS - 2
    attr = bench.tree.getattr(FILE)
    assert (attr.size, attr.mtime_ns) == (SIZE, 111)


def test_a_write_that_begins_past_the_end_counts_the_last_chunk_once(make_bench: Callable[[bytes], Bench]) -> None:
    data = os.urandom(SIZE)
    bench = make_bench(data)
    bench.tree.prepare_write(FILE, SIZE + 100, 3)
    bench.tree.write(FILE, SIZE + 100, b"new")
    assert bench.presence().missing == CHUNKS - 1
    assert bench.source.asked_bytes == len(data) % CHUNK_SIZE
    bench.tree.check_invariants()
    assert bench.content() == data + bytes(100) + b"new"


def test_hydration_is_no_change_of_the_file(make_bench: Callable[[bytes], Bench]) -> None:
    bench = make_bench(os.urandom(SIZE))
    assert not bench.tree.hydrate(FILE, 3)
    assert bench.tree.getattr(FILE).mtime_ns == 111
    assert not bench.tree.has_changes()
    bench.tree._content.evict(100)
    assert bench.tree.getattr(FILE).mtime_ns == 111
    bench.presence().note_times((222, 111))  # as a kill between the bytes and their times leaves it
    os.utime(bench.tree._backing.path(FILE))
    bench.reopen()
    assert bench.tree.getattr(FILE).mtime_ns == 111
    while not bench.tree.hydrate(FILE, 16):
        pass
    bench.tree.tidy()
    assert (bench.tree.getattr(FILE).mtime_ns, bench.tree.names.absent(FILE)) == (111, None)
    assert not bench.tree.has_changes()


def test_a_source_that_fails_leaves_bytes_absent_and_never_zero(make_bench: Callable[[bytes], Bench]) -> None:
    bench = make_bench(os.urandom(SIZE))
    bench.tree.prepare_write(FILE, 0, 1)
    bench.tree.write(FILE, 0, b"x")
    bench.source.fails = True
    with pytest.raises(OSError, match="not there"):
        bench.tree.read(FILE, 3 * CHUNK_SIZE, 10)
    with pytest.raises(OSError, match="not there"):
        bench.tree.write(FILE, 3 * CHUNK_SIZE + 5, b"half of a chunk")
    assert bench.tree.read(FILE, 0, 10) == b"x" + bench.source.data[1:10]
    bench.source.fails = False
    assert bench.content() == b"x" + bench.source.data[1:]


def test_after_a_failure_still_only_one_thread_fills_a_file(make_bench: Callable[[bytes], Bench]) -> None:
    """The first fails while a second waits; a third comes while the second is at it."""
    data = b"content of a small file"
    bench = make_bench(data)
    absent = bench.tree.names.absent(FILE)
    assert absent is not None
    entered, go_on = threading.Semaphore(0), [threading.Event() for _ in range(3)]
    at_it: list[int] = []

    def fill(ino: Ino, origin: bytes, fd: int) -> None:
        at_it.append(len(at_it))
        number = at_it[-1]
        entered.release()
        go_on[number].wait(20)
        if number == 0:
            raise OSError(5, "the store is not there")
        os.pwrite(fd, data, 0)

    def fetch() -> None:
        with contextlib.suppress(OSError):
            bench.tree._hydrator.fetch(FILE, absent)

    bench.source.fill = fill  # type: ignore[method-assign]
    threads = [threading.Thread(target=fetch) for _ in range(3)]
    for thread in threads[:2]:
        thread.start()
        time.sleep(0.1)
    go_on[0].set()
    assert entered.acquire(timeout=20)
    assert entered.acquire(timeout=20)
    threads[2].start()
    assert not entered.acquire(timeout=0.3), "the third one waits for the second"
    for event in go_on:
        event.set()
    for thread in threads:
        thread.join(20)
    assert len(at_it) == 2
    assert bench.content() == data


def test_a_damaged_presence_is_refused(make_bench: Callable[[bytes], Bench]) -> None:
    bench = make_bench(os.urandom(SIZE))
    bench.tree.hydrate(FILE, 3)
    path = bench.presence().path
    with open(path, "r+b") as file:
        file.seek(20)
        file.write(b"\xff")
    with pytest.raises(CorruptionError, match="presence"):
        Presence.load(path, AbsentFile(SIZE, 1, 2, b"where"), Disk(), "boot-0")

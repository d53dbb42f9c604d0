"""Large absent files that change before they are here: against a model of bytes, through kills and power cuts."""

from __future__ import annotations

import contextlib
import os
import random
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from snapfs.base.blocks import CHUNK_SIZE, ROOT_INO, ChunkIndex, Disk, Ino
from snapfs.base.errors import CorruptionError
from snapfs.live.content import datapath
from snapfs.live.database.namespace_rows import AbsentFile, Inode, LoadedEntry
from snapfs.live.namespace.namespace import Namespace
from snapfs.live.residency.residency import Residency
from snapfs.live.residency.residency_file import ResidencyFile
from snapfs.live.tree import LiveTree
from tests.fakes.patience import PATIENCE_S

CHUNKS = 40
SIZE = CHUNKS * CHUNK_SIZE - 1234
FILE = Ino(70)


class CountingSource:
    """A store with one file; it counts what is read of it, and fails when `fails` is set."""

    def __init__(self, data: bytes) -> None:
        self.data, self.read_bytes, self.fails = data, 0, False

    def read(self, ino: Ino, origin: bytes, offset: int, size: int) -> bytes:
        if self.fails:
            raise OSError(5, "the store is not there")
        data = self.data[offset : offset + size]
        self.read_bytes += len(data)
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
        subprocess.run(["cp", "-a", old, folder], check=True)  # with its times and its holes: they are part of a file
        if not clean:
            self.tree.close(clean=False)
        self.boot = f"boot-{self.life}" if power_cut else self.boot
        names = Namespace(f"{folder}/namespace.db", Disk())
        try:
            self.tree = LiveTree(folder, names, Disk(), boot_id=self.boot, source=self.source, max_states=4)
        except BaseException:
            names.close()
            raise

    def content(self) -> bytes:
        size = self.tree.getattr(FILE).size
        found = self.tree.read(FILE, 0, size)
        assert found is not None
        assert len(found) == size
        return found

    def residency(self) -> Residency:
        return self.tree._materializer.partial[FILE]


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
    assert not os.listdir(bench.tree._materializer.folder)


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
    assert bench.source.read_bytes == CHUNK_SIZE
    bench.tree.prepare_write(FILE, 7 * CHUNK_SIZE, CHUNK_SIZE)
    bench.tree.write(FILE, 7 * CHUNK_SIZE, bytes(CHUNK_SIZE))
    assert bench.source.read_bytes == CHUNK_SIZE
    assert bench.residency().missing == CHUNKS - 2
    attr = bench.tree.getattr(FILE)
    assert (attr.size, attr.mtime_ns) == (SIZE, 111)


def test_a_write_that_begins_past_the_end_counts_the_last_chunk_once(make_bench: Callable[[bytes], Bench]) -> None:
    data = os.urandom(SIZE)
    bench = make_bench(data)
    bench.tree.prepare_write(FILE, SIZE + 100, 3)
    bench.tree.write(FILE, SIZE + 100, b"new")
    assert bench.residency().missing == CHUNKS - 1
    assert bench.source.read_bytes == len(data) % CHUNK_SIZE
    bench.tree.check_invariants()
    assert bench.content() == data + bytes(100) + b"new"


def test_hydration_is_no_change_of_the_file(make_bench: Callable[[bytes], Bench]) -> None:
    bench = make_bench(os.urandom(SIZE))
    assert not bench.tree.hydrate(FILE, 3)
    assert bench.tree.getattr(FILE).mtime_ns == 111
    assert not bench.tree.has_changes()
    bench.tree._content.evict(100)
    assert bench.tree.getattr(FILE).mtime_ns == 111
    bench.residency().note_times((222, 111))  # as a kill between the bytes and their times leaves it
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
        go_on[number].wait(PATIENCE_S)
        if number == 0:
            raise OSError(5, "the store is not there")
        os.pwrite(fd, data, 0)

    def fetch() -> None:
        with contextlib.suppress(OSError):
            bench.tree._materializer.fetch(FILE, absent)

    bench.source.fill = fill  # type: ignore[method-assign]
    threads = [threading.Thread(target=fetch) for _ in range(3)]
    for thread in threads[:2]:
        thread.start()
        time.sleep(0.1)
    go_on[0].set()
    assert entered.acquire(timeout=PATIENCE_S)
    assert entered.acquire(timeout=PATIENCE_S)
    threads[2].start()
    assert not entered.acquire(timeout=0.3), "the third one waits for the second"
    for event in go_on:
        event.set()
    for thread in threads:
        thread.join(PATIENCE_S)
    assert len(at_it) == 2
    assert bench.content() == data


def test_a_residency_file_of_another_file_is_refused(make_bench: Callable[[bytes], Bench]) -> None:
    bench = make_bench(os.urandom(SIZE))
    bench.tree.hydrate(FILE, 3)
    with pytest.raises(CorruptionError, match="presence"):
        Residency.load(bench.residency().path, AbsentFile(SIZE + CHUNK_SIZE, 1, 2, b"where"), Disk(), "boot-0")


# -- what is here, without Python

needs_native = pytest.mark.skipif(bool(datapath.why_not_native()), reason=datapath.why_not_native() or "built")


@needs_native
def test_native_code_reads_and_overwrites_what_is_here_and_leaves_the_rest_to_python(
    make_bench: Callable[[bytes], Bench],
) -> None:
    original = random.Random(3).randbytes(SIZE)
    bench = make_bench(original)
    tree, core, needs_python = bench.tree, bench.tree.native, -65536 - datapath.Need.PYTHON
    assert core is not None
    tree.prepare_write(FILE, 5 * CHUNK_SIZE, 1)
    tree.hydrate(FILE, 0, range(3, 5))
    tree.write(FILE, 5 * CHUNK_SIZE, b"x")
    expected = original[3 * CHUNK_SIZE : 5 * CHUNK_SIZE] + b"x" + original[5 * CHUNK_SIZE + 1 : 6 * CHUNK_SIZE]
    assert core.read(FILE, 3 * CHUNK_SIZE, 3 * CHUNK_SIZE) == expected
    assert core.read(FILE, 2 * CHUNK_SIZE + 9, CHUNK_SIZE) == needs_python
    assert core.read(FILE, 5 * CHUNK_SIZE + 9, CHUNK_SIZE) == needs_python
    assert core.write(FILE, 4 * CHUNK_SIZE - 1, b"abc") == 3
    assert core.write(FILE, 6 * CHUNK_SIZE - 1, b"abc") == needs_python
    assert core.write(FILE, SIZE, b"abc") == needs_python, "it would grow"
    model = bytearray(original)
    model[4 * CHUNK_SIZE - 1 : 4 * CHUNK_SIZE + 2] = b"abc"
    model[5 * CHUNK_SIZE] = ord("x")
    is_equal = bench.content() == model
    assert is_equal
    tree.setattr(FILE, size=2 * CHUNK_SIZE)
    tree.setattr(FILE, size=SIZE)
    assert core.read(FILE, 2 * CHUNK_SIZE, SIZE) == bytes(SIZE - 2 * CHUNK_SIZE), "what was cut off is zeros"
    tree.check_invariants()


@needs_native
def test_native_code_overwrites_no_chunk_before_its_bit_is_on_record(
    make_bench: Callable[[bytes], Bench], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else what was answered would be gone with the process, as the chunk would be fetched again."""
    bench, seen = make_bench(random.Random(5).randbytes(SIZE)), []
    tree, core = bench.tree, bench.tree.native
    assert core is not None
    tree.prepare_write(FILE, 0, 1)
    write_pages = ResidencyFile.write_pages

    def watched(self: ResidencyFile, *arguments: Any, **options: Any) -> None:
        seen.append(core.write(FILE, 7 * CHUNK_SIZE, b"too early"))
        write_pages(self, *arguments, **options)

    tree.write(FILE, 0, b"x")
    with monkeypatch.context() as patched:
        patched.setattr(ResidencyFile, "write_pages", watched)
        tree.hydrate(FILE, 0, [7])
    assert seen == [-65536 - datapath.Need.PYTHON]
    assert core.write(FILE, 7 * CHUNK_SIZE, b"now") == 3
    bench.reopen()
    assert bench.tree.read(FILE, 7 * CHUNK_SIZE, 3) == b"now"


@needs_native
def test_threads_overwrite_a_file_without_python_while_it_comes_in(make_bench: Callable[[bytes], Bench]) -> None:
    original = random.Random(4).randbytes(SIZE)
    bench = make_bench(original)
    tree, core, model = bench.tree, bench.tree.native, bytearray(original)
    assert core is not None
    tree.prepare_write(FILE, 0, 1)
    tree.write(FILE, 0, original[:1])
    stop, done, wrong = threading.Event(), [0, 0], []

    def change(number: int) -> None:
        chance = random.Random(number)
        while not stop.is_set():
            at = (chance.randrange(SIZE - 9000) // 16384 * 2 + number) * 8192
            if at + 8192 > SIZE:
                continue
            found = core.read(FILE, at, 8192)
            if isinstance(found, bytes):
                if found != model[at : at + 8192]:
                    wrong.append(at)
                data = chance.randbytes(8192)
                result = core.write(FILE, at, data)
                if result == 8192:
                    model[at : at + 8192] = data
                    done[number] += 1

    threads = [threading.Thread(target=change, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    whole = False
    while not whole or min(done) < 200:
        whole = tree.hydrate(FILE, 1) or whole
        time.sleep(0.002)
    stop.set()
    for thread in threads:
        thread.join()
    assert not wrong
    is_equal = bench.content() == model
    assert is_equal
    tree.check_invariants()

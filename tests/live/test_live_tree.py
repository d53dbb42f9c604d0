"""The live tree and its cuts, one story each: what the model test reaches only by chance, or not at all."""

from __future__ import annotations

import errno
import os
import resource
import shutil
import stat
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from snapfs.base.blocks import BLOCK_SIZE, CHUNK_SIZE, FULL_MASK, ROOT_INO, ChunkIndex, Disk, Ino
from snapfs.base.errors import BusyError
from snapfs.live.cut import Cut, FrozenFile
from snapfs.live.database.namespace_rows import AbsentFile, LoadedEntry
from snapfs.live.namespace.namespace import Namespace
from snapfs.live.tree import LiveTree

pytestmark = pytest.mark.usefixtures("data_path")

GIB = 1 << 30
Opener = Callable[..., LiveTree]


class Source:
    """A store with one file, and a count of what was read of it."""

    def __init__(self, data: bytes) -> None:
        self.data, self.fills, self.reads = data, 0, 0

    def read(self, ino: Ino, origin: bytes, offset: int, size: int) -> bytes:
        assert origin == b"where"
        self.reads += 1
        return self.data[offset : offset + size]

    def chunks(self, ino: Ino, origin: bytes, first: int, count: int, urgent: bool) -> list[tuple[int, bytes]]:
        data = self.read(ino, origin, first * CHUNK_SIZE, count * CHUNK_SIZE)
        return [(first + at // CHUNK_SIZE, data[at : at + CHUNK_SIZE]) for at in range(0, len(data), CHUNK_SIZE)]

    def names(self, listing: bytes, wanted: bool = False) -> list[LoadedEntry]:
        raise NotImplementedError

    def fill(self, ino: Ino, origin: bytes, fd: int) -> None:
        self.fills += 1
        os.pwrite(fd, self.data, 0)


@pytest.fixture
def opener(tmp_path: Path) -> Iterator[Opener]:
    """Opens the tree in `live`, any number of times; what is still open at the end is let go of."""
    opened: list[LiveTree] = []

    def open_it(boot: str = "boot", folder: str = "live", **options: object) -> LiveTree:
        path = tmp_path / folder
        path.mkdir(exist_ok=True)
        disk = Disk()
        names = Namespace(str(path / "namespace.db"), disk)
        opened.append(LiveTree(str(path), names, disk, boot_id=boot, **options))  # type: ignore[arg-type]
        return opened[-1]

    yield open_it
    for tree in opened:
        if tree.is_open:
            tree.close(clean=False)


@pytest.fixture
def tree(opener: Opener) -> LiveTree:
    return opener()


def make(tree: LiveTree, name: bytes, data: bytes = b"") -> Ino:
    ino = tree.mknod(ROOT_INO, name, stat.S_IFREG | 0o600, 0, 0, 0).ino
    if data:
        tree.write(ino, 0, data)
    return ino


def seal(tree: LiveTree) -> None:
    """A snapshot that reads nothing."""
    tree.cut().finish(True)
    tree.tidy()
    tree.sync_soon()


def frozen(cut: Cut, ino: Ino) -> FrozenFile:
    file = cut.open_file(ino)
    assert file is not None
    return file


def killed(tree: LiveTree, tmp_path: Path, folder: str = "copy") -> str:
    """A copy of the folder as a kill would leave it."""
    shutil.copytree(tree.live_dir, tmp_path / folder, copy_function=shutil.copy2)
    return folder


def test_a_cut_shows_only_what_changed(tree: LiveTree) -> None:
    ino = make(tree, b"a", bytes(range(256)) * 4096)
    other = make(tree, b"b", b"b")
    seal(tree)
    tree.write(ino, 5 * CHUNK_SIZE + 3 * BLOCK_SIZE, b"x" * BLOCK_SIZE)
    cut = tree.cut()
    assert cut.changed_files() == [ino]
    assert list(cut.names.changed()) == []
    file = frozen(cut, ino)
    assert not file.whole
    assert list(file.dirty_chunks()) == [(5, 1 << 3)]
    file.close()
    assert list(frozen(cut, other).dirty_chunks()) == []
    cut.finish(True)


def test_a_sparse_file_that_was_cut_short_and_grew_again_is_not_all_dirty(tree: LiveTree) -> None:
    ino, huge = make(tree, b"a"), 1 << 43
    tree.setattr(ino, size=huge)
    seal(tree)
    tree.setattr(ino, size=0)
    tree.setattr(ino, size=huge)
    tree.write(ino, huge // 2, b"x")
    cut = tree.cut()
    file = frozen(cut, ino)
    assert file.dropped == range(huge // CHUNK_SIZE)
    assert list(file.dirty_chunks(holes=False)) == [(huge // 2 // CHUNK_SIZE, FULL_MASK)]
    file.close()
    cut.finish(True)


def test_one_cut_at_a_time(tree: LiveTree) -> None:
    cut = tree.cut()
    with pytest.raises(BusyError):
        tree.cut()
    cut.finish(False)
    cut.finish(True)  # too late to mean anything
    tree.cut().finish(True)


def test_an_extension_makes_the_old_end_dirty(tree: LiveTree) -> None:
    ino = make(tree, b"a", b"x" * (CHUNK_SIZE + 100))
    seal(tree)
    tree.setattr(ino, size=3 * CHUNK_SIZE)
    cut = tree.cut()
    assert list(frozen(cut, ino).dirty_chunks()) == [(1, FULL_MASK)]
    cut.finish(True)


def test_dropped_chunks_that_came_back_as_holes_are_dirty(tree: LiveTree) -> None:
    ino = make(tree, b"a", b"x" * (10 * CHUNK_SIZE))
    seal(tree)
    tree.setattr(ino, size=4 * CHUNK_SIZE)
    tree.setattr(ino, size=20 * CHUNK_SIZE)
    cut = tree.cut()
    assert [chunk for chunk, _ in frozen(cut, ino).dirty_chunks()] == list(range(4, 10))
    assert frozen(cut, ino).read_chunk(next(frozen(cut, ino).dirty_chunks())[0]) == bytes(CHUNK_SIZE)
    cut.finish(True)


def test_the_writer_may_come_between_any_two_steps_of_the_reader(
    tree: LiveTree, monkeypatch: pytest.MonkeyPatch
) -> None:
    ino = make(tree, b"a", b"1" * CHUNK_SIZE)
    cut = tree.cut()
    file = frozen(cut, ino)
    pread = os.pread

    def interrupted(fd: int, length: int, offset: int) -> bytes:
        monkeypatch.undo()
        tree.write(ino, 0, b"2" * 5000)
        data = pread(fd, length, offset)
        tree.write(ino, 20_000, b"3" * 5000)
        return data

    monkeypatch.setattr(os, "pread", interrupted)
    assert file.read_chunk(next(file.dirty_chunks())[0]) == b"1" * CHUNK_SIZE
    monkeypatch.undo()  # the native path reads by itself
    file.close()
    cut.finish(True)


@pytest.mark.parametrize("data_path", ["python"], indirect=True)  # only Python's reading can be stopped half-way
def test_the_whole_file_may_be_truncated_under_the_reader(tree: LiveTree, monkeypatch: pytest.MonkeyPatch) -> None:
    ino = make(tree, b"a", b"1" * 20 * CHUNK_SIZE)
    cut = tree.cut()
    file = frozen(cut, ino)
    chunks = [chunk for chunk, _ in file.dirty_chunks()]
    assert file.read_chunk(chunks[0]) == b"1" * CHUNK_SIZE
    pread = os.pread

    def interrupted(fd: int, length: int, offset: int) -> bytes:
        monkeypatch.undo()
        tree.setattr(ino, size=0)
        tree.write(ino, 0, b"2" * 3 * CHUNK_SIZE)
        return pread(fd, length, offset)

    monkeypatch.setattr(os, "pread", interrupted)
    for chunk in chunks[1:]:
        assert file.read_chunk(chunk) == b"1" * CHUNK_SIZE
    assert tree.read(ino, 0, GIB) == b"2" * 3 * CHUNK_SIZE
    assert len(os.listdir(f"{tree.live_dir}/preserve")) == 1
    file.close()
    cut.finish(True)
    assert os.listdir(f"{tree.live_dir}/preserve") == []


def test_a_scan_does_not_use_a_file_that_is_being_detached(tree: LiveTree, monkeypatch: pytest.MonkeyPatch) -> None:
    ino = make(tree, b"a", b"1" * 20 * CHUNK_SIZE)
    cut = tree.cut()
    file = frozen(cut, ino)
    found: list[int] = []
    scanner = threading.Thread(target=lambda: found.extend(chunk for chunk, _ in file.dirty_chunks()))
    rename = tree._disk.rename

    def slow(label: str, source: str, target: str) -> None:
        rename(label, source, target)
        scanner.start()  # finds the empty file in the place of the detached one
        scanner.join(0.2)

    with monkeypatch.context() as patch:
        patch.setattr(tree._disk, "rename", slow)
        tree.setattr(ino, size=0)
    scanner.join()
    assert found == list(range(20))
    assert all(file.read_chunk(ChunkIndex(chunk)) == b"1" * CHUNK_SIZE for chunk in found)
    file.close()
    cut.finish(True)


def test_a_file_removed_after_the_cut_is_still_read(tree: LiveTree) -> None:
    ino = make(tree, b"a", b"1" * 1000)
    cut = tree.cut()
    tree.unlink(ROOT_INO, b"a")
    tree.forget(ino)
    again = make(tree, b"a", b"2" * 1000)
    tree.tidy()
    tree.sync_soon()
    assert again != ino
    assert frozen(cut, ino).read_chunk(next(frozen(cut, ino).dirty_chunks())[0]) == b"1" * 1000
    assert cut.open_file(again) is None
    cut.finish(True)
    tree.tidy()
    tree.sync_soon()
    assert not os.path.exists(f"{tree.live_dir}/data/{ino & 255:02x}/{ino:x}")


def test_an_open_file_outlives_its_name(tree: LiveTree) -> None:
    ino = make(tree, b"a", b"1" * 1000)
    tree.open(ino, True)
    tree.unlink(ROOT_INO, b"a")
    tree.forget(ino)
    tree.tidy()
    tree.sync_soon()
    tree.write(ino, 1000, b"2")
    assert tree.read(ino, 999, 10) == b"12"
    assert tree.open_for_writing() == [ino]
    tree.release(ino, True)
    tree.tidy()
    with pytest.raises(OSError, match="Stale"):
        tree.getattr(ino)


def test_a_file_renamed_over_another_names_it(tree: LiveTree) -> None:
    old = make(tree, b"a", b"1" * 1000)
    seal(tree)
    first, second = make(tree, b"n1", b"2"), make(tree, b"n2", b"3")
    tree.rename(ROOT_INO, b"n1", ROOT_INO, b"a")
    tree.rename(ROOT_INO, b"n2", ROOT_INO, b"a")
    cut = tree.cut()
    assert frozen(cut, second).replaced == old
    cut.finish(False)
    third = make(tree, b"n3", b"4")
    tree.rename(ROOT_INO, b"n3", ROOT_INO, b"a")
    cut = tree.cut()
    assert frozen(cut, third).replaced == old
    assert cut.open_file(first) is None
    cut.finish(True)


def test_files_past_4_gib(tree: LiveTree) -> None:
    ino = make(tree, b"a", b"head")
    seal(tree)
    tree.write(ino, 5 * GIB + 10, b"far")
    tree.setattr(ino, size=1 << 40)
    cut = tree.cut()
    tree.write(ino, 5 * GIB, b"after the cut")
    tree.setattr(ino, size=100)
    file = frozen(cut, ino)
    assert file.size == 1 << 40
    chunks = [chunk for chunk, _ in file.dirty_chunks()]
    assert chunks == [0, 5 * GIB // CHUNK_SIZE]
    assert file.read_chunk(chunks[1])[:20] == bytes(10) + b"far" + bytes(7)
    file.close()
    cut.finish(True)
    assert tree.getattr(ino).size == 100
    assert tree.getattr(ino).blocks512 <= 16


def test_times(tree: LiveTree, opener: Opener, tmp_path: Path) -> None:
    ino = make(tree, b"a", b"x")
    tree.setattr(ino, mtime_ns=123_456_789, ctime_ns=5)
    found = tree.getattr(ino)
    assert found.mtime_ns == 123_456_789
    before = found.ctime_ns
    tree.setattr(ino, mode=0o640)
    found = tree.getattr(ino)
    assert (found.mtime_ns, found.mode) == (123_456_789, stat.S_IFREG | 0o640)
    assert found.ctime_ns > before
    tree.close()
    again = opener()
    assert again.getattr(ino) == found


def test_times_alone_are_a_change_that_outlives_a_kill(tree: LiveTree, opener: Opener, tmp_path: Path) -> None:
    ino = make(tree, b"a", b"x")
    seal(tree)
    tree.setattr(ino, mtime_ns=123, ctime_ns=5)
    again = opener(folder=killed(tree, tmp_path))
    cut = again.cut()
    assert cut.changed_files() == [ino]
    assert frozen(cut, ino).mtime_ns == 123
    assert list(frozen(cut, ino).dirty_chunks()) == []
    cut.finish(True)


def test_more_files_than_descriptors(opener: Opener) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    used = len(os.listdir("/proc/self/fd"))
    tree = opener(max_open_files=30)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (used + 80, hard))
        inos = [make(tree, b"%d" % number, b"%d" % number) for number in range(300)]
        cut = tree.cut()
        files = [frozen(cut, ino) for ino in inos]
        for ino in inos:
            tree.open(ino, True)
            tree.write(ino, 0, b"later")
        for number, file in enumerate(files):
            assert [file.read_chunk(chunk) for chunk, _ in file.dirty_chunks()] == [b"%d" % number]
        for ino, file in zip(inos, files, strict=True):
            file.close()
            assert tree.read(ino, 0, 10, nowait=True) == b"later"
            tree.fsync(ino)
        cut.finish(True)
        tree.check_invariants()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_states_are_bounded(opener: Opener) -> None:
    tree = opener(max_states=50)
    for number in range(500):
        make(tree, b"%d" % number, b"x")
        tree.tidy()
    assert len(tree._content.states) <= 60
    cut = tree.cut()
    assert sum(1 for ino, _ in cut.names.changed() if ino != ROOT_INO and frozen(cut, ino).whole) == 500
    cut.finish(True)


def test_pressure(opener: Opener) -> None:
    tree = opener(max_dirty_files=5, max_dirty_chunks=50)
    inos = [make(tree, b"%d" % number, b"x" * 100 * CHUNK_SIZE) for number in range(6)]
    seal(tree)
    assert not tree.pressure()
    for ino in inos:
        assert not tree.pressure()
        tree.write(ino, 0, b"y")
    assert tree.pressure()
    seal(tree)
    assert not tree.pressure()
    tree.write(inos[0], 0, b"z" * 60 * CHUNK_SIZE)
    assert tree.pressure()


def test_a_block_that_cannot_be_kept_fails_the_seal_and_not_the_write(
    tree: LiveTree, monkeypatch: pytest.MonkeyPatch
) -> None:
    ino = make(tree, b"a", b"1" * 4 * CHUNK_SIZE)
    cut = tree.cut()

    def full(label: str, fd: int, data: bytes, offset: int) -> None:
        if label == "preserve:block":
            raise OSError(errno.ENOSPC, "full")
        Disk.pwrite(tree._disk, label, fd, data, offset)

    with monkeypatch.context() as patch:
        patch.setattr(tree._disk, "pwrite", full)
        assert tree.write(ino, CHUNK_SIZE, b"2") == 1
    file = frozen(cut, ino)
    chunks = [chunk for chunk, _ in file.dirty_chunks()]
    assert file.read_chunk(chunks[0]) == b"1" * CHUNK_SIZE
    with pytest.raises(OSError, match="could not be kept") as failure:
        file.read_chunk(chunks[1])
    assert failure.value.errno == errno.ENOSPC
    file.close()
    cut.finish(False)
    cut = tree.cut()
    assert frozen(cut, ino).read_chunk(chunks[1]) == b"2" + b"1" * (CHUNK_SIZE - 1)
    cut.finish(True)


@contextmanager
def broken_writes(tree: LiveTree, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Writes to backing files fail with EIO."""
    if tree.native is not None:
        from snapfs.live.content import _content

        _content.fail_writes(errno.EIO)
        yield
        _content.fail_writes(0)
        return
    pwrite = os.pwrite

    def fail(fd: int, data: bytes, offset: int) -> int:
        if data == b"2":
            raise OSError(errno.EIO, "broken")
        return pwrite(fd, data, offset)

    with monkeypatch.context() as patch:
        patch.setattr("snapfs.live.content.content.os.pwrite", fail)
        yield


def test_a_write_that_fails_keeps_its_bit(tree: LiveTree, monkeypatch: pytest.MonkeyPatch) -> None:
    ino = make(tree, b"a", b"1" * 4 * CHUNK_SIZE)
    seal(tree)

    with broken_writes(tree, monkeypatch), pytest.raises(OSError) as failure:
        tree.write(ino, 0, b"2")
    assert failure.value.errno == errno.EIO
    tree.check_invariants()
    cut = tree.cut()
    assert list(frozen(cut, ino).dirty_chunks()) == [(0, 1)]
    cut.finish(True)


def test_create_that_fails_leaves_no_file(tree: LiveTree) -> None:
    make(tree, b"a")
    before = sorted(path for _, _, names in os.walk(f"{tree.live_dir}/data") for path in names)
    with pytest.raises(FileExistsError):
        make(tree, b"a")
    with pytest.raises(OSError, match="too long"):
        make(tree, b"x" * 256)
    assert sorted(path for _, _, names in os.walk(f"{tree.live_dir}/data") for path in names) == before


# -- absent files


@pytest.fixture
def absent(opener: Opener) -> tuple[LiveTree, Ino, Source]:
    """A tree whose file `a` is only in the store."""
    tree = opener()
    ino = make(tree, b"a")
    seal(tree)
    tree.close()
    os.unlink(f"{tree.live_dir}/data/{ino & 255:02x}/{ino:x}")
    names = Namespace(f"{tree.live_dir}/namespace.db", Disk())
    with names.bulk(sealed=True) as bulk:
        bulk.set_absent(ino, AbsentFile(3 * CHUNK_SIZE, 111, 222, b"where"))
    names.close()
    source = Source(os.urandom(3 * CHUNK_SIZE))
    return opener(source=source), ino, source


def test_an_absent_file_is_read_from_the_store(absent: tuple[LiveTree, Ino, Source]) -> None:
    tree, ino, source = absent
    assert (tree.getattr(ino).size, tree.getattr(ino).mtime_ns) == (3 * CHUNK_SIZE, 111)
    tree.open(ino, False)
    assert tree.read(ino, 100, 1000, nowait=True) is None
    assert tree.read(ino, 100, 1000) == source.data[100:1100]
    assert tree.read(ino, 3 * CHUNK_SIZE, 10) == b""
    assert source.fills == 0
    cut = tree.cut()
    assert (frozen(cut, ino).size, frozen(cut, ino).mtime_ns) == (3 * CHUNK_SIZE, 111)
    assert list(frozen(cut, ino).dirty_chunks()) == []
    cut.finish(True)


def test_an_absent_file_is_filled_before_it_changes(
    absent: tuple[LiveTree, Ino, Source], opener: Opener, tmp_path: Path
) -> None:
    tree, ino, source = absent
    seal(tree)
    assert not tree.ready_to_write(ino)
    tree.prepare_write(ino)
    assert tree.ready_to_write(ino)
    tree.write(ino, 10, b"new")
    expected = source.data[:10] + b"new" + source.data[13:]
    assert tree.read(ino, 0, GIB) == expected
    cut = tree.cut()
    assert list(frozen(cut, ino).dirty_chunks()) == [(0, 1)]
    cut.finish(False)
    again = opener(folder=killed(tree, tmp_path), source=None)  # the row is not cleared yet: the file wins
    assert again.read(ino, 0, GIB) == expected
    tree.tidy()
    assert tree.names.absent(ino) is None
    assert source.fills == 1


def test_truncating_an_absent_file_fetches_nothing(absent: tuple[LiveTree, Ino, Source]) -> None:
    tree, ino, source = absent
    tree.prepare_truncate(ino, 0)
    tree.setattr(ino, size=0)
    assert tree.getattr(ino).size == 0
    assert source.fills == 0


def test_a_store_that_fails_leaves_the_file_absent(absent: tuple[LiveTree, Ino, Source]) -> None:
    tree, ino, source = absent

    def fail(ino: Ino, origin: bytes, fd: int) -> None:
        raise OSError(errno.EIO, "the store is gone")

    source.fill = fail  # type: ignore[method-assign]
    with pytest.raises(OSError, match="gone"):
        tree.write(ino, 0, b"x")
    assert tree.read(ino, 0, 10) == source.data[:10]


# -- opening again


def test_a_clean_close_is_exact_on_any_boot(tree: LiveTree, opener: Opener) -> None:
    ino = make(tree, b"a", b"x" * 10 * CHUNK_SIZE)
    seal(tree)
    tree.write(ino, 3 * CHUNK_SIZE, b"y")
    tree.close()
    again = opener("another boot")
    assert again.recovered == []
    cut = again.cut()
    assert list(frozen(cut, ino).dirty_chunks()) == [(3, 1)]
    cut.finish(True)


def test_a_kill_is_exact_and_a_power_cut_is_not(tree: LiveTree, opener: Opener, tmp_path: Path) -> None:
    ino, other = make(tree, b"a", b"x" * 10 * CHUNK_SIZE), make(tree, b"b", b"x")
    seal(tree)
    tree.write(ino, 3 * CHUNK_SIZE, b"y")
    for boot, whole in (("boot", False), ("another", True)):
        again = opener(boot, folder=killed(tree, tmp_path, f"copy-{boot}"))
        assert again.recovered
        cut = again.cut()
        assert cut.changed_files() == [ino]
        assert frozen(cut, ino).whole == whole
        assert not frozen(cut, other).whole
        cut.finish(True)


def test_strays_go_and_missing_files_are_reported(tree: LiveTree, opener: Opener, tmp_path: Path) -> None:
    lost, kept = make(tree, b"lost", b"1"), make(tree, b"kept", b"2")
    for boot in ("boot", "another"):
        path = tmp_path / killed(tree, tmp_path, f"copy-{boot}")
        os.unlink(path / "data" / f"{lost & 255:02x}" / f"{lost:x}")
        stray = path / "data" / "ff" / "ffff"
        stray.touch()
        (path / "staging" / "left").touch()
        (path / "preserve" / "9").touch()
        again = opener(boot, folder=path.name)
        assert not stray.exists()
        assert os.listdir(path / "staging") == os.listdir(path / "preserve") == []
        assert again.read(kept, 0, 10) == b"2"
        assert any(f"inode {lost}" in line for line in again.recovered)
        if boot == "boot":
            with pytest.raises(OSError, match="lost") as failure:
                again.open(lost, False)
            assert failure.value.errno == errno.EIO
            assert again.getattr(lost).size == 0
        else:
            again.open(lost, False)
            assert again.read(lost, 0, 10) == b""


def test_orphans_go_at_the_next_opening(tree: LiveTree, opener: Opener, tmp_path: Path) -> None:
    ino = make(tree, b"a", b"1")
    tree.open(ino, True)
    tree.unlink(ROOT_INO, b"a")
    again = opener(folder=killed(tree, tmp_path))
    assert again.names.orphans() == []
    assert not os.path.exists(f"{again.live_dir}/data/{ino & 255:02x}/{ino:x}")


@pytest.mark.parametrize("interrupted", [False, True])
def test_staged_files_are_swapped_in(tree: LiveTree, opener: Opener, tmp_path: Path, interrupted: bool) -> None:
    ino, gone = make(tree, b"a", b"new" * CHUNK_SIZE), make(tree, b"b", b"x")
    tree.open(ino, True)
    seal(tree)
    (Path(tree.live_dir) / "staging" / f"{ino:x}").write_bytes(b"old")
    with tree.names.bulk() as bulk:
        bulk.add_swap(ino)
        bulk.delete_entry(ROOT_INO, b"b")
        bulk.put_inode(tree.names.inode(gone)._replace(nlink=0))
    if interrupted:
        tree = opener(folder=killed(tree, tmp_path))
    else:
        tree.swap_staged()
        tree.tidy()
        tree.sync_soon()
    assert tree.read(ino, 0, 100) == b"old"
    assert tree.getattr(ino).size == 3
    assert tree.names.pending_swaps() == tree.names.orphans() == []
    cut = tree.cut()
    assert frozen(cut, ino).whole
    assert frozen(cut, ino).read_chunk(next(frozen(cut, ino).dirty_chunks())[0]) == b"old"
    cut.finish(True)
    tree.check_invariants()

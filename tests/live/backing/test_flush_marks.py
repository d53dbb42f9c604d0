"""Which files have something to flush: the native marks against a model, and what an fsync of a live tree sends on.

The model knows each change of each file, with its beginning and its end, and each sync that succeeded, with its
beginning. A file is durable if a sync of it (or of everything) that began after a change's end covers each change.
"""

from __future__ import annotations

import errno
import random
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from snapfs.base.blocks import CHUNK_SIZE, ROOT_INO, Disk, Ino
from snapfs.live.backing.flush_marks import FlushMarks
from snapfs.live.backing.host_health import SYNC, HostHealth
from snapfs.live.content import datapath
from snapfs.live.content.ranges import KEEP_SIZE, PUNCH_HOLE, ZERO_RANGE
from snapfs.live.database.namespace_rows import AbsentFile, Inode
from snapfs.live.handover import leave_in_order
from snapfs.live.namespace.namespace import Namespace
from snapfs.live.tree import LiveTree
from tests.live.content.test_partly_present import FILE, SIZE, CountingSource

pytestmark = pytest.mark.skipif(bool(datapath.why_not_native()), reason=datapath.why_not_native() or "built")

LIMIT = 65536
FILES = [Ino(number) for number in range(1, 6)]


def native() -> FlushMarks:
    return datapath.choose("native").flush_marks()


# -- against a model


@dataclass
class Change:
    ino: Ino
    held: bool
    end: int | None = None
    is_durable: bool = False
    has_data_durable: bool = False


@dataclass
class Sync:
    ino: Ino | None  # None: everything
    begun: int
    datasync: bool
    number: int = 0


@dataclass
class Model:
    """What the marks are for; `now` counts the steps."""

    marks: FlushMarks
    now: int = 0
    changes: list[Change] = field(default_factory=list)
    syncs: list[Sync] = field(default_factory=list)

    def begin(self, ino: Ino, held: bool) -> None:
        self.marks.begin(ino, held)
        self.changes.append(Change(ino, held))

    def end(self, change: Change) -> None:
        self.marks.end(change.ino)
        change.end = self.now

    def begin_sync(self, ino: Ino | None, datasync: bool) -> None:
        self.syncs.append(Sync(ino, self.now, datasync, self.marks.begin_sync()))

    def end_sync(self, sync: Sync) -> None:
        for change in self.changes:
            if change.end is not None and change.end < sync.begun and sync.ino in (None, change.ino):
                change.has_data_durable |= not change.held or sync.ino is not None
                change.is_durable |= not sync.datasync and (not change.held or sync.ino is not None)
        if sync.ino is None:
            self.marks.end_sync_all(sync.number)
        else:
            self.marks.end_sync(sync.ino, sync.number, sync.datasync)
        self.syncs.remove(sync)

    def step(self, rng: random.Random) -> None:
        self.now += 1
        open_changes = [change for change in self.changes if change.end is None]
        match rng.choice(("begin", "end", "end", "sync", "sync", "synced", "synced")):
            case "begin":
                self.begin(rng.choice(FILES), rng.random() < 0.2)
            case "end" if open_changes:
                self.end(rng.choice(open_changes))
            case "sync":
                ino = None if rng.random() < 0.2 else rng.choice(FILES)
                self.begin_sync(ino, ino is not None and rng.random() < 0.4)
            case "synced" if self.syncs:
                self.end_sync(rng.choice(self.syncs))

    def check(self) -> None:
        for ino in FILES:
            mine = [change for change in self.changes if change.ino == ino]
            durable = all(change.is_durable for change in mine)
            data_durable = all(change.has_data_durable or change.is_durable for change in mine)
            assert durable or not self.marks.is_clean(ino, False), ino
            assert data_durable or not self.marks.is_clean(ino, True), ino


@pytest.mark.parametrize("seed", range(40))
def test_no_file_is_clean_that_is_not_durable(seed: int) -> None:
    rng, model = random.Random(seed), Model(native())
    model.marks.trust()
    for _ in range(400):
        model.step(rng)
        model.check()
    for change in model.changes:
        if change.end is None:
            model.end(change)
    for ino in FILES:
        model.now += 1
        model.begin_sync(ino, False)
        model.end_sync(model.syncs[-1])
        assert model.marks.is_clean(ino, False)
    assert len(model.marks) == 0


def test_nothing_is_clean_before_everything_was_synced_once() -> None:
    marks = native()
    assert not marks.is_clean(Ino(7), False)
    marks.end_sync_all(marks.begin_sync())
    assert marks.is_clean(Ino(7), False)


def test_a_failed_sync_ends_the_trust_for_good() -> None:
    marks = native()
    marks.fail()
    marks.trust()
    marks.end_sync_all(marks.begin_sync())
    assert not marks.is_clean(Ino(7), False)


def test_marks_that_do_not_fit_are_forgotten_and_nothing_is_trusted_until_the_next_sync_of_everything() -> None:
    marks = native()
    marks.trust()
    marks.begin(Ino(1))
    marks.begin(Ino(2), True)
    marks.end(Ino(2))
    before = marks.begin_sync()
    for number in range(LIMIT):
        marks.begin(Ino(10 + number))
        marks.end(Ino(10 + number))
    assert len(marks) < LIMIT
    assert not marks.is_clean(Ino(5), False)
    marks.end_sync_all(before)
    assert not marks.is_clean(Ino(5), False)
    marks.end_sync_all(marks.begin_sync())
    assert marks.is_clean(Ino(5), False)
    assert not marks.is_clean(Ino(1), False), "its change is under way"
    assert not marks.is_clean(Ino(2), False), "it is held"


def test_where_all_marks_are_held_one_more_ends_the_trust() -> None:
    marks = native()
    marks.trust()
    for number in range(LIMIT + 1):
        marks.begin(Ino(1 + number), True)
        marks.end(Ino(1 + number))
    marks.end_sync_all(marks.begin_sync())
    assert not marks.is_clean(Ino(LIMIT + 9), False)
    assert len(marks) == 0


# -- the live tree


class CountingDisk(Disk):
    """Counts the syncs of files for the application."""

    def __init__(self) -> None:
        self.syncs = 0

    def fsync(self, label: str, fd: int) -> None:
        self.syncs += label == "backing:sync"
        super().fsync(label, fd)

    def fdatasync(self, label: str, fd: int) -> None:
        self.syncs += label == "backing:sync"
        super().fdatasync(label, fd)


def opened(folder: Path, disk: Disk, *, adopting: bool = False) -> LiveTree:
    names = Namespace(str(folder / "namespace.db"), disk)
    return LiveTree(str(folder), names, disk, boot_id="boot", data_path="native", adopting=adopting)


@pytest.fixture
def disk() -> CountingDisk:
    return CountingDisk()


@pytest.fixture
def tree(tmp_path: Path, disk: CountingDisk) -> Iterator[LiveTree]:
    made = opened(tmp_path, disk)
    yield made
    if made.is_open:
        made.close()


def make(tree: LiveTree, name: bytes, data: bytes = b"x" * 100_000) -> Ino:
    ino = tree.mknod(ROOT_INO, name, stat.S_IFREG | 0o600, 0, 0, 0).ino
    tree.write(ino, 0, data)
    return ino


def syncs_of(tree: LiveTree, disk: CountingDisk, ino: Ino, datasync: bool = False) -> int:
    before = disk.syncs
    tree.fsync(ino, datasync)
    return disk.syncs - before


CHANGES: dict[str, Callable[[LiveTree, Ino, Ino], object]] = {
    "write": lambda tree, ino, other: tree.write(ino, 5000, b"new"),
    "write beyond the end": lambda tree, ino, other: tree.write(ino, 300_000, b"new"),
    "truncate": lambda tree, ino, other: tree.setattr(ino, size=10),
    "extend": lambda tree, ino, other: tree.setattr(ino, size=400_000),
    "truncate, without new times": lambda tree, ino, other: tree._content.truncate(ino, 10),
    "extend, without new times": lambda tree, ino, other: tree._content.truncate(ino, 400_000),
    "empty": lambda tree, ino, other: tree.setattr(ino, size=0),
    "punch": lambda tree, ino, other: tree.fallocate(ino, PUNCH_HOLE | KEEP_SIZE, 4096, 8192),
    "zero": lambda tree, ino, other: tree.fallocate(ino, ZERO_RANGE, 4096, 8192),
    "reserve": lambda tree, ino, other: tree.fallocate(ino, 0, 200_000, 8192),
    "copy": lambda tree, ino, other: tree.copy_range(other, 0, ino, 0, 50_000),
    "times": lambda tree, ino, other: tree.setattr(ino, mtime_ns=7_000_000_000),
    "lost write": lambda tree, ino, other: tree.lose(ino, 500_000, errno.ENOSPC),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_is_flushed_by_the_next_fsync_and_by_no_other(tree: LiveTree, disk: CountingDisk, change: str) -> None:
    ino, other = make(tree, b"file"), make(tree, b"other")
    tree.fsync(ino)
    tree.fsync(ino)
    assert syncs_of(tree, disk, ino) == 0
    CHANGES[change](tree, ino, other)
    assert syncs_of(tree, disk, ino) == 1
    tree.fsync(ino)  # of times that were not near enough, or that are noted
    assert syncs_of(tree, disk, ino) == 0
    assert syncs_of(tree, disk, ino, datasync=True) == 0
    tree.check_invariants()


def test_a_file_is_not_clean_while_a_change_is_under_way(
    tree: LiveTree, disk: CountingDisk, monkeypatch: pytest.MonkeyPatch
) -> None:
    ino, seen = make(tree, b"file"), []
    tree.fsync(ino)
    tree.cut().finish(True)
    tree.write(ino, 0, b"new")
    tree.fsync(ino)
    tree.fsync(ino)

    def pwrite(label: str, fd: int, data: bytes, offset: int) -> None:
        seen.append(tree._backing.flush_marks.is_clean(ino, False))
        Disk.pwrite(disk, label, fd, data, offset)

    assert tree._backing.flush_marks.is_clean(ino, False)
    monkeypatch.setattr(disk, "pwrite", pwrite)
    tree.write(ino, 50_000, b"new")
    assert seen == [False], "as the intent of the write was logged"


def test_times_that_are_brought_to_the_file_later_are_flushed(tree: LiveTree, disk: CountingDisk) -> None:
    ino = make(tree, b"file")
    tree.fsync(ino)
    tree.open(ino, True)
    tree.write(ino, 0, b"new")
    tree._backing.sync_all("test:all")
    tree.release(ino, True)
    assert syncs_of(tree, disk, ino) == 1
    assert syncs_of(tree, disk, ino) == 0


def test_a_truncate_that_puts_an_empty_file_in_place_is_flushed(tree: LiveTree, disk: CountingDisk) -> None:
    ino = make(tree, b"large", b"y" * (40 * CHUNK_SIZE))
    tree.fsync(ino)
    cut = tree.cut()
    tree.setattr(ino, size=0)
    assert list((Path(tree.live_dir) / "preserve").iterdir()), "it was detached"
    assert syncs_of(tree, disk, ino) == 1
    cut.finish(False)


def test_fdatasync_leaves_the_times_to_the_next_fsync(tree: LiveTree, disk: CountingDisk) -> None:
    ino = make(tree, b"file")
    tree.fsync(ino)
    tree.write(ino, 0, b"new")
    assert syncs_of(tree, disk, ino, datasync=True) == 1
    assert syncs_of(tree, disk, ino, datasync=True) == 0
    assert syncs_of(tree, disk, ino) == 1


def test_what_a_last_life_left_in_order_is_durable_and_needs_no_load(tmp_path: Path, disk: CountingDisk) -> None:
    tree = opened(tmp_path, disk)
    inos = [make(tree, b"file%d" % number) for number in range(20)]
    tree.close()
    tree = opened(tmp_path, disk)
    assert sum(tree.native.fsync(ino, False) for ino in inos) == 0 if tree.native is not None else False
    assert disk.syncs == 0
    assert not tree._content.states
    tree.write(inos[0], 0, b"new")
    assert [syncs_of(tree, disk, ino) for ino in inos] == [1] + [0] * 19
    tree.close()


def test_a_daemon_that_adopts_a_mount_trusts_nothing_before_it_synced_the_host(
    tmp_path: Path, disk: CountingDisk
) -> None:
    tree = opened(tmp_path, disk)
    inos = [make(tree, b"file%d" % number) for number in range(3)]
    tree.hand_over()
    tree.names.sync()
    tree.close(clean=False)
    heir = opened(tmp_path, disk, adopting=True)
    assert syncs_of(heir, disk, inos[0]) == 1
    assert syncs_of(heir, disk, inos[0]) == 1
    heir.sync_soon()
    assert [syncs_of(heir, disk, ino) for ino in inos] == [0, 0, 0]
    heir.close()


def test_a_host_that_lost_bytes_gets_every_fsync(tree: LiveTree, disk: CountingDisk) -> None:
    ino = make(tree, b"file")
    tree.fsync(ino)
    tree.fsync(ino)
    assert syncs_of(tree, disk, ino) == 0
    tree.health.note(SYNC, errno.EIO)
    tree.health.take_suspicion()
    tree._backing.sync_all("test:all")
    assert syncs_of(tree, disk, ino) == 1
    assert syncs_of(tree, disk, ino) == 1


def test_a_failed_fsync_is_sent_again(tree: LiveTree, disk: CountingDisk, monkeypatch: pytest.MonkeyPatch) -> None:
    ino = make(tree, b"file")
    tree.fsync(ino)
    tree.write(ino, 0, b"new")

    def failing(self: Disk, label: str, fd: int) -> None:
        raise OSError(errno.EIO, "the disk is broken")

    with monkeypatch.context() as patched:
        patched.setattr(CountingDisk, "fsync", failing)
        with pytest.raises(OSError, match="Input/output|broken"):
            tree.fsync(ino)
    assert syncs_of(tree, disk, ino) == 1
    assert syncs_of(tree, disk, ino) == 1


def test_a_host_that_refuses_to_be_written_to_gets_every_fsync() -> None:
    class Refusing:
        def probe(self) -> int:
            return errno.EROFS

        def withdraw(self) -> None: ...

    marks = native()
    marks.trust()
    health = HostHealth(Refusing(), marks)  # type: ignore[arg-type]
    assert health.look()
    assert not marks.is_clean(Ino(7), False)


# -- files that are absent, or partly here


@pytest.fixture
def lazy_tree(tmp_path: Path, disk: CountingDisk) -> Iterator[LiveTree]:
    """With one large absent file, `FILE`, and a small one that is here."""
    names = Namespace(str(tmp_path / "namespace.db"), disk)
    data = random.Random(1).randbytes(SIZE)
    with names.bulk(sealed=True) as bulk:
        bulk.put_inode(Inode(FILE, 0o100600, 0, 0, 0, 1, 5, 6, 7))
        bulk.put_entry(ROOT_INO, b"big", FILE)
        bulk.set_absent(FILE, AbsentFile(len(data), 111, 222, b"where"))
    names.sync()
    leave_in_order(str(tmp_path), names, disk, "boot")
    made = LiveTree(str(tmp_path), names, disk, boot_id="boot", data_path="native", source=CountingSource(data))
    yield made
    made.close()


def test_an_absent_file_has_nothing_to_flush(lazy_tree: LiveTree, disk: CountingDisk) -> None:
    assert lazy_tree.native is not None
    assert lazy_tree.native.fsync(FILE, False) == 0
    assert not lazy_tree._content.states
    assert syncs_of(lazy_tree, disk, FILE) == 0


PARTLY: dict[str, Callable[[LiveTree], object]] = {
    "write": lambda tree: tree.write(FILE, 5000, b"new"),
    "write all of a chunk": lambda tree: tree.write(FILE, 2 * CHUNK_SIZE, b"n" * CHUNK_SIZE),
    "punch": lambda tree: tree.fallocate(FILE, PUNCH_HOLE | KEEP_SIZE, 4096, 8192),
    "reserve": lambda tree: tree.fallocate(FILE, 0, SIZE + 4096, 8192),
    "copy": lambda tree: tree.copy_range(FILE, 0, FILE, 4 * CHUNK_SIZE, 5000),
    "truncate": lambda tree: tree._content.truncate(FILE, SIZE - 70_000),
    "extend": lambda tree: tree._content.truncate(FILE, SIZE + 70_000),
    "hydrate": lambda tree: tree.hydrate(FILE, 3),
}


@pytest.mark.parametrize("change", PARTLY)
def test_a_change_of_a_partly_present_file_is_flushed_and_its_record_with_it(
    lazy_tree: LiveTree, disk: CountingDisk, change: str
) -> None:
    lazy_tree.prepare_write(FILE, 5000, 3)
    lazy_tree.fsync(FILE)
    lazy_tree.fsync(FILE)
    assert syncs_of(lazy_tree, disk, FILE) == 0
    PARTLY[change](lazy_tree)
    lazy_tree._backing.sync_all("test:all")
    assert syncs_of(lazy_tree, disk, FILE, datasync=True) == 1
    present, durable = lazy_tree._materializer.partial[FILE].bits
    assert present == durable
    lazy_tree.fsync(FILE)
    lazy_tree.fsync(FILE)
    assert syncs_of(lazy_tree, disk, FILE) == 0
    lazy_tree.check_invariants()


def test_a_file_that_has_become_whole_is_durable(lazy_tree: LiveTree, disk: CountingDisk) -> None:
    while not lazy_tree.hydrate(FILE, 16):
        pass
    assert syncs_of(lazy_tree, disk, FILE) == 0
    lazy_tree.write(FILE, 0, b"new")
    assert syncs_of(lazy_tree, disk, FILE) == 1

"""The times of a file, of the mount and of snapshots, are the same, whatever the host stamps and which process dies."""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from snapfs.base.blocks import BLOCK_SIZE, ROOT_INO, Disk, Ino
from snapfs.live.content.ranges import KEEP_SIZE, PUNCH_HOLE
from snapfs.live.intents.intent_records import note_of_times, read_log
from snapfs.live.namespace.namespace import Namespace
from snapfs.live.tree import LiveTree
from tests.fakes.host_clock import wait_for_the_hosts_clock

pytestmark = pytest.mark.usefixtures("data_path")

BLOCK = bytes(range(256)) * (BLOCK_SIZE // 256)
LONG_AGO_NS = 1_000_000_000_123_456_789
BEFORE_1970_NS = -86_400_000_000_001


def open_tree(folder: Path) -> LiveTree:
    disk = Disk()
    return LiveTree(str(folder), Namespace(str(folder / "namespace.db"), disk), disk, boot_id="this boot")


def kill(tree: LiveTree, folder: Path) -> LiveTree:
    """What a kill -9 leaves to the next life."""
    tree.close(clean=False)
    return open_tree(folder)


def make(tree: LiveTree, times_ns: tuple[int, int] | None) -> Ino:
    """A file with one block, whose times the kernel set after its write: (mtime, ctime), or one time for both."""
    ino = tree.mknod(ROOT_INO, b"a", stat.S_IFREG | 0o600, 0, 0, 0).ino
    tree.open(ino, True)
    tree.write(ino, 0, BLOCK)
    now_ns = time.time_ns()
    mtime_ns, ctime_ns = times_ns or (now_ns, now_ns)
    tree.setattr(ino, mtime_ns=mtime_ns, ctime_ns=ctime_ns)
    return ino


def reported(tree: LiveTree, ino: Ino) -> tuple[int, int]:
    attr = tree.getattr(ino)
    return attr.mtime_ns, attr.ctime_ns


def snapshot(tree: LiveTree, ino: Ino, sealed: bool = True) -> tuple[int, int] | None:
    """The times that a cut has; None if it need not look at the file."""
    cut = tree.cut()
    names = {child for child, _ in cut.names.changed()}
    found = None
    if ino in {*cut.changed_files(), *names}:
        file = cut.open_file(ino)
        assert file is not None
        found = file.mtime_ns, file.ctime_ns
        file.close()
    cut.finish(sealed)
    if sealed:
        tree.tidy()
        tree.sync_soon()
    return found


CHANGES: dict[str, Callable[[LiveTree, Ino], object]] = {
    "write": lambda tree, ino: tree.write(ino, 0, BLOCK[::-1]),
    "grow": lambda tree, ino: tree.write(ino, 3 * BLOCK_SIZE, BLOCK),
    "fallocate": lambda tree, ino: tree.fallocate(ino, 0, 0, 4 * BLOCK_SIZE),
    "punch": lambda tree, ino: tree.fallocate(ino, PUNCH_HOLE | KEEP_SIZE, 0, 100),
    "copy": lambda tree, ino: tree.copy_range(ino, 0, ino, 2 * BLOCK_SIZE, 100),
}


@pytest.mark.parametrize("times_ns", [None, (LONG_AGO_NS, LONG_AGO_NS + 5), (BEFORE_1970_NS, LONG_AGO_NS)])
@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("sealed_before", [False, True])
def test_one_time_is_reported_before_and_after_a_kill(
    tmp_path: Path, change: str, times_ns: tuple[int, int] | None, sealed_before: bool
) -> None:
    """Mtime is 4 to 44 ms later in the mount than in the snapshot after a kill, and jumps back."""
    tree = open_tree(tmp_path)
    ino = make(tree, times_ns)
    if sealed_before:
        assert snapshot(tree, ino) == reported(tree, ino)
        tree.prepare_write(ino)
    wait_for_the_hosts_clock()
    before = reported(tree, ino)
    CHANGES[change](tree, ino)
    assert reported(tree, ino) == before
    for _ in range(3):
        tree = kill(tree, tmp_path)
        assert reported(tree, ino) == before
    assert snapshot(tree, ino) == before
    tree = kill(tree, tmp_path)
    assert reported(tree, ino) == before
    tree.close()
    tree = open_tree(tmp_path)
    assert reported(tree, ino) == before
    tree.check_invariants()
    tree.close()


def test_a_note_outlives_the_log_it_was_in(tmp_path: Path) -> None:
    """The file is stamped in one epoch, that epoch's log goes, and the file does not change any more."""
    tree = open_tree(tmp_path)
    ino = make(tree, (LONG_AGO_NS, LONG_AGO_NS + 5))
    tree.write(ino, 0, BLOCK)
    before = reported(tree, ino)
    assert snapshot(tree, ino) == before
    snapshot(tree, ino)
    tree = kill(tree, tmp_path)
    assert reported(tree, ino) == before
    tree.close()


def test_a_file_stamped_in_every_epoch_keeps_its_time(tmp_path: Path) -> None:
    """Writes without a word of the kernel on both sides of each cut, sealed or not."""
    tree = open_tree(tmp_path)
    ino = make(tree, (LONG_AGO_NS, LONG_AGO_NS + 5))
    before = reported(tree, ino)
    for sealed in (True, False, True, True):
        tree.prepare_write(ino)
        tree.write(ino, 0, BLOCK)
        assert snapshot(tree, ino, sealed) == before
        tree.prepare_write(ino)
        tree.write(ino, BLOCK_SIZE, BLOCK)
        tree = kill(tree, tmp_path)
        assert reported(tree, ino) == before
    tree.close()


def test_times_that_are_set_later_hold(tmp_path: Path) -> None:
    """An older note does not come back over them, stamped again or not."""
    tree = open_tree(tmp_path)
    ino = make(tree, (LONG_AGO_NS, LONG_AGO_NS + 5))
    tree.write(ino, 0, BLOCK)
    for times_ns in ((LONG_AGO_NS + 7, LONG_AGO_NS + 7), (LONG_AGO_NS + 8, LONG_AGO_NS + 9)):
        tree.setattr(ino, mtime_ns=times_ns[0], ctime_ns=times_ns[1])
        before = reported(tree, ino)
        assert before[0] == times_ns[0]
        tree = kill(tree, tmp_path)
        assert reported(tree, ino) == before
        tree.prepare_write(ino)
        tree.write(ino, 0, BLOCK)
        tree = kill(tree, tmp_path)
        assert reported(tree, ino) == before
    tree.close()


def test_a_truncated_file_that_the_cut_needs_keeps_its_time(tmp_path: Path) -> None:
    """The empty file that takes its place carries the times before they are set anew."""
    tree = open_tree(tmp_path)
    ino = make(tree, None)
    tree.write(ino, 0, os.urandom(4 << 20))
    now_ns = time.time_ns()
    tree.setattr(ino, mtime_ns=now_ns, ctime_ns=now_ns)
    before = reported(tree, ino)
    cut = tree.cut()
    tree.prepare_truncate(ino, 0)
    tree._content.truncate(ino, 0)  # the kill comes between the size and the times
    cut.finish(False)
    tree = kill(tree, tmp_path)
    assert reported(tree, ino) == before
    assert tree.getattr(ino).size == 0
    tree.close()


def test_a_write_notes_times_only_where_the_file_cannot_record_them(tmp_path: Path) -> None:
    """Nothing more is appended for an overwrite of a dirty block; with unlike times, once after they were set."""
    tree = open_tree(tmp_path)
    ino = make(tree, None)
    log = tree._intents.current
    end = log.end
    for _ in range(3):
        tree.write(ino, 0, BLOCK)
        now_ns = time.time_ns()
        tree.setattr(ino, mtime_ns=now_ns, ctime_ns=now_ns)
    assert log.end == end
    tree.setattr(ino, mtime_ns=LONG_AGO_NS, ctime_ns=LONG_AGO_NS + 5)
    for _ in range(3):
        tree.write(ino, 0, BLOCK)
    note = note_of_times(ino, LONG_AGO_NS, LONG_AGO_NS + 5)
    assert os.pread(log.fd, 1 << 20, end)[: log.end - end] == note
    tree.close(clean=False)


def test_a_note_is_read_as_it_was_written(tmp_path: Path) -> None:
    tree = open_tree(tmp_path)
    tree._intents.append(note_of_times(7, BEFORE_1970_NS, LONG_AGO_NS))
    log = read_log(tree._intents.current.path)
    assert log is not None
    assert log.noted_times == {7: (BEFORE_1970_NS, LONG_AGO_NS)}
    tree.close(clean=False)

"""Changes of names that the router makes are those of the live tree in Python: errors, rows, and what is left to do.

Each step is taken twice: by a router in front of one live tree, and by the Python of another one.
"""

from __future__ import annotations

import errno
import os
import random
import sqlite3
import stat
import struct
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from snapfs.base.blocks import ROOT_INO, Disk, Ino
from snapfs.fuse.kernel import router as routing
from snapfs.live.content import datapath
from snapfs.live.namespace.namespace import Namespace
from snapfs.live.tree import LiveTree

if routing.why_not() or datapath.why_not_native():
    pytest.skip(routing.why_not() or datapath.why_not_native(), allow_module_level=True)

from tests.fuse.kernel.test_router_looks import Forwarded, Kernel, shown

SYMLINK, MKNOD, MKDIR, UNLINK, RMDIR, LINK, CREATE, RENAME2 = 6, 8, 9, 10, 11, 13, 35, 45
FORGET, BATCH_FORGET = 2, 42
NOREPLACE = 1
UMASK = 0o022
OWNER = (5, 6)
STEPS, ROUNDS = 60, 5


def open_tree(folder: Path) -> LiveTree:
    folder.mkdir(exist_ok=True)
    names = Namespace(str(folder / "namespace.db"), Disk())
    return LiveTree(str(folder), names, Disk(), boot_id="boot", data_path="native", max_states=8, native_changes=True)


class Actor:
    """Carries out a step, each inode called by the number of the step that made it; 0 is the root."""

    def __init__(self, tree: LiveTree) -> None:
        self.tree = tree
        self.inos: dict[int, Ino] = {0: Ino(ROOT_INO)}

    def take(self, number: int, act: str, *arguments: object) -> int | str:
        """0, or the name of the error."""
        try:
            made = getattr(self, act)(*arguments)
        except OSError as error:
            return errno.errorcode[error.errno or 0]
        if act.startswith("make"):
            self.inos[number] = Ino(made)
        return 0


class PythonActor(Actor):
    def make(self, parent: int, name: bytes, mode: int) -> int:
        return self.tree.mknod(self.inos[parent], name, mode & ~UMASK, 0, *OWNER).ino

    def make_link(self, parent: int, name: bytes, target: bytes) -> int:
        return self.tree.symlink(self.inos[parent], name, target, *OWNER).ino

    def link(self, which: int, parent: int, name: bytes) -> None:
        self.tree.link(self.inos[which], self.inos[parent], name)

    def unlink(self, parent: int, name: bytes) -> None:
        self.tree.unlink(self.inos[parent], name)

    def rmdir(self, parent: int, name: bytes) -> None:
        self.tree.rmdir(self.inos[parent], name)

    def rename(self, parent: int, name: bytes, new_parent: int, new_name: bytes, flags: int) -> None:
        self.tree.rename(self.inos[parent], name, self.inos[new_parent], new_name, flags)


class RouterActor(Actor):
    def __init__(self, tree: LiveTree, kernel: Kernel) -> None:
        super().__init__(tree)
        self.kernel = kernel
        self.answered = 0

    def ask(self, opcode: int, parent: int, body: bytes) -> bytes:
        self.answered += 1
        return self.kernel.ask(opcode, self.inos[parent], body, *OWNER)

    def make(self, parent: int, name: bytes, mode: int) -> int:
        if stat.S_ISDIR(mode):
            reply = self.ask(MKDIR, parent, struct.pack("=II", mode, UMASK) + name + b"\0")
        elif stat.S_ISREG(mode) and len(name) % 2:
            body = struct.pack("=4I", os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode, UMASK, 0) + name + b"\0"
            try:
                reply = self.ask(CREATE, parent, body)
            except Forwarded:
                raise FileExistsError(errno.EEXIST, "Python opens it") from None
            self.tree.release(Ino(shown(reply)[0]), True)
        else:
            reply = self.ask(MKNOD, parent, struct.pack("=4I", mode, 0, UMASK, 0) + name + b"\0")
        return shown(reply)[0]

    def make_link(self, parent: int, name: bytes, target: bytes) -> int:
        return shown(self.ask(SYMLINK, parent, name + b"\0" + target + b"\0"))[0]

    def link(self, which: int, parent: int, name: bytes) -> None:
        self.ask(LINK, parent, struct.pack("=Q", self.inos[which]) + name + b"\0")

    def unlink(self, parent: int, name: bytes) -> None:
        self.ask(UNLINK, parent, name + b"\0")

    def rmdir(self, parent: int, name: bytes) -> None:
        self.ask(RMDIR, parent, name + b"\0")

    def rename(self, parent: int, name: bytes, new_parent: int, new_name: bytes, flags: int) -> None:
        head = struct.pack("=QII", self.inos[new_parent], flags, 0)
        self.ask(RENAME2, parent, head + name + b"\0" + new_name + b"\0")


class Story:
    def __init__(self, seed: int, folder: Path) -> None:
        self.random = random.Random(seed)
        self.trees = open_tree(folder / "c"), open_tree(folder / "python")
        self.kernel = Kernel(self.trees[0])
        self.router = RouterActor(self.trees[0], self.kernel)
        self.python = PythonActor(self.trees[1])
        self.steps = 0
        self.outcomes: set[int | str] = set()

    def step(self) -> None:
        self.steps += 1
        act, *arguments = self.choose()
        outcome = self.router.take(self.steps, act, *arguments)
        assert outcome == self.python.take(self.steps, act, *arguments), (act, arguments)
        self.outcomes.add(outcome)

    def choose(self) -> tuple[str, *tuple[object, ...]]:
        known = sorted(self.router.inos)
        pick = self.random.choice

        def name() -> bytes:
            return pick([b"a", b"bb", b"ccc", b"dddd", b"n" * 255, b"n" * 256])

        def some() -> int:
            return pick(known[-12:] + [0] * 6)

        named = [number for number in known if self.python.tree.getattr(self.python.inos[number]).nlink]
        files = [stat.S_IFREG | 0o666, stat.S_IFREG | 0o640, stat.S_IFIFO | 0o600]
        kinds = [*files, stat.S_IFDIR | 0o777, stat.S_IFDIR | 0o2755]
        return pick([
            ("make", some(), name(), pick(kinds)), ("make", some(), name(), pick(kinds)),
            ("make_link", some(), name(), b"t" * pick([1, 4095])), ("link", pick(named), some(), name()),
            ("unlink", some(), name()), ("rmdir", some(), name()),
            ("rename", some(), name(), some(), name(), pick([0, 0, NOREPLACE])),
            ("rename", some(), name(), some(), name(), 0),
        ])  # fmt: skip

    def seal(self) -> None:
        for tree in self.trees:
            cut = tree.cut()
            list(cut.names.changed())
            cut.finish(True)
            tree.tidy()

    def write(self) -> None:
        for number, ino in sorted(self.router.inos.items()):
            attr = self.trees[0].getattr(ino) if self.random.random() < 0.1 and self.exists(ino) else None
            if attr is not None and stat.S_ISREG(attr.mode):
                self.trees[0].write(ino, 0, b"bytes")
                self.trees[1].write(self.python.inos[number], 0, b"bytes")

    def exists(self, ino: Ino) -> bool:
        return bool(self.trees[0].names._writer.row("SELECT 1 FROM inode WHERE ino = ?", (ino,)))

    def compare(self) -> None:
        assert picture(self.router) == picture(self.python)
        for tree in self.trees:
            tree.names.check_invariants()
            tree.check_invariants()
        first, second = self.trees
        assert first.names.counts() == second.names.counts()
        assert first.dirty_files == second.dirty_files
        assert first.has_changes() == second.has_changes()

    def close(self) -> None:
        self.kernel.close()
        for tree in self.trees:
            tree.close()


def picture(actor: Actor) -> dict[str, object]:
    """All that the database has, with inodes by their numbers in the story."""
    writer = actor.tree.names._writer
    called = {ino: number for number, ino in actor.inos.items()} | {0: -1}
    inodes = writer.rows("SELECT ino, mode, uid, gid, rdev, nlink, target, parent FROM inode")
    named = [(called[ino], mode, uid, gid, rdev, nlink, target, called[parent])
             for ino, mode, uid, gid, rdev, nlink, target, parent in inodes]  # fmt: skip
    entries = writer.rows("SELECT parent, name, ino FROM entry ORDER BY parent, cookie")
    touched = writer.rows("SELECT epoch, ino, name FROM touched WHERE epoch > ?", (writer.epochs.sealed,))
    return {
        "inodes": sorted(row for row in named if row[0]),
        "entries": [(called[parent], name, called[ino]) for parent, name, ino in entries],
        "touched": {(epoch, called[ino], name) for epoch, ino, name in touched},
        "orphans": sorted(called[ino] for ino in actor.tree.names.orphans()),
    }


@pytest.fixture
def story(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Story]:
    made = Story(getattr(request, "param", 0), tmp_path)
    yield made
    made.close()


@pytest.mark.parametrize("story", range(8), indirect=True)
def test_steps_by_the_router_end_as_in_python(story: Story) -> None:
    for _ in range(ROUNDS):
        for _ in range(STEPS):
            story.step()
        story.write()
        story.compare()
        if story.random.random() < 0.7:
            story.seal()
            story.compare()
    (answers,) = story.trees[0].names._writer.must("SELECT count(*) FROM answer")
    done = sum(outcome == 0 for outcome in story.outcomes)
    assert answers > 0
    assert done
    assert story.outcomes >= {0, "EEXIST", "ENOENT", "ENOTDIR", "ENAMETOOLONG"}


def test_a_change_is_noted_with_its_request_and_a_later_life_knows_it(tmp_path: Path) -> None:
    tree = open_tree(tmp_path)
    kernel = Kernel(tree)
    made = RouterActor(tree, kernel).take(1, "make", 0, b"name", stat.S_IFDIR | 0o755)
    request = kernel._unique
    with pytest.raises(Forwarded):
        kernel.ask(UNLINK, ROOT_INO, b"name\0", unique=1 << 63 | request)
    kernel.close()
    tree.close()
    again = open_tree(tmp_path)
    assert made == 0
    assert again.names.reply_cache.past(1 << 63 | request) == again.lookup(Ino(ROOT_INO), b"name").ino
    again.close()


def test_both_change_names_at_the_same_time(tmp_path: Path) -> None:
    """Numbers, links and times are those of all changes, whatever made them."""
    tree = open_tree(tmp_path)
    kernels = [Kernel(tree), Kernel(tree)]
    failures = list[BaseException]()

    def work(kernel: Kernel, who: bytes) -> None:
        try:
            for number in range(150):
                body = struct.pack("=II", 0o755, 0) + who + b"%d\0" % number
                made = shown(kernel.ask(MKDIR, ROOT_INO, body))[0]
                kernel.ask(CREATE, made, struct.pack("=4I", os.O_RDWR, 0o644, 0, 0) + b"f\0")
                if number % 3 == 0:
                    kernel.ask(UNLINK, made, b"f\0")
                    kernel.ask(RMDIR, ROOT_INO, who + b"%d\0" % number)
        except BaseException as failure:
            failures.append(failure)

    threads = [
        threading.Thread(target=work, args=(kernel, who)) for kernel, who in zip(kernels, (b"x", b"y"), strict=True)
    ]
    for thread in threads:
        thread.start()
    for number in range(150):
        made = tree.mknod(Ino(ROOT_INO), b"p%d" % number, stat.S_IFDIR | 0o755, 0, 0, 0).ino
        tree.mknod(made, b"f", stat.S_IFREG | 0o644, 0, 0, 0)
        if number % 10 == 0:
            tree.cut().finish(number % 20 == 0)
            tree.tidy()
            tree.names.sync()
    for thread in threads:
        thread.join()
    for kernel in kernels:
        kernel.close()
    assert not failures
    tree.names.check_invariants()
    assert tree.getattr(Ino(ROOT_INO)).nlink == 2 + 150 + 2 * 100
    assert tree.names.counts() == 1 + 300 + 2 * (100 * 2 + 50 * 2), "orphans, which the kernel has not forgotten, too"
    tree.close()


def test_looks_of_other_threads_keep_no_turn_from_what_is_committed(tmp_path: Path) -> None:
    """A look on the writing connection held its view back: the next transaction there failed with EIO, and made a
    snapshot fail; or it undid what C had changed."""
    tree = open_tree(tmp_path)
    kernel = Kernel(tree)
    statements, ended = list[str](), threading.Event()
    tree.names._writer.db.set_trace_callback(statements.append)

    def look() -> None:
        while not ended.is_set():
            assert tree.names.absent(Ino(ROOT_INO)) is None
            tree.names.regular_inos()

    threads = [threading.Thread(target=look) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        for number in range(100):
            kernel.ask(MKDIR, ROOT_INO, struct.pack("=II", 0o755, 0) + b"c%d\0" % number)
            tree.mknod(Ino(ROOT_INO), b"p%d" % number, stat.S_IFDIR | 0o755, 0, 0, 0)
    finally:
        ended.set()
        for thread in threads:
            thread.join()
    assert tree.getattr(Ino(ROOT_INO)).nlink == 2 + 200
    assert not [text for text in statements if "absent" in text], "looked at on the writing connection"
    kernel.close()
    tree.close()


def test_a_look_of_python_does_not_show_c_an_older_row(tmp_path: Path) -> None:
    tree = open_tree(tmp_path)
    kernel = Kernel(tree)
    older = tree.names.inode(Ino(ROOT_INO))
    core = tree.native
    assert core is not None
    core.drop_all_inodes()
    read = tree.names._writer.row

    def change_meanwhile(sql: str, values: tuple[object, ...] = ()) -> tuple[object, ...] | None:
        found = read(sql, values)
        kernel.ask(MKDIR, ROOT_INO, struct.pack("=II", 0o755, 0) + b"name\0")
        return found

    tree.names._writer.row = change_meanwhile  # type: ignore[method-assign]
    assert tree.names.inode(Ino(ROOT_INO)) == older
    tree.names._writer.row = read  # type: ignore[method-assign]
    kernel.ask(MKDIR, ROOT_INO, struct.pack("=II", 0o755, 0) + b"other\0")
    assert tree.getattr(Ino(ROOT_INO)).nlink == older.nlink + 2
    tree.names.check_invariants()
    kernel.close()
    tree.close()


def test_what_the_router_made_and_removed_is_cleaned_up_like_python_s(tmp_path: Path) -> None:
    tree = open_tree(tmp_path)
    kernel = Kernel(tree)
    made = shown(kernel.ask(CREATE, ROOT_INO, struct.pack("=4I", os.O_RDWR, 0o644, 0, 0) + b"f\0"))[0]
    path = Path(tree._backing.path(Ino(made)))
    assert path.exists()
    assert made in tree.open_files()
    kernel.forget(made)
    kernel.ask(UNLINK, ROOT_INO, b"f\0")
    tree.tidy()
    assert tree.getattr(Ino(made)).nlink == 0, "it is open, and the kernel knows it"
    tree.release(Ino(made), True)
    with pytest.raises(Forwarded):
        kernel.forget(made, wait=True)
    tree.forget(Ino(made))
    tree.tidy()
    tree.reclaim()
    assert not path.exists()
    kernel.close()
    tree.close()


def test_a_file_that_the_router_made_is_durable_with_its_name(tmp_path: Path) -> None:
    labels = list[str]()

    class Counting(Disk):
        def sync_dir(self, label: str, path: str) -> None:
            labels.append(label)
            super().sync_dir(label, path)

        def fdatasync(self, label: str, fd: int) -> None:
            labels.append(label)
            super().fdatasync(label, fd)

    disk = Counting()
    tree = LiveTree(
        str(tmp_path), Namespace(str(tmp_path / "namespace.db"), disk), disk, boot_id="boot", data_path="native",
        native_changes=True,
    )  # fmt: skip
    tree._backing._fsync_syncs_new_names = False  # as on a filesystem whose fsync does not do so
    kernel = Kernel(tree)
    made = shown(kernel.ask(CREATE, ROOT_INO, struct.pack("=4I", os.O_RDWR, 0o644, 0, 0) + b"f\0"))[0]
    assert tree.names.needs_sync(Ino(made))
    labels.clear()
    tree.fsync(Ino(made))
    assert "backing:name" in labels
    assert not tree.names.needs_sync(Ino(made))
    kernel.close()
    tree.close()


def test_names_are_changed_in_python_unless_c_shares_them(tmp_path: Path) -> None:
    names = Namespace(str(tmp_path / "namespace.db"), Disk())
    tree = LiveTree(str(tmp_path), names, Disk(), boot_id="boot", data_path="native", native_changes=False)
    kernel = Kernel(tree)
    with pytest.raises(Forwarded):
        kernel.ask(MKDIR, ROOT_INO, struct.pack("=II", 0o755, 0) + b"name\0")
    kernel.close()
    tree.close()


def test_a_rename_over_a_file_waits_for_its_bytes(tmp_path: Path) -> None:
    tree = open_tree(tmp_path)
    kernel = Kernel(tree)
    for name in (b"new", b"old"):
        kernel.ask(MKNOD, ROOT_INO, struct.pack("=4I", stat.S_IFREG | 0o644, 0, 0, 0) + name + b"\0")
    moved = tree.lookup(Ino(ROOT_INO), b"new").ino
    body = struct.pack("=QII", ROOT_INO, 0, 0) + b"new\0old\0"
    with tree.names.settled(), pytest.raises(Forwarded):
        kernel.ask(RENAME2, ROOT_INO, body)
    kernel.ask(RENAME2, ROOT_INO, body)
    assert tree.names.take_pending_replace() == {moved}
    kernel.close()
    tree.close()


def test_a_file_that_could_not_be_made_is_not_reported(tmp_path: Path) -> None:
    """A file was in the list of those that were made before it was there: a sync of its folder that came between took
    it out again, and its name was never made durable."""
    tree = open_tree(tmp_path)
    kernel = Kernel(tree)
    core = tree.native
    assert core is not None
    core.take_made()
    folders = Path(tree._backing.root), tmp_path / "away"
    folders[0].rename(folders[1])
    with pytest.raises(Forwarded):
        kernel.ask(MKNOD, ROOT_INO, struct.pack("=4I", stat.S_IFREG | 0o644, 0, 0, 0) + b"f\0")
    assert core.take_made() == []
    folders[1].rename(folders[0])
    tree.tidy()
    made = shown(kernel.ask(MKNOD, ROOT_INO, struct.pack("=4I", stat.S_IFREG | 0o644, 0, 0, 0) + b"f\0"))[0]
    assert core.take_made() == [made]
    tree.names.check_invariants()
    kernel.close()
    tree.close()


def test_what_took_a_name_over_is_noted_before_it_goes_and_without_a_cut(tmp_path: Path) -> None:
    """The list of C grew until a cut, and was full after half a million renames: then Python made all changes."""
    tree = open_tree(tmp_path)
    kernel = Kernel(tree)
    core = tree.native
    assert core is not None

    def replace() -> tuple[int, int]:
        kernel.ask(MKNOD, ROOT_INO, struct.pack("=4I", stat.S_IFREG | 0o644, 0, 0, 0) + b"new\0")
        moved, was = (tree.lookup(Ino(ROOT_INO), name).ino for name in (b"new", b"old"))
        kernel.ask(RENAME2, ROOT_INO, struct.pack("=QII", ROOT_INO, 0, 0) + b"new\0old\0")
        return moved, was

    kernel.ask(MKNOD, ROOT_INO, struct.pack("=4I", stat.S_IFREG | 0o644, 0, 0, 0) + b"old\0")
    tree.cut().finish(True)
    first, original = replace()
    tree.tidy()
    assert tree._content.current.replaced == {first: original}
    second, _ = replace()
    tree.forget(Ino(first))
    tree.tidy()
    assert tree._content.current.replaced == {second: original}, "the newest file has what the last snapshot knows"
    assert core.take_replaced() == []
    kernel.close()
    tree.close()


def test_what_memory_has_is_known_when_the_host_is_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The connection for looks must read what C has changed, which a host that is gone does not give: the status of the
    mount could not be read then."""
    tree = open_tree(tmp_path)
    kernel = Kernel(tree)
    kernel.ask(MKDIR, ROOT_INO, struct.pack("=II", 0o755, 0) + b"name\0")
    tree.cut().finish(True)
    tree.tidy()
    assert not tree.has_changes()

    def gone(*arguments: object) -> None:
        raise sqlite3.DatabaseError("the host is gone")

    for look in ("row", "rows"):
        monkeypatch.setattr(tree.names._writer.outside, look, gone)
    assert tree.getattr(Ino(ROOT_INO)).nlink == 3
    assert tree.names.absent_count() == 0
    assert tree.has_changes(), "what cannot be known"
    monkeypatch.undo()
    kernel.close()
    tree.close()


def test_a_directory_whose_parent_is_lost_ends_no_change_in_a_loop(tmp_path: Path) -> None:
    """Damage: nothing is above it, not even an empty slot of the cache."""
    tree = open_tree(tmp_path)
    for name in (b"moved", b"lost"):
        tree.mknod(ROOT_INO, name, stat.S_IFDIR | 0o755, 0, 0, 0)
    lost = tree.lookup(ROOT_INO, b"lost").ino
    writer = tree.names._writer
    with writer.change:
        writer.db.execute("UPDATE inode SET parent = 0 WHERE ino = ?", (lost,))
    tree.native.drop_all_inodes()
    kernel = Kernel(tree)
    body = struct.pack("=QII", lost, 0, 0) + b"moved\0moved\0"
    with pytest.raises(OSError, match=os.strerror(errno.ESTALE)):
        kernel.ask(RENAME2, ROOT_INO, body)
    kernel.close()
    tree.close(clean=False)

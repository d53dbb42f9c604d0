"""The random operations of test_namespace_model.py, made by the router in C where it may.

Also here: each statement of a change may fail, so that C takes it back and Python makes it, or fails as well; cuts stay
open while names change, and fail; a life ends by a kill, after which each request that was answered is known.

SNAPFS_MODEL_EXAMPLES=2000 selects a longer form.
"""

from __future__ import annotations

import errno
import os
import shutil
import stat
import struct
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import invariant, precondition, rule

from snapfs.base.blocks import Disk, Ino
from snapfs.fuse.kernel import router as routing
from snapfs.live.content import datapath
from snapfs.live.cut import Cut
from snapfs.live.database.namespace_rows import RENAME_EXCHANGE
from snapfs.live.namespace.namespace import Namespace
from snapfs.live.namespace.reply_cache import RESENT
from snapfs.live.tree import LiveTree

if routing.why_not() or datapath.why_not_native():
    pytest.skip(routing.why_not() or datapath.why_not_native(), allow_module_level=True)

from tests.fuse.kernel.test_router_looks import Forwarded, Kernel, packed, shown
from tests.live.namespace import test_namespace_model as model

SYMLINK, MKNOD, MKDIR, UNLINK, RMDIR, LINK, CREATE, RENAME2 = 6, 8, 9, 10, 11, 13, 35, 45
FIFO = 0o010644
STEPS = [
    "INSERT ON entry", "UPDATE ON entry", "DELETE ON entry", "INSERT ON inode", "UPDATE ON inode", "INSERT ON touched",
    "INSERT ON answer",
]  # fmt: skip
"""What a trigger can make fail."""


def open_tree(folder: Path) -> LiveTree:
    """Python's clock has finer ticks here than that of C, which a reply of C must not hide."""
    names = Namespace(str(folder / "namespace.db"), Disk(), time.time_ns)
    return LiveTree(str(folder), names, Disk(), boot_id="boot", data_path="native", max_states=8, native_changes=True)


def make_fallible(tree: LiveTree) -> None:
    db = tree.names._writer.db
    with tree.names.turn:
        db.execute("CREATE TABLE failing (step TEXT)")
        for number, step in enumerate(STEPS):
            db.execute(
                f"CREATE TRIGGER fail{number} BEFORE {step} WHEN EXISTS (SELECT 1 FROM failing WHERE step = '{step}')"
                " BEGIN SELECT RAISE(ABORT, 'for the test'); END"
            )


class NamesInC(model.Names):
    """The namespace is a live tree's, with a router before it."""

    def __init__(self) -> None:
        super().__init__()
        self.ns.close()
        self.lives = Path(tempfile.mkdtemp(prefix="snapfs-names-c-"))
        self.life = 0
        self.failing = False
        self.made_by_c = 0
        self.answered: tuple[int, int] | None = None
        self.answers: dict[int, int] = {}
        self.cut_now: tuple[Cut, model.Model] | None = None
        self.begin_life(0)
        make_fallible(self.tree)

    def begin_life(self, unique: int) -> None:
        self.here = self.lives / str(self.life)
        self.here.mkdir(exist_ok=True)
        self.tree = open_tree(self.here)
        self.kernel = Kernel(self.tree)
        self.kernel._unique = unique
        self.ns = self.tree.names

    # -- requests

    def both(self, act: str, *arguments: object) -> bool:
        trial, expected, actual, made = self.model.copy(), None, None, 0
        try:
            made = self.perform(act, *arguments)
        except OSError as failure:
            actual = failure.errno
        try:
            getattr(trial, act)(*arguments, *([made] if act == "create" else []))
        except OSError as failure:
            expected = failure.errno
        if self.failing and actual in (errno.EIO, errno.EEXIST):
            return False
        assert actual == expected, (act, arguments, actual, expected)
        if expected is None and trial.nodes != self.model.nodes:  # a rename that changes nothing may be done twice
            self.answers.update([self.answered] if self.answered else [])
        if expected is None:
            self.model = trial
        return expected is None

    def perform(self, act: str, *arguments: object) -> int:
        """Have C do it, or Python where C leaves it to that; the inode that was made."""
        ask: Callable[..., tuple[int, int, bytes]] = getattr(self, f"request_{act}")
        opcode, node, body = ask(*arguments)
        self.answered = None
        try:
            reply = self.kernel.ask(opcode, node, body)
        except Forwarded:
            return self.perform_in_python(act, *arguments)
        self.made_by_c += 1
        made = shown(reply[: 40 + 88])[0] if reply else 0
        self.answered = self.kernel._unique, made
        if reply:
            shows = shown(reply[: 40 + 88]), packed(self.tree.getattr(Ino(made)))
            assert shows[0] == shows[1], shows
        if opcode == CREATE:
            self.tree.release(Ino(made), True)
        return made

    def perform_in_python(self, act: str, *arguments: object) -> int:
        if act == "create":
            parent, name, mode = arguments
            return self.tree.mknod(parent, name, mode, 0, 0, 0).ino  # type: ignore[arg-type]
        getattr(self.tree, act)(*arguments)
        return 0

    def request_create(self, parent: int, name: bytes, mode: int) -> tuple[int, int, bytes]:
        if stat.S_ISDIR(mode):
            return MKDIR, parent, struct.pack("=II", mode, 0) + name + b"\0"
        if stat.S_ISREG(mode) and len(self.used) % 2:
            head = struct.pack("=4I", os.O_RDWR | os.O_CREAT | os.O_EXCL, mode, 0, 0)
            return CREATE, parent, head + name + b"\0"
        return MKNOD, parent, struct.pack("=4I", mode, 0, 0, 0) + name + b"\0"

    def request_link(self, ino: int, parent: int, name: bytes) -> tuple[int, int, bytes]:
        return LINK, parent, struct.pack("=Q", ino) + name + b"\0"

    def request_unlink(self, parent: int, name: bytes) -> tuple[int, int, bytes]:
        return UNLINK, parent, name + b"\0"

    def request_rmdir(self, parent: int, name: bytes) -> tuple[int, int, bytes]:
        return RMDIR, parent, name + b"\0"

    def request_rename(
        self, parent: int, name: bytes, new_parent: int, new_name: bytes, flags: int
    ) -> tuple[int, int, bytes]:
        head = struct.pack("=QII", new_parent, flags, 0)
        return RENAME2, parent, head + name + b"\0" + new_name + b"\0"

    # -- steps

    @rule(parent=model.PICK, name=model.NAMES, mode=st.sampled_from([model.FILE, model.FILE, FIFO, model.DIR]))
    def create(self, parent: int, name: bytes, mode: int) -> None:
        before = set(self.model.nodes)
        if self.both("create", self.directory(parent), name, mode):
            (made,) = set(self.model.nodes) - before
            assert made not in self.used, "never used twice"
            self.used.add(made)

    @rule(ino=model.PICK, parent=model.PICK, name=model.NAMES)
    def link(self, ino: int, parent: int, name: bytes) -> None:
        """Not of a regular file without a name: a live tree gives it one (O_TMPFILE)."""
        which = self.any_inode(ino)
        if self.model.nodes[which].links or not stat.S_ISREG(self.model.nodes[which].mode):
            self.both("link", which, self.directory(parent), name)

    @rule(step=st.sampled_from(STEPS), data=st.data())
    def one_that_may_fail(self, step: str, data: st.DataObject) -> None:
        """Of the next change one statement fails, if it comes to that."""
        names = self.ns
        with names.turn:
            names._writer.db.execute("INSERT INTO failing VALUES (?)", (step,))
        self.failing = True
        try:
            act = data.draw(st.sampled_from([self.create, self.link, self.unlink, self.rename]))
            place, other = data.draw(model.PLACE), data.draw(model.PLACE)
            pick, name = data.draw(model.PICK), data.draw(model.NAMES)
            if act == self.create:
                self.create(pick, name, data.draw(st.sampled_from([model.FILE, model.DIR])))
            elif act == self.link:
                self.link(pick, place[1], name)
            elif act == self.unlink:
                self.unlink(place)
            else:
                self.rename(place, other, data.draw(st.sampled_from([0, 0, RENAME_EXCHANGE])))
        finally:
            self.failing = False
            with names.turn:
                names._writer.db.execute("DELETE FROM failing")

    @rule(mode=st.sampled_from([0o700, 0o755]), pick=model.PICK)
    def chmod_in_python(self, mode: int, pick: int) -> None:
        """Between two changes of C: what it has in memory of the inode must not be older."""
        number = self.directory(pick)
        self.ns.setattr(number, mode=mode)
        self.model.nodes[number].mode = stat.S_IFDIR | mode

    @rule()
    def forget_orphans(self) -> None:
        orphans = self.ns.orphans()
        assert set(orphans) == {ino for ino, node in self.model.nodes.items() if not node.links}
        for ino in orphans:
            with pytest.raises(Forwarded):
                self.kernel.forget(ino, wait=True)
            self.tree.forget(ino)
        self.tidy()
        self.tree.reclaim()
        assert not any(os.path.exists(self.tree._backing.path(ino)) for ino in set(orphans) - set(self.ns.orphans()))

    def tidy(self) -> None:
        """Once no cut needs them, what is forgotten goes."""
        self.tree.tidy()
        there = set(self.ns.orphans())
        for ino in [ino for ino, node in self.model.nodes.items() if not node.links and ino not in there]:
            del self.model.nodes[ino]

    @rule()
    def sync_and_checkpoint(self) -> None:
        self.tidy()
        self.tree.sync_soon()
        assert not any(self.ns.needs_sync(Ino(ino)) for ino in self.model.dirs())

    @precondition(lambda self: self.cut_now is None)
    @rule()
    def cut_and_seal(self) -> None:
        self.cut()
        self.end_cut(True)

    @precondition(lambda self: self.cut_now is None)
    @rule()
    def cut(self) -> None:
        self.cut_now = self.tree.cut(), self.model.copy()

    @precondition(lambda self: self.cut_now is not None)
    @rule(sealed=st.booleans())
    def end_cut(self, sealed: bool) -> None:
        assert self.cut_now is not None
        (cut, then), self.cut_now = self.cut_now, None
        model.check_frozen(cut.names, then, self.sealed)
        cut.finish(sealed)
        self.tidy()
        if sealed:
            self.sealed = then

    @rule()
    def kill(self) -> None:
        """Another life begins with what the disk has; each answer is known to it."""
        self.life += 1
        shutil.copytree(self.here, self.lives / str(self.life))
        self.end_life(clean=False)
        self.begin_life(self.kernel._unique)
        assert not self.tree.damaged
        past = self.ns.reply_cache.past
        assert {unique: past(RESENT | unique) for unique in self.answers} == self.answers
        self.orphans_are_gone()

    @precondition(lambda self: self.cut_now is None)
    @rule()
    def reopen(self) -> None:
        epoch, changes = self.ns.epoch, self.ns.has_changes()
        self.end_life(clean=True)
        self.begin_life(0)
        assert (self.ns.epoch, self.ns.has_changes()) == (epoch, changes)
        self.ns.reply_cache.forget()
        self.answers.clear()
        self.orphans_are_gone()

    def orphans_are_gone(self) -> None:
        assert not self.ns.orphans()
        self.tidy()

    def end_life(self, clean: bool) -> None:
        self.kernel.close()
        if self.cut_now is not None:
            self.cut_now[0].names.close()
            self.cut_now = None
        self.tree.close(clean=clean)

    @invariant()
    def the_tree_is_whole(self) -> None:
        self.tree.check_invariants()
        files = [ino for ino, node in self.model.nodes.items() if stat.S_ISREG(node.mode)]
        assert all(os.path.exists(self.tree._backing.path(Ino(ino))) for ino in files)

    def teardown(self) -> None:
        if self.cut_now is not None:
            self.cut_now[0].finish(False)
            self.cut_now = None
        self.end_life(clean=True)
        shutil.rmtree(self.lives)
        shutil.rmtree(self.folder)


TestNamesInC = NamesInC.TestCase
TestNamesInC.settings = settings(
    max_examples=int(os.environ.get("SNAPFS_MODEL_EXAMPLES", "15")), stateful_step_count=50, deadline=None,
    suppress_health_check=[HealthCheck.too_slow], report_multiple_bugs=False,
)  # fmt: skip

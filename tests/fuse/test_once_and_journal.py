"""A request or command that is sent again is answered as it was done, and never done twice."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pyfuse3
import pytest
import trio

from snapfs.blocks import ROOT_INO, Disk
from snapfs.fuse.control import ControlHandle, Reply
from snapfs.fuse.journal import Journal
from snapfs.fuse.operations import Operations
from snapfs.fuse.reader import RequestReader
from snapfs.live.answers import RESENT
from snapfs.live.namespace import Namespace
from snapfs.live.tree import LiveTree

ROOT = pyfuse3.InodeT(ROOT_INO)
CONTEXT = cast(pyfuse3.RequestContext, SimpleNamespace(uid=0, gid=0, pid=os.getpid(), umask=0o022))


class Life:
    """A daemon's operations without its mount; `next_life` is what adopts after a kill."""

    def __init__(self, folder: Path, adopting: bool = False) -> None:
        self.folder, self.request = folder, 0
        names = Namespace(str(folder / "namespace.db"), Disk())
        self.tree = LiveTree(str(folder), names, Disk(), boot_id="boot", adopting=adopting)
        self.operations = Operations(self.tree, None, RequestReader())
        self.operations.unique = lambda: self.request

    def ask(self, request: int, handler: Callable[..., Awaitable[Any]], *arguments: Any) -> Any:
        self.request = request

        async def call() -> Any:
            return await handler(*arguments, CONTEXT)

        return trio.run(call)

    def next_life(self) -> Life:
        self.tree.close(clean=False)
        return Life(self.folder, adopting=True)


@pytest.fixture
def life(tmp_path: Path) -> Iterator[list[Life]]:
    """The lives, the last one the present."""
    lives = [Life(tmp_path)]
    yield lives
    lives[-1].tree.close()


def name(text: str) -> pyfuse3.FileNameT:
    return pyfuse3.FileNameT(text.encode())


REQUESTS: dict[str, Callable[[Operations], tuple[Callable[..., Awaitable[Any]], tuple[Any, ...]]]] = {
    "mkdir": lambda o: (o.mkdir, (ROOT, name("new"), 0o755)),
    "mknod": lambda o: (o.mknod, (ROOT, name("new"), stat.S_IFREG | 0o644, 0)),
    "create": lambda o: (o.create, (ROOT, name("new"), 0o644, os.O_RDWR | os.O_CREAT | os.O_EXCL)),
    "symlink": lambda o: (o.symlink, (ROOT, name("new"), name("target"))),
    "link": lambda o: (o.link, (o.tree.lookup(ROOT_INO, b"file").ino, ROOT, name("new"))),
    "unlink": lambda o: (o.unlink, (ROOT, name("file"))),
    "rmdir": lambda o: (o.rmdir, (ROOT, name("folder"))),
    "rename": lambda o: (o.rename, (ROOT, name("file"), ROOT, name("moved"), 0)),
    "exchange": lambda o: (o.rename, (ROOT, name("file"), ROOT, name("other"), 2)),
    "removexattr": lambda o: (o.removexattr, (o.tree.lookup(ROOT_INO, b"file").ino, pyfuse3.XAttrNameT(b"user.x"))),
}


def picture(tree: LiveTree) -> dict[bytes, tuple[int, int, int]]:
    return {entry: (attr.ino, attr.mode, attr.nlink) for _, entry, attr in tree.readdir(ROOT_INO, 0, 100)}


@pytest.mark.parametrize("kind", REQUESTS)
@pytest.mark.parametrize("deaths", [1, 3])
def test_a_request_sent_again_is_answered_and_not_done_again(life: list[Life], kind: str, deaths: int) -> None:
    first = life[0]
    for entry in ("file", "other"):
        attr = first.ask(2, first.operations.mknod, ROOT, name(entry), stat.S_IFREG | 0o600, 0)
        first.tree.setxattr(attr.st_ino, b"user.x", b"1")
    first.ask(4, first.operations.mkdir, ROOT, name("folder"), 0o700)
    handler, arguments = REQUESTS[kind](first.operations)
    told = first.ask(10, handler, *arguments)
    done = picture(first.tree)
    for _ in range(deaths):
        life.append(life[-1].next_life())
        again = life[-1].ask(10 | RESENT, getattr(life[-1].operations, kind.replace("exchange", "rename")), *arguments)
        assert picture(life[-1].tree) == done
    if kind == "create":
        assert again[0].fh == told[0].fh
        told, again = told[1], again[1]
    assert (told is None) == (again is None)
    if told is not None:
        assert told.__getstate__() == again.__getstate__()


def test_a_request_that_was_never_done_is_done(life: list[Life]) -> None:
    life[0].ask(2, life[0].operations.mkdir, ROOT, name("before"), 0o755)
    life.append(life[0].next_life())
    life[1].ask(4 | RESENT, life[1].operations.mkdir, ROOT, name("new"), 0o755)
    assert set(picture(life[1].tree)) == {b"before", b"new"}
    with pytest.raises(pyfuse3.FUSEError):  # another process asks for the same
        life[1].ask(6 | RESENT, life[1].operations.mkdir, ROOT, name("new"), 0o755)


def test_a_failure_is_no_outcome(life: list[Life]) -> None:
    """What follows a failed request in the same life must not be noted as its outcome."""
    with pytest.raises(pyfuse3.FUSEError):
        life[0].ask(2, life[0].operations.unlink, ROOT, name("nothing"))
    life[0].tree.setattr(ROOT_INO, mode=0o711)
    life.append(life[0].next_life())
    with pytest.raises(pyfuse3.FUSEError):
        life[1].ask(2 | RESENT, life[1].operations.unlink, ROOT, name("nothing"))


def test_orphans_outlive_an_adoption_until_the_kernel_forgets_them(life: list[Life]) -> None:
    attr = life[0].ask(2, life[0].operations.mknod, ROOT, name("file"), stat.S_IFREG | 0o600, 0)
    life[0].tree.write(attr.st_ino, 0, b"bytes")
    life[0].ask(4, life[0].operations.unlink, ROOT, name("file"))
    life.append(life[0].next_life())
    tree = life[1].tree
    assert tree.read(attr.st_ino, 0, 10) == b"bytes"
    tree.tidy()
    assert tree.names.orphans() == [attr.st_ino]
    tree.forget(attr.st_ino)
    tree.tidy()
    tree.sync_soon()
    assert tree.names.orphans() == []
    assert not os.path.exists(tree._backing.path(attr.st_ino))


def test_what_an_adoption_leaves_lying_goes_at_the_end_of_the_mount(life: list[Life], tmp_path: Path) -> None:
    life[0].ask(2, life[0].operations.mknod, ROOT, name("kept"), stat.S_IFREG | 0o600, 0)
    orphan = life[0].ask(4, life[0].operations.mknod, ROOT, name("gone"), stat.S_IFREG | 0o600, 0).st_ino
    life[0].ask(6, life[0].operations.unlink, ROOT, name("gone"))
    stray = life[0].tree.names.allocate_ino()
    life[0].tree._content.create(stray, 1)  # a creation that the kill cut short before its row
    path = life[0].tree._backing.path
    second = life[0].next_life()
    assert os.path.exists(path(stray))
    second.tree.close()
    assert not os.path.exists(path(stray))
    assert not os.path.exists(path(orphan))
    life.append(Life(tmp_path))
    assert life[-1].tree.recovered == []
    assert set(picture(life[-1].tree)) == {b"kept"}


class Commander:
    """A control file's handle, and what its commands did."""

    def __init__(self, names: Namespace, request: int, newest: int) -> None:
        self.ran: list[tuple[str, int | None]] = []
        self.fails_with = 0
        self.handle = ControlHandle(self.run, Journal(names.answers, lambda: request, lambda: newest), 1 << 63 | 26)

    async def run(self, line: str, since: int | None) -> Reply:
        self.ran.append((line, since))
        if self.fails_with < 0:
            raise KeyboardInterrupt
        return Reply(b"reply to %s\n" % line.encode(), self.fails_with)

    def write(self, data: bytes) -> int:
        return trio.run(self.handle.write, 0, data)

    def read(self) -> bytes:
        return trio.run(self.handle.read, 0, 1000)


def test_a_command_that_was_done_is_answered_from_the_journal(tmp_path: Path) -> None:
    names = Namespace(str(tmp_path / "namespace.db"), Disk())
    first = Commander(names, 10, 3)
    assert first.write(b"snapshot a\n") == 11
    again = Commander(names, 10 | RESENT, 4)
    assert again.write(b"snapshot a\n") == 11
    assert (again.ran, again.read()) == ([], b"reply to snapshot a\n")
    names.close()


def test_a_command_is_done_where_there_is_no_room_to_note_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = Namespace(str(tmp_path / "namespace.db"), Disk())
    commander = Commander(names, 10, 3)

    def full(*ignored: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    for act in ("begin_command", "end_command", "forget_command"):
        monkeypatch.setattr(names.answers, act, full)
    assert commander.write(b"snapshot a\n") == 11
    assert (commander.ran, commander.read()) == ([("snapshot a", None)], b"reply to snapshot a\n")
    commander.handle.released()
    names.close()


def test_a_command_that_failed_fails_again_with_the_same_words(tmp_path: Path) -> None:
    names = Namespace(str(tmp_path / "namespace.db"), Disk())
    first = Commander(names, 10, 3)
    first.fails_with = 17
    with pytest.raises(FileExistsError):
        first.write(b"snapshot a\nsnapshot b\n")
    again = Commander(names, 10 | RESENT, 4)
    with pytest.raises(FileExistsError):
        again.write(b"snapshot a\nsnapshot b\n")
    assert (again.ran, again.read()) == ([], b"reply to snapshot a\n")
    names.close()


def test_a_command_that_died_is_run_with_what_was_there_when_it_began(tmp_path: Path) -> None:
    names = Namespace(str(tmp_path / "namespace.db"), Disk())
    first = Commander(names, 10, 3)
    first.fails_with = -1
    with pytest.raises(KeyboardInterrupt):
        first.write(b"snapshot a\n")
    for _ in range(2):
        again = Commander(names, 10 | RESENT, 4)
        again.fails_with = -1
        with pytest.raises(KeyboardInterrupt):
            again.write(b"snapshot a\n")
        assert again.ran == [("snapshot a", 3)]
    other = Commander(names, 12 | RESENT, 4)  # never seen before, though it is sent again
    other.write(b"snapshot b\n")
    assert other.ran == [("snapshot b", None)]
    names.close()


def test_a_reply_that_nobody_read_outlives_the_daemon(tmp_path: Path) -> None:
    names = Namespace(str(tmp_path / "namespace.db"), Disk())
    Commander(names, 10, 3).write(b"snapshot a\n")
    later = Commander(names, 12, 4)
    assert later.read() == b"reply to snapshot a\n"
    later.handle.released()
    assert Commander(names, 14, 4).read() == b""
    names.close()

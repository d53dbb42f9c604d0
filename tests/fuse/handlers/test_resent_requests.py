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

from snapfs.base.blocks import ROOT_INO, Disk
from snapfs.fuse.handlers.handler_context import standalone
from snapfs.fuse.kernel.request_reader import RequestReader
from snapfs.fuse.session.operations import Operations
from snapfs.fuse.virtual.command_log import CommandLog
from snapfs.fuse.virtual.control_nodes import ControlHandle, Reply
from snapfs.live.namespace.namespace import Namespace
from snapfs.live.namespace.reply_cache import RESENT
from snapfs.live.tree import LiveTree

ROOT = pyfuse3.InodeT(ROOT_INO)
CONTEXT = cast(pyfuse3.RequestContext, SimpleNamespace(uid=0, gid=0, pid=os.getpid(), umask=0o022))


class DaemonHalf:
    """A daemon's operations without its mount; `successor` is what adopts after a kill."""

    def __init__(self, folder: Path, adopting: bool = False) -> None:
        self.folder, self.request = folder, 0
        names = Namespace(str(folder / "namespace.db"), Disk())
        self.tree = LiveTree(str(folder), names, Disk(), boot_id="boot", adopting=adopting)
        reader = RequestReader()
        context = standalone(self.tree, reader, unique=lambda: self.request)
        self.operations = Operations(self.tree, None, reader, context)

    def send(self, request: int, handler: Callable[..., Awaitable[Any]], *arguments: Any) -> Any:
        self.request = request

        async def call() -> Any:
            return await handler(*arguments, CONTEXT)

        return trio.run(call)

    def successor(self) -> DaemonHalf:
        self.tree.close(clean=False)
        return DaemonHalf(self.folder, adopting=True)


@pytest.fixture
def daemons(tmp_path: Path) -> Iterator[list[DaemonHalf]]:
    """The daemons so far, the last one the present."""
    daemons = [DaemonHalf(tmp_path)]
    yield daemons
    daemons[-1].tree.close()


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
def test_a_request_sent_again_is_answered_and_not_done_again(daemons: list[DaemonHalf], kind: str, deaths: int) -> None:
    first = daemons[0]
    for entry in ("file", "other"):
        attr = first.send(2, first.operations.mknod, ROOT, name(entry), stat.S_IFREG | 0o600, 0)
        first.tree.setxattr(attr.st_ino, b"user.x", b"1")
    first.send(4, first.operations.mkdir, ROOT, name("folder"), 0o700)
    handler, arguments = REQUESTS[kind](first.operations)
    reply = first.send(10, handler, *arguments)
    done = picture(first.tree)
    for _ in range(deaths):
        daemons.append(daemons[-1].successor())
        again = daemons[-1].send(
            10 | RESENT, getattr(daemons[-1].operations, kind.replace("exchange", "rename")), *arguments
        )
        assert picture(daemons[-1].tree) == done
    if kind == "create":
        assert again[0].fh == reply[0].fh
        reply, again = reply[1], again[1]
    assert (reply is None) == (again is None)
    if reply is not None:
        assert reply.__getstate__() == again.__getstate__()


def test_a_request_that_was_never_done_is_done(daemons: list[DaemonHalf]) -> None:
    daemons[0].send(2, daemons[0].operations.mkdir, ROOT, name("before"), 0o755)
    daemons.append(daemons[0].successor())
    daemons[1].send(4 | RESENT, daemons[1].operations.mkdir, ROOT, name("new"), 0o755)
    assert set(picture(daemons[1].tree)) == {b"before", b"new"}
    with pytest.raises(pyfuse3.FUSEError):  # another process makes the same request
        daemons[1].send(6 | RESENT, daemons[1].operations.mkdir, ROOT, name("new"), 0o755)


def test_a_failure_is_no_outcome(daemons: list[DaemonHalf]) -> None:
    """What follows a failed request in the same daemon must not be noted as its outcome."""
    with pytest.raises(pyfuse3.FUSEError):
        daemons[0].send(2, daemons[0].operations.unlink, ROOT, name("nothing"))
    daemons[0].tree.setattr(ROOT_INO, mode=0o711)
    daemons.append(daemons[0].successor())
    with pytest.raises(pyfuse3.FUSEError):
        daemons[1].send(2 | RESENT, daemons[1].operations.unlink, ROOT, name("nothing"))


def test_orphans_outlive_an_adoption_until_the_kernel_forgets_them(daemons: list[DaemonHalf]) -> None:
    attr = daemons[0].send(2, daemons[0].operations.mknod, ROOT, name("file"), stat.S_IFREG | 0o600, 0)
    daemons[0].tree.write(attr.st_ino, 0, b"bytes")
    daemons[0].send(4, daemons[0].operations.unlink, ROOT, name("file"))
    daemons.append(daemons[0].successor())
    tree = daemons[1].tree
    assert tree.read(attr.st_ino, 0, 10) == b"bytes"
    tree.tidy()
    assert tree.names.orphans() == [attr.st_ino]
    tree.forget(attr.st_ino)
    tree.tidy()
    tree.sync_soon()
    assert tree.names.orphans() == []
    assert not os.path.exists(tree._backing.path(attr.st_ino))


def test_what_an_adoption_leaves_lying_goes_at_the_end_of_the_mount(daemons: list[DaemonHalf], tmp_path: Path) -> None:
    daemons[0].send(2, daemons[0].operations.mknod, ROOT, name("kept"), stat.S_IFREG | 0o600, 0)
    orphan = daemons[0].send(4, daemons[0].operations.mknod, ROOT, name("gone"), stat.S_IFREG | 0o600, 0).st_ino
    daemons[0].send(6, daemons[0].operations.unlink, ROOT, name("gone"))
    stray = daemons[0].tree.names.allocate_ino()
    daemons[0].tree._content.create(stray, 1)  # a creation that the kill cut short before its row
    path = daemons[0].tree._backing.path
    second = daemons[0].successor()
    assert os.path.exists(path(stray))
    second.tree.close()
    assert not os.path.exists(path(stray))
    assert not os.path.exists(path(orphan))
    daemons.append(DaemonHalf(tmp_path))
    assert daemons[-1].tree.recovered == []
    assert set(picture(daemons[-1].tree)) == {b"kept"}


class Commander:
    """A control file's handle, and what its commands did."""

    def __init__(self, names: Namespace, request: int, newest: int) -> None:
        self.ran: list[tuple[str, int | None]] = []
        self.fails_with = 0
        self.handle = ControlHandle(
            self.run, CommandLog(names.reply_cache, lambda: request, lambda: newest), 1 << 63 | 26
        )

    async def run(self, line: str, since: int | None) -> Reply:
        self.ran.append((line, since))
        if self.fails_with < 0:
            raise KeyboardInterrupt
        return Reply(b"reply to %s\n" % line.encode(), self.fails_with)

    def write(self, data: bytes) -> int:
        return trio.run(self.handle.write, 0, data)

    def read(self) -> bytes:
        return trio.run(self.handle.read, 0, 1000)


def test_a_command_that_was_done_is_answered_from_the_log(tmp_path: Path) -> None:
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
        monkeypatch.setattr(names.reply_cache, act, full)
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


def test_a_reply_that_was_not_read_outlives_the_daemon(tmp_path: Path) -> None:
    names = Namespace(str(tmp_path / "namespace.db"), Disk())
    Commander(names, 10, 3).write(b"snapshot a\n")
    later = Commander(names, 12, 4)
    assert later.read() == b"reply to snapshot a\n"
    later.handle.released()
    assert Commander(names, 14, 4).read() == b""
    names.close()

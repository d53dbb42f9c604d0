"""A daemon dies at each labelled step of a story of requests, in turn; the next one adopts and is sent the rest again.

The story runs in a child process, which reports when a request begins, and is gone before its n-th durable act, or
after its n-th commit. Its successor is sent the request that was not answered, with bit 63, and then the rest of the
story. No request may fail, and in the end everything is as if no daemon had died.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pyfuse3
import pytest
import trio

from snapfs.base.blocks import ROOT_INO, Disk, Ino
from snapfs.fuse.handlers.handler_context import standalone
from snapfs.fuse.kernel.request_reader import RequestReader
from snapfs.fuse.session.operations import Operations
from snapfs.live.namespace.namespace import Namespace
from snapfs.live.namespace.reply_cache import RESENT
from snapfs.live.tree import LiveTree
from snapfs.live.writer.namespace_writer import NamespaceWriter

CONTEXT = cast(pyfuse3.RequestContext, SimpleNamespace(uid=0, gid=0, pid=os.getpid(), umask=0o022))
ROOT = pyfuse3.InodeT(ROOT_INO)
LABELLED = ("append", "pwrite", "fsync", "fdatasync", "truncate", "rename", "link", "unlink", "mkdir", "sync_dir")


class DyingDisk(Disk):
    """The process is gone, as by SIGKILL, before its `last`-th act; 0: never."""

    def __init__(self, last: int) -> None:
        self.count, self.last = 0, last

    def act(self) -> None:
        self.count += 1
        if self.count == self.last:
            os._exit(9)


def _dying(act: str) -> Callable[..., Any]:
    def method(self: DyingDisk, *arguments: Any) -> Any:
        self.act()
        return getattr(Disk, act)(self, *arguments)

    return method


for _act in LABELLED:
    setattr(DyingDisk, _act, _dying(_act))


class Story:
    """Sends the requests of the story to one daemon."""

    def __init__(self, folder: Path, disk: Disk, adopting: bool) -> None:
        names = Namespace(str(folder / "namespace.db"), disk)
        self.tree = LiveTree(str(folder), names, disk, boot_id="boot", adopting=adopting)
        self.request, reader = 0, RequestReader()
        context = standalone(self.tree, reader, unique=lambda: self.request)
        self.operations = Operations(self.tree, None, reader, context)

    def ino(self, name: bytes) -> Ino:
        return self.tree.lookup(ROOT_INO, name).ino

    def send(self, handler: Callable[..., Any], *arguments: Any) -> Any:
        async def call() -> Any:
            return await handler(*arguments)

        return trio.run(call)

    def story(self) -> Iterator[Callable[[], Any]]:
        o = self.operations

        def make(name: bytes) -> Callable[[], Any]:
            flags = os.O_CREAT | os.O_EXCL | os.O_RDWR
            return lambda: self.send(o.create, ROOT, name, 0o640, flags, CONTEXT)

        def write(name: bytes, offset: int, data: bytes) -> Callable[[], Any]:
            return lambda: self.send(o.write, int(self.ino(name)) | 1 << 60, offset, data)

        def sync(name: bytes) -> Callable[[], Any]:
            return lambda: self.send(o.fsync, int(self.ino(name)) | 1 << 60, False)

        yield make(b"a")
        yield write(b"a", 0, b"A" * 100_000)
        yield sync(b"a")
        yield make(b"b")
        yield write(b"b", 0, b"B" * 10)
        yield lambda: self.send(o.mkdir, ROOT, b"folder", 0o755, CONTEXT)
        yield lambda: self.send(o.rename, ROOT, b"b", ROOT, b"c", 0, CONTEXT)
        yield self.cut
        yield write(b"a", 50_000, b"X" * 20_000)
        yield lambda: self.send(o.link, self.ino(b"a"), ROOT, b"hard", CONTEXT)
        yield lambda: self.send(o.symlink, ROOT, b"soft", b"target", CONTEXT)
        yield self.house
        yield lambda: self.send(o.setxattr, self.ino(b"a"), b"user.x", b"1", CONTEXT)
        yield lambda: self.send(o.removexattr, self.ino(b"a"), b"user.x", CONTEXT)
        yield lambda: self.send(o.unlink, ROOT, b"c", CONTEXT)
        yield lambda: self.send(o.rmdir, ROOT, b"folder", CONTEXT)
        yield self.house
        yield self.cut
        yield make(b"c")
        yield lambda: self.send(o.rename, ROOT, b"c", ROOT, b"hard", 0, CONTEXT)
        yield self.house
        yield sync(b"a")

    def cut(self) -> None:
        cut = self.tree.cut()
        for ino in cut.changed_files():
            file = cut.open_file(ino)
            if file is not None:
                for chunk, _ in file.dirty_chunks():
                    file.read_chunk(chunk)
                file.close()
        list(cut.names.changed())
        cut.finish(sealed=True)

    def house(self) -> None:
        self.tree.tidy()
        self.tree.sync_soon()

    def run_story(self, start: int, resent: bool, begun: Callable[[int], None]) -> None:
        """The story from request `start`, which may be sent again."""
        for number, step in enumerate(self.story()):
            if number >= start:
                self.request = 2 * number + 2 | (RESENT if resent and number == start else 0)
                begun(number)
                step()


def die_after_commit(last: int) -> None:
    """Let this process be gone right after its `last`-th commit: the request is done, and not answered."""
    commits = count(1)
    after_commit = NamespaceWriter.after_commit

    def dying(writer: NamespaceWriter) -> None:
        if next(commits) == last:
            os._exit(9)
        after_commit(writer)

    NamespaceWriter.after_commit = dying  # type: ignore[method-assign]


def dies(folder: Path, last: int, at: str) -> tuple[int, bool]:
    """Run the story in a child; the request that was under way, and whether the child lived to the end."""
    read_end, write_end = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            disk = DyingDisk(0)
            story = Story(folder, disk, adopting=False)
            if at == "act":
                disk.last = disk.count + last
            else:
                die_after_commit(last)
            story.run_story(0, False, lambda number: (os.write(write_end, b"."), None)[1])
            os._exit(0)
        finally:
            os._exit(1)
    os.close(write_end)
    with open(read_end, "rb") as pipe:
        begun = len(pipe.read())
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    assert code in (0, 9), code
    return begun - 1, code == 0


def picture(tree: LiveTree) -> dict[bytes, tuple[int, int, bytes]]:
    found = {}
    for _, name, attr in tree.readdir(ROOT_INO, 0, 100):
        content = tree.read(attr.ino, 0, 1 << 20) if stat.S_ISREG(attr.mode) else b""
        found[name] = attr.mode, attr.nlink, content or b""
    return found


EXPECTED = {
    b"a": (stat.S_IFREG | 0o640, 1, b"A" * 50_000 + b"X" * 20_000 + b"A" * 30_000),
    b"hard": (stat.S_IFREG | 0o640, 1, b""),
    b"soft": (stat.S_IFLNK | 0o777, 1, b""),
}


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
@pytest.mark.parametrize("at", ["act", "commit"])
def test_a_death_at_each_step_is_no_failure_of_any_request(tmp_path: Path, at: str) -> None:
    last, lived = 0, False
    while not lived:
        last += 1
        folder = tmp_path / str(last)
        folder.mkdir()
        under_way, lived = dies(folder, last, at)
        if lived:
            break
        story = Story(folder, Disk(), adopting=True)
        story.run_story(under_way, True, lambda number: None)
        assert picture(story.tree) == EXPECTED, f"death at {at} {last}, in request {under_way}"
        story.tree.names.check_invariants()
        story.tree.check_invariants()
        story.tree.close()
        after = Story(folder, Disk(), adopting=False)
        assert after.tree.recovered == []
        assert picture(after.tree) == EXPECTED
        after.tree.close()
    assert last > 15

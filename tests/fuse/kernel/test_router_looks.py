"""The router's own replies to looks at names and attributes are those of the live tree in Python, in each detail.

The router stands between a kernel that is this test and a live tree. What it forwards reaches the end of libfuse.
"""

from __future__ import annotations

import errno
import os
import random
import select
import stat
import struct
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pytest

from snapfs.base.blocks import ROOT_INO, Disk, Ino
from snapfs.fuse.handlers.replies import FOREVER_SECONDS
from snapfs.fuse.kernel import router as routing
from snapfs.fuse.nodes.modes import may_be_kept
from snapfs.live.attributes import Attr
from snapfs.live.content import datapath
from snapfs.live.database.namespace_rows import AbsentFile, Inode, LoadedEntry
from snapfs.live.namespace.namespace import Namespace
from snapfs.live.tree import LiveTree

if TYPE_CHECKING:
    from snapfs.fuse.kernel._router import Router

if routing.why_not() or datapath.why_not_native():
    pytest.skip(routing.why_not() or datapath.why_not_native(), allow_module_level=True)

from snapfs.fuse.kernel import _router

LOOKUP, GETATTR, READLINK, STATFS, GETXATTR, LISTXATTR, READDIR, READDIRPLUS = 1, 3, 5, 17, 22, 23, 28, 44
IN = struct.Struct("=IIQQIIII")
OUT = struct.Struct("=IiQ")
ATTR = struct.Struct("=6Q3I7I")  # ino, size, blocks, three times; their ns; mode, nlink, uid, gid, rdev, blksize, flags
ENTRY = struct.Struct("=4QII")  # nodeid, generation, entry_valid, attr_valid; their ns
DIRENT = struct.Struct("=QQII")
READ_IN = struct.Struct("=QQIIQII")
SIZED = struct.Struct("=II")
DEADLINE_MS = 20_000
VALID = int(FOREVER_SECONDS)
USER = 1000
UID = 11
"""Which number of `ATTR` that is."""
CHANGES = 400


class Listed(NamedTuple):
    name: bytes
    offset: int
    ino: int
    kind: int
    attr: tuple[int, ...] | None


class Forwarded(Exception):
    """The router did not answer."""


class Kernel:
    """A kernel in front of one router and live tree."""

    def __init__(self, tree: LiveTree) -> None:
        self._kernel, device = routing.socket_pair()
        ours, self._libfuse = routing.socket_pair()
        self.router: Router = _router.Router(device.detach(), ours.detach(), self._libfuse.fileno(), 70_000, 2, 0.0)
        self.router.attach_core(tree.native, lambda *arguments: 0)
        self.router.start()
        self._unique = 0

    def ask(
        self, opcode: int, node: int, body: bytes = b"", uid: int = 0, gid: int = 0, unique: int | None = None
    ) -> bytes:
        """The body of the reply. OSError with the errno of the reply; Forwarded."""
        if unique is None:
            self._unique += 2
            unique = self._unique
        self._kernel.send(IN.pack(IN.size + len(body), opcode, unique, node, uid, gid, 1, 0) + body)
        ready, _, _ = select.select([self._kernel, self._libfuse], [], [], DEADLINE_MS / 1000)
        if self._libfuse in ready:
            assert IN.unpack_from(self._libfuse.recv(1 << 21))[2] == unique
            raise Forwarded
        raw = self._kernel.recv(1 << 21)
        length, error, answered = OUT.unpack_from(raw)
        assert (length, answered) == (len(raw), unique)
        if error:
            raise OSError(-error, os.strerror(-error))
        return raw[OUT.size :]

    def forget(self, ino: int, wait: bool = False) -> None:
        """A FORGET, which has no reply. Forwarded, if `wait` and if it comes to that."""
        self._unique += 2
        self._kernel.send(IN.pack(IN.size + 8, 2, self._unique, ino, 0, 0, 1, 0) + struct.pack("=Q", 1))
        if wait:
            assert self._libfuse in select.select([self._libfuse], [], [], DEADLINE_MS / 1000)[0]
            self._libfuse.recv(1 << 21)
            raise Forwarded

    def lookup(self, parent: int, name: bytes) -> tuple[int, ...] | None:
        """What stat shows of the entry; None for the reply that the kernel may cache that there is none."""
        reply = self.ask(LOOKUP, parent, name + b"\0")
        assert len(reply) == ENTRY.size + ATTR.size
        return shown_if_any(reply)

    def getattr(self, ino: int) -> tuple[int, ...]:
        reply = self.ask(GETATTR, ino, bytes(16))
        valid, *zeros = struct.unpack_from("=QII", reply)
        attr = ATTR.unpack_from(reply, 16)
        assert valid == (VALID if may_be_kept(attr[9]) else 0)
        assert not any(zeros)
        return attr

    def page(self, directory: int, offset: int, size: int, plus: bool) -> list[Listed]:
        reply = self.ask(READDIRPLUS if plus else READDIR, directory, READ_IN.pack(directory, offset, size, 0, 0, 0, 0))
        assert len(reply) <= size
        found, at = [], 0
        while at < len(reply):
            start, attr = at, None
            if plus:
                attr = shown_if_any(reply[at : at + ENTRY.size + ATTR.size], may_be_void=True)
                at += ENTRY.size + ATTR.size
            ino, behind, length, kind = DIRENT.unpack_from(reply, at)
            at += DIRENT.size
            name = reply[at : at + length]
            at = start + (at + length - start + 7 & ~7)
            found.append(Listed(name, behind, ino, kind, attr))
        return found

    def list(self, directory: int, size: int = 4096, plus: bool = True) -> list[Listed]:
        found: list[Listed] = []
        while page := self.page(directory, found[-1].offset if found else 0, size, plus):
            found += page
        return found

    def sized(self, opcode: int, ino: int, size: int, name: bytes = b"", uid: int = 0) -> bytes | int:
        reply = self.ask(opcode, ino, SIZED.pack(size, 0) + name, uid, uid)
        return reply if size else int(SIZED.unpack(reply)[0])

    def close(self) -> None:
        self.router.stop()
        self._kernel.close()
        self._libfuse.close()


def shown(entry: bytes) -> tuple[int, ...]:
    """What stat shows of an entry that there is."""
    found = shown_if_any(entry)
    assert found is not None
    return found


def shown_if_any(entry: bytes, may_be_void: bool = False) -> tuple[int, ...] | None:
    node, generation, entry_valid, attr_valid, *zeros = ENTRY.unpack_from(entry)
    attr = ATTR.unpack_from(entry, ENTRY.size)
    assert not generation
    assert not any(zeros)
    if not node:
        assert entry_valid == (0 if may_be_void else VALID)
        return None
    assert (node, entry_valid) == (attr[0], VALID)
    assert attr_valid == (VALID if may_be_kept(attr[9]) else 0)
    return attr


def packed(attr: Attr) -> tuple[int, ...]:
    """As the kernel gets it."""
    times = (attr.atime_ns, attr.mtime_ns, attr.ctime_ns)
    seconds = [time // 10**9 % 2**64 for time in times]
    rest = [time % 10**9 for time in times]
    return (
        attr.ino, attr.size, attr.blocks512, *seconds, *rest,
        attr.mode, attr.nlink, attr.uid, attr.gid, attr.rdev, 4096, 0,
    )  # fmt: skip


@pytest.fixture
def tree(tmp_path: Path) -> Iterator[LiveTree]:
    made = open_tree(tmp_path)
    yield made
    made.close(clean=False)


def open_tree(folder: Path) -> LiveTree:
    disk = Disk()
    names = Namespace(str(folder / "namespace.db"), disk)
    return LiveTree(str(folder), names, disk, boot_id="boot", data_path="native", max_states=8)


@pytest.fixture
def kernel(tree: LiveTree) -> Iterator[Kernel]:
    made = Kernel(tree)
    yield made
    made.close()


def errno_of(kernel: Kernel, opcode: int, node: int, body: bytes = b"") -> int | None:
    with pytest.raises(OSError) as failure:
        kernel.ask(opcode, node, body)
    return failure.value.errno


KINDS = (stat.S_IFREG, stat.S_IFDIR, stat.S_IFIFO, stat.S_IFCHR, stat.S_IFSOCK, stat.S_IFLNK)


class World:
    """A tree that random changes are made to, and all that is in it."""

    def __init__(self, tree: LiveTree, seed: int) -> None:
        self.tree, self.random = tree, random.Random(seed)
        self.directories = [ROOT_INO]
        self.names: dict[Ino, dict[bytes, Ino]] = {ROOT_INO: {}}
        self.xattrs: dict[Ino, dict[bytes, bytes]] = {}

    def inos(self) -> list[Ino]:
        return sorted({ROOT_INO, *(ino for names in self.names.values() for ino in names.values())})

    def step(self) -> None:
        self.random.choice(
            [self.make, self.make, self.link, self.remove, self.rename, self.change, self.write, self.mark]
        )()

    def make(self) -> None:
        parent, kind = self.random.choice(self.directories), self.random.choice(KINDS)
        name = (
            self.random.randbytes(self.random.choice([1, 8, 255]))
            .replace(b"/", b"+")
            .replace(b"\0", b"0")
            .replace(b".", b"-")
        )
        if name in self.names[parent]:
            return
        if kind == stat.S_IFLNK:
            ino = self.tree.symlink(parent, name, b"target" * self.random.randrange(1, 600), 5, 6).ino
        else:
            mode = self.random.choice([0o644, 0o4755, 0o2711, 0o1777])
            ino = self.tree.mknod(parent, name, kind | mode, 259 if kind == stat.S_IFCHR else 0, 7, 8).ino
        if kind == stat.S_IFDIR:
            self.directories.append(ino)
            self.names[ino] = {}
        self.names[parent][name] = ino

    def some(self) -> tuple[Ino, bytes, Ino] | None:
        all_names = [(parent, name, ino) for parent, names in self.names.items() for name, ino in names.items()]
        return self.random.choice(all_names) if all_names else None

    def link(self) -> None:
        found = self.some()
        parent = self.random.choice(self.directories)
        if found is not None and found[2] not in self.names and b"link" not in self.names[parent]:
            self.tree.link(found[2], parent, b"link")
            self.names[parent][b"link"] = found[2]

    def remove(self) -> None:
        found = self.some()
        if found is None or self.names.get(found[2]):
            return
        parent, name, ino = found
        if ino in self.names:
            self.tree.rmdir(parent, name)
            self.directories.remove(ino)
            del self.names[ino]
        else:
            self.tree.unlink(parent, name)
        del self.names[parent][name]

    def rename(self) -> None:
        found = self.some()
        if found is not None and b"moved" not in self.names[found[0]]:
            parent, name, _ = found
            self.tree.rename(parent, name, parent, b"moved")
            self.names[parent][b"moved"] = self.names[parent].pop(name)

    def change(self) -> None:
        ino = self.random.choice(self.inos())
        seconds = self.random.choice([-1.5, 0, 1.25, 1e9])
        self.tree.setattr(ino, uid=self.random.randrange(9), mtime_ns=int(seconds * 1e9), atime_ns=int(-seconds * 1e9))

    def write(self) -> None:
        found = self.some()
        if found is not None and stat.S_ISREG(self.tree.getattr(found[2]).mode):
            self.tree.write(found[2], self.random.randrange(100_000), b"bytes")

    def mark(self) -> None:
        ino, name = self.random.choice(self.inos()), self.random.choice([b"user.one", b"trusted.two", b"user.three"])
        value = self.random.randbytes(self.random.choice([0, 5, 3000]))
        self.tree.setxattr(ino, name, value)

    def compare(self, kernel: Kernel) -> None:
        for ino in self.inos():
            attr = self.tree.getattr(ino)
            assert kernel.getattr(ino) == packed(attr)
            names = self.tree.listxattr(ino)
            for uid in (0, USER):
                seen = [name for name in names if not uid or not name.startswith(b"trusted.")]
                assert kernel.sized(LISTXATTR, ino, 4096, uid=uid) == b"".join(name + b"\0" for name in seen)
            for name in names:
                assert kernel.sized(GETXATTR, ino, 65536, name + b"\0") == self.tree.getxattr(ino, name)
            assert errno_of(kernel, GETXATTR, ino, SIZED.pack(9, 0) + b"user.none\0") == errno.ENODATA
            if stat.S_ISLNK(attr.mode):
                assert kernel.ask(READLINK, ino) == self.tree.readlink(ino)
            else:
                assert errno_of(kernel, READLINK, ino) == errno.EINVAL
        for directory, names in self.names.items():
            for name, ino in names.items():
                assert kernel.lookup(directory, name) == packed(self.tree.getattr(ino))
            assert kernel.lookup(directory, b"no such name") is None
            self.compare_list(kernel, directory)

    def compare_list(self, kernel: Kernel, directory: Ino) -> None:
        dots = [(b".", directory), (b"..", self.tree.parent_of(directory))]
        named = [(name, attr.ino) for _, name, attr in self.tree.readdir(directory, 0, 1 << 20)]
        for size, plus in ((4096, True), (700, True), (4096, False), (1 << 20, True)):
            listed = kernel.list(directory, size, plus)
            assert [(entry.name, entry.ino) for entry in listed] == dots + named
            for entry in listed:
                attr = self.tree.getattr(Ino(entry.ino))
                assert entry.kind == stat.S_IFMT(attr.mode) >> 12
                is_dot = entry.name in (b".", b"..")
                assert entry.attr == (packed(attr) if plus and not is_dot else None)


def drop_cache(tree: LiveTree) -> None:
    """What the namespace passed to the router's cache is gone, as of inodes that were not used for long."""
    assert tree.native is not None
    tree.native.drop_all_inodes()


@pytest.mark.parametrize("seed", range(6))
def test_what_the_router_shows_of_a_tree_is_what_python_shows(tree: LiveTree, kernel: Kernel, seed: int) -> None:
    world = World(tree, seed)
    for _ in range(8):
        for _ in range(25):
            world.step()
        if world.random.random() < 0.5:
            drop_cache(tree)
        world.compare(kernel)


def test_dots_are_found_as_an_export_needs_them(tree: LiveTree, kernel: Kernel) -> None:
    folder = tree.mknod(ROOT_INO, b"folder", stat.S_IFDIR | 0o755, 0, 0, 0).ino
    file = tree.mknod(folder, b"file", stat.S_IFREG | 0o644, 0, 0, 0).ino
    assert kernel.lookup(file, b".") == packed(tree.getattr(file))
    assert kernel.lookup(folder, b"..") == kernel.lookup(ROOT_INO, b"..") == packed(tree.getattr(ROOT_INO))
    assert errno_of(kernel, LOOKUP, file, b"..\0") == errno.ENOTDIR
    tree.unlink(folder, b"file")
    tree.rmdir(ROOT_INO, b"folder")
    assert errno_of(kernel, LOOKUP, folder, b"..\0") == errno.ENOENT, "and not that the name may be cached as missing"


def test_errors_are_those_of_linux(tree: LiveTree, kernel: Kernel) -> None:
    file = tree.mknod(ROOT_INO, b"file", stat.S_IFREG | 0o644, 0, 0, 0).ino
    tree.setxattr(file, b"user.name", b"value")
    assert errno_of(kernel, LOOKUP, ROOT_INO, b"n" * 256 + b"\0") == errno.ENAMETOOLONG
    assert errno_of(kernel, LOOKUP, file, b"name\0") == errno.ENOTDIR
    assert errno_of(kernel, LOOKUP, 999, b"name\0") == errno.ESTALE
    assert errno_of(kernel, GETATTR, 999, bytes(16)) == errno.ESTALE
    assert errno_of(kernel, READLINK, 999) == errno.ESTALE
    assert errno_of(kernel, READDIRPLUS, file, READ_IN.pack(0, 0, 4096, 0, 0, 0, 0)) == errno.ENOTDIR
    assert errno_of(kernel, GETXATTR, file, SIZED.pack(4, 0) + b"user.name\0") == errno.ERANGE
    assert errno_of(kernel, LISTXATTR, file, SIZED.pack(4, 0)) == errno.ERANGE
    assert kernel.sized(GETXATTR, file, 0, b"user.name\0") == 5
    assert kernel.sized(LISTXATTR, file, 0) == 10


def test_a_request_that_is_python_s_is_forwarded(tree: LiveTree, kernel: Kernel) -> None:
    for node, name in (
        (ROOT_INO, b".snapfs\0"),
        (ROOT_INO, b"a/b\0"),
        (1 << 63 | 1, b"control\0"),
        (ROOT_INO, b"no end"),
    ):
        with pytest.raises(Forwarded):
            kernel.ask(LOOKUP, node, name)
    kernel.router.pause(True)
    with pytest.raises(Forwarded):
        kernel.lookup(ROOT_INO, b"name")
    kernel.router.pause(False)
    assert kernel.lookup(ROOT_INO, b"name") is None


def test_of_a_directory_that_is_not_loaded_python_answers(tree: LiveTree, kernel: Kernel) -> None:
    """Its names are in the store. When they are loaded the router answers, at once and for good."""
    now = 5
    with tree.names.bulk() as changes:
        changes.put_inode(Inode(Ino(50), stat.S_IFDIR | 0o755, 0, 0, 0, 2, now, now, now))
        changes.put_entry(ROOT_INO, b"lazy", Ino(50))
        changes.set_unloaded(Ino(50), b"listing")
    assert kernel.lookup(ROOT_INO, b"lazy") == packed(tree.getattr(Ino(50)))
    for opcode, body in ((LOOKUP, b"file\0"), (READDIRPLUS, READ_IN.pack(50, 0, 4096, 0, 0, 0, 0)), (LOOKUP, b"..\0")):
        with pytest.raises(Forwarded):
            kernel.ask(opcode, 50, body)
    absent = AbsentFile(70_000, 3, 4, b"origin")
    file = Inode(Ino(51), stat.S_IFREG | 0o644, 1, 2, 0, 1, now, now, now)
    tree.names.load(Ino(50), [LoadedEntry(b"file", file, ((b"user.name", b"value"),), absent)], last=True)
    found = kernel.lookup(50, b"file")
    assert found == packed(tree.getattr(Ino(51)))
    assert found is not None
    assert found[1:3] == (70_000, 137), "the size and blocks of bytes that are in the store"
    assert [entry.name for entry in kernel.list(50)] == [b".", b"..", b"file"]
    assert kernel.sized(GETXATTR, 51, 100, b"user.name\0") == b"value"


def test_a_listing_ends_with_the_newest_name_of_its_beginning(tree: LiveTree, kernel: Kernel) -> None:
    for number in range(40):
        tree.mknod(ROOT_INO, b"%d" % number, stat.S_IFREG | 0o644, 0, 0, 0)
    found = kernel.page(ROOT_INO, 0, 1024, True)
    for number in range(39, 29, -1):
        tree.unlink(ROOT_INO, b"%d" % number)
    for number in range(100, 130):
        tree.mknod(ROOT_INO, b"%d" % number, stat.S_IFREG | 0o644, 0, 0, 0)
    while page := kernel.page(ROOT_INO, found[-1].offset, 1024, True):
        found += page
    assert [entry.name for entry in found] == [b".", b"..", *(b"%d" % number for number in range(30))]


def test_the_host_s_room_is_shown(tree: LiveTree, kernel: Kernel) -> None:
    blocks, _, _, files, _, size, namelen, fragment = struct.unpack_from("=5Q3I", kernel.ask(STATFS, ROOT_INO))
    host = os.statvfs(tree.live_dir)
    assert (blocks, files, size, namelen, fragment) == (
        host.f_blocks, host.f_files, host.f_bsize, host.f_namemax, host.f_frsize,
    )  # fmt: skip


def test_after_the_close_nothing_is_open_that_would_keep_the_log(tmp_path: Path) -> None:
    """The last connection to close writes the log back and removes it; a reader of ours must not be that."""
    tree = open_tree(tmp_path)
    kernel = Kernel(tree)
    try:
        assert kernel.lookup(ROOT_INO, b"name") is None
        tree.close()
        with pytest.raises(Forwarded):
            kernel.lookup(ROOT_INO, b"name")
    finally:
        kernel.close()
    assert not list(tmp_path.glob("namespace.db-wal"))
    assert not [fd for fd in os.listdir("/proc/self/fd") if _is_of(fd, tmp_path)]


def _is_of(fd: str, folder: Path) -> bool:
    try:
        return os.readlink(f"/proc/self/fd/{fd}").startswith(str(folder))
    except FileNotFoundError:
        return False


def test_no_reply_is_older_than_what_was_answered_before(tree: LiveTree, kernel: Kernel) -> None:
    """Readers fill the cache while rows change: a row that was read before a change must not stay in it."""
    ino = tree.mknod(ROOT_INO, b"name", stat.S_IFDIR | 0o755, 0, 0, 0).ino
    answered, over, failures = [0], threading.Event(), list[str]()

    def read(ask: Callable[[], tuple[int, ...] | None]) -> None:
        while not over.is_set() and not failures:
            least = answered[0]
            found = ask()
            if found is None or found[UID] < least:
                failures.append(f"{found} after {least}")

    kernels = [kernel, Kernel(tree), Kernel(tree)]
    asks = [
        partial(kernels[0].getattr, ino),
        partial(kernels[1].lookup, ROOT_INO, b"name"),
        partial(kernels[2].getattr, ino),
    ]
    threads = [threading.Thread(target=read, args=(ask,)) for ask in asks]
    for thread in threads:
        thread.start()
    try:
        for number in range(1, CHANGES):
            tree.setattr(ino, uid=number)
            answered[0] = number
            if number % 2:
                drop_cache(tree)
    finally:
        over.set()
        for thread in threads:
            thread.join()
        for extra in kernels[1:]:
            extra.close()
    assert not failures
    assert kernel.getattr(ino) == packed(tree.getattr(ino))

"""What C callers get: the functions of content_api.h, called as the router calls them; `prepare` meets each need."""

from __future__ import annotations

import ctypes
import errno
import os
import stat
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from snapfs.base.blocks import CHUNK_SIZE, ROOT_INO, Disk, Ino
from snapfs.live.content import datapath
from snapfs.live.content.datapath import Need
from snapfs.live.namespace.namespace import Namespace
from snapfs.live.tree import LiveTree
from tests.fakes.patience import PATIENCE_S

pytestmark = pytest.mark.skipif(bool(datapath.why_not_native()), reason=datapath.why_not_native() or "built")

u64, i64, pointer = ctypes.c_uint64, ctypes.c_int64, ctypes.c_void_p


class Name(ctypes.Structure):
    _fields_ = (("bytes", ctypes.c_char_p), ("length", ctypes.c_size_t))


FUNCTIONS = {
    "core_of": (pointer, ctypes.py_object),
    "read": (i64, pointer, u64, u64, pointer, ctypes.c_size_t),
    "write": (i64, pointer, u64, u64, ctypes.c_char_p, ctypes.c_size_t, ctypes.c_bool),
    "fsync": (i64, pointer, u64, ctypes.c_int),
    "fallocate": (i64, pointer, u64, ctypes.c_uint32, u64, u64),
    "lseek": (i64, pointer, u64, u64, ctypes.c_int),
    "copy_range": (i64, pointer, u64, u64, u64, u64, u64, ctypes.POINTER(u64)),
    "set_times": (i64, pointer, u64, ctypes.POINTER(i64), i64),
    "get_attr": (i64, pointer, u64, ctypes.POINTER(u64 * 4)),
    "open": (i64, pointer, u64, ctypes.c_int),
    "release": (i64, pointer, u64, ctypes.c_int),
    "lend": (i64, pointer, u64, pointer),
    "give_back": (None, pointer, pointer),
    "needs_names": (i64, pointer, u64),
    "find_inode": (i64, pointer, u64, pointer),
    "stat": (i64, pointer, u64, pointer),
    "lookup": (i64, pointer, u64, ctypes.c_char_p, ctypes.c_size_t, pointer),
    "parent_of": (i64, pointer, u64, pointer),
    "readlink": (i64, pointer, u64, pointer, ctypes.c_size_t),
    "list": (i64, pointer, u64, u64, pointer, pointer),
    "getxattr": (i64, pointer, u64, ctypes.c_char_p, ctypes.c_size_t, pointer, ctypes.c_size_t),
    "listxattr": (i64, pointer, u64, ctypes.c_int, pointer, ctypes.c_size_t),
    "create": (i64, pointer, pointer, u64, pointer),
    "link": (i64, pointer, u64, u64, Name, u64, pointer),
    "remove": (i64, pointer, u64, Name, ctypes.c_bool, u64),
    "rename": (i64, pointer, u64, Name, u64, Name, ctypes.c_uint32, u64),
    "may_be_orphan": (i64, pointer, u64),
    "statfs": (i64, pointer, pointer),
    "refuses_writes": (i64, pointer, u64),
}


class Lent(ctypes.Structure):
    _fields_ = (("fd", ctypes.c_int), ("pin", pointer))


class Api(ctypes.Structure):
    _fields_ = (
        ("version", ctypes.c_uint32), ("bytes", ctypes.c_uint32),
        *((name, ctypes.PYFUNCTYPE(*kinds) if name == "core_of" else ctypes.CFUNCTYPE(*kinds))
          for name, kinds in FUNCTIONS.items()),
    )  # fmt: skip


class CountingDisk(Disk):
    def __init__(self) -> None:
        self.labels: list[str] = []

    def fsync(self, label: str, fd: int) -> None:
        self.labels.append(label)
        super().fsync(label, fd)

    def fdatasync(self, label: str, fd: int) -> None:
        self.labels.append(label)
        super().fdatasync(label, fd)

    def sync_dir(self, label: str, path: str) -> None:
        self.labels.append(label)
        super().sync_dir(label, path)


@pytest.fixture
def disk() -> CountingDisk:
    return CountingDisk()


@pytest.fixture
def tree(tmp_path: Path, disk: CountingDisk) -> Iterator[LiveTree]:
    names = Namespace(str(tmp_path / "namespace.db"), disk)
    made = LiveTree(str(tmp_path), names, disk, boot_id="boot", data_path="native")
    yield made
    if made.is_open:
        made.close(clean=False)


class Caller:
    """Calls the API for a tree, as often as it takes; `needs` lists what was requested meanwhile."""

    def __init__(self, tree: LiveTree) -> None:
        from snapfs.live.content import _content

        get = ctypes.pythonapi.PyCapsule_GetPointer
        get.restype, get.argtypes = pointer, [ctypes.py_object, ctypes.c_char_p]
        self.api = Api.from_address(get(_content.API, b"snapfs.live.content._content.API"))
        self.tree = tree
        self.core = pointer(self.api.core_of(tree.native))
        self.needs: list[Need] = []

    def __call__(self, name: str, ino: int, *args: Any) -> int:
        if name == "write" and len(args) == 3:
            args = *args, False
        while True:
            result = int(getattr(self.api, name)(self.core, ino, *args))
            if result > -65536:
                return result
            need = Need(-result - 65536)
            self.needs.append(need)
            if need is Need.PYTHON:
                return result
            if need is Need.NAMES:
                self.tree.fsync(Ino(ino), bool(args[0]))
                return 0
            self.tree.prepare(Ino(ino), need)


@pytest.fixture
def call(tree: LiveTree) -> Caller:
    return Caller(tree)


def make(tree: LiveTree, name: bytes = b"a") -> Ino:
    return tree.mknod(ROOT_INO, name, stat.S_IFREG | 0o600, 0, 0, 0).ino


def seal(tree: LiveTree) -> None:
    tree.cut().finish(True)
    tree.tidy()
    tree.sync_soon()


def test_the_struct_is_as_long_as_it_says(call: Caller) -> None:
    assert (call.api.version, call.api.bytes) == (4, ctypes.sizeof(Api))


def test_no_core_is_a_type_error(call: Caller) -> None:
    with pytest.raises(TypeError, match="a Core is needed"):
        call.api.core_of("something else")


def test_bytes_go_in_and_come_out(tree: LiveTree, call: Caller) -> None:
    ino, buffer = make(tree), ctypes.create_string_buffer(100)
    assert call("write", ino, 10, b"hello", 5) == 5
    assert call("read", ino, 8, buffer, 100) == 7
    assert buffer.raw[:7] == b"\0\0hello"
    assert tree.getattr(ino).size == 15
    assert call("write", ino, (1 << 63) - 2, b"hello", 5) == -errno.EFBIG
    assert call("read", ino, 1 << 63, buffer, 1) == 0


def test_each_epoch_begins_a_file_once(tree: LiveTree, call: Caller) -> None:
    ino = make(tree)
    call("write", ino, 0, b"1" * 10, 10)
    assert call.needs == []  # a new file has begun
    for _ in range(2):
        seal(tree)
        call("write", ino, 0, b"2" * 10, 10)
        call("write", ino, 1 << 20, b"3" * 10, 10)
    assert call.needs == [Need.BEGIN] * 2
    cut = tree.cut()
    assert cut.changed_files() == [ino]
    cut.finish(True)


def test_a_file_that_memory_forgot_is_loaded(tree: LiveTree, call: Caller) -> None:
    ino = make(tree)
    call("write", ino, 0, b"1" * 10, 10)
    seal(tree)
    seal(tree)
    tree._content.evict(10)
    assert ino not in tree._content.states
    assert call("read", ino, 0, ctypes.create_string_buffer(10), 10) == 10
    assert call.needs == [Need.LOAD]


def test_forgetting_a_file_waits_for_its_users_without_the_latch(tree: LiveTree, call: Caller) -> None:
    """A change has the state pinned and waits for the file's lock, whose owner waits for the latch, as at the end of a
    seal. If `forget` waited for the pin with the latch held, none of the three would go on."""
    ino = make(tree)
    call("write", ino, 0, b"1", 1)
    assert tree.native is not None
    with ThreadPoolExecutor(2) as pool:
        with tree._content.state(ino).lock:
            change = pool.submit(tree.native.write, ino, 0, b"2")
            while not change.running():
                time.sleep(0.001)
            time.sleep(0.1)
            forgetting = pool.submit(tree._content.forget, ino)
            time.sleep(0.1)
            assert not change.done()
            assert not forgetting.done()
            assert tree._content.latch.acquire(timeout=PATIENCE_S)
            tree._content.latch.release()
        assert change.result(PATIENCE_S) == 1
        forgetting.result(PATIENCE_S)
    assert ino not in tree._content.states


def test_no_such_file_is_an_error(call: Caller) -> None:
    with pytest.raises(OSError, match="lost"):
        call("write", 12345, 0, b"x", 1)


def test_an_absent_file_is_left_to_python(tree: LiveTree, call: Caller, monkeypatch: pytest.MonkeyPatch) -> None:
    ino = make(tree)
    tree._content.state(ino).absent = object()  # type: ignore[assignment]
    assert call("read", ino, 0, ctypes.create_string_buffer(10), 10) == -65536 - Need.PYTHON
    assert call("write", ino, 0, b"x", 1) == -65536 - Need.PYTHON
    tree._content.state(ino).absent = None


def test_an_fsync_of_bytes_alone_is_one_flush(tree: LiveTree, call: Caller, disk: CountingDisk) -> None:
    tree._share_flushes = False
    ino = make(tree)
    call("write", ino, 0, b"x", 1)
    assert call("fsync", ino, 1) == 0
    assert call.needs == [Need.NAMES]  # a new file
    disk.labels.clear()
    call("write", ino, 5, b"y", 1)
    assert call("fsync", ino, 1) == 0
    assert disk.labels == ["backing:sync"]
    assert call.needs == [Need.NAMES]
    tree.setattr(ino, mode=0o640)
    disk.labels.clear()
    assert call("fsync", ino, 1) == 0
    assert disk.labels == ["backing:sync", "namespace:wal"]


def test_times_come_to_the_file_at_once_and_again_with_fsync_or_the_last_release(tree: LiveTree, call: Caller) -> None:
    ino, mtime = make(tree), i64(10**18)
    path = tree._backing.path(ino)
    for way in ("fsync", "release"):
        call("open", ino, 1)
        call("write", ino, 0, b"x", 1)
        now = tree._clock() - 10**9
        assert call("set_times", ino, ctypes.byref(i64(now)), now) == 0
        assert tree.getattr(ino).mtime_ns == now
        assert os.stat(path).st_mtime_ns == now  # at once: what was answered survives a kill
        call("write", ino, 0, b"y", 1)  # the kernel may send bytes after the time it gave them
        assert os.stat(path).st_mtime_ns != now
        assert call(way, ino, 0) == 0
        if way == "fsync":
            call("release", ino, 1)
        assert os.stat(path).st_mtime_ns == now
    assert call("set_times", ino, ctypes.byref(mtime), 5) == 0
    assert os.stat(path).st_mtime_ns == mtime.value
    assert call("set_times", ino, None, 7) == 0
    assert (tree.getattr(ino).mtime_ns, tree._content.state(ino).ctime_ns) == (mtime.value, 7)


def test_after_an_fsync_the_hosts_own_time_will_do_where_it_is_near(
    tree: LiveTree, call: Caller, disk: CountingDisk
) -> None:
    ino = make(tree)
    tree.fsync(ino)
    path, now = tree._backing.path(ino), tree._clock()
    assert call("set_times", ino, ctypes.byref(i64(now)), now) == 0
    call("write", ino, 0, b"x", 1)
    disk.labels.clear()
    assert call("fsync", ino, 0) == 0
    assert disk.labels == ["backing:sync"]
    assert abs(os.stat(path).st_mtime_ns - now) < 10**9
    assert tree.getattr(ino).mtime_ns == now
    call("open", ino, 1)
    call("release", ino, 1)
    assert os.stat(path).st_mtime_ns == now


def test_opens_are_counted_with_those_of_python(tree: LiveTree, call: Caller) -> None:
    ino = make(tree)
    call("open", ino, 1)
    tree.open(ino, False)
    assert (tree.open_files(), tree.open_for_writing()) == ([ino], [ino])
    call("release", ino, 1)
    assert (tree.open_files(), tree.open_for_writing()) == ([ino], [])
    call("release", ino, 0)
    assert tree.open_files() == []


def test_attributes_and_a_lent_descriptor(tree: LiveTree, call: Caller) -> None:
    ino, attr, lent = make(tree), (u64 * 4)(), Lent()
    call("write", ino, 0, b"x" * CHUNK_SIZE, CHUNK_SIZE)
    assert call("get_attr", ino, ctypes.byref(attr)) == 0
    assert (attr[0], attr[2]) == (CHUNK_SIZE, tree.getattr(ino).mtime_ns)
    assert call("lend", ino, ctypes.byref(lent)) == 0
    assert os.pread(lent.fd, 5, 0) == b"xxxxx"
    tree._backing.descriptors.drop(ino)
    assert os.pread(lent.fd, 5, 0) == b"xxxxx"  # as long as it is lent
    call.api.give_back(call.core, ctypes.byref(lent))


def test_ranges(tree: LiveTree, call: Caller) -> None:
    ino, other, need_ino = make(tree), make(tree, b"b"), u64()
    call("write", ino, 0, b"x" * 3 * CHUNK_SIZE, 3 * CHUNK_SIZE)
    assert call("fallocate", ino, 3, CHUNK_SIZE, CHUNK_SIZE) == 0
    assert call("lseek", ino, 0, os.SEEK_HOLE) == CHUNK_SIZE
    assert call("lseek", ino, CHUNK_SIZE, os.SEEK_DATA) == 2 * CHUNK_SIZE
    assert call("lseek", ino, 1 << 40, os.SEEK_DATA) == -errno.ENXIO
    assert call("fallocate", ino, 8, 0, CHUNK_SIZE) == -errno.EOPNOTSUPP
    assert call("copy_range", ino, 0, other, 10, 1 << 30, ctypes.byref(need_ino)) == 3 * CHUNK_SIZE
    assert tree.read(other, 0, 1 << 30) == bytes(10) + tree.read(ino, 0, 1 << 30)


def test_holes_are_not_reported_while_the_kernel_may_have_unwritten_pages(tree: LiveTree, call: Caller) -> None:
    ino = make(tree)
    call("fallocate", ino, 0, 0, CHUNK_SIZE)
    call("open", ino, 1)
    assert call("lseek", ino, 0, os.SEEK_DATA) == -errno.ENOSYS
    call("release", ino, 1)
    assert call("lseek", ino, 0, os.SEEK_HOLE) >= 0
    tree._opens.are_unknown()
    assert call("lseek", ino, 0, os.SEEK_DATA) == -errno.ENOSYS


def test_a_cut_waits_for_no_change(tree: LiveTree, call: Caller) -> None:
    """A change under way, here one that never ends, holds its file; the cut goes on, and the sealer sees all of it."""
    ino, seen = make(tree), list[Any]()
    call("write", ino, 0, b"x" * 2 * CHUNK_SIZE, 2 * CHUNK_SIZE)
    seal(tree)
    call("write", ino, 0, b"before", 6)
    state = tree._content.state(ino)
    with state.lock:
        cut = tree.cut()  # would wait for ever
        sealer = threading.Thread(target=lambda: seen.append(cut.open_file(ino)))
        sealer.start()
        sealer.join(0.05)
        assert not seen  # the file's change is waited for by who looks at the file
        state.dirty.mark(CHUNK_SIZE, 1)  # it goes on in the epoch that ended
    sealer.join()
    assert list(seen[0].dirty_chunks()) == [(0, 1), (1, 1)]
    seen[0].close()
    cut.finish(True)


def test_after_the_end_everything_is_refused(tree: LiveTree, call: Caller) -> None:
    ino = make(tree)
    tree.close()
    assert call.api.write(call.core, ino, 0, b"x", 1, False) == -65536 - Need.CLOSED
    with pytest.raises(OSError, match="closed"):
        tree.prepare(ino, Need.CLOSED)


def test_memory_of_a_file_does_not_grow_with_it(tree: LiveTree, call: Caller) -> None:
    """A state is small, and a sparse terabyte written here and there costs what was written."""
    from snapfs.live.content import _content

    ino = make(tree)
    seal(tree)
    for where in range(50):
        call("write", ino, where << 34, b"x", 1)
    assert tree._content.state(ino).dirty.count <= 50
    assert _content.FileState.__basicsize__ < 300


class Row(ctypes.Structure):
    _fields_ = (
        ("ino", u64), ("size", u64), ("atime_ns", i64), ("mtime_ns", i64), ("ctime_ns", i64), ("mode", ctypes.c_uint32),
        ("nlink", ctypes.c_uint32), ("uid", ctypes.c_uint32), ("gid", ctypes.c_uint32), ("rdev", ctypes.c_uint32),
        ("parent", u64),
    )  # fmt: skip


def row_of(call: Caller, ino: int) -> tuple[int, ...] | None:
    row = Row()
    result = call("find_inode", ino, ctypes.byref(row))
    assert result in (0, -errno.ESTALE)
    return None if result else (row.size, row.mode, row.nlink, row.uid, row.gid, row.ctime_ns, row.parent)


def wanted_row(tree: LiveTree, ino: Ino) -> tuple[int, ...]:
    inode = tree.names.inode(ino)
    return len(inode.target), inode.mode, inode.nlink, inode.uid, inode.gid, inode.ctime_ns, inode.parent


def test_rows_are_known_as_the_namespace_has_them_after_every_change(tree: LiveTree, call: Caller) -> None:
    folder = tree.mknod(ROOT_INO, b"d", stat.S_IFDIR | 0o755, 0, 1, 2).ino
    file = tree.mknod(folder, b"f", stat.S_IFREG | 0o600, 0, 3, 4).ino
    target = tree.symlink(folder, b"s", b"somewhere", 5, 6).ino
    fifo = tree.mknod(folder, b"p", stat.S_IFIFO | 0o600, 0, 0, 0).ino
    tree.mknod(folder, b"dd", stat.S_IFDIR | 0o755, 0, 0, 0)
    everything = (ROOT_INO, folder, file, target, fifo)

    def agree() -> None:
        assert [row_of(call, ino) for ino in everything] == [wanted_row(tree, ino) for ino in everything]

    agree()
    for change in (
        lambda: tree.setattr(file, mode=0o4755, uid=7, gid=8),
        lambda: tree.link(file, ROOT_INO, b"g"),
        lambda: tree.setxattr(folder, b"user.a", b"1"),
        lambda: tree.removexattr(folder, b"user.a"),
        lambda: tree.rmdir(folder, b"dd"),
        lambda: tree.rename(folder, b"f", ROOT_INO, b"h"),
        lambda: tree.rename(ROOT_INO, b"h", ROOT_INO, b"g"),
        lambda: tree.unlink(ROOT_INO, b"g"),
    ):
        change()
        agree()


def test_a_row_is_the_database_s_after_a_failure_a_bulk_change_and_the_end_of_its_inode(
    tree: LiveTree, call: Caller, monkeypatch: pytest.MonkeyPatch
) -> None:
    ino = make(tree)
    tree.unlink(ROOT_INO, b"a")
    tree.forget(ino)
    tree.tidy()
    assert row_of(call, ino) is None
    ino = make(tree)
    with tree.names.bulk() as changes:
        changes.put_inode(tree.names.inode(ino)._replace(uid=77), [(b"user.a", b"1")])
    assert row_of(call, ino) == wanted_row(tree, ino)
    assert xattr_of(call, ino, b"user.a") == 1
    with pytest.raises(ZeroDivisionError), monkeypatch.context() as patch:
        patch.setattr(tree.names._writer.epochs, "purge_some", lambda: 1 / 0)
        tree.setattr(ino, mode=0o777)
    assert row_of(call, ino) == wanted_row(tree, ino)


def xattr_of(call: Caller, ino: int, name: bytes) -> int:
    """The length of its value, or a negative errno."""
    return call("getxattr", ino, name, len(name), ctypes.create_string_buffer(100), 100)


def test_who_has_no_extended_attribute_is_known(tree: LiveTree, call: Caller) -> None:
    ino = make(tree)
    assert xattr_of(call, ino, b"user.a") == -errno.ENODATA
    tree.setxattr(ino, b"user.a", b"12")
    assert xattr_of(call, ino, b"user.a") == 2
    tree.removexattr(ino, b"user.a")
    assert xattr_of(call, ino, b"user.a") == -errno.ENODATA
    tree.setxattr(ino, b"user.a", b"123")
    assert xattr_of(call, ino, b"user.a") == 3
    born = tree.mknod(ROOT_INO, b"b", stat.S_IFREG | 0o600, 0, 0, 0, [(b"user.b", b"2")]).ino
    assert xattr_of(call, born, b"user.b") == 1


def test_names_need_a_sync_until_there_was_one(tree: LiveTree, call: Caller) -> None:
    ino = make(tree)
    assert (call("needs_names", ROOT_INO), call("needs_names", ino)) == (1, 1)
    tree.fsyncdir(ROOT_INO)
    assert call("needs_names", ROOT_INO) == 0
    tree.close(clean=False)
    assert call.api.needs_names(call.core, ROOT_INO) == -65536 - Need.CLOSED


def test_beyond_the_limit_only_what_the_kernel_took_is_written(tree: LiveTree, call: Caller) -> None:
    log, other = make(tree), make(tree, b"other")
    tree.write(other, 0, b"o" * 50)
    tree.limit_size(100)
    assert tree.size_limit == (100, 50)
    assert call("write", log, 0, b"x" * 51, 51) == -errno.EDQUOT
    assert call("write", log, 0, b"x" * 50, 50) == 50
    assert tree.size_limit == (100, 100)
    assert call("refuses_writes", log) == 0
    assert call("write", log, 50, b"x", 1) == -errno.EDQUOT
    assert call("write", log, 50, b"", 0) == 0
    assert call("write", log, 40, b"x" * 10, 10) == 10
    assert call("write", log, 50, b"x" * 20, 20, True) == 20
    assert tree.size_limit == (100, 120)
    assert [call("refuses_writes", ino) for ino in (log, other)] == [1, 0]
    tree.setattr(other, size=30)
    assert call("refuses_writes", log) == 0
    assert call("write", other, 1 << 30, b"x", 1, True) == 1
    assert [call("refuses_writes", ino) for ino in (log, other)] == [1, 1]
    tree.setattr(other, size=0)
    call("write", log, 0, b"x", 1)
    assert tree.size_limit == (100, 70)

"""Which open directories the kernel may keep the names of (native/cached_listings.c)."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from snapfs.base.blocks import ROOT_INO, Disk
from snapfs.live.content import datapath
from snapfs.live.namespace.namespace import Namespace
from snapfs.live.tree import LiveTree

if datapath.why_not_native():
    pytest.skip(datapath.why_not_native(), allow_module_level=True)
from tests.fuse.kernel.test_router_looks import Kernel

MKDIR, OPENDIR, RELEASEDIR, RENAME2 = 9, 27, 29, 45
KEEP_CACHE, CACHE_DIR = 1 << 1, 1 << 3
CACHED = 1 << 58
INO_MASK = (1 << 35) - 1


@pytest.fixture
def kernel(tmp_path: Path) -> Iterator[Kernel]:
    names = Namespace(str(tmp_path / "namespace.db"), Disk())
    tree = LiveTree(str(tmp_path), names, Disk(), boot_id="boot", data_path="native")
    kernel = Kernel(tree)
    yield kernel
    kernel.close()
    tree.close()


def opendir(kernel: Kernel, node: int) -> tuple[int, bool]:
    """(handle, whether the kernel may keep the names)."""
    handle, flags, zero = struct.unpack("=QII", kernel.ask(OPENDIR, node, bytes(8)))
    assert flags & ~CACHE_DIR in (KEEP_CACHE, 0)
    assert flags, "only the handle that has the cache drops pages"
    assert handle & INO_MASK == node
    assert not zero
    assert bool(handle & CACHED) == bool(flags & CACHE_DIR)
    return handle, bool(flags & CACHE_DIR)


def releasedir(kernel: Kernel, node: int, handle: int) -> None:
    assert kernel.ask(RELEASEDIR, node, struct.pack("=QIIQ", handle, 0, 0, 0)) == b""


def test_one_handle_of_a_directory_at_a_time_has_the_cache(kernel: Kernel) -> None:
    kernel.router.cache_listings()
    first, cached = opendir(kernel, ROOT_INO)
    assert cached
    second, cached = opendir(kernel, ROOT_INO)
    assert not cached
    other, cached = opendir(kernel, ROOT_INO + 1)  # the handle of a directory is its number alone
    assert cached
    releasedir(kernel, ROOT_INO, second)
    assert not opendir(kernel, ROOT_INO)[1]
    kernel.router.pause(True)
    releasedir(kernel, ROOT_INO, first)  # it is answered all the same
    kernel.router.pause(False)
    third, cached = opendir(kernel, ROOT_INO)
    assert cached
    releasedir(kernel, ROOT_INO + 1, other)
    assert not opendir(kernel, ROOT_INO)[1]
    releasedir(kernel, ROOT_INO, third)
    assert opendir(kernel, ROOT_INO)[1]


def test_none_has_it_where_there_may_be_handles_of_an_earlier_daemon(kernel: Kernel) -> None:
    for _ in range(2):
        handle, cached = opendir(kernel, ROOT_INO)
        assert not cached
        releasedir(kernel, ROOT_INO, handle)
    releasedir(kernel, ROOT_INO, ROOT_INO | CACHED)  # one of those
    assert not opendir(kernel, ROOT_INO)[1]


def test_pages_stay_as_long_as_the_directory_has_the_same_parent(kernel: Kernel) -> None:
    def pages_stay(node: int) -> bool:
        handle, flags, _ = struct.unpack("=QII", kernel.ask(OPENDIR, node, bytes(8)))
        releasedir(kernel, node, handle)
        return bool(flags & KEEP_CACHE)

    kernel.router.cache_listings()
    for name in (b"moved\0", b"other\0"):
        kernel.ask(MKDIR, ROOT_INO, struct.pack("=II", 0o755, 0) + name)
    moved, other = (kernel.lookup(ROOT_INO, name) for name in (b"moved", b"other"))
    assert moved
    assert other
    assert [pages_stay(moved[0]) for _ in range(3)] == [False, True, True]
    assert [pages_stay(other[0]) for _ in range(2)] == [False, True]
    kernel.ask(RENAME2, ROOT_INO, struct.pack("=QII", other[0], 0, 0) + b"moved\0there\0")
    first, cached = opendir(kernel, other[0])
    assert cached
    assert opendir(kernel, other[0]) == (other[0], False)
    releasedir(kernel, other[0], first)
    assert [pages_stay(moved[0]) for _ in range(3)] == [False, True, True]
    assert pages_stay(other[0])

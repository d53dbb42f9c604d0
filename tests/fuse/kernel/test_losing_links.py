"""A listing has no attributes of an inode that has just lost one of its names (live/native/losing_links.c)."""

from __future__ import annotations

import stat
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
from tests.fuse.kernel.test_router_looks import LOOKUP, Kernel, shown

MKNOD, UNLINK, LINK, RENAME2 = 8, 10, 13, 45


@pytest.fixture
def kernel(tmp_path: Path) -> Iterator[Kernel]:
    names = Namespace(str(tmp_path / "namespace.db"), Disk())
    tree = LiveTree(str(tmp_path), names, Disk(), boot_id="boot", data_path="native", native_changes=True)
    kernel = Kernel(tree)
    for name in (b"kept", b"other"):
        kernel.ask(MKNOD, ROOT_INO, struct.pack("=4I", stat.S_IFREG | 0o644, 0, 0, 0) + name + b"\0")
    yield kernel
    kernel.close()
    tree.close()


def link(kernel: Kernel, name: bytes) -> int:
    """One more name of `kept`; its inode."""
    ino = shown(kernel.ask(LOOKUP, ROOT_INO, b"kept\0"))[0]
    kernel.ask(LINK, ROOT_INO, struct.pack("=Q", ino) + name + b"\0")
    return ino


def in_listing(kernel: Kernel, name: bytes) -> bool:
    """Whether a listing has its attributes."""
    (found,) = (entry for entry in kernel.list(ROOT_INO) if entry.name == name)
    return found.attr is not None


@pytest.mark.parametrize("how", ["unlink", "rename"])
def test_a_number_of_links_that_the_kernel_has_yet_to_count_is_not_shown(kernel: Kernel, how: str) -> None:
    for _ in range(2):
        ino = link(kernel, b"more")
        if how == "unlink":
            kernel.ask(UNLINK, ROOT_INO, b"more\0")
        else:
            kernel.ask(MKNOD, ROOT_INO, struct.pack("=4I", stat.S_IFREG | 0o644, 0, 0, 0) + b"new\0")
            kernel.ask(RENAME2, ROOT_INO, struct.pack("=QII", ROOT_INO, 0, 0) + b"new\0more\0")
            kernel.ask(UNLINK, ROOT_INO, b"more\0")
        assert kernel.getattr(ino)[10] == 1
        assert not in_listing(kernel, b"kept")
    assert in_listing(kernel, b"other")


def test_what_has_lost_no_name_is_shown(kernel: Kernel) -> None:
    for name in (b"more", b"most"):
        link(kernel, name)
    kernel.ask(UNLINK, ROOT_INO, b"other\0")
    for name in (b"kept", b"more"):
        assert in_listing(kernel, name)

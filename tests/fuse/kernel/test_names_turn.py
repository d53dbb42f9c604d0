"""Threads of C and of Python that wait for the turn of the names have it alternately, so neither starves the other."""

from __future__ import annotations

import stat
import struct
import threading
from pathlib import Path

import pytest

from snapfs.base.blocks import ROOT_INO, Disk
from snapfs.live.content import datapath
from snapfs.live.namespace.namespace import Namespace
from snapfs.live.tree import LiveTree

if datapath.why_not_native():
    pytest.skip(datapath.why_not_native(), allow_module_level=True)

from snapfs.live.content import _content
from tests.fakes.patience import eventually
from tests.fuse.kernel.test_router_looks import IN, Kernel

if not _content.TEST_HOOKS:
    pytest.skip("built without the functions for tests", allow_module_level=True)

MKNOD = 8
REQUESTS = 50
ROUTER_THREADS = 2
"""Of `Kernel`."""


def open_tree(folder: Path) -> LiveTree:
    names = Namespace(str(folder / "namespace.db"), Disk())
    return LiveTree(str(folder), names, Disk(), boot_id="boot", data_path="native", native_changes=True)


def send_creates(kernel: Kernel, numbers: range) -> None:
    """The kernel's requests for new files; the replies are not waited for."""
    for number in numbers:
        name = f"file-{number}".encode() + b"\0"
        body = struct.pack("=4I", stat.S_IFREG | 0o644, 0, 0, 0) + name
        kernel._kernel.send(IN.pack(IN.size + len(body), MKNOD, 2 * number + 2, ROOT_INO, 0, 0, 1, 0) + body)


def test_changes_of_c_and_of_python_alternate(tmp_path: Path) -> None:
    tree = open_tree(tmp_path)
    kernel = Kernel(tree)
    core, turn = tree.native, tree.names.turn
    seen: list[int] = []

    def change_in_python() -> None:
        numbers = core.take_turn()
        seen.append(core.committed())
        core.end_turn(numbers)

    def waiting() -> tuple[int, int]:
        return _content.waiting_for_turn(core)

    send_creates(kernel, range(1))
    kernel._kernel.recv(1 << 16)
    others = [threading.Thread(target=change_in_python) for _ in range(ROUTER_THREADS)]
    with turn:
        before = core.committed()
        for number in range(ROUTER_THREADS):
            send_creates(kernel, range(number + 1, number + 2))
            eventually(lambda count=number + 1: waiting() == (count, 0))  # type: ignore[misc]
        send_creates(kernel, range(ROUTER_THREADS + 1, REQUESTS))
        for other in others:
            other.start()
        eventually(lambda: waiting() == (ROUTER_THREADS, len(others)))
    for other in others:
        other.join()
    assert seen == [before + 1, before + 2]
    for _ in range(1, REQUESTS):
        kernel._kernel.recv(1 << 16)
    kernel.close()
    tree.close()

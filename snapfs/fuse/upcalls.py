"""What the router asks of Python before it can answer a request about bytes, or in its place.

Called in a thread of the router, with the GIL. Kinds and arguments are those of native/router.h.

Invariants:
1. Nothing is raised: an error is the negative errno that answers the request, logged if it is none of the user's.
2. Modes change in the thread in which trio runs, as always; only such calls wait for it.
3. Calls that can wait for a network come in the one thread of the router that may.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from enum import IntEnum

import trio

from snapfs.blocks import Ino
from snapfs.fuse.answers import refusal
from snapfs.fuse.base import Handlers
from snapfs.fuse.nodes import is_virtual


class Kind(IntEnum):
    """Beyond those of `LiveTree.prepare`."""

    WEAKEN = 16
    SIZE = 17
    FALLOCATE = 18
    LSEEK = 19
    COPY = 20
    FSYNC = 21
    FSYNCDIR = 22


class Upcalls:
    """Serves one session, in whose trio run it is made."""

    def __init__(self, handlers: Handlers) -> None:
        self._handlers = handlers
        self._tree = handlers.tree
        self._token = trio.lowlevel.current_trio_token()
        self._kinds: dict[int, Callable[..., int]] = {
            Kind.WEAKEN: self._weaken,
            Kind.SIZE: self._size,
            Kind.FALLOCATE: self._fallocate,
            Kind.LSEEK: self._lseek,
            Kind.COPY: self._copy,
            Kind.FSYNC: self._fsync,
            Kind.FSYNCDIR: self._fsyncdir,
        }

    def __call__(self, kind: int, *arguments: int) -> int:
        try:
            if kind in self._kinds:
                return self._kinds[kind](*arguments)
            self._tree.prepare(Ino(arguments[0]), kind)
            return 0
        except trio.RunFinishedError:
            return -errno.ENOTCONN
        except Exception as error:
            return -refusal(error, f"upcall {kind}").errno

    def _weaken(self, ino: int, *rest: int) -> int:
        trio.from_thread.run_sync(self._handlers.weaken, Ino(ino), trio_token=self._token)
        return 0

    def _size(self, node: int, *rest: int) -> int:
        assert is_virtual(node)
        attributes = trio.from_thread.run(self._handlers.getattr_of_virtual, node, trio_token=self._token)
        return attributes.st_size

    def _fallocate(self, ino: int, mode: int, offset: int, length: int, *rest: int) -> int:
        self._tree.fallocate(Ino(ino), mode, offset, length)
        return 0

    def _lseek(self, ino: int, offset: int, whence: int, *rest: int) -> int:
        return self._tree.lseek(Ino(ino), offset, whence)

    def _copy(self, source: int, source_offset: int, ino: int, offset: int, length: int) -> int:
        return self._tree.copy_range(Ino(source), source_offset, Ino(ino), offset, length)

    def _fsync(self, ino: int, datasync: int, *rest: int) -> int:
        self._tree.fsync(Ino(ino), bool(datasync))
        return 0

    def _fsyncdir(self, ino: int, *rest: int) -> int:
        self._tree.fsyncdir(Ino(ino))
        return 0

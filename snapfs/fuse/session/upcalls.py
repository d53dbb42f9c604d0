"""The upcalls of the router: what Python does for a request about bytes, before it is answered or in its place.

Called in a thread of the router, with the GIL. Kinds and arguments are those of native/router.h.

Invariants:
1. Nothing is raised: an error is the negative errno that answers the request, logged if it is not the user's.
2. Modes change in the thread in which trio runs, as always; only such calls wait for it.
3. Calls that can wait for a network come in the one thread of the router that may.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from enum import IntEnum

import trio

from snapfs.base.blocks import Ino
from snapfs.fuse.handlers.handler_base import Handlers
from snapfs.fuse.handlers.replies import refusal
from snapfs.fuse.nodes.node_ids import is_virtual
from snapfs.live.backing.host_health import ACTS


class UpcallKind(IntEnum):
    """Beyond those of `LiveTree.prepare`."""

    CLEAR_SUID = 16
    FALLOCATE = 17
    LSEEK = 18
    COPY = 19
    FSYNC = 20
    FSYNCDIR = 21
    FAILED = 22
    ROOM = 23
    LOST = 24


class Upcalls:
    """Serves one session, in whose trio run it is made."""

    def __init__(self, handlers: Handlers) -> None:
        self._handlers = handlers
        self._tree = handlers.tree
        self._token = trio.lowlevel.current_trio_token()
        self._kinds: dict[int, Callable[..., int]] = {
            UpcallKind.CLEAR_SUID: self._clear_suid,
            UpcallKind.FALLOCATE: self._fallocate,
            UpcallKind.LSEEK: self._lseek,
            UpcallKind.COPY: self._copy,
            UpcallKind.FSYNC: self._fsync,
            UpcallKind.FSYNCDIR: self._fsyncdir,
            UpcallKind.FAILED: self._failed,
            UpcallKind.ROOM: self._room,
            UpcallKind.LOST: self._lost,
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

    def _clear_suid(self, ino: int, *rest: int) -> int:
        trio.from_thread.run_sync(self._handlers.weaken, Ino(ino), trio_token=self._token)
        return 0

    def _fallocate(self, ino: int, mode: int, offset: int, length: int, *rest: int) -> int:
        self._tree.fallocate(Ino(ino), mode, offset, length)
        return 0

    def _lseek(self, ino: int, offset: int, whence: int, *rest: int) -> int:
        """The kernel's pages of a file that may be open for writing are written back first: LSEEK does not do so."""
        if is_virtual(ino):
            return trio.from_thread.run(self._handlers.lseek_virtual, ino, offset, whence, trio_token=self._token)
        if self._tree.may_be_written(Ino(ino)) and self._handlers.write_back is not None:
            trio.from_thread.run(self._handlers.write_back, trio_token=self._token)
        return self._tree.lseek(Ino(ino), offset, whence)

    def _copy(self, source: int, source_offset: int, ino: int, offset: int, length: int) -> int:
        return self._tree.copy_range(Ino(source), source_offset, Ino(ino), offset, length)

    def _fsync(self, ino: int, datasync: int, *rest: int) -> int:
        self._tree.fsync(Ino(ino), bool(datasync))
        return 0

    def _fsyncdir(self, ino: int, *rest: int) -> int:
        self._tree.fsyncdir(Ino(ino))
        return 0

    def _failed(self, act: int, number: int, *rest: int) -> int:
        """An act of the router on the host's files failed; it is not answered yet."""
        self._tree.health.note(ACTS[act], number)
        return 0

    def _room(self, length: int, *rest: int) -> int:
        """Whether room was given up for a write of cached pages, which is to be tried again then."""
        return int(self._tree.room.give(length))

    def _lost(self, ino: int, end: int, number: int, *rest: int) -> int:
        """A write of cached pages, up to byte `end`, failed for good; it is not answered yet."""
        self._tree.lose(Ino(ino), end, number)
        self._token.run_sync_soon(self._handlers.forget_pages, Ino(ino))
        return 0

"""How a handler's outcome becomes the reply to a request of the kernel: errors, attributes, and retries.

Invariants:
1. No exception but FUSEError leaves a handler, lest pyfuse3 ends the daemon. An OSError is the reply with its errno;
   any other exception is EIO, with a line in the log for damage and a traceback for a bug.
2. A handler made by `answered` is a plain function: no other task of the daemon runs between its first line and its
   last. One made by `answered_later` may wait, and counts as a request in flight meanwhile.
3. The task that reads requests goes on with the next when its handler has not waited; before one waits, another task
   takes over.
4. A handler that meets a directory whose names are still only in the store has changed nothing and answered nothing: it
   is run again when they are loaded.
"""

from __future__ import annotations

import errno
import functools
import logging
import types
from collections.abc import Callable, Coroutine, Generator
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar, cast

import pyfuse3

from snapfs.base.blocks import BLOCK_SIZE, Ino
from snapfs.base.errors import SnapfsError
from snapfs.fuse.kernel.request_reader import RequestReader
from snapfs.fuse.nodes import modes
from snapfs.live.database.namespace_rows import NotLoadedError

log = logging.getLogger(__name__)

FOREVER_SECONDS = 365.0 * 86400
"""How long the kernel may cache replies about the live tree: until it changes it itself, as its only writer."""


class Attributes(Protocol):
    """What stat(2) returns of an inode of the live tree; `blocks512` in units of 512 bytes."""

    @property
    def ino(self) -> Ino: ...
    @property
    def mode(self) -> int: ...
    @property
    def uid(self) -> int: ...
    @property
    def gid(self) -> int: ...
    @property
    def rdev(self) -> int: ...
    @property
    def nlink(self) -> int: ...
    @property
    def size(self) -> int: ...
    @property
    def blocks512(self) -> int: ...
    @property
    def atime_ns(self) -> int: ...
    @property
    def mtime_ns(self) -> int: ...
    @property
    def ctime_ns(self) -> int: ...


class ReplyHandlers(Protocol):
    """A class whose methods are handlers."""

    @property
    def reader(self) -> RequestReader: ...
    async def load(self, missing: NotLoadedError) -> None:
        """Load the names of a directory that are still only in the store."""


S = TypeVar("S", bound=ReplyHandlers)
P = ParamSpec("P")
T = TypeVar("T")
Handler = Callable[Concatenate[S, P], Coroutine[Any, Any, T]]


def refusal(error: Exception, request: str) -> pyfuse3.FUSEError:
    """The reply to a request whose handler raised `error`. To be called while it is being handled."""
    if isinstance(error, pyfuse3.FUSEError):
        return error
    if isinstance(error, OSError) and error.errno:
        return pyfuse3.FUSEError(error.errno)
    if isinstance(error, SnapfsError):
        log.error("%s: %s", request, error)
        return pyfuse3.FUSEError(getattr(error, "errno", errno.EIO))
    log.exception("%s failed unexpectedly", request)
    return pyfuse3.FUSEError(errno.EIO)


def operation_of(handler: str) -> str:
    """The name of the kernel's request that a handler, or its live or virtual half, answers."""
    return handler.strip("_").removesuffix("_live").removesuffix("_virtual").removesuffix("_one")


def answered(method: Callable[Concatenate[S, P], T]) -> Handler[S, P, T]:
    """A handler of a plain function."""
    operation = operation_of(method.__name__)

    @functools.wraps(method)
    async def handler(self: S, /, *args: P.args, **kwargs: P.kwargs) -> T:
        self.reader.requests[operation] += 1
        try:
            return method(self, *args, **kwargs)
        except NotLoadedError as error:
            missing = error
        except Exception as error:
            raise refusal(error, method.__name__) from None
        self.reader.begin_waiting()
        try:
            while True:
                await self.load(missing)
                try:
                    return method(self, *args, **kwargs)
                except NotLoadedError as error:
                    missing = error
        except Exception as error:
            raise refusal(error, method.__name__) from None
        finally:
            self.reader.end()

    return handler


@types.coroutine
def _rest(request: Coroutine[Any, Any, T], trap: Any) -> Generator[Any, Any, T]:
    """Go on with a coroutine that was begun by `send`, and waits at `trap`, which is for trio."""
    while True:
        try:
            sent = yield trap
        except BaseException as error:
            resume = functools.partial(request.throw, error)
        else:
            resume = functools.partial(request.send, sent)
        try:
            trap = resume()
        except StopIteration as end:
            return cast(T, end.value)


def answered_later(method: Callable[Concatenate[S, P], Coroutine[Any, Any, T]]) -> Handler[S, P, T]:
    """A handler of a function that may wait."""
    operation = operation_of(method.__name__)

    @functools.wraps(method)
    async def handler(self: S, /, *args: P.args, **kwargs: P.kwargs) -> T:
        self.reader.begin(operation)
        try:
            while True:
                try:
                    request = method(self, *args, **kwargs)
                    try:
                        trap = request.send(None)
                    except StopIteration as end:
                        return cast(T, end.value)
                    self.reader.lock.hand_over()
                    return await _rest(request, trap)
                except NotLoadedError as missing:
                    self.reader.lock.hand_over()
                    await self.load(missing)
        except Exception as error:
            raise refusal(error, method.__name__) from None
        finally:
            self.reader.end()

    return handler


def entry_of(attr: Attributes) -> pyfuse3.EntryAttributes:
    """The reply with an inode of the live tree."""
    entry = pyfuse3.EntryAttributes()
    entry.st_ino = pyfuse3.InodeT(attr.ino)
    entry.entry_timeout = FOREVER_SECONDS
    entry.attr_timeout = FOREVER_SECONDS if modes.may_be_kept(attr.mode) else 0.0
    entry.st_mode = pyfuse3.ModeT(attr.mode)
    entry.st_nlink = attr.nlink
    entry.st_uid = attr.uid
    entry.st_gid = attr.gid
    entry.st_rdev = attr.rdev
    entry.st_size = attr.size
    entry.st_blocks = attr.blocks512
    entry.st_blksize = BLOCK_SIZE
    entry.st_atime_ns = attr.atime_ns
    entry.st_mtime_ns = attr.mtime_ns
    entry.st_ctime_ns = attr.ctime_ns
    return entry


def absence() -> pyfuse3.EntryAttributes:
    """The reply that there is no such name, which the kernel may cache."""
    entry = pyfuse3.EntryAttributes()
    entry.st_ino = pyfuse3.InodeT(0)
    entry.entry_timeout = FOREVER_SECONDS
    return entry

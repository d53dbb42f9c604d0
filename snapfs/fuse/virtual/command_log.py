"""The log of commands to the control file, so that one is done once even if the daemon dies over it.

A command can take seconds, and ends long before or after the death of the daemon that began it. The kernel sends its
write again to the daemon that adopts the mount. Whether the command was done, begun or never seen is in this log:

1. Done, its reply logged: the write is answered as it would have been, and the reply is there to be read.
2. Begun: it is run with `since`, the number of the newest snapshot at its beginning; what it made has a higher one.
3. Never seen: it is run.

Invariants:
1. A command is logged as begun before it does anything, and its reply before the write is answered.
2. Without numbers of requests (no router) nothing is logged: nothing is ever sent again.
3. A reply that was not read yet outlives the daemon with its handle. One that was read in part is read from its
   beginning again.
4. A disk without room for an entry is no reason to refuse a command, or to report it as failed: it may then be done
   twice.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from snapfs.live.namespace.reply_cache import RESENT, PastCommand, ReplyCache

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class CommandLog:
    """The commands of one mount. `unique` gives the number of the present request, `newest` that of a snapshot."""

    reply_cache: ReplyCache
    unique: Callable[[], int]
    newest: Callable[[], int]

    def past(self, handle: int) -> PastCommand | None:
        """What is known of the present request, if an earlier daemon began it through this handle."""
        request = self.unique()
        past = self.reply_cache.command(handle) if request & RESENT else None
        return past if past is not None and past.request == request & ~RESENT else None

    def begin(self, handle: int) -> PastCommand | None:
        """A command comes in through this handle; what is known of it if it came before."""
        past, request = self.past(handle), self.unique()
        if past is not None:
            return past
        if request:
            with _without_room():
                self.reply_cache.begin_command(handle, request, self.newest())
        return None

    def end(self, handle: int, reply: bytes, errno: int) -> None:
        """The command is done, and this is its reply."""
        if self.unique():
            with _without_room():
                self.reply_cache.end_command(handle, reply, errno)

    def unread(self, handle: int) -> bytes:
        """The reply to the last command of a handle that an earlier daemon opened; none where the host is gone."""
        past = None
        with _without_room():
            past = self.reply_cache.command(handle)
        return b"" if past is None else past.reply or b""

    def closed(self, handle: int) -> None:
        if self.unique():
            with _without_room():
                self.reply_cache.forget_command(handle)


@contextlib.contextmanager
def _without_room() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        log.warning("a command could not be noted: %s", error.strerror)

"""What leaves a handler: an answer or a FUSEError, whatever went wrong inside."""

from __future__ import annotations

import errno
import logging

import pyfuse3
import pytest
import trio

from snapfs.base.errors import CorruptionError, SnapshotError, UserError
from snapfs.fuse.handlers.replies import FOREVER_SECONDS, absence, answered, answered_later, entry_of
from snapfs.fuse.kernel.request_reader import RequestReader
from snapfs.live.attributes import Attr


class Handlers:
    """Two handlers that raise what they are given."""

    def __init__(self) -> None:
        self.reader = RequestReader()
        self.seen_in_flight = 0

    @answered
    def plain(self, error: Exception | None) -> str:
        if error is not None:
            raise error
        return "answer"

    @answered_later
    async def waiting(self, error: Exception | None) -> str:
        self.seen_in_flight = self.reader.in_flight
        await trio.lowlevel.checkpoint()
        if error is not None:
            raise error
        return "answer"


@pytest.mark.parametrize("name", ["plain", "waiting"])
@pytest.mark.parametrize(
    ("error", "number", "logged"),
    [
        (FileNotFoundError(errno.ENOENT, "x"), errno.ENOENT, None),
        (OSError(errno.EDQUOT, "x"), errno.EDQUOT, None),
        (pyfuse3.FUSEError(errno.ENOSYS), errno.ENOSYS, None),
        (SnapshotError("the store is full", errno.ENOSPC), errno.ENOSPC, "the store is full"),
        (
            CorruptionError("object 7", "1.seg", "bad content hash"),
            errno.EIO,
            "object 7 in 1.seg is damaged: bad content hash",
        ),
        (UserError("no"), errno.EIO, "no"),
        (OSError("without a number"), errno.EIO, "failed unexpectedly"),
        (AssertionError("a bug"), errno.EIO, "failed unexpectedly"),
        (KeyError("a bug"), errno.EIO, "failed unexpectedly"),
    ],
)
def test_every_failure_is_a_reply(
    name: str, error: Exception, number: int, logged: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    handlers = Handlers()
    with caplog.at_level(logging.INFO), pytest.raises(pyfuse3.FUSEError) as caught:
        trio.run(getattr(handlers, name), error)
    assert caught.value.errno == number
    assert (logged in caplog.text) if logged else not caplog.records
    assert handlers.reader.in_flight == 0


def test_an_answer_passes_and_a_waiting_handler_counts() -> None:
    handlers = Handlers()
    assert trio.run(handlers.plain, None) == "answer"
    assert trio.run(handlers.waiting, None) == "answer"
    assert handlers.seen_in_flight == 1


def test_attributes_are_carried_to_the_last_nanosecond() -> None:
    attr = Attr(7, 0o100644, 4_000_000_000, 5, 0, 2, 5 << 40, 11, -1, 2**33 * 10**9 + 1, 999_999_999)  # type: ignore[arg-type]
    entry = entry_of(attr)
    assert (entry.st_ino, entry.st_mode, entry.st_uid, entry.st_gid) == (7, 0o100644, 4_000_000_000, 5)
    assert (entry.st_size, entry.st_blocks, entry.st_nlink) == (5 << 40, 11, 2)
    assert (entry.st_atime_ns, entry.st_mtime_ns, entry.st_ctime_ns) == (-1, 2**33 * 10**9 + 1, 999_999_999)
    assert entry.entry_timeout == entry.attr_timeout == FOREVER_SECONDS
    assert (absence().st_ino, absence().entry_timeout) == (0, FOREVER_SECONDS)

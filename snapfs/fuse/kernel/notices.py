"""Notifications to the kernel: to forget a name or what it keeps of an inode, to send requests again.

Written straight to /dev/fuse, not by libfuse: so the caller gets the outcome also when a router stands between.

Invariants:
1. A notice about names or pages is not written in the thread in which trio runs. To forget a name the kernel may wait
   for an operation in the same directory, and to forget pages for their writing, which both need an answer of ours.
2. Nor, where the mount outlives the daemon, in the daemon (fuse/session/notice_helper.py): the kernel waits for
   these whatever signal comes, so a daemon that is killed in there would not be gone before its successor answers.
3. A notice about attributes alone (offset -1) waits for nothing: the kernel takes a spin lock, and drops a reference
   that is not the last while a request about the inode is unanswered. So it is written before that request is answered,
   in whatever thread: a process that has the reply cannot find the old attributes in the cache any more.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import struct
from collections.abc import Iterable, Iterator, Sequence
from enum import IntEnum
from typing import Final, Protocol

from snapfs.base.blocks import Ino

_OUT_HEADER = struct.Struct("=IiQ")  # len, error (here: the code), unique (here: 0)
_INVAL_INODE = struct.Struct("=Qqq")  # ino, offset, length
_INVAL_ENTRY = struct.Struct("=QII")  # parent, length of the name, flags; the name and a zero follow


BATCH_BYTES: Final = 16384
"""Of notices that are sent together; none is longer: a name has 1024 bytes at most. supervisor.c has it, too."""


class Notice(IntEnum):
    """Codes of notifications."""

    INVAL_INODE = 2
    INVAL_ENTRY = 3
    RESEND = 7


def encode(notice: Notice, body: bytes = b"") -> bytes:
    return _OUT_HEADER.pack(_OUT_HEADER.size + len(body), notice, 0) + body


def resend(device: int) -> None:
    """Have the kernel send again what was read from the descriptor and not answered (with HAS_RESEND). OSError."""
    os.write(device, encode(Notice.RESEND))


def about_inode(ino: int) -> bytes:
    """Attributes and pages of an inode are no longer so; dirty pages are written first."""
    return encode(Notice.INVAL_INODE, _INVAL_INODE.pack(ino, 0, 0))


def about_entry(parent: int, name: bytes) -> bytes:
    """A name is no longer so."""
    return encode(Notice.INVAL_ENTRY, _INVAL_ENTRY.pack(parent, len(name), 0) + name + b"\0")


def invalidate_attributes(device: int, ino: int) -> None:
    """Attributes of an inode are no longer so; its pages stay. FileNotFoundError if the kernel does not know it."""
    os.write(device, encode(Notice.INVAL_INODE, _INVAL_INODE.pack(ino, -1, 0)))


class NoticeSender(Protocol):
    """Writes notices that may wait."""

    def send(self, device: int, notices: Sequence[bytes]) -> list[int]:
        """Write each, and wait for it; the errno of each, 0 if it is done. Any number of threads; `device` is the same
        in all calls."""
        ...

    def close(self) -> None:
        """Nothing is sent any more."""
        ...


class SendHere:
    """Writes them in the calling thread: for a mount that ends with this process."""

    def send(self, device: int, notices: Sequence[bytes]) -> list[int]:
        return [_errno_of(device, notice) for notice in notices]

    def close(self) -> None: ...


def _errno_of(device: int, notice: bytes) -> int:
    try:
        os.write(device, notice)
    except OSError as failure:
        return failure.errno or errno.EIO
    return 0


class Kernel:
    """What the kernel keeps of one mount, seen from the handlers that change things behind it.

    Made before the session, because pyfuse3 takes its handlers before there is a descriptor; the session connects it.
    Until then the kernel keeps nothing, and `device` is -1.
    """

    def __init__(self, sender: NoticeSender | None = None) -> None:
        """`sender`: of the notices that may wait; None: they are written here."""
        self._sender = sender or SendHere()
        self._device = -1
        self._written: set[int] = set()

    @property
    def device(self) -> int:
        """The descriptor of /dev/fuse."""
        return self._device

    def connect(self, device: int) -> None:
        """The session has the descriptor. Called once, before the first request is served."""
        self._device = device

    def wrote(self, ino: int) -> None:
        """A file was written: the blocks that the kernel shows may be older. The trio thread."""
        self._written.add(ino)

    def closed(self, ino: int) -> None:
        """No process has it open any more: the kernel requests the blocks by itself."""
        self._written.discard(ino)

    def take_written(self) -> set[int]:
        """The files that were written since the last call and are open. The trio thread."""
        written, self._written = self._written, set()
        return written

    def forget_attributes(self, ino: int) -> None:
        """The attributes of the inode changed in a way that the kernel does not see. Any thread; waits for nothing.

        To be called between the change and the answer to the request that made it.
        """
        if self._device >= 0:
            with contextlib.suppress(OSError):  # the kernel does not know the inode, or the mount is gone
                invalidate_attributes(self._device, ino)

    def forget_pages(self, inos: Iterable[Ino]) -> list[Ino]:
        """Drop the kernel's attributes and pages of these inodes; those that it knew. A worker thread: it may wait for
        the writing of pages."""
        ours, sent = itertools.tee(inos)
        return [ino for ino, number in zip(ours, self._sent(map(about_inode, sent)), strict=True) if not number]

    def forget(self, notices: Iterable[bytes]) -> None:
        """Send these, of what the kernel may know or not. A worker thread: it may wait. OSError, after all that went
        with it."""
        for number in self._sent(notices):
            if number not in (0, errno.ENOENT):
                raise OSError(number, os.strerror(number))

    def _sent(self, notices: Iterable[bytes]) -> Iterator[int]:
        """The errno of each: ENOENT if the kernel does not know it, or another if the mount is gone."""
        for batch in _batches(notices):
            yield from self._sender.send(self._device, batch)

    def close(self) -> None:
        """The session is over."""
        self._sender.close()


def _batches(notices: Iterable[bytes]) -> Iterator[list[bytes]]:
    """In lists of BATCH_BYTES at most."""
    batch: list[bytes] = []
    size = 0
    for notice in notices:
        if size + len(notice) > BATCH_BYTES:
            yield batch
            batch, size = [], 0
        batch.append(notice)
        size += len(notice)
    if batch:
        yield batch

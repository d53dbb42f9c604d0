"""The nodes of `.snapfs` itself: `control`, `status`, `metrics` and the `snapshots` directory.

One small class per kind of node. A node says how it looks and opens a *handle*; a handle reads and writes.
The kernel's page cache is bypassed (direct I/O): sizes are 0, and each read and write arrives as it was made.

Invariants:
1. A write to `control` returns when its command is done: 0 if it succeeded, else the errno of its failure. The
   explanation is in the reply, readable on the same descriptor as one line of JSON, and in `status`.
2. Offsets mean nothing on `control`: a read takes the next bytes of the reply to the last write, then finds its end.
3. A read of `status` or `metrics` at offset 0 takes a fresh picture, later ones go on in it: what a reader puts
   together is one instant, and a descriptor that outlives a daemon goes on with the next one.
4. A command that is sent again, because the daemon died over it, is done once: see journal.py.
5. The kernel holds the inode's lock during a write, so commands of several writers queue there, in order, and at most
   one request of the kernel waits here; `status` and everything else stay answerable meanwhile.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import pyfuse3
import trio

from snapfs.fuse import attributes
from snapfs.fuse.journal import Journal
from snapfs.fuse.nodes import ControlNode, NodeId, control_node

ATTR_TIMEOUT_SECONDS = 1.0
MAX_COMMAND_BYTES = 65536


@dataclass(frozen=True, slots=True)
class Reply:
    """What a command answers: one line of JSON, and the errno that the write fails with (0: it succeeded)."""

    line: bytes
    errno: int = 0


class Surroundings(Protocol):
    """What the nodes need of the daemon."""

    def owner(self) -> tuple[int, int]:
        """uid and gid of the root directory of the live tree."""

    def status(self) -> bytes: ...
    def metrics(self) -> bytes: ...
    async def command(self, line: str, since: int | None) -> Reply:
        """`since`: an earlier daemon began this command when the newest snapshot had that number."""
        ...

    @property
    def journal(self) -> Journal: ...


class Handle:
    """An open node. Reading and writing are refused unless a kind of handle can do it."""

    async def read(self, offset: int, size: int) -> bytes:
        raise OSError(errno.EBADF, os.strerror(errno.EBADF))

    async def write(self, offset: int, data: bytes) -> int:
        raise OSError(errno.EBADF, os.strerror(errno.EBADF))

    def released(self) -> None:
        """The kernel closed it."""


class TextHandle(Handle):
    """A text that is made when it is read from its beginning."""

    def __init__(self, produce: Callable[[], bytes]) -> None:
        self._produce = produce
        self._text: bytes | None = None

    async def read(self, offset: int, size: int) -> bytes:
        if offset == 0 or self._text is None:
            self._text = self._produce()
        return self._text[offset : offset + size]


class ControlHandle(Handle):
    """Commands go in, replies come out."""

    def __init__(self, run: Callable[[str, int | None], Awaitable[Reply]], journal: Journal, token: int) -> None:
        self._run = run
        self._journal, self._token = journal, token
        self._reply = journal.unread(token)

    async def read(self, offset: int, size: int) -> bytes:
        part, self._reply = self._reply[:size], self._reply[size:]
        return part

    async def write(self, offset: int, data: bytes) -> int:
        self._reply = b""
        if len(data) > MAX_COMMAND_BYTES:
            raise OSError(errno.E2BIG, os.strerror(errno.E2BIG))
        past = self._journal.begin(self._token)
        if past is not None and past.reply is not None:
            self._reply, number = past.reply, past.errno
        else:
            number = await self._run_all(list(_lines(data)), None if past is None else past.newest)
            self._journal.end(self._token, self._reply, number)
        if number:
            raise OSError(number, os.strerror(number))
        return len(data)

    async def _run_all(self, lines: list[str], since: int | None) -> int:
        """Run one after another, up to the first that fails; its errno, or 0."""
        for line in lines:
            reply = await self._run(line, since)
            self._reply += reply.line
            if reply.errno:
                return reply.errno
        return 0

    def released(self) -> None:
        self._journal.closed(self._token)


class Fence:
    """Tells when the kernel's earlier background requests have been received.

    The kernel sends RELEASE, as it sends the pages it writes back, as a background request, and sends those in order.
    So when a descriptor that was opened here and closed after syncfs(2) is released, every page that syncfs sent off
    was received before. (syncfs itself does not wait for a FUSE daemon's answers: measured, and so in the source.)
    """

    def __init__(self) -> None:
        self._waiting: dict[int, trio.Event] = {}

    def expect(self, token: int) -> None:
        self._waiting[token] = trio.Event()

    def passed(self, token: int) -> None:
        if token in self._waiting:
            self._waiting[token].set()

    async def wait(self, token: int) -> None:
        """Return when the descriptor with this token is released."""
        await self._waiting[token].wait()
        del self._waiting[token]


class FenceHandle(Handle):
    """What it reads is its token."""

    def __init__(self, fence: Fence, token: int) -> None:
        self._fence, self._token = fence, token

    async def read(self, offset: int, size: int) -> bytes:
        self._fence.expect(self._token)
        return b"%d" % self._token

    def released(self) -> None:
        self._fence.passed(self._token)


def _lines(data: bytes) -> Iterator[str]:
    try:
        text = data.decode()
    except UnicodeDecodeError:
        raise OSError(errno.EILSEQ, os.strerror(errno.EILSEQ)) from None
    for line in text.splitlines():
        if line.strip():
            yield line.strip()


class Node:
    """A node of `.snapfs`: its kind and its name in there."""

    mode = 0
    listed = True

    def __init__(self, which: ControlNode, name: bytes, around: Surroundings, time_ns: int) -> None:
        self.id = control_node(which)
        self.name = name
        self._around = around
        self._time_ns = time_ns

    def attributes(self) -> pyfuse3.EntryAttributes:
        return attributes.of_own(self.id, self.mode, self._around.owner(), self._time_ns, ATTR_TIMEOUT_SECONDS)

    def open(self, token: int) -> Handle:
        """A new handle, whose own number is `token`. EISDIR for a directory."""
        raise OSError(errno.EISDIR, os.strerror(errno.EISDIR))

    def may_change(self) -> bool:
        """Whether a change of size is let pass, as `>` and O_TRUNC make it."""
        return False


class DirectoryNode(Node):
    """`.snapfs` and `snapshots`; what they list is not theirs to know."""

    mode = stat.S_IFDIR | 0o555


class StatusNode(Node):
    mode = stat.S_IFREG | 0o444

    def open(self, token: int) -> Handle:
        return TextHandle(self._around.status)


class MetricsNode(Node):
    mode = stat.S_IFREG | 0o444

    def open(self, token: int) -> Handle:
        return TextHandle(self._around.metrics)


class CommandNode(Node):
    mode = stat.S_IFREG | 0o600

    def open(self, token: int) -> Handle:
        return ControlHandle(self._around.command, self._around.journal, token)

    def may_change(self) -> bool:
        return True


class FenceNode(Node):
    """Opened by the daemon itself only."""

    mode = stat.S_IFREG | 0o400
    listed = False

    def __init__(self, fence: Fence, which: ControlNode, name: bytes, around: Surroundings, time_ns: int) -> None:
        super().__init__(which, name, around, time_ns)
        self._fence = fence

    def open(self, token: int) -> Handle:
        return FenceHandle(self._fence, token)


def make_nodes(around: Surroundings, fence: Fence, time_ns: int) -> dict[NodeId, Node]:
    """All nodes of `.snapfs`, by id. `time_ns` is what their times show."""
    kinds: list[tuple[Callable[..., Node], ControlNode, bytes]] = [
        (DirectoryNode, ControlNode.DIRECTORY, b".snapfs"),
        (CommandNode, ControlNode.CONTROL, b"control"),
        (StatusNode, ControlNode.STATUS, b"status"),
        (MetricsNode, ControlNode.METRICS, b"metrics"),
        (DirectoryNode, ControlNode.SNAPSHOTS, b"snapshots"),
        (partial(FenceNode, fence), ControlNode.FENCE, b"fence"),
    ]
    nodes = [kind(which, name, around, time_ns) for kind, which, name in kinds]
    return {node.id: node for node in nodes}

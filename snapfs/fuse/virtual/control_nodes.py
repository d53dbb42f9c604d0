"""The nodes of `.snapfs` itself: `control`, `status`, `metrics` and the `snapshots` directory.

One small class per kind of node. A node has attributes and opens a *handle*; a handle reads and writes.
The kernel's page cache is bypassed (direct I/O): sizes are 0, and each read and write arrives as it was made.

Invariants:
1. A write to `control` returns when its command is done: 0 if it succeeded, else the errno of its failure. The
   explanation is in the reply, readable on the same descriptor as one line of JSON, and in `status`.
2. Offsets mean nothing on `control`: a read takes the next bytes of the reply to the last write, then finds its end.
3. A read of `status` or `metrics` at offset 0 takes a fresh picture, later ones go on in it: what a reader puts
   together is one instant, and a descriptor that outlives a daemon goes on with the next one.
4. A command that is sent again, because the daemon died over it, is done once: see command_log.py.
5. Who may give a command (snapfs/control/permissions.py) is decided before it is noted as begun, so that one that an
   earlier daemon began, and that is sent again, was permitted.
6. The kernel holds the inode's lock during a write, so commands of several writers queue there, in order, and at most
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

from snapfs.fuse.nodes import virtual_attributes
from snapfs.fuse.nodes.node_ids import ControlNode, NodeId, control_node
from snapfs.fuse.virtual.caller import Caller
from snapfs.fuse.virtual.command_log import CommandLog

ATTR_TIMEOUT_SECONDS = 1.0
MAX_COMMAND_BYTES = 65536


@dataclass(frozen=True, slots=True)
class Reply:
    """What a command answers: one line of JSON, and the errno that the write fails with (0: it succeeded)."""

    line: bytes
    errno: int = 0


class ControlContext(Protocol):
    """What the nodes need of the daemon."""

    def owner(self) -> tuple[int, int]:
        """uid and gid of the root directory of the live tree."""

    def status(self) -> bytes: ...
    def metrics(self) -> bytes: ...
    async def command(self, line: str, since: int | None, caller: Caller | None = None) -> Reply:
        """`since`: an earlier daemon began this command when the newest snapshot had that number. `caller`: who opened
        the file, None if that was while an earlier daemon served."""
        ...

    def refused(self, lines: list[str], caller: Caller | None) -> Reply | None:
        """The reply to the first of these commands that `caller` may not give; None if all are permitted."""
        ...

    @property
    def commands_mode(self) -> int:
        """The permission bits of `control`."""
        ...

    @property
    def command_log(self) -> CommandLog: ...


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

    def __init__(
        self,
        run: Callable[[str, int | None], Awaitable[Reply]],
        command_log: CommandLog,
        token: int,
        refused: Callable[[list[str]], Reply | None] = lambda lines: None,
    ) -> None:
        """`refused(lines)`: the reply to commands that the opener of this may not give, None if they may be run."""
        self._run, self._refused = run, refused
        self._command_log, self._token = command_log, token
        self._reply = command_log.unread(token)

    async def read(self, offset: int, size: int) -> bytes:
        part, self._reply = self._reply[:size], self._reply[size:]
        return part

    async def write(self, offset: int, data: bytes) -> int:
        self._reply = b""
        if len(data) > MAX_COMMAND_BYTES:
            raise OSError(errno.E2BIG, os.strerror(errno.E2BIG))
        lines = list(_lines(data))
        if self._command_log.past(self._token) is None and (refused := self._refused(lines)) is not None:
            self._reply = refused.line
            raise OSError(refused.errno, os.strerror(refused.errno))
        past = self._command_log.begin(self._token)
        if past is not None and past.reply is not None:
            self._reply, number = past.reply, past.errno
        else:
            number = await self._run_all(lines, None if past is None else past.newest)
            self._command_log.end(self._token, self._reply, number)
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
        self._command_log.closed(self._token)


class FenceSwitch:
    """Waits until the kernel's earlier background requests have been received.

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

    def __init__(self, fence: FenceSwitch, token: int) -> None:
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

    def __init__(self, which: ControlNode, name: bytes, context: ControlContext, time_ns: int) -> None:
        self.id = control_node(which)
        self.name = name
        self._context = context
        self._time_ns = time_ns

    def attributes(self) -> pyfuse3.EntryAttributes:
        return virtual_attributes.of_own(self.id, self.mode, self._context.owner(), self._time_ns, ATTR_TIMEOUT_SECONDS)

    def open(self, token: int, caller: Caller | None = None) -> Handle:
        """A new handle, whose own number is `token`, for a process, None if it is unknown. EISDIR for a directory."""
        raise OSError(errno.EISDIR, os.strerror(errno.EISDIR))

    def may_change(self) -> bool:
        """Whether a change of size is let pass, as `>` and O_TRUNC make it."""
        return False


class DirectoryNode(Node):
    """`.snapfs` and `snapshots`; what they list is not theirs to know."""

    mode = stat.S_IFDIR | 0o555


class StatusNode(Node):
    mode = stat.S_IFREG | 0o444

    def open(self, token: int, caller: Caller | None = None) -> Handle:
        return TextHandle(self._context.status)


class MetricsNode(Node):
    mode = stat.S_IFREG | 0o444

    def open(self, token: int, caller: Caller | None = None) -> Handle:
        return TextHandle(self._context.metrics)


class CommandNode(Node):
    def attributes(self) -> pyfuse3.EntryAttributes:
        mode = stat.S_IFREG | self._context.commands_mode
        return virtual_attributes.of_own(self.id, mode, self._context.owner(), self._time_ns, ATTR_TIMEOUT_SECONDS)

    def open(self, token: int, caller: Caller | None = None) -> Handle:
        context = self._context
        refused = partial(context.refused, caller=caller)
        return ControlHandle(partial(context.command, caller=caller), context.command_log, token, refused)

    def may_change(self) -> bool:
        return True


class FenceNode(Node):
    """Opened by the daemon itself only."""

    mode = stat.S_IFREG | 0o400
    listed = False

    def __init__(
        self, fence: FenceSwitch, which: ControlNode, name: bytes, context: ControlContext, time_ns: int
    ) -> None:
        super().__init__(which, name, context, time_ns)
        self._fence = fence

    def open(self, token: int, caller: Caller | None = None) -> Handle:
        return FenceHandle(self._fence, token)


def make_nodes(context: ControlContext, fence: FenceSwitch, time_ns: int) -> dict[NodeId, Node]:
    """All nodes of `.snapfs`, by id. `time_ns` is what their times show."""
    kinds: list[tuple[Callable[..., Node], ControlNode, bytes]] = [
        (DirectoryNode, ControlNode.DIRECTORY, b".snapfs"),
        (CommandNode, ControlNode.CONTROL, b"control"),
        (StatusNode, ControlNode.STATUS, b"status"),
        (MetricsNode, ControlNode.METRICS, b"metrics"),
        (DirectoryNode, ControlNode.SNAPSHOTS, b"snapshots"),
        (partial(FenceNode, fence), ControlNode.FENCE, b"fence"),
    ]
    nodes = [kind(which, name, context, time_ns) for kind, which, name in kinds]
    return {node.id: node for node in nodes}

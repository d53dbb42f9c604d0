"""Bounds on the connections of a mirror: which are accepted, decided before anything is spent on them.

A connection is accepted here and not by asyncio, so that the bounds are kept before a TLS handshake begins, which costs
time and some 300 KB. It is *unauthenticated* until a request with a valid token came over it.

Invariants:
1. There are at most `most` connections, at most half of them unauthenticated; from one address (of IPv6 one /64) at
   most `per_address`, and a quarter of `most` unauthenticated ones. One more is reset at once.
2. Before that, the oldest unauthenticated connection is closed, if it is at least PATIENCE_SECONDS old: of the same
   address where that address has reached its bound, of all where the total has. So connections that are only held
   open keep no other out for longer, from however many addresses; and no authenticated one is closed for another.
3. A connection without a request FIRST_REQUEST_SECONDS after it was accepted, handshake included, is closed.
4. Where the process has no descriptor left, accepting waits a moment; nothing else does.
5. After a storm the memory that it took is given back to the system.

All of it runs in the loop's thread.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import errno
import ipaddress
import logging
import socket
import ssl
import struct
import weakref
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

log = logging.getLogger(__name__)

PATIENCE_SECONDS: Final = 2.0
FIRST_REQUEST_SECONDS: Final = 30.0
HANDSHAKE_SECONDS: Final = 15.0
BACKLOG: Final = 128
STORM: Final = 32
"""After so many connections fewer than at the peak, memory is given back."""
_TRIM_SECONDS: Final = 5.0
_NO_DESCRIPTORS: Final = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)


class AuthenticatedConnections:
    """The connections over which a valid token came."""

    def __init__(self) -> None:
        self._transports: weakref.WeakSet[asyncio.BaseTransport] = weakref.WeakSet()

    def add(self, transport: asyncio.BaseTransport | None) -> None:
        if transport is not None:
            self._transports.add(transport)

    def __contains__(self, transport: object) -> bool:
        return transport in self._transports


@dataclass(slots=True, eq=False)
class _Connection:
    address: str
    since_s: float
    sock: socket.socket
    handler: Any
    handshake: asyncio.Task[None] | None = field(default=None)

    @property
    def is_gone(self) -> bool:
        return (self.handshake is None or self.handshake.done()) and self.handler.transport is None


@dataclass(frozen=True, slots=True)
class ConnectionLimits:
    """Connections at a time."""

    most: int = 512
    per_address: int = 384

    @property
    def unauthenticated(self) -> int:
        return max(self.most // 2, 1)

    @property
    def unauthenticated_per_address(self) -> int:
        return max(min(self.per_address, self.most // 4), 1)


class ConnectionLimiter:
    """Accepts connections within the limits.

    `handler` makes the protocol of one connection, which has a `transport` as long as the connection is open.
    """

    def __init__(
        self,
        handler: Callable[[], Any],
        authenticated: AuthenticatedConnections,
        limits: ConnectionLimits,
        refused: Callable[[], None],
    ) -> None:
        self._handler, self._limits, self._refused = handler, limits, refused
        self._authenticated = authenticated
        self._connections: list[_Connection] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._peak = 0
        self._trim: asyncio.TimerHandle | None = None

    def __len__(self) -> int:
        """How many connections there are, those in their handshake among them."""
        self._purge()
        return len(self._connections)

    async def listen(self, host: str, port: int, context: ssl.SSLContext | None) -> list[socket.socket]:
        """Listen at every address of the host, and accept connections from now on. Raises OSError."""
        loop = asyncio.get_running_loop()
        found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        listening: list[socket.socket] = []
        try:
            for family, kind, protocol, _, address in dict.fromkeys(found):
                listening.append(_bound(family, kind, protocol, address))
        except OSError:
            for each in listening:
                each.close()
            raise
        for each in listening:
            self._begin(self._accept(each, context))
        return listening

    async def close(self) -> None:
        """Accept no connection any more, and break off the handshakes that are under way."""
        if self._trim is not None:
            self._trim.cancel()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    # -- accepting

    async def _accept(self, listening: socket.socket, context: ssl.SSLContext | None) -> None:
        loop = asyncio.get_running_loop()
        with listening:
            while True:
                try:
                    sock, address = await loop.sock_accept(listening)
                except OSError as error:
                    if error.errno in _NO_DESCRIPTORS:
                        log.warning("no connection is accepted for a moment: %s", error)
                    await asyncio.sleep(0.5 if error.errno in _NO_DESCRIPTORS else 0.01)
                    continue  # else it was gone before it was accepted
                group = group_of(str(address[0]))
                if not self._has_room(group, loop.time()):
                    self._refused()
                    _reset(sock)
                    continue
                connection = _Connection(group, loop.time(), sock, self._handler())
                self._connections.append(connection)
                self._peak = max(self._peak, len(self._connections))
                connection.handshake = self._begin(self._open(connection, context))
                loop.call_later(FIRST_REQUEST_SECONDS, self._close_idle, connection)
                await asyncio.sleep(0)  # let the open connections go on: sock_accept need not have waited

    async def _open(self, connection: _Connection, context: ssl.SSLContext | None) -> None:
        try:
            await asyncio.get_running_loop().connect_accepted_socket(
                lambda: connection.handler, connection.sock, ssl=context,
                ssl_handshake_timeout=HANDSHAKE_SECONDS if context is not None else None,
            )  # fmt: skip
        except (OSError, TimeoutError, ssl.SSLError):
            pass  # it is gone, or speaks no TLS; asyncio has closed it
        finally:
            self._give_back_later()

    def _has_room(self, group: str, now_s: float) -> bool:
        limits = self._limits
        same_address = [connection for connection in self._connections if connection.address == group]
        if len(self._connections) >= limits.most or len(same_address) >= limits.unauthenticated_per_address:
            self._purge()
            same_address = [connection for connection in self._connections if connection.address == group]
        unauthenticated = [connection for connection in self._connections if self._is_unauthenticated(connection)]
        unauthenticated_there = [connection for connection in unauthenticated if connection.address == group]
        is_address_full = (
            len(same_address) >= limits.per_address or len(unauthenticated_there) >= limits.unauthenticated_per_address
        )
        if is_address_full:
            return self._make_room(unauthenticated_there, now_s)
        if len(self._connections) >= limits.most or len(unauthenticated) >= limits.unauthenticated:
            return self._make_room(unauthenticated, now_s)
        return True

    def _make_room(self, unauthenticated: list[_Connection], now_s: float) -> bool:
        """Close the oldest of these, if it is old enough. Returns whether that made room."""
        oldest = min(unauthenticated, key=lambda connection: connection.since_s, default=None)
        if oldest is None or now_s - oldest.since_s < PATIENCE_SECONDS:
            return False
        self._abort(oldest)
        self._connections.remove(oldest)
        return True

    def _is_unauthenticated(self, connection: _Connection) -> bool:
        return connection.handler.transport is None or connection.handler.transport not in self._authenticated

    # -- closing

    def _abort(self, connection: _Connection) -> None:
        if connection.handler.transport is not None:
            connection.handler.transport.abort()
        elif connection.handshake is not None:
            connection.handshake.cancel()

    def _close_idle(self, connection: _Connection) -> None:
        """Close a connection that has not sent the head of a request in time."""
        if not connection.is_gone and not getattr(connection.handler, "_request_count", 1):
            self._abort(connection)
        self._give_back_later()

    def _purge(self) -> None:
        if any(connection.is_gone for connection in self._connections):
            self._connections = [connection for connection in self._connections if not connection.is_gone]

    def _give_back_later(self) -> None:
        if self._trim is None and self._peak >= STORM:
            self._trim = asyncio.get_running_loop().call_later(_TRIM_SECONDS, self._give_back)

    def _give_back(self) -> None:
        """Malloc keeps freed memory until it is trimmed; a storm is over when there are far fewer connections."""
        self._trim = None
        now = len(self)
        if now + STORM <= self._peak:
            self._peak = now
            with contextlib.suppress(OSError, AttributeError):
                ctypes.CDLL(None).malloc_trim(0)
        self._give_back_later()

    def _begin(self, work: Any) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task


def group_of(address: str) -> str:
    """What counts as one address: of IPv6 a /64, which is what one host gets."""
    try:
        found = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if isinstance(found, ipaddress.IPv6Address):
        if found.ipv4_mapped is not None:
            return str(found.ipv4_mapped)
        return str(ipaddress.ip_network((found, 64), strict=False))
    return str(found)


def _bound(family: int, kind: int, protocol: int, address: Any) -> socket.socket:
    made = socket.socket(family, kind, protocol)
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        made.bind(address)
        made.listen(BACKLOG)
        made.setblocking(False)
    except OSError:
        made.close()
        raise
    return made


def _reset(sock: socket.socket) -> None:
    """Close at once and keep nothing of it, not even TIME_WAIT."""
    with contextlib.suppress(OSError):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()

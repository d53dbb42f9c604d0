"""A mirror as a process: sockets, TLS, signals, systemd. It owns the order of start and stop.

Start: volumes are opened, sockets listen, then READY is told (to systemd, and a line on stdout for each address).
Stop (SIGTERM, SIGINT): nothing new is accepted, polls are answered, what is under way has `grace_seconds`; then volumes
are closed. A kill at any instant is as good: see mirror_volume.py. SIGHUP reads the certificate anew.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import socket
import ssl
import sys
from dataclasses import dataclass, field
from typing import Any, Final

import click
import sdnotify
from aiohttp import web

from replicator.mirror import Mirror, MirrorOptions
from replicator.mirror_server import READ_BUFFER, ServerOptions, Service
from replicator.security import Tokens, server_tls
from snapfs.blocks import Disk
from snapfs.errors import UserError
from snapfs.store.wire import DEFAULT_PORT

log = logging.getLogger(__name__)

_BACKLOG: Final = 128
_SWITCH_SECONDS: Final = 0.0005
"""The loop's turn among the threads that decode: with Python's 5 ms for each, parts came in at 2/3 of the rate."""
_HANDSHAKE_SECONDS: Final = 15.0
_FIRST_REQUEST_SECONDS: Final = 30.0


@dataclass(frozen=True, slots=True)
class Tls:
    certificate: str
    key: str
    client_ca: str | None = None


@dataclass(frozen=True, slots=True)
class ServeOptions:
    """How to serve. `listen`: HOST:PORT or [V6]:PORT each; port 0 takes a free one."""

    root: str
    tokens: str
    listen: tuple[str, ...] = (f"127.0.0.1:{DEFAULT_PORT}",)
    tls: Tls | None = None
    max_connections: int = 512
    grace_seconds: float = 30.0
    mirror: MirrorOptions = field(default_factory=MirrorOptions)
    server: ServerOptions = field(default_factory=ServerOptions)


def parse_listen(text: str) -> tuple[str, int]:
    """Host and port. Raises UserError."""
    host, colon, port = text.rpartition(":")
    if not colon or not port.isdecimal() or int(port) > 65535 or not host:
        raise UserError(f"{text}: write HOST:PORT, as in 0.0.0.0:{DEFAULT_PORT} or [::]:{DEFAULT_PORT}")
    return host.removeprefix("[").removesuffix("]"), int(port)


async def serve(options: ServeOptions) -> None:
    """Serve until a signal says to stop. Raises UserError if it cannot begin."""
    sys.setswitchinterval(_SWITCH_SECONDS)
    context = None
    if options.tls is not None:
        context = server_tls(options.tls.certificate, options.tls.key, options.tls.client_ca)
    tokens = Tokens(options.tokens)
    tokens.all()
    mirror = await asyncio.to_thread(Mirror, options.root, Disk(), options.mirror)
    service = Service(mirror, tokens, options.server)
    try:
        for volume in mirror.volumes():
            for line in volume.recovered:
                log.warning("%s: %s", volume.name, line)
        for name, why in mirror.failed.items():
            log.error("%s cannot be served: %s", name, why)
        await _run(service, options, context)
    finally:
        await service.close()


async def _run(service: Service, options: ServeOptions, context: ssl.SSLContext | None) -> None:
    runner = web.AppRunner(
        service.application(), access_log=None, handle_signals=False, read_bufsize=READ_BUFFER,
        keepalive_timeout=75.0, shutdown_timeout=options.grace_seconds,
    )  # fmt: skip
    stop = asyncio.Event()
    await runner.setup()
    servers: list[asyncio.Server] = []
    try:
        assert runner.server is not None
        door = _Door(runner.server, service, options.max_connections)
        for text in options.listen:
            servers.append(await _listen(text, door, context))
        _on_signals(stop, options, context)
        service.start()
        for server in servers:
            for bound in server.sockets:
                host, port = bound.getsockname()[:2]
                place = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
                click.echo(f"listening on {'https' if context else 'http'}://{place}")
        sdnotify.SystemdNotifier().notify("READY=1")
        await stop.wait()
        log.info("stopping")
        sdnotify.SystemdNotifier().notify("STOPPING=1")
    finally:
        service.stop()
        for server in servers:
            server.close()
        await runner.cleanup()


async def _listen(text: str, door: _Door, context: ssl.SSLContext | None) -> asyncio.Server:
    host, port = parse_listen(text)
    try:
        return await asyncio.get_running_loop().create_server(
            door.open, host, port, ssl=context, backlog=_BACKLOG, reuse_address=True,
            ssl_handshake_timeout=_HANDSHAKE_SECONDS if context else None,
        )  # fmt: skip
    except (OSError, socket.gaierror) as error:
        raise UserError(f"cannot listen on {text}: {error}") from None


def _on_signals(stop: asyncio.Event, options: ServeOptions, context: ssl.SSLContext | None) -> None:
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)

    def reload() -> None:
        if context is not None and options.tls is not None:
            try:
                context.load_cert_chain(options.tls.certificate, options.tls.key)
                log.info("the certificate was read anew")
            except OSError as error:
                log.error("the certificate cannot be read, the old one stays: %s", error)

    loop.add_signal_handler(signal.SIGHUP, reload)


class _Door:
    """Lets so many connections in, and closes those that never ask for anything."""

    def __init__(self, server: Any, service: Service, most: int) -> None:
        self._server, self._most = server, most
        service.metrics.connections.set_function(lambda: len(server.connections))

    def open(self) -> asyncio.BaseProtocol:
        if len(self._server.connections) >= self._most:
            return _Full()
        handler = self._server()
        asyncio.get_running_loop().call_later(_FIRST_REQUEST_SECONDS, _close_idle, handler)
        return handler  # type: ignore[no-any-return]


class _Full(asyncio.Protocol):
    """One connection too many."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        with contextlib.suppress(OSError):
            transport.close()


def _close_idle(handler: Any) -> None:
    """Whoever has not sent the head of a request by now is not going to."""
    if handler.transport is not None and not getattr(handler, "_request_count", 1):
        handler.transport.close()

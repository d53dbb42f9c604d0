"""A mirror as a process: sockets, TLS, signals, systemd. It owns the order of start and stop.

Start: volumes are opened, sockets listen, then READY is reported (to systemd, and a line on stdout for each address).
Stop (SIGTERM, SIGINT): nothing new is accepted, polls are answered, what is under way has `grace_seconds`; then volumes
are closed. A kill at any instant is as good: see mirror_volume.py. SIGHUP reads the certificate anew.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
import ssl
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

import click
from aiohttp import web

from replicator.mirror.connection_limits import ConnectionLimiter, ConnectionLimits
from replicator.mirror.mirror import Mirror, MirrorOptions
from replicator.mirror.mirror_server import READ_BUFFER, MirrorService, ServerOptions
from replicator.mirror.tokens import Tokens, server_tls
from snapfs.base import systemd
from snapfs.base.blocks import Disk
from snapfs.base.errors import UserError
from snapfs.store.protocol.wire import DEFAULT_PORT

log = logging.getLogger(__name__)

SITE: Final = "/console"
_SWITCH_SECONDS: Final = 0.0005
"""The loop's turn among the threads that decode: with Python's 5 ms for each, parts came in at 2/3 of the rate."""


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
    max_per_address: int = 0  # three quarters of that
    grace_seconds: float = 30.0
    site: Callable[[MirrorService, bool], web.Application] | None = None
    """Makes what is served below SITE besides the protocol; called with whether there is TLS."""
    mirror: MirrorOptions = field(default_factory=MirrorOptions)
    server: ServerOptions = field(default_factory=ServerOptions)


def parse_listen(text: str) -> tuple[str, int]:
    """Host and port. Raises UserError."""
    host, colon, port = text.rpartition(":")
    if not colon or not port.isdecimal() or int(port) > 65535 or not host:
        raise UserError(f"{text}: write HOST:PORT, as in 0.0.0.0:{DEFAULT_PORT} or [::]:{DEFAULT_PORT}")
    return host.removeprefix("[").removesuffix("]"), int(port)


async def serve(options: ServeOptions) -> None:
    """Serve until a signal to stop. Raises UserError if it cannot begin."""
    sys.setswitchinterval(_SWITCH_SECONDS)
    context = None
    if options.tls is not None:
        context = server_tls(options.tls.certificate, options.tls.key, options.tls.client_ca)
    tokens = Tokens(options.tokens)
    tokens.all()
    mirror = await asyncio.to_thread(Mirror, options.root, Disk(), options.mirror)
    service = MirrorService(mirror, tokens, options.server)
    try:
        for volume in mirror.volumes():
            for line in volume.recovered:
                log.warning("%s: %s", volume.name, line, extra={"volume": volume.name})
        for name, why in mirror.failed.items():
            log.error("%s cannot be served: %s", name, why, extra={"volume": name})
        await _run(service, options, context)
    finally:
        await service.close()


async def _run(service: MirrorService, options: ServeOptions, context: ssl.SSLContext | None) -> None:
    application = service.application()
    if options.site is not None:
        application.add_subapp(SITE, options.site(service, context is not None))
    runner = web.AppRunner(
        application, access_log=None, handle_signals=False, read_bufsize=READ_BUFFER,
        keepalive_timeout=75.0, shutdown_timeout=options.grace_seconds,
    )  # fmt: skip
    stop = asyncio.Event()
    await runner.setup()
    assert runner.server is not None
    limits = ConnectionLimits(
        options.max_connections, options.max_per_address or max(options.max_connections * 3 // 4, 1)
    )
    limiter = ConnectionLimiter(runner.server, service.authenticated, limits, service.metrics.refused.inc)
    service.metrics.connections.set_function(lambda: len(limiter))
    try:
        listening = [each for text in options.listen for each in await _listen(text, limiter, context)]
        _on_signals(stop, options, context)
        service.start()
        for bound in listening:
            host, port = bound.getsockname()[:2]
            place = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
            click.echo(f"listening on {'https' if context else 'http'}://{place}")
        systemd.notify("READY=1")
        await stop.wait()
        log.info("stopping")
        systemd.notify("STOPPING=1")
    finally:
        service.stop()
        await limiter.close()
        await runner.cleanup()


async def _listen(text: str, limiter: ConnectionLimiter, context: ssl.SSLContext | None) -> list[socket.socket]:
    host, port = parse_listen(text)
    try:
        bound = await limiter.listen(host, port, context)
        if host == "::":  # all addresses, as elsewhere; the socket for it is of IPv6 alone
            bound += await limiter.listen("0.0.0.0", bound[0].getsockname()[1], context)
        return bound
    except (OSError, socket.gaierror) as error:
        raise UserError(f"cannot listen on {text}: {error}; choose another with --listen") from None


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

"""The stream of server-sent events that keeps open pages up to date.

An event names a volume and its revision, and nothing else: the page fetches itself anew.

Invariants:
1. At most STREAMS at a time, PER_SESSION of one session.
2. A stream ends with its session, with the right of its token to read, with the mirror, and with its reader.
"""

from __future__ import annotations

import asyncio
import time
from typing import Final

import msgspec
from aiohttp import web

from replicator.console.console_site import ConsoleSite
from replicator.mirror.tokens import Token
from snapfs.store.protocol.refusals import Refusal, refuse
from snapfs.store.protocol.wire import Right

STREAMS: Final = 128
PER_SESSION: Final = 6
_LOOK_S: Final = 1.0
_QUIET_S: Final = 15.0


class LiveEvents:
    """The handler."""

    def __init__(self, site: ConsoleSite) -> None:
        self._site = site

    async def console_events(self, request: web.Request) -> web.StreamResponse:
        session = self._site.session_of(request)
        if self._site.streams >= STREAMS or session.streams >= PER_SESSION:
            raise refuse(Refusal.BUSY, "too many live pages are open", retry_after=10.0)
        self._site.streams += 1
        session.streams += 1
        try:
            return await self._stream(request, session.token)
        finally:
            self._site.streams -= 1
            session.streams -= 1

    async def _stream(self, request: web.Request, token: Token) -> web.StreamResponse:
        seen = self._revisions(token)
        response = web.StreamResponse()
        response.content_type = "text/event-stream"
        response.charset = "utf-8"
        await response.prepare(request)
        await self._write(response, b"retry: 3000\n\n")
        said_s = time.monotonic()
        while not self._site.service.stopping and request.transport is not None:
            if self._site.session(request) is None:
                break
            now = self._revisions(token)
            for name in sorted(name for name in {*now, *seen} if now.get(name) != seen.get(name)):
                data = msgspec.json.encode({"volume": name, "revision": now.get(name, 0)})
                await self._write(response, b"event: change\ndata: " + data + b"\n\n")
                said_s = time.monotonic()
            seen = now
            if time.monotonic() - said_s > _QUIET_S:
                await self._write(response, b": still here\n\n")
                said_s = time.monotonic()
            await self._site.service.changed(_LOOK_S)
        await response.write_eof()
        return response

    def _revisions(self, token: Token) -> dict[str, int]:
        volumes = self._site.mirror.volumes()
        return {volume.name: volume.revision for volume in volumes if Right.READ in token.right_on(volume.name)}

    async def _write(self, response: web.StreamResponse, data: bytes) -> None:
        async with asyncio.timeout(self._site.service.options.silence_seconds):
            await response.write(data)

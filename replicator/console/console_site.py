"""What all pages of the console have in common: sessions, rights, rendering, and the bounds of both.

Invariants:
1. Nothing about any volume is shown without a session whose token is still good, and of a volume only what the token
   may read. Who may not read a volume gets the same answer as where there is none.
2. Facts are gathered and pages rendered in one thread, one page at a time: the console takes no thread from pushers.
3. An act takes a POST of this very site (its Origin), with the session's own secret in the form, and the right to
   admin. It is recorded in the volume's log, with the token's name, by the same step that does it.
"""

from __future__ import annotations

import asyncio
import hmac
import logging
import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final, TypeVar
from urllib.parse import parse_qs

from aiohttp import web

from replicator.console.console_sessions import ConsoleSession, Sessions
from replicator.console.login_rate import LoginRate
from replicator.console.page_templates import Templates, static_files
from replicator.console.views import display_text as text
from replicator.console.views.gathered_facts import log_path
from replicator.console.views.space_forecast import FreeSpaceSamples
from replicator.console.views.volume_history import Histories, VolumeHistory
from replicator.mirror.mirror_server import MirrorService
from replicator.mirror.tokens import Token, require
from replicator.volumes.mirror_volume import MirrorVolume
from snapfs.base.blocks import Disk
from snapfs.base.errors import SnapfsError
from snapfs.store.protocol import wire
from snapfs.store.protocol.refusals import Refusal, refuse
from snapfs.store.protocol.wire import Right

log = logging.getLogger(__name__)

BASE: Final = "/console"
FORM_BYTES: Final = 16 << 10
_FORM_TYPE: Final = "application/x-www-form-urlencoded"
_FORM_S: Final = 10.0
_FORM_FIELDS: Final = 16

Result = TypeVar("Result")


class ConsoleSite:
    """The parts of one console. Made and used within a running loop."""

    def __init__(self, service: MirrorService, is_tls: bool) -> None:
        self.service, self.mirror, self.tokens = service, service.mirror, service.tokens
        self.sessions, self.rate = Sessions(time.monotonic), LoginRate(time.monotonic)
        self.static = static_files()
        self.templates = Templates(self.static, BASE)
        self.histories, self.samples = Histories(Disk()), FreeSpaceSamples()
        self.streams = 0
        self._is_tls = is_tls
        self._cookie = "__Host-snapfs-console" if is_tls else "snapfs-console"
        self._pool = ThreadPoolExecutor(1, "console")

    # Who asks.

    def session(self, request: web.Request) -> tuple[str, ConsoleSession] | None:
        """The session of a request, and its id; None if there is none, or its token is worth nothing any more."""
        name = request.cookies.get(self._cookie, "")
        session = self.sessions.get(name) if name else None
        if session is None:
            return None
        if not self.tokens.is_good(session.token):
            self.sessions.end(name)
            return None
        self.service.authenticated.add(request.transport)
        return name, session

    def set_cookie(self, response: web.StreamResponse, name: str) -> None:
        """Of a browser session: it ends with the browser. `name` "": forget it."""
        path = "/" if self._is_tls else BASE
        options: dict[str, Any] = {"path": path, "httponly": True, "samesite": "Strict", "secure": self._is_tls}
        if name:
            response.set_cookie(self._cookie, name, **options)
        else:
            response.del_cookie(self._cookie, **options)

    def volume(self, request: web.Request, right: Right) -> MirrorVolume:
        """Raises RefusedError."""
        name, session = request.match_info["volume"], self.session_of(request)
        if not wire.VOLUME_NAME.fullmatch(name):
            raise refuse(Refusal.NOT_FOUND, "there is no such volume here, or none for this token")
        require(session.token, name, right)
        return self.mirror.get(name)

    @staticmethod
    def session_of(request: web.Request) -> ConsoleSession:
        """Of a request that the middleware has let in."""
        session: ConsoleSession = request["session"]
        return session

    # Forms.

    async def form(self, request: web.Request) -> dict[str, str]:
        """The fields of a form that this site was sent by its own page. Raises RefusedError."""
        if not is_same_origin(request.headers, request.scheme, request.host):
            raise refuse(Refusal.FORBIDDEN, "this form did not come from this site")
        if request.content_type != _FORM_TYPE or request.content_length is None:
            raise refuse(Refusal.BAD_REQUEST, "this is not a form")
        if request.content_length > FORM_BYTES:
            raise refuse(Refusal.TOO_LARGE, "this form is too large")
        async with asyncio.timeout(_FORM_S):
            body = await request.read()
        try:
            fields = parse_qs(body.decode(), keep_blank_values=True, max_num_fields=_FORM_FIELDS)
        except ValueError:
            raise refuse(Refusal.BAD_REQUEST, "this is not a form") from None
        return {name: values[0] for name, values in fields.items()}

    async def act_form(self, request: web.Request) -> dict[str, str]:
        """The fields of a form of the session. Raises RefusedError."""
        fields = await self.form(request)
        if not self.session_of(request).accepts(fields.get("csrf")):
            raise refuse(Refusal.FORBIDDEN, "this form is of another session: load the page again")
        return fields

    # Pages.

    async def page(self, request: web.Request, template: str, model: Callable[[], dict[str, Any]]) -> web.Response:
        """Gather and render in the console's thread."""
        session = self.session_of(request)
        notice, session.notice = session.notice, ""
        common = self.common(request, session, notice)
        body = await self.in_thread(lambda: self.templates.render(template, **common, **model()))
        return web.Response(text=body, content_type="text/html")

    def common(self, request: web.Request, session: ConsoleSession | None, notice: str = "") -> dict[str, Any]:
        """What every template has."""
        now_ns = time.time_ns()
        return {
            "session": session,
            "token_name": token_name(session.token) if session is not None else "",
            "notice": notice,
            "now": text.utc(now_ns),
            "now_iso": text.utc_iso(now_ns),
            "is_tls": self._is_tls,
        }

    async def in_thread(self, work: Callable[[], Result]) -> Result:
        return await asyncio.get_running_loop().run_in_executor(self._pool, work)

    def history(self, volume: MirrorVolume) -> VolumeHistory:
        """In the console's thread. Raises SnapfsError, OSError."""
        return self.histories.of(volume.name, log_path(volume))

    # In the background.

    def sample(self) -> None:
        """In the console's thread: note the free space, and follow the logs, so that no page has to read all of one."""
        volumes = self.mirror.volumes()
        self.histories.keep(frozenset(volume.name for volume in volumes))
        place = os.statvfs(self.mirror.root)
        self.samples.put(time.time(), place.f_bavail * place.f_frsize)
        for volume in volumes:
            try:
                self.history(volume)
            except (SnapfsError, OSError) as error:
                log.warning("the console cannot follow %s: %s", volume.name, error)

    async def close(self) -> None:
        await asyncio.to_thread(self._pool.shutdown)
        self.histories.close()


def token_name(token: Token) -> str:
    """As acts are recorded with it: its note, and its id, by which it is revoked."""
    return f"token {token.id} ({text.clean(token.note, 60)})" if token.note else f"token {token.id}"


def is_same_origin(headers: Any, scheme: str, host: str) -> bool:
    """Whether a browser sent a form from a page of this site: by Origin, or by Sec-Fetch-Site where there is none."""
    origin = headers.get("Origin")
    if origin is not None:
        return hmac.compare_digest(str(origin).encode(errors="surrogateescape"), f"{scheme}://{host}".encode())
    return bool(headers.get("Sec-Fetch-Site") == "same-origin")

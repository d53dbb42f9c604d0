"""The console as an application of aiohttp: its paths, its headers, and how a request of it can end.

Invariants:
1. Without a session nothing is answered but the login page and the static files, whether the path exists or not.
2. Every answer has the headers of `HEADERS`: no script, style, image or connection but this site's own files, no frame
   around it, nothing kept in a cache, and no address of a page sent to another site.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Final

from aiohttp import web

from replicator.console.console_acts import ActPages
from replicator.console.console_login import LoginPages
from replicator.console.console_pages import ReadingPages
from replicator.console.console_site import BASE, ConsoleSite
from replicator.console.live_events import LiveEvents
from replicator.mirror.mirror_server import MirrorService
from snapfs.base.errors import SnapfsError
from snapfs.store.protocol.refusals import RefusedError

log = logging.getLogger(__name__)

HEADERS: Final = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    "Cache-Control": "no-store",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
    "Referrer-Policy": "same-origin",  # with no-referrer, a form's Origin would be "null"
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}
_OPEN: Final = frozenset({"console_login_form", "console_login", "console_static"})
_SAMPLE_S: Final = 60.0
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def console_application(service: MirrorService, is_tls: bool) -> web.Application:
    """To be added below BASE."""
    site = ConsoleSite(service, is_tls)
    login, pages = LoginPages(site), ReadingPages(site)
    acts, live = ActPages(site, pages), LiveEvents(site)

    @web.middleware
    async def around(request: web.Request, handler: Handler) -> web.StreamResponse:
        if handler.__name__ not in _OPEN:
            found = site.session(request)
            if found is None:
                return _to_login(request)
            request["session"] = found[1]
        try:
            return await handler(request)
        except web.HTTPException as error:
            return await _problem(site, request, error.status, "There is nothing at this address.")
        except RefusedError as error:
            return await _problem(site, request, error.status, str(error))
        except (ConnectionError, TimeoutError):
            raise
        except (SnapfsError, OSError) as error:
            log.error("console: %s: %s", request.path, error)
            return await _problem(site, request, 500, str(error))

    async def running(application: web.Application) -> AsyncIterator[None]:
        task = asyncio.create_task(_sampling(site))
        yield
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        await site.close()

    application = web.Application(middlewares=[around])
    application.on_response_prepare.append(_add_headers)
    application.cleanup_ctx.append(running)
    volume = "/volumes/{volume}"
    application.add_routes([
        web.get("", login.console_login_form),
        web.get("/", pages.console_index),
        web.get("/login", login.console_login_form),
        web.post("/login", login.console_login),
        web.post("/logout", login.console_logout),
        web.get("/static/{name}", login.console_static),
        web.get("/events", live.console_events),
        web.get(volume, pages.console_volume),
        web.get(f"{volume}/audit", pages.console_audit),
        web.get(f"{volume}/promote", acts.console_ask),
        web.post(f"{volume}/promote", acts.console_act),
        web.get(f"{volume}/snapshots/{{number}}", pages.console_snapshot),
        web.get(f"{volume}/snapshots/{{number}}/{{act}}", acts.console_ask),
        web.post(f"{volume}/snapshots/{{number}}/{{act}}", acts.console_act),
    ])  # fmt: skip
    return application


async def _add_headers(request: web.Request, response: web.StreamResponse) -> None:
    for name, value in HEADERS.items():
        response.headers.setdefault(name, value)


async def _sampling(site: ConsoleSite) -> None:
    while True:
        try:
            await site.in_thread(site.sample)
        except OSError as error:
            log.warning("console: the free space is not known: %s", error)
        await asyncio.sleep(_SAMPLE_S)


def _to_login(request: web.Request) -> web.Response:
    if request.method in ("GET", "HEAD") and not request.path.endswith("/events"):
        return web.Response(status=303, headers={"Location": f"{BASE}/login"})
    return web.Response(status=401, text="log in first")


async def _problem(site: ConsoleSite, request: web.Request, status: int, why: str) -> web.Response:
    session = request.get("session")
    body = site.templates.render("problem.html", **site.common(request, session), status=status, why=why)
    return web.Response(text=body, content_type="text/html", status=status)

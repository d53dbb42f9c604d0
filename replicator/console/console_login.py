"""Login and logout: a token is exchanged for a session. The token itself is in no URL, no cookie and no page."""

from __future__ import annotations

import logging

from aiohttp import web

from replicator.console.console_site import BASE, ConsoleSite, token_name
from replicator.mirror.connection_limits import group_of
from snapfs.store.protocol.refusals import RefusedError

log = logging.getLogger(__name__)


class LoginPages:
    """Handlers that need no session."""

    def __init__(self, site: ConsoleSite) -> None:
        self._site = site

    async def console_login_form(self, request: web.Request) -> web.Response:
        if self._site.session(request) is not None:
            return web.Response(status=303, headers={"Location": f"{BASE}/"})
        return self._form(request)

    async def console_login(self, request: web.Request) -> web.Response:
        address = group_of(request.remote or "")
        wait_s = self._site.rate.wait_s(address)
        if wait_s:
            answer = self._form(request, f"Too many tries: wait {wait_s:.0f} seconds.", 429)
            answer.headers["Retry-After"] = str(int(wait_s) + 1)
            return answer
        fields = await self._site.form(request)
        try:
            token = self._site.tokens.check(f"Bearer {fields.get('token', '').strip()}")
        except RefusedError:
            self._site.rate.failed(address)
            log.warning("console: a login from %s with a token that is not known", request.remote)
            return self._form(request, "This mirror does not know that token.", 403)
        name, _ = self._site.sessions.begin(token)
        log.info("console: %s logged in from %s", token_name(token), request.remote)
        answer = web.Response(status=303, headers={"Location": f"{BASE}/"})
        self._site.set_cookie(answer, name)
        return answer

    async def console_logout(self, request: web.Request) -> web.Response:
        await self._site.act_form(request)
        found = self._site.session(request)
        if found is not None:
            self._site.sessions.end(found[0])
        answer = web.Response(status=303, headers={"Location": f"{BASE}/login"})
        self._site.set_cookie(answer, "")
        return answer

    async def console_static(self, request: web.Request) -> web.Response:
        found = self._site.static.get(request.match_info["name"])
        if found is None:
            raise web.HTTPNotFound
        kept = {"Cache-Control": "public, max-age=31536000, immutable"}
        return web.Response(body=found.body, content_type=found.content_type, charset="utf-8", headers=kept)

    def _form(self, request: web.Request, problem: str = "", status: int = 200) -> web.Response:
        common = self._site.common(request, None)
        body = self._site.templates.render("login.html", **common, problem=problem)
        return web.Response(text=body, content_type="text/html", status=status)

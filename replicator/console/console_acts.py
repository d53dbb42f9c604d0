"""The acts of an administrator: hold, release, drop, promote. Each is asked to be confirmed on a page of its own.

Invariant: an act is one call of the volume (mirror_volume.py), under the locks that every other request takes, and
leaves a line in the volume's log with the token's name.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from aiohttp import web

from replicator.console.console_pages import ReadingPages, snapshot_number
from replicator.console.console_site import BASE, ConsoleSite, token_name
from replicator.console.views import display_text as text
from replicator.console.views.audit_lines import IN_CONSOLE
from replicator.volumes import person_holds
from replicator.volumes.mirror_volume import MirrorVolume
from snapfs.base.errors import UserError
from snapfs.store.log.locks import Stays
from snapfs.store.protocol import wire
from snapfs.store.protocol.refusals import Refusal, RefusedError, refuse
from snapfs.store.protocol.wire import Right

log = logging.getLogger(__name__)

HOLD_DAYS: Final = {"1": 1.0, "7": 7.0, "30": 30.0, "365": 365.0, "ever": None}
_STAYS: Final = {
    Stays.LOCKED.value: "it is locked until {until} UTC",
    Stays.HELD.value: "it is held: release it first",
    Stays.NEWEST.value: "it is the newest, or the newest good one",
}
Fields = Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Act:
    """`run(volume, number, fields, who)` returns the line that the next page shows; `is_final`: nothing undoes it."""

    title: str
    run: Callable[[MirrorVolume, int, Fields, str], str]
    is_final: bool = False


def _hold(volume: MirrorVolume, number: int, fields: Fields, who: str) -> str:
    if fields.get("days") not in HOLD_DAYS:
        raise UserError("choose how long it is to be held")
    days = HOLD_DAYS[fields["days"]]
    person_holds.hold(volume, number, fields.get("why", "").strip(), days * 86400 if days else None, who)
    return f"Snapshot {number} is held{f' for {days:g} days' if days else ''}."


def _release(volume: MirrorVolume, number: int, fields: Fields, who: str) -> str:
    person_holds.release(volume, number, who)
    return f"Snapshot {number} is released."


def _drop(volume: MirrorVolume, number: int, fields: Fields, who: str) -> str:
    if fields.get("confirm", "").strip() != str(number):
        raise UserError(f"to confirm, write the snapshot's number: {number}")
    if number not in volume.repository.catalog:
        raise UserError(f"there is no snapshot {number} any more")
    for kept in volume.prune([number], f"by {who}{IN_CONSOLE}"):
        why = _STAYS.get(kept.reason, kept.reason).format(until=text.utc(kept.until_ns))
        raise UserError(f"snapshot {number} stays: {why}")
    return f"Snapshot {number} is dropped."


def _promote(volume: MirrorVolume, number: int, fields: Fields, who: str) -> str:
    holder = fields.get("holder", "").strip()
    if fields.get("confirm", "").strip() != volume.name:
        raise UserError(f"to confirm, write the volume's name: {volume.name}")
    if not wire.WRITER_ID.fullmatch(holder):
        raise UserError("a holder's name is up to 128 of letters, digits and . _ : @ -")
    volume.promote(holder, who)
    return f"Generation {volume.generation} is {holder}'s: older writers are refused from now."


SNAPSHOT_ACTS: Final = {
    "hold": Act("Hold", _hold), "release": Act("Release", _release), "drop": Act("Drop", _drop, is_final=True),
}  # fmt: skip
PROMOTE: Final = Act("Promote", _promote, is_final=True)


class ActPages:
    """Handlers of the pages that ask, and of their forms."""

    def __init__(self, site: ConsoleSite, pages: ReadingPages) -> None:
        self._site, self._pages = site, pages

    async def console_ask(self, request: web.Request) -> web.Response:
        volume = self._site.volume(request, Right.ADMIN)
        return await self._ask(request, volume)

    async def console_act(self, request: web.Request) -> web.Response:
        volume, act = self._site.volume(request, Right.ADMIN), _act_of(request)
        fields, session = await self._site.act_form(request), self._site.session_of(request)
        number, who = _number_of(request), token_name(session.token)
        try:
            session.notice = await self._site.service.change(act.run, volume, number, fields, who)
        except (UserError, RefusedError) as error:
            answer = await self._ask(request, volume, str(error), fields)
            answer.set_status(409)
            return answer
        log.warning("console: %s: %s of %s%s", who, act.title.lower(), volume.name, f" {number}" if number else "")
        place = f"{BASE}/volumes/{volume.name}"
        stays = number and act is not SNAPSHOT_ACTS["drop"]
        return web.Response(status=303, headers={"Location": f"{place}/snapshots/{number}" if stays else place})

    async def _ask(
        self, request: web.Request, volume: MirrorVolume, problem: str = "", fields: Fields | None = None
    ) -> web.Response:
        number, act = _number_of(request), _act_of(request)

        def model() -> dict[str, Any]:
            subject = self._pages.snapshot(volume, number) if number else self._pages.volume(volume, "", 0)
            asked = {"act": act, "act_name": request.match_info.get("act", "promote"), "number": number}
            return {
                **subject,
                **asked,
                "problem": text.clean(problem, 300),
                "fields": fields or {},
                "days": list(HOLD_DAYS),
            }

        return await self._site.page(request, "act.html", model)


def _act_of(request: web.Request) -> Act:
    name = request.match_info.get("act")
    if name is None:
        return PROMOTE
    if name not in SNAPSHOT_ACTS:
        raise refuse(Refusal.NOT_FOUND, "there is nothing at this path")
    return SNAPSHOT_ACTS[name]


def _number_of(request: web.Request) -> int:
    return snapshot_number(request) if "number" in request.match_info else 0

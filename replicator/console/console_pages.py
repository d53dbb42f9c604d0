"""The pages to read: all volumes, one volume, one snapshot, the audit log."""

from __future__ import annotations

import os
import time
from typing import Any, Final

from aiohttp import web

from replicator.console.console_site import ConsoleSite
from replicator.console.views import display_text as text
from replicator.console.views import page_models, plots
from replicator.console.views.arrival_buckets import RANGES, range_named
from replicator.console.views.audit_lines import audit_line
from replicator.console.views.gathered_facts import gather, holds_of, page_of_numbers, snapshot_facts
from replicator.console.views.space_forecast import forecast
from replicator.mirror.mirror_requests import number_of
from replicator.mirror.tokens import Token
from replicator.volumes.mirror_volume import MirrorVolume
from snapfs.base.errors import SnapfsError
from snapfs.store.protocol.refusals import Refusal, refuse
from snapfs.store.protocol.wire import Right

PAGE: Final = 50
AUDIT_PAGE: Final = 100
_DAYS: Final = RANGES[1]
_HIGHEST: Final = (1 << 63) - 1


class ReadingPages:
    """Handlers of what is read. Each model is made in the console's thread."""

    def __init__(self, site: ConsoleSite) -> None:
        self._site = site

    async def console_index(self, request: web.Request) -> web.Response:
        token, only = self._site.session_of(request).token, request.query.get("only") == "trouble"
        return await self._site.page(request, "index.html", lambda: self.index(token, only_trouble=only))

    async def console_volume(self, request: web.Request) -> web.Response:
        volume, chosen = self._site.volume(request, Right.READ), request.query.get("range", "")
        before = number_of(request.query.get("before", "0"), "before", _HIGHEST)
        is_admin = self._is_admin(request, volume)
        return await self._site.page(
            request, "volume.html", lambda: {**self.volume(volume, chosen, before), "is_admin": is_admin}
        )

    async def console_snapshot(self, request: web.Request) -> web.Response:
        volume, number = self._site.volume(request, Right.READ), snapshot_number(request)
        is_admin = self._is_admin(request, volume)
        return await self._site.page(
            request, "snapshot.html", lambda: {**self.snapshot(volume, number), "is_admin": is_admin}
        )

    async def console_audit(self, request: web.Request) -> web.Response:
        volume = self._site.volume(request, Right.READ)
        skip = number_of(request.query.get("skip", "0"), "skip", 1 << 32)
        return await self._site.page(request, "audit.html", lambda: self.audit(volume, skip))

    def index(self, token: Token, *, only_trouble: bool) -> dict[str, Any]:
        """All volumes that a token may read, or those of them that have trouble."""
        now_ns, rows, stored, incoming = time.time_ns(), list[page_models.VolumeRow](), 0, 0.0
        failed = {name: why for name, why in self._site.mirror.failed.items() if Right.READ in token.right_on(name)}
        for volume in self._site.mirror.volumes():
            if Right.READ not in token.right_on(volume.name):
                continue
            try:
                history = self._site.history(volume)
                facts, buckets = gather(volume), history.buckets(_DAYS, now_ns / 1e9)
            except (SnapfsError, OSError) as error:
                failed[volume.name] = str(error)
                continue
            rows.append(page_models.volume_row(facts, plots.spark(buckets), now_ns))
            stored += facts.stored_bytes
            age_s = max(now_ns / 1e9 - history.began_ns / 1e9, 3600.0)
            incoming += sum(bucket.stored_bytes for bucket in buckets) / min(age_s, _DAYS.span_s)
        return {
            "rows": [row for row in rows if row.trouble] if only_trouble else rows,
            "only_trouble": only_trouble,
            "total": len(rows) + len(failed),
            "failed": sorted((name, text.clean(why, 300)) for name, why in failed.items()),
            "troubled": sum(1 for row in rows if row.trouble) + len(failed),
            "space": self._space(stored, incoming, now_ns),
            "spark_buckets": _DAYS.buckets,
        }

    def volume(self, volume: MirrorVolume, chosen: str, before: int) -> dict[str, Any]:
        """One volume, with a page of its timeline: the newest snapshots below `before`, 0: of all."""
        now_ns, history, holds = time.time_ns(), self._site.history(volume), holds_of(volume)
        facts = gather(volume)
        kept = range_named(chosen, now_ns / 1e9 - history.began_ns / 1e9)
        buckets = history.buckets(kept, now_ns / 1e9)
        records, numbers = page_of_numbers(volume, before, PAGE)
        found = snapshot_facts(volume, records, holds or {})
        branches = [record.on_branch(branch) for (branch, _), record in sorted(volume.branches.items())]
        encrypted = facts.encrypted
        return {
            "name": volume.name,
            "row": page_models.volume_row(facts, "", now_ns),
            "facts": facts,
            "plots": [make(buckets, kept) for make in (plots.lag_plot, plots.churn_plot, plots.pace_plot)],
            "range": kept,
            "ranges": RANGES,
            "timeline": [page_models.snapshot_row(each, now_ns, encrypted=encrypted) for each in found],
            "pages": _pages(numbers, before, records[-1].number if records else 0),
            "branches": [
                page_models.snapshot_row(each, now_ns, encrypted=encrypted)
                for each in snapshot_facts(volume, branches[-PAGE:], {})
            ],
            "branches_left": max(len(branches) - PAGE, 0),
            "drills": [page_models.drill_row(drill, now_ns) for drill in reversed(history.drills)],
            "holders": [
                (each.generation, text.clean(each.writer_id, 60), each.snapshot)
                for each in reversed(volume.claims.successions)
            ],
            "peers": _peers(volume),
            "holds_unreadable": holds is None,
            "lock": text.span(volume.retention.lock_s) if volume.retention.lock_s else "",
            "began": page_models.moment(history.began_ns, now_ns),
            "space": self._space(facts.stored_bytes, 0.0, now_ns),
            "stored": text.size(facts.stored_bytes),
        }  # fmt: skip

    def snapshot(self, volume: MirrorVolume, number: int) -> dict[str, Any]:
        """One snapshot of the history. Raises RefusedError if there is none."""
        record = volume.repository.catalog.get(number)
        if record is None:
            raise refuse(Refusal.NOT_FOUND, f"there is no snapshot {number} of {volume.name} here")
        now_ns, holds = time.time_ns(), holds_of(volume)
        (found,) = snapshot_facts(volume, [record], holds or {})
        return {
            "name": volume.name,
            "row": page_models.snapshot_row(found, now_ns, encrypted=volume.encrypted is not None),
            "record": record,
            "seal_time": text.span(record.stats.seal_seconds),
            "encrypted": volume.encrypted is not None,
            "asked_by": f"asked for by uid {record.by.uid}" if record.by is not None else "",
            "hook_error": text.clean(record.cut.hook_error, 200),
            "group": text.clean(record.cut.group.group) if record.cut.group is not None else "",
        }

    def audit(self, volume: MirrorVolume, skip: int) -> dict[str, Any]:
        """Acts, the newest first, after so many of them."""
        history = self._site.history(volume)
        return {
            "name": volume.name,
            "lines": [audit_line(event) for event in history.acts_page(skip, AUDIT_PAGE)],
            "skip": skip,
            "newer": max(skip - AUDIT_PAGE, 0) if skip else None,
            "older": skip + AUDIT_PAGE if skip + AUDIT_PAGE < history.acts else None,
            "before": history.acts_before,
            "total": history.acts + history.acts_before,
        }

    def _space(self, stored: int, incoming: float, now_ns: int) -> page_models.SpaceModel:
        place = os.statvfs(self._site.mirror.root)
        free = place.f_bavail * place.f_frsize
        seen = forecast(self._site.samples.all(), now_ns / 1e9, free, incoming)
        return page_models.space_model(place.f_blocks * place.f_frsize, free, stored, seen, now_ns)

    def _is_admin(self, request: web.Request, volume: MirrorVolume) -> bool:
        return Right.ADMIN in self._site.session_of(request).token.right_on(volume.name)


def snapshot_number(request: web.Request) -> int:
    """Of the path. Raises RefusedError."""
    return number_of(request.match_info["number"], "a snapshot", _HIGHEST)


def _pages(numbers: list[Any], before: int, oldest: int) -> dict[str, Any]:
    """Where one gets from a page of the timeline: `before` of the newer and the older one, None where there is none."""
    newer = [number for number in numbers if number >= before][:PAGE] if before else []
    is_first = not newer
    return {
        "newer": None if is_first else (newer[-1] + 1 if len(newer) == PAGE and newer[-1] != numbers[-1] else 0),
        "older": oldest if oldest and numbers and oldest > numbers[0] else None,
        "total": len(numbers),
    }


def _peers(volume: MirrorVolume) -> list[tuple[str, str]]:
    """The other targets that the writer named: name and URL."""
    peers = volume.claims.peers
    return [(text.clean(peer.name, 60), text.clean(peer.url, 120)) for peer in peers.targets] if peers else []

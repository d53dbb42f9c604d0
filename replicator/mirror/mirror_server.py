"""The mirror's HTTP side: requests to volumes, with whatever takes long in threads, and every resource bounded.

Invariants:
1. A handler does three things in this order: who is it and may they (tokens.py), is it well formed (wire.py), do it
   in a thread (mirror_volume.py). Names from the wire reach the filesystem only through `Mirror`, which checks them.
2. Bounded: connections, requests under way, parts in flight, waiting polls, bytes of a body, time of silence, bytes per
   second if wanted. Beyond a bound the answer is "busy", never a death.
3. What was acknowledged of a part is durable; of a part that breaks off what came is kept.
4. Parts, reads, commits and upkeep have threads of their own each: none can starve the others. While a reader waits
   for an urgent read the window of pushers shrinks to one part.
5. After `stop` nothing new begins; what is under way has a while to end.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from typing import Final

from aiohttp import web

import snapfs
from replicator.mirror.mirror_incoming import Incoming
from replicator.mirror.mirror_metrics import CONTENT_TYPE
from replicator.mirror.mirror_outgoing import Outgoing
from replicator.mirror.mirror_requests import RequestRate, ServerOptions
from replicator.mirror.tokens import ALL, require
from snapfs.base.blocks import Generation
from snapfs.base.errors import SnapfsError
from snapfs.base.logs import json_lines
from snapfs.store.protocol import messages, wire
from snapfs.store.protocol.refusals import Refusal, RefusedError, refuse
from snapfs.store.protocol.wire import Right

log = logging.getLogger(__name__)

READ_BUFFER: Final = 512 << 10
"""What is read ahead of a connection."""

__all__ = ["READ_BUFFER", "MirrorService", "RequestRate", "ServerOptions"]


class MirrorService(Incoming, Outgoing):
    """The requests of one mirror. Made and used within a running loop."""

    def application(self) -> web.Application:
        app = web.Application(middlewares=[self._around], client_max_size=wire.MAX_HOT_BYTES + (1 << 20))
        add, base = app.router.add_route, wire.volumes_path()
        volume = f"{base}/{{volume}}"
        add("GET", wire.HEALTH_PATH, self._health)
        add("GET", wire.READY_PATH, self._ready)
        add("GET", wire.METRICS_PATH, self._metrics)
        add("GET", base, self._volumes)
        add("GET", wire.TOKEN_PATH, self._own_token)
        add("PUT", volume, self._create)
        add("GET", volume, self._state)
        add("POST", f"{volume}/claim", self._claim)
        add("POST", f"{volume}/promote", self._promote)
        add("GET", f"{volume}/snapshots", self._snapshots)
        add("POST", f"{volume}/lacks", self._lacks)
        add("POST", f"{volume}/parts", self._put_part)
        add("POST", f"{volume}/commit", self._commit)
        add("POST", f"{volume}/drop", self._drop)
        add("POST", f"{volume}/aside", self._aside)
        add("GET", f"{volume}/holds", self._holds)
        add("PUT", f"{volume}/holds/{{name}}", self._hold)
        add("PUT", f"{volume}/held", self._put_held)
        add("DELETE", f"{volume}/holds/{{name}}", self._release)
        add("POST", f"{volume}/collect", self._collect)
        add("GET", f"{volume}/keys", self._keys)
        add("PUT", f"{volume}/keys", self._put_keys)
        add("GET", f"{volume}/gates", self._gates)
        add("PUT", f"{volume}/gates", self._put_gates)
        add("POST", f"{volume}/objects", self._objects)
        add("GET", f"{volume}/objects/{{number}}", self._object)
        add("POST", f"{volume}/bases", self._bases)
        add("GET", f"{volume}/snapshots/{{ref}}/tables", self._tables)
        add("GET", f"{volume}/snapshots/{{ref}}/hot", self._hot)
        add("PUT", f"{volume}/snapshots/{{ref}}/hot", self._put_hot)
        return app

    def start(self) -> None:
        self._upkeep_task = asyncio.create_task(self._upkeep())

    def stop(self) -> None:
        """Begin nothing new."""
        self._stopping.set()

    async def close(self) -> None:
        """After the last request has ended."""
        self.stop()
        if self._upkeep_task is not None:
            self._upkeep_task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._upkeep_task
        for pool in (self._pushes, self._reads, self._commits, self._control, self._upkeeps):
            await asyncio.to_thread(pool.shutdown)
        await asyncio.to_thread(self.mirror.close)

    # Health and metrics.

    async def _health(self, request: web.Request) -> web.Response:
        return self._answer(messages.Health("ok", snapfs.__version__))

    async def _ready(self, request: web.Request) -> web.Response:
        """Not ready while stopping, and when the disk is full. No volume is named: the request needs no token."""
        try:
            if self._stopping.is_set():
                raise refuse(Refusal.STOPPING, "shutting down")
            await self._in(self._control, self.mirror.check_room)
        except (RefusedError, OSError) as error:
            answer = self._answer(messages.Health("not ready", snapfs.__version__, reason=str(error)))
            answer.set_status(503)
            return answer
        return self._answer(messages.Health("ready", snapfs.__version__))

    async def _metrics(self, request: web.Request) -> web.Response:
        require(self._token(request), ALL, Right.READ)
        text = await self._in(self._control, self.metrics.render)
        return web.Response(body=text, headers={"Content-Type": CONTENT_TYPE})

    # Volumes.

    async def _volumes(self, request: web.Request) -> web.Response:
        token = self._token(request)
        allowed = [volume for volume in self.mirror.volumes() if Right.READ in token.right_on(volume.name)]
        states = await self._in(self._control, lambda: [volume.state() for volume in allowed])
        return self._answer(messages.VolumeList(states))

    async def _own_token(self, request: web.Request) -> web.Response:
        token = self._token(request)
        return self._answer(messages.TokenState(token.id, token.rights, token.expires))

    async def _create(self, request: web.Request) -> web.Response:
        token, name = self._token(request), wire.check_volume_name(request.match_info["volume"])
        require(token, name, Right.PUSH)
        wanted = await self._message(request, messages.CreateVolume)
        volume = await self._in(self._commits, self.mirror.create, name, wanted)
        return self._answer(await self._in(self._control, volume.state))

    async def _state(self, request: web.Request) -> web.Response:
        volume = self._volume(request, Right.READ)
        return self._answer(await self._in(self._control, volume.state))

    async def _claim(self, request: web.Request) -> web.Response:
        volume = self._volume(request, Right.PUSH)
        claim = await self._message(request, messages.Claim)
        generation = Generation(claim.generation)
        await self._in(
            self._commits, volume.claim, generation, claim.writer_id, claim.note, claim.snapshot, claim.peers
        )
        log.info("%s: generation %d is %s's", volume.name, claim.generation, claim.writer_id)
        await self._notify_waiting()
        return self._answer(await self._in(self._control, volume.state))

    async def _promote(self, request: web.Request) -> web.Response:
        volume = self._volume(request, Right.ADMIN)
        promote = await self._message(request, messages.Promote)
        by = f"token {self._token(request).id}"
        await self._in(self._commits, volume.promote, promote.writer_id, by)
        log.warning("%s was promoted: generation %d is %s's", volume.name, volume.generation, volume.writer_id)
        await self._notify_waiting()
        return self._answer(await self._in(self._control, volume.state))

    # In the background.

    async def _upkeep(self) -> None:
        while True:
            await asyncio.sleep(self.options.upkeep_seconds)
            for volume in self.mirror.volumes():
                json_lines.volume.set(volume.name)
                try:
                    await self._in(self._upkeeps, self.mirror.upkeep, volume)
                except (SnapfsError, OSError) as error:
                    self.metrics.upkeep_failures.labels(volume.name).inc()
                    log.error("upkeep of %s: %s", volume.name, error)
                except Exception:
                    self.metrics.upkeep_failures.labels(volume.name).inc()
                    log.exception("upkeep of %s", volume.name)
            await self._notify_waiting()

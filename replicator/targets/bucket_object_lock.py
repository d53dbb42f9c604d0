"""The store's own lock of what a volume's lock keeps: S3 Object Lock, by the clock of the store, for every client.

lock.json (bucket_lock.py) binds every snapfs. Where the bucket has Object Lock, and a lock is set, each object that the
head names (segments, pages) and each version of the head is retained by the store as well: a client with the
credentials can hide them under newer versions or delete markers, and remove none of them. So the way back is there: the
newest good version of head.json, and the versions that it names (docs/snapfs-failover.7.md).

Invariants:
1. After a commit has been answered, and a claim, each object that the head names is retained for at least the lock's
   time from then on. A later commit that still names it renews that, RENEW of the lock's time ahead, so that it costs
   one request in so long.
2. The version of the head is retained for the lock's time, at most one each HEAD_SECONDS; the last one always, since a
   writer that is idle claims each minute.
3. A retention is never made shorter; where the store refuses since it is longer already, that is good.
4. The mode is the one of the bucket's own default rule, or COMPLIANCE.
5. A lock.json that cannot be read retains nothing for longer than the one before it: a retention cannot be undone.
6. A bucket without Object Lock gets one request in each run of the writer, and only if a lock is set.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import logging
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Final
from xml.etree import ElementTree

import urllib3
from obstore.store import ObjectStore, S3Store

from replicator.targets.s3_signing import S3Endpoint, encoded, headers_of, query_of
from snapfs.store.protocol.refusals import Refusal, refuse

log = logging.getLogger(__name__)

RENEW: Final = 1 / 8
HEAD_SECONDS: Final = 60.0
_REQUESTS: Final = 8
_WAITS: Final = urllib3.Timeout(connect=10, read=60)
_NOT_THERE: Final = (404, 405, 501)
"""Statuses of servers for a bucket without Object Lock, or without support for it."""


class ObjectLock:
    """Keeps what a head names by the Object Lock of the bucket of `store`, below its prefix."""

    def __init__(self, store: ObjectStore) -> None:
        self._place = S3Endpoint.of(store.config) if isinstance(store, S3Store) else None
        self._is_s3 = isinstance(store, S3Store)
        self._prefix = f"{store.prefix}/" if isinstance(store, S3Store) and store.prefix else ""
        self._mode: str | None = None  # "" if the bucket has no Object Lock
        self._until: dict[str, float] = {}
        self._head, self._head_due_s = "", float("-inf")
        self._pool = urllib3.PoolManager(maxsize=_REQUESTS, timeout=_WAITS, retries=False)

    def close(self) -> None:
        """Close the connections; they are made again when they are needed."""
        self._pool.clear()

    async def keep(self, lock_s: float, now_s: float, keys: Iterable[str], head: str, version: str) -> None:
        """Retain all that the head names, and this version of the head, for so long from now on, by the store's clock.

        Raises RefusedError, OSError.
        """
        if not lock_s or not await self._has_lock():
            return
        named = set(keys)
        self._until = {key: until for key, until in self._until.items() if key in named}
        due = [key for key in named if self._until.get(key, 0.0) < now_s + lock_s]
        room = asyncio.Semaphore(_REQUESTS)

        async def retain(key: str) -> None:
            async with room:
                until_s = now_s + lock_s * (1 + RENEW)
                await asyncio.to_thread(self._retain, key, "", until_s)
                self._until[key] = until_s

        await asyncio.gather(*map(retain, sorted(due)))
        if version and version != self._head and now_s >= self._head_due_s:
            await asyncio.to_thread(self._retain, head, version, now_s + lock_s)
            self._head, self._head_due_s = version, now_s + HEAD_SECONDS

    async def _has_lock(self) -> bool:
        if self._mode is None:
            self._mode = await asyncio.to_thread(self._read_mode) if self._is_s3 else ""
        return bool(self._mode)

    def _read_mode(self) -> str:
        """The mode of retention to use; "" without Object Lock."""
        if self._place is None:
            log.warning("object store: no key is given, so that its Object Lock, if it has one, is not used")
            return ""
        status, body = self._request("GET", "", {"object-lock": ""})
        if status in _NOT_THERE:
            return ""
        if status == 403:
            log.warning("object store: the key may not read its Object Lock (s3:GetBucketObjectLockConfiguration)")
            return ""
        _check("GetBucketObjectLockConfiguration", status, body)
        if _text(body, "ObjectLockEnabled") != "Enabled":
            return ""
        return _text(body, "Mode") or "COMPLIANCE"

    def _retain(self, key: str, version: str, until_s: float) -> None:
        query = {"retention": "", **({"versionId": version} if version else {})}
        stamp = datetime.fromtimestamp(until_s, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        body = (
            '<Retention xmlns="http://s3.amazonaws.com/doc/2006-03-01/">'
            f"<Mode>{self._mode}</Mode><RetainUntilDate>{stamp}</RetainUntilDate></Retention>"
        ).encode()
        status, answer = self._request("PUT", key, query, body)
        if status == 403 and self._is_retained(key, query, until_s):
            return
        _check(f"PutObjectRetention of {key}", status, answer)

    def _is_retained(self, key: str, query: Mapping[str, str], until_s: float) -> bool:
        """Whether it is retained for longer already."""
        status, body = self._request("GET", key, query)
        retained_until = _text(body, "RetainUntilDate") if status == 200 else ""
        return bool(retained_until) and datetime.fromisoformat(retained_until).timestamp() >= until_s

    def _request(self, method: str, key: str, query: Mapping[str, str], body: bytes = b"") -> tuple[int, bytes]:
        assert self._place is not None
        path = f"/{encoded(self._prefix + key)}" if key else ""
        more = {"content-md5": base64.b64encode(hashlib.md5(body, usedforsecurity=False).digest()).decode()}
        at = datetime.now(UTC)
        headers = headers_of(self._place, method, path, query, more if body else {}, body, at)
        try:
            answer = self._pool.request(
                method, f"{self._place.url}{path}?{query_of(query)}", body=body or None, headers=headers, redirect=False
            )
        except urllib3.exceptions.HTTPError as error:
            raise ConnectionError(f"object store: {method} {key or 'the bucket'}?{query_of(query)}: {error}") from None
        return answer.status, answer.data


def _check(what: str, status: int, body: bytes) -> None:
    """Raise what a status other than success means."""
    if 200 <= status < 300:
        return
    why = ": ".join(filter(None, (_text(body, "Code") or str(status), _text(body, "Message"))))
    if status in (401, 403):
        raise refuse(Refusal.FORBIDDEN, f"a lock is set there, and the object store does not apply it ({what}: {why})")
    raise ConnectionError(f"object store: {what}: {why}"[:300])


def _text(body: bytes, name: str) -> str:
    """The text of the first element of this name, whatever its namespace."""
    try:
        found = (each.text for each in ElementTree.fromstring(body).iter() if each.tag.rpartition("}")[2] == name)
        return next(found, None) or ""
    except ElementTree.ParseError:
        return ""

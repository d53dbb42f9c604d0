"""The lock of a volume in an object store: lock.json beside the head (snapfs/store/log/locks.py), for drops.

It binds every snapfs that writes there. It does not bind another program with the store's credentials: for
that there is the store's own object lock, which is used where the bucket has it (bucket_object_lock.py).

Invariants:
1. The file is read before each drop. One that is damaged, or of a later format, locks for LONGEST_SECONDS.
2. Pushes never write it. Setting it is a put on the condition that it is the one which was read.
3. Ages are of the store's clock: the head has the time when each snapshot was received. Of one without a time, of an
   earlier version, it is taken to be when the lock was set.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable

from replicator.targets.bucket_requests import BucketRequests, Conflict
from snapfs.base.blocks import SnapshotNumber
from snapfs.base.errors import CorruptionError, VersionError
from snapfs.store.bucket.catalog_pages import BucketCatalog
from snapfs.store.log.locks import LOCK, LOCK_FILE, LONGEST_SECONDS, Lock, LockedSnapshot, changed, kept_by

log = logging.getLogger(__name__)


class BucketLock:
    """The lock of the volume that `requests` reach."""

    def __init__(self, requests: BucketRequests) -> None:
        self._requests = requests

    async def read(self) -> Lock | None:
        """None without one; a file that cannot be read is the longest lock. Raises RefusedError, OSError."""
        found = await self._requests.find(LOCK_FILE)
        return _decoded(found.data) if found is not None else None

    async def keeps(
        self, numbers: Iterable[SnapshotNumber], catalog: BucketCatalog, now_s: float
    ) -> list[LockedSnapshot]:
        """Those of the snapshots that stay, by the store's clock."""
        lock = await self.read()
        if lock is None:
            return []
        now_ns = int(now_s * 1e9)
        return kept_by(
            numbers, lambda number: min(catalog.received_ns.get(number, lock.set_ns), now_ns), lock.seconds, now_ns
        )

    async def set(self, seconds: float, now_s: float, *, shorten: bool) -> Lock:
        """Set it, durably. Raises UserError if it gets shorter without `shorten`; RefusedError, OSError."""
        found = await self._requests.find(LOCK_FILE)
        known = _decoded(found.data) if found is not None else None
        made = changed(known, seconds, int(now_s * 1e9), shorten=shorten)
        if known is not None and known.seconds == seconds:
            return known
        try:
            await self._requests.put_if(LOCK_FILE, LOCK.encode(made), found.version if found is not None else None)
        except Conflict:
            raise ConnectionError("another process has set the lock at the same time: try again") from None
        return made


def _decoded(data: bytes) -> Lock:
    try:
        return LOCK.decode(data, f"{LOCK_FILE} in the object store")
    except (CorruptionError, VersionError) as error:
        log.error("%s: nothing is dropped there until it is set anew", str(error))
        return Lock(LONGEST_SECONDS, 0)

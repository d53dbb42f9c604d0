"""The bounds of a writer in a bucket: the store refuses what it must, its clock, the lock, and the store's retention.

Invariants:
1. Before a claim, before the first head, and each hour, the store proves that it refuses conditional puts whose
   condition fails (conditional_puts.py); one that does not is changed no more.
2. Times are the store's own, which the last of these proofs measured.
3. A new lock counts after LOCK_SECONDS at the latest, also for a writer that never stops.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Final

from obstore.store import ObjectStore

from replicator.targets.bucket_head import HeadKeeper
from replicator.targets.bucket_lock import BucketLock
from replicator.targets.bucket_object_lock import ObjectLock
from snapfs.store.bucket import conditional_puts
from snapfs.store.bucket.bucket_layout import HEAD
from snapfs.store.bucket.segment_names import segment_path
from snapfs.store.protocol.refusals import Refusal, RefusedError

LOCK_SECONDS: Final = 60.0


class BucketGuard:
    """Proves what a writer of one bucket and prefix relies on. `clock`: instead of the store's own, in seconds."""

    def __init__(
        self, store: ObjectStore, lock: BucketLock, heads: HeadKeeper, clock: Callable[[], float] | None = None
    ) -> None:
        self.clock = clock
        self.lock_s = 0.0
        """How long the lock is, as it was read last."""
        self._store, self._lock, self._heads = store, lock, heads
        self._object_lock = ObjectLock(store)
        self._lock_read_s = float("-inf")
        self._retain_s = 0.0  # how long the store itself is to keep what the head names
        self._proved_at_s = float("-inf")  # of time.monotonic
        self._ahead_s = 0.0  # of time.monotonic: the store's clock

    def now_s(self) -> float:
        """By the clock of the store, as of the last check."""
        return self.clock() if self.clock is not None else time.monotonic() + self._ahead_s

    async def prove(self) -> None:
        """Check the store, if that is due. Raises RefusedError if it cannot be used, OSError."""
        if time.monotonic() < self._proved_at_s + conditional_puts.PROVE_SECONDS:
            return
        try:
            at_s = await asyncio.to_thread(conditional_puts.prove, self._store)
        except RefusedError as error:
            self._heads.refuse_all(error if error.refusal is Refusal.UNSUPPORTED else None)
            raise
        self._heads.refuse_all(None)
        self._proved_at_s = time.monotonic()
        self._ahead_s = at_s - self._proved_at_s

    async def read_lock(self) -> None:
        lock = await self._lock.read()
        self.lock_s, self._lock_read_s = lock.seconds if lock is not None else 0.0, self.now_s()
        if lock is None or lock.set_ns:  # a damaged file locks for ever; a retention has no way back
            self._retain_s = self.lock_s

    async def retain(self) -> None:
        """Let the store itself keep what the head names, where a lock is set and the store can."""
        named = [*map(segment_path, self._heads.catalog.segments), *self._heads.head.pages]
        await self._object_lock.keep(self._retain_s, self.now_s(), named, HEAD, self._heads.version)

    async def refresh_lock(self) -> None:
        """Read the lock again after LOCK_SECONDS, and let the store itself keep what the head names."""
        if self.now_s() >= self._lock_read_s + LOCK_SECONDS:
            await self.read_lock()
        await self.retain()

    def close(self) -> None:
        self._object_lock.close()

"""What lies in an object store for nothing, and how it goes: by listing, under a tombstone, after a grace.

Garbage is what the head does not name and this writer has not staged: merged segments, replaced pages, what was lost in
a race for the head, what an earlier run left behind. It need not be remembered; a sweep finds it:

    list > tombstone (for what has none) > read the head again, and the claim in it > delete what is due

Invariants:
1. What the head names when it is deleted is not deleted, whatever is remembered of it.
2. A tombstone is durable, and the head read again after it, before a key that it names is deleted. A writer looks for
   tombstones after its claim, and uses nothing that one names. So a delete that comes late, of a writer that has been
   overtaken since it read the head, hits nothing that anybody uses; and no name is given twice (bucket_layout.py).
3. The time in a tombstone and the age that is measured against it are of the store's clock. It is a courtesy to readers
   of an older head; safety does not rest on it. A time that is as far in the future counts as one of the past.
4. Only what has a name as writers give them is touched.

A crash between two steps leaves garbage, or a tombstone of nothing, for the next sweep.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from replicator.targets.bucket_head import HeadKeeper
from replicator.targets.bucket_requests import BucketRequests
from replicator.targets.bucket_segments import BucketSegments
from snapfs.base.errors import CorruptionError, VersionError
from snapfs.store.bucket import bucket_layout, tombstones
from snapfs.store.bucket.segment_names import segment_path
from snapfs.store.bucket.tombstones import Tombstone

GRACE_SECONDS: Final = 3600.0
SWEEP_SECONDS: Final = 600.0
"""From one sweep to the next, and from the first claim to the first: so long what was sent before waits to be used."""
_FOLDERS: Final = (bucket_layout.SEGMENTS, bucket_layout.CATALOG, bucket_layout.HOT, bucket_layout.PROBE)
_KEYS: Final = 10_000
"""In one tombstone."""


class Garbage:
    """`salt`: the writer's own."""

    def __init__(self, requests: BucketRequests, heads: HeadKeeper, segments: BucketSegments, salt: str) -> None:
        self._requests, self._heads, self._segments, self._salt = requests, heads, segments, salt
        self._tombstones: dict[str, Tombstone] = {}
        self._unreadable: set[str] = set()
        self._put = 0

    async def find_strays(self) -> None:
        """Find what an earlier run sent and did not commit. Called after a claim."""
        paths = await self._requests.list(bucket_layout.SEGMENTS)
        await self._read_tombstones()
        if not self._unreadable:  # else any may be named in one
            self._segments.found(paths, self._heads.catalog.segments, self._pending_deletes())

    async def sweep(self, now_s: float) -> int:
        """Remove what is due; how many objects. Raises RefusedError if we are not the writer any more, OSError."""
        listed = [path for folder in _FOLDERS for path in await self._requests.list(folder)]
        await self._read_tombstones()
        known, used = self._pending_deletes(), self._used(listed)
        fresh = [path for path in listed if path not in known and path not in used and tombstones.may_be_garbage(path)]
        self._segments.pending_deletes(fresh)
        for keys in _chunks(fresh):
            await self._queue_delete(now_s, keys)
        await self._heads.read()
        self._heads.check_claimed()
        there = set(listed) - self._used(listed)
        due = sorted(
            path for tombstone in self._tombstones.values() if abs(now_s - tombstone.at_s) >= GRACE_SECONDS
            for path in tombstone.keys if path in there and tombstones.may_be_garbage(path)
        )  # fmt: skip
        await self._requests.delete(due)
        await self._remove_tombstones(set(listed) - set(due))
        return len(due)

    def _used(self, listed: list[str]) -> set[str]:
        named = {segment_path(name) for name in self._heads.catalog.segments} | set(self._heads.head.pages)
        newest_hot = max((path for path in listed if path.startswith(f"{bucket_layout.HOT}/")), default="")
        return named | self._segments.mine() | {newest_hot}

    def _pending_deletes(self) -> set[str]:
        return {path for tombstone in self._tombstones.values() for path in tombstone.keys}

    async def _queue_delete(self, now_s: float, keys: list[str]) -> None:
        self._put += 1
        name, tombstone = f"{bucket_layout.GARBAGE}/{self._salt}{self._put:x}", Tombstone(now_s, keys)
        await self._requests.put_once(name, tombstones.encode_tombstone(tombstone))
        self._tombstones[name] = tombstone

    async def _read_tombstones(self) -> None:
        names = set(await self._requests.list(bucket_layout.GARBAGE))
        self._tombstones = {name: found for name, found in self._tombstones.items() if name in names}
        self._unreadable.clear()
        for name in sorted(names - self._tombstones.keys()):
            found = await self._requests.find(name)
            try:
                if found is not None:
                    self._tombstones[name] = tombstones.decode_tombstone(found.data, name)
            except (CorruptionError, VersionError):
                self._unreadable.add(name)

    async def _remove_tombstones(self, there: set[str]) -> None:
        """Those of nothing, and those that cannot be read: what they named has another one by now."""
        empty = [name for name, tombstone in self._tombstones.items() if there.isdisjoint(tombstone.keys)]
        await self._requests.delete([*empty, *sorted(self._unreadable)])
        for name in empty:
            del self._tombstones[name]


def _chunks(keys: list[str]) -> Iterator[list[str]]:
    for at in range(0, len(keys), _KEYS):
        yield keys[at : at + _KEYS]

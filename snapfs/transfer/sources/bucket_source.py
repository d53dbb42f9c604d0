"""An object store as a source: the layout of snapfs/store/bucket/bucket_layout.py, read by ranges, and the claim.

What a mount needs first is the head, the last few pages of the catalog, and the end of the newest segment, where the
newest tables are: that takes the same number of requests however large the store is (known_head.py,
bucket_objects.py).

Invariants:
1. What `origin`, `branches` and `snapshots` report of the head is never older than the call, and no claim succeeds but
   on the head that is there. For objects an older head is enough.
2. Nothing is changed here but the generation in the head, by a put on condition that it is the head that was judged,
   and only where the store has just proved that it refuses puts whose condition does not hold (conditional_puts.py).
"""

from __future__ import annotations

import contextlib
import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Final

from snapfs.base.blocks import Generation, Number
from snapfs.store.bucket import bucket_layout
from snapfs.store.bucket.gates_object import decode_gates
from snapfs.store.gates.gate_entries import GateEntry
from snapfs.store.log.claims import Succession
from snapfs.store.log.holds import HoldRecord
from snapfs.store.log.peers import AskedTarget
from snapfs.store.log.snapshot_records import DAMAGED, SnapshotRecord
from snapfs.store.objects.format import SEGMENT_SUFFIX, Pointer
from snapfs.store.protocol.hot_codec import Hot, unpack_hot
from snapfs.store.protocol.number_runs import Run
from snapfs.store.protocol.object_stream import Item
from snapfs.store.protocol.wire import MAX_ENCRYPTED_HOT_BYTES
from snapfs.store.protocol.wire_fields import decode_record
from snapfs.transfer.sources.bucket_objects import BucketObjects
from snapfs.transfer.sources.bucket_reader import BucketReader, GoneError, open_store
from snapfs.transfer.sources.known_head import BucketHead
from snapfs.transfer.sources.source_access import Access
from snapfs.transfer.sources.sources import Origin, needs_key

if TYPE_CHECKING:
    from obstore.store import ObjectStore

log = logging.getLogger(__name__)

REQUESTS: Final = 8
"""Under way at a time, for all callers that have several."""
CLAIMS: Final = 20
LOOKS: Final = 4
"""Attempts, where others change the head all the time."""


class BucketSource:
    """A volume in an object store, named by ``s3://BUCKET/PREFIX`` (gs, az). Any thread."""

    is_near = False

    def __init__(self, name: str, store: ObjectStore, *, whole_history: bool = False) -> None:
        """Sends no request. `whole_history`: read all pages of the catalog, not only the last ones."""
        self.name = name
        self._reader = BucketReader(name, store)
        self._pool = ThreadPoolExecutor(REQUESTS, "bucket")
        self.head = BucketHead(self._reader, self._pool, whole_history=whole_history)
        self.stored = BucketObjects(self._reader, self.head, self._pool)

    @staticmethod
    def open(url: str, access: Access, *, whole_history: bool = False) -> BucketSource:
        """Raises UserError for a URL or an access that cannot be."""
        return BucketSource(url, open_store(url, access), whole_history=whole_history)

    @property
    def requests(self) -> Counter[str]:
        """How many requests were sent, by kind."""
        return self._reader.requests

    # -- what is there

    def origin(self) -> Origin:
        found = self.encrypted_origin()
        if found.identity.encrypted:
            raise needs_key(self.name)
        return found

    def encrypted_origin(self) -> Origin:
        """As `origin`, also of an encrypted store."""
        known = self.head.read()
        newest = known.newest.generation if known.newest is not None else 1
        return Origin(known.head.identity, Generation(max(known.head.generation, newest)), known.newest)

    def writer(self) -> tuple[str, Generation, str]:
        """Volume id, the generation that was claimed last (0: none), and the writer's id."""
        head = self.head.read().head
        return head.volume, Generation(head.generation), head.writer_id

    def gates(self) -> list[GateEntry]:
        with contextlib.suppress(GoneError):
            return decode_gates(self._reader.read_whole(bucket_layout.GATES))
        return []

    def target_peers(self) -> AskedTarget:
        head = self.head.read().head
        return AskedTarget(head.target, head.peers)

    def successions(self) -> list[Succession]:
        """The writers that took over, each with the snapshot it went on from."""
        return self.head.read().head.successions

    def snapshots(self) -> list[SnapshotRecord]:
        """The snapshots; of a very long history the newest few thousand, unless the whole history was requested.

        Those that may need a segment that was lost are reported as damaged.
        """
        known, lost = self.head.read(), set[str]()
        for _ in range(LOOKS):
            sizes = self._segment_sizes()
            lost = {info.path for info in known.segments.infos if sizes.get(info.path) != info.size}
            again = self.head.read() if lost else known
            if again.head == known.head:
                break
            known = again  # merged meanwhile
        first = min((info.first for info in known.segments.infos if info.path in lost), default=None)
        if first is None:
            return list(known.snapshots)
        log.error("%s: %d segments are lost or cut off, %s the first of them", self.name, len(lost), min(lost))
        return [each if each.last_number < first else each.with_state(DAMAGED) for each in known.snapshots]

    def _segment_sizes(self) -> dict[str, int]:
        """The sizes of all segments that are there, by name."""
        found = self._reader.sizes(bucket_layout.SEGMENTS)
        prefix = f"{bucket_layout.SEGMENTS}/"
        return {path.removeprefix(prefix).removesuffix(SEGMENT_SUFFIX): size for path, size in found.items()}

    def branches(self) -> list[SnapshotRecord]:
        found = [decode_record(each.record).on_branch(each.branch) for each in self.head.read().head.branches]
        return sorted(found, key=lambda record: (record.branch, record.number))

    def hot(self, record: SnapshotRecord) -> list[Hot]:
        return unpack_hot(self.hot_bytes(record))

    def hot_bytes(self, record: SnapshotRecord) -> bytes:
        """The hot list as it was sent, which of an encrypted volume is ciphertext."""
        there = self._reader.sizes(bucket_layout.HOT)
        path = bucket_layout.newest_hot(there, record.generation, record.number)
        if path is None or there[path] > MAX_ENCRYPTED_HOT_BYTES:
            return b""
        with contextlib.suppress(GoneError):  # a newer one has taken its place
            return self._reader.read_whole(path)
        return b""

    def keys(self) -> bytes:
        return b""

    def wrapped_keys(self) -> bytes:
        """The wrapped keys of an encrypted volume."""
        return self.head.read().head.keys.encode()

    # -- objects

    def objects(self, pointers: Sequence[Pointer], *, urgent: bool = True, bases: bool = True) -> Iterator[Item]:
        return self.stored.objects({pointer.number for pointer in pointers}, bases=bases)

    def bases(self, runs: Sequence[Run]) -> list[Run]:
        return self.stored.bases({Number(number) for first, last in runs for number in range(first, last + 1)})

    def tables(self, record: SnapshotRecord, limit_bytes: int) -> Iterator[Item]:
        return self.stored.table_pages(record)

    # -- what changes something there

    def claim(self, generation: Generation, writer_id: str, note: str, snapshot: int = 0) -> None:
        for attempt in range(CLAIMS):
            known = self.head.read() if attempt else self.head.known()  # an old one is refused by the put
            head = known.head.claimed(generation, writer_id, snapshot)
            if head != known.head:
                self._reader.prove_conditions()
            if (attempt and head == known.head) or (head != known.head and self.head.replace(known, head)):
                return
        raise OSError(f"{self.name}: the head is changed by others all the time")

    def hold(self, record: SnapshotRecord, holder: str, seconds: float) -> None:
        """Does nothing: an object store has no holds of readers. Only the next writer drops the newest snapshot
        there."""

    def hold_records(self) -> list[HoldRecord]:
        return self.head.known().head.holds

    def close(self) -> None:
        self._pool.shutdown(wait=True)  # a cancelled read would leave its waiter waiting for ever

"""An encrypted volume's target as a source: what it holds is opened here, and nobody else sees ciphertext.

Invariants:
1. Whatever leaves here was opened with the volume's keys, and bears its own numbers and proofs; the fetcher checks it
   against these like any other. What does not open is named in the log and left out, as if it were not there: then it
   is asked for elsewhere. A record that does not open is that of a damaged snapshot.
2. The owner's key is read when the source is opened, and again when something is sealed with a key that came later; but
   not more often than every AGAIN_S: what is no key's at all costs no more than that.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Final, Protocol, TypeVar

from snapfs.blocks import Generation
from snapfs.errors import CorruptionError, UserError
from snapfs.store.format import Pointer
from snapfs.store.keys import WrappedKeys
from snapfs.store.records import DAMAGED, SnapshotRecord, StoreIdentity
from snapfs.store.sealing import Domain, Sealer, UnknownKeyError
from snapfs.store.stream import Item
from snapfs.store.wire import Hot, Run, unpack_hot
from snapfs.transfer.remote import Access
from snapfs.transfer.sources import Origin, Source

log = logging.getLogger(__name__)
T = TypeVar("T")

AGAIN_S: Final = 10.0


class OpaqueSource(Source, Protocol):
    """A source of which `objects` gives ciphertext, and `snapshots` masked records."""

    def opaque_origin(self) -> Origin:
        """Of the opaque store."""

    def wrapped_keys(self) -> bytes:
        """keys.json; b"" if there is none."""

    def hot_bytes(self, record: SnapshotRecord) -> bytes:
        """The hot list as it was sent; b"" if there is none."""


class SealedSource:
    """Any thread."""

    def __init__(self, inner: OpaqueSource, access: Access) -> None:
        """Asks the source for its keys. UserError for a missing or wrong key; OSError, SnapfsError."""
        self._inner, self._access = inner, access
        self.name, self.is_near = inner.name, inner.is_near
        self._lock = threading.Lock()
        self._again_s = 0.0  # when the keys may be read anew
        self._records: dict[str, SnapshotRecord] = {}
        self._wrapped, self._volume_id, self._seed, self._sealer = self._read_keys()

    def _read_keys(self) -> tuple[WrappedKeys, str, int, Sealer]:
        data = self._inner.wrapped_keys()
        if not data:
            raise UserError(f"{self.name} is encrypted, and has no keys: give another place of the same volume")
        wrapped = WrappedKeys.decode(data, self.name)
        keyring = self._access.owners_key().unwrap(wrapped, self.name)
        return wrapped, keyring.volume_id, keyring.seed_number, Sealer(keyring)

    # -- what it tells

    def origin(self) -> Origin:
        told = self._inner.opaque_origin()
        if told.identity.volume_id != self._volume_id:
            raise UserError(f"{self.name} has the keys of another volume")
        newest = self._record(told.newest) if told.newest is not None else None
        return Origin(StoreIdentity(self._volume_id, self._seed), told.generation, newest)

    def keys(self) -> bytes:
        return self._wrapped.encode()

    def snapshots(self) -> list[SnapshotRecord]:
        """Each record is decrypted once, however often they are asked for."""
        opened = [(each.sealed, self._record(each)) for each in self._inner.snapshots()]
        self._records = dict(opened)
        return [record for _, record in opened]

    def _record(self, record: SnapshotRecord) -> SnapshotRecord:
        known = self._records.get(record.sealed)
        if known is not None and known.number == record.number:
            return known.with_state(record.state)
        try:
            return self._trying(lambda sealer: sealer.open_record(record, self.name))
        except CorruptionError as error:
            log.error("%s", error)
            return record.with_state(DAMAGED)

    def hot(self, record: SnapshotRecord) -> list[Hot]:
        data = self._inner.hot_bytes(record)
        return unpack_hot(self._trying(lambda sealer: sealer.open_blob(Domain.HOT, data, self.name))) if data else []

    # -- objects

    def objects(self, pointers: Sequence[Pointer], *, urgent: bool = True, bases: bool = True) -> Iterator[Item]:
        numbers = [Pointer(pointer.number, b"") for pointer in pointers]
        return self._opened(self._inner.objects(numbers, urgent=urgent, bases=bases))

    def bases(self, runs: Sequence[Run]) -> list[Run]:
        return self._inner.bases(runs)

    def tables(self, record: SnapshotRecord, limit_bytes: int) -> Iterator[Item]:
        if self.is_near:
            return iter(())  # it cannot be walked there, and no round trip is to be saved
        return self._opened(self._inner.tables(record, limit_bytes))

    def _opened(self, items: Iterable[Item]) -> Iterator[Item]:
        for item in items:
            if item.is_absent:
                yield item
                continue
            found = self._item(item)
            if found is not None:
                yield found

    def _item(self, item: Item) -> Item | None:
        try:
            return self._trying(lambda sealer: sealer.open(item, self.name))
        except CorruptionError as error:
            log.error("%s; it is not taken", error)
            return None

    def _trying(self, work: Callable[[Sealer], T]) -> T:
        """Once more, with the keys that are there now, where the ones known do not do."""
        try:
            return work(self._sealer)
        except UnknownKeyError:
            with self._lock:
                if time.monotonic() >= self._again_s:
                    self._again_s = time.monotonic() + AGAIN_S
                    self._wrapped, _, _, self._sealer = self._read_keys()
            return work(self._sealer)

    # -- what changes something there

    def claim(self, generation: Generation, holder: str, note: str) -> None:
        self._inner.claim(generation, holder, note)

    def hold(self, record: SnapshotRecord, holder: str, seconds: float) -> None:
        self._inner.hold(record, holder, seconds)

    def close(self) -> None:
        self._inner.close()


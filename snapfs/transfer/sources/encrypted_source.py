"""An encrypted volume's target as a source: what it holds is decrypted here, and no caller sees ciphertext.

Invariants:
1. What this returns was decrypted with the volume's keys, and has its own numbers and content hashes, against which the
   fetcher checks it. What cannot be decrypted is named in the log and left out, as if it were not there: then it is
   requested elsewhere. A record that cannot be decrypted is that of a damaged snapshot.
2. The owner's key is read when the source is opened, and again when something is encrypted with a key that was added
   later; but not more often than every AGAIN_S, so that ciphertext of no key at all costs no more.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Final, Protocol, TypeVar

from snapfs.base.blocks import Generation
from snapfs.base.errors import CorruptionError, UserError
from snapfs.base.volumes.volume_files import KEYS_FILE
from snapfs.store.crypto.encryption import Domain, Encryptor, UnknownKeyError
from snapfs.store.crypto.keys import WrappedKeys
from snapfs.store.gates.gate_entries import GateEntry
from snapfs.store.log.claims import Succession
from snapfs.store.log.holds import HoldRecord
from snapfs.store.log.peers import AskedTarget
from snapfs.store.log.snapshot_records import DAMAGED, SnapshotRecord, StoreIdentity
from snapfs.store.objects.format import Pointer
from snapfs.store.protocol.hot_codec import Hot, unpack_hot
from snapfs.store.protocol.number_runs import Run
from snapfs.store.protocol.object_stream import Item
from snapfs.transfer.sources.source_access import Access
from snapfs.transfer.sources.sources import Origin, Source

log = logging.getLogger(__name__)
T = TypeVar("T")

AGAIN_S: Final = 10.0


class EncryptedStore(Source, Protocol):
    """A source whose `objects` returns ciphertext, and `snapshots` masked records."""

    def encrypted_origin(self) -> Origin:
        """Of the encrypted store."""

    def wrapped_keys(self) -> bytes:
        """keys.json; b"" if there is none."""

    def hot_bytes(self, record: SnapshotRecord) -> bytes:
        """The hot list as it was sent; b"" if there is none."""


class DecryptingSource:
    """Decrypts what an encrypted store holds. Any thread."""

    def __init__(self, inner: EncryptedStore, access: Access) -> None:
        """Reads the wrapped keys from the source. Raises UserError for a missing or wrong key; OSError, SnapfsError."""
        self._inner, self._access = inner, access
        self.name, self.is_near = inner.name, inner.is_near
        self._lock = threading.Lock()
        self._again_s = 0.0  # when the keys may be read anew
        self._records: dict[str, SnapshotRecord] = {}
        self._wrapped, self._volume_id, self._seed, self._encryptor = self._read_keys()

    def _read_keys(self) -> tuple[WrappedKeys, str, int, Encryptor]:
        data = self._inner.wrapped_keys()
        if not data:
            raise UserError(f"{self.name} is encrypted, and has no keys: give another place of the same volume")
        where = f"{self.name}/{KEYS_FILE}"
        wrapped = WrappedKeys.decode(data, where)
        keyring = self._access.owners_key().unwrap(wrapped, where)
        return wrapped, keyring.volume_id, keyring.seed_number, Encryptor(keyring)

    # -- what is there

    def origin(self) -> Origin:
        found = self._inner.encrypted_origin()
        if found.identity.volume_id != self._volume_id:
            raise UserError(f"{self.name} has the keys of another volume")
        newest = self._record(found.newest) if found.newest is not None else None
        return Origin(StoreIdentity(self._volume_id, self._seed), found.generation, newest)

    def keys(self) -> bytes:
        return self._wrapped.encode()

    def snapshots(self) -> list[SnapshotRecord]:
        """The snapshots. Each record is decrypted once, however often they are listed."""
        opened = [(each.ciphertext, self._record(each)) for each in self._inner.snapshots()]
        self._records = dict(opened)
        return [record for _, record in opened]

    def branches(self) -> list[SnapshotRecord]:
        return [self._record(each).on_branch(each.branch) for each in self._inner.branches()]

    def _record(self, record: SnapshotRecord) -> SnapshotRecord:
        known = self._records.get(record.ciphertext)
        if known is not None and known.number == record.number:
            return known.with_state(record.state)
        try:
            return self._trying(lambda encryptor: encryptor.decrypt_record(record, self.name))
        except CorruptionError as error:
            log.error("%s", error)
            return record.with_state(DAMAGED)

    def hot(self, record: SnapshotRecord) -> list[Hot]:
        data = self._inner.hot_bytes(record)
        return (
            unpack_hot(self._trying(lambda encryptor: encryptor.decrypt_blob(Domain.HOT, data, self.name)))
            if data
            else []
        )

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
            return self._trying(lambda encryptor: encryptor.decrypt(item, self.name))
        except CorruptionError as error:
            log.error("%s; it is not taken", error)
            return None

    def _trying(self, work: Callable[[Encryptor], T]) -> T:
        """Do the work; if its key is not known, once more with the keys that are there now."""
        try:
            return work(self._encryptor)
        except UnknownKeyError:
            with self._lock:
                if time.monotonic() >= self._again_s:
                    self._again_s = time.monotonic() + AGAIN_S
                    self._wrapped, _, _, self._encryptor = self._read_keys()
            return work(self._encryptor)

    def successions(self) -> list[Succession]:
        return self._inner.successions()

    def hold_records(self) -> list[HoldRecord]:
        return self._inner.hold_records()

    # -- what changes something there

    def gates(self) -> list[GateEntry]:
        return self._inner.gates()

    def target_peers(self) -> AskedTarget:
        return self._inner.target_peers()

    def claim(self, generation: Generation, writer_id: str, note: str, snapshot: int = 0) -> None:
        self._inner.claim(generation, writer_id, note, snapshot)

    def hold(self, record: SnapshotRecord, holder: str, seconds: float) -> None:
        self._inner.hold(record, holder, seconds)

    def close(self) -> None:
        self._inner.close()

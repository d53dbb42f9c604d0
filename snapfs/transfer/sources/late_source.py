"""A source that is opened when it is first needed, so that one that does not answer holds up nothing else."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence

from snapfs.base.blocks import Generation
from snapfs.store.gates.gate_entries import GateEntry
from snapfs.store.log.claims import Succession
from snapfs.store.log.holds import HoldRecord
from snapfs.store.log.peers import AskedTarget
from snapfs.store.log.snapshot_records import SnapshotRecord
from snapfs.store.objects.format import Pointer
from snapfs.store.protocol.hot_codec import Hot
from snapfs.store.protocol.number_runs import Run
from snapfs.store.protocol.object_stream import Item
from snapfs.transfer.sources.sources import Origin, Source


class LateSource:
    """A source that is opened when it is first needed, and again after it could not be."""

    def __init__(self, place: str, open_it: Callable[[str], Source]) -> None:
        self.name, self._open = place, open_it
        self.is_near = "://" not in place or place.startswith("file://")
        self._lock = threading.Lock()
        self._source: Source | None = None

    def _opened(self) -> Source:
        with self._lock:
            if self._source is None:
                self._source = self._open(self.name)
            return self._source

    def origin(self) -> Origin:
        return self._opened().origin()

    def snapshots(self) -> list[SnapshotRecord]:
        return self._opened().snapshots()

    def branches(self) -> list[SnapshotRecord]:
        return self._opened().branches()

    def objects(self, pointers: Sequence[Pointer], *, urgent: bool = True, bases: bool = True) -> Iterator[Item]:
        return self._opened().objects(pointers, urgent=urgent, bases=bases)

    def bases(self, runs: Sequence[Run]) -> list[Run]:
        return self._opened().bases(runs)

    def tables(self, record: SnapshotRecord, limit_bytes: int) -> Iterator[Item]:
        return self._opened().tables(record, limit_bytes)

    def hot(self, record: SnapshotRecord) -> list[Hot]:
        return self._opened().hot(record)

    def gates(self) -> list[GateEntry]:
        return self._opened().gates()

    def target_peers(self) -> AskedTarget:
        return self._opened().target_peers()

    def successions(self) -> list[Succession]:
        return self._opened().successions()

    def claim(self, generation: Generation, writer_id: str, note: str, snapshot: int = 0) -> None:
        self._opened().claim(generation, writer_id, note, snapshot)

    def hold(self, record: SnapshotRecord, holder: str, seconds: float) -> None:
        self._opened().hold(record, holder, seconds)

    def hold_records(self) -> list[HoldRecord]:
        return self._opened().hold_records()

    def keys(self) -> bytes:
        return self._opened().keys()

    def close(self) -> None:
        with self._lock:
            if self._source is not None:
                self._source.close()
                self._source = None

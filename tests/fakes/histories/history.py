"""A history of a model state in a real store, and the streams that would bring it to a mirror."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from pathlib import Path

from snapfs.base.blocks import Disk, Generation, Number
from snapfs.store.log.snapshot_records import CutFacts, SnapshotRecord, StoreIdentity
from snapfs.store.objects import format as fmt
from snapfs.store.objects.format import Pointer
from snapfs.store.objects.number_set import NumberSet
from snapfs.store.protocol import object_stream
from snapfs.store.repair.liveness import live_numbers
from snapfs.store.repository.repository import Repository, Transaction
from snapfs.store.tables.snapshot import SnapshotTree
from tests.fakes.histories.state_model import State

IDENTITY = StoreIdentity("ab" * 16, 4711)


class _Writer:
    """A transaction, as the model's sealer wants it."""

    def __init__(self, transaction: Transaction) -> None:
        self._transaction = transaction
        self.read = transaction.read
        self.put_page = transaction.put_page

    def put_chunk(self, plain: bytes, base: Pointer | None = None) -> Pointer:
        return self._transaction.append(self._transaction.encode_chunk(plain, base))


class History:
    """A source: its store, and the state that each snapshot holds."""

    def __init__(self, store_dir: Path, seed: int, identity: StoreIdentity = IDENTITY) -> None:
        self.repository = Repository.create(str(store_dir), identity, Disk())
        self.states: dict[int, State] = {}
        self._rng = random.Random(seed)
        self._state = State()

    def scatter(self) -> None:
        """From now on a chunk is written at random, so that there are objects of every encoding."""
        self._state.scattered = True

    def grow(
        self,
        snapshots: int,
        steps: int = 12,
        generation: int = 1,
        name: str | None = None,
        cut: CutFacts = CutFacts(),
    ) -> None:
        """Change the state and make a snapshot, so many times."""
        for _ in range(snapshots):
            before = self.repository.latest()
            old = self.states[before.number] if before else None
            tree = SnapshotTree(self.repository, before.root) if before else None
            self._state.change(self._rng, steps)
            transaction = self.repository.begin(Generation(generation))
            root = self._state.seal(_Writer(transaction), tree, old)
            record = transaction.commit(
                root,
                parent=before.number if before else None,
                name=name,
                cut_time_ns=1,
                trigger="control",
                cut=cut,
            )
            self.states[record.number] = self._state.copy()

    @property
    def records(self) -> list[SnapshotRecord]:
        return self.repository.snapshots()

    def numbers(self, *records: SnapshotRecord) -> NumberSet:
        """All objects that these snapshots need, the hard way."""
        return live_numbers(self.repository, records)

    def items(self, numbers: Iterable[Number]) -> Iterator[bytes]:
        for number in numbers:
            source, row = self.repository.index.locate(number)
            yield object_stream.item_bytes(row, source.frame(row))

    def part(self, numbers: Iterable[Number]) -> bytes:
        items = list(self.items(numbers))
        return b"".join((object_stream.stream_header(), *items, object_stream.stream_end(len(items))))

    def parts(self, numbers: Iterable[Number], size: int) -> list[bytes]:
        """In parts of up to `size` objects, each of one generation of numbers."""
        found: list[list[Number]] = []
        for number in numbers:
            new = not found or len(found[-1]) == size
            if new or fmt.generation_of(found[-1][-1]) != fmt.generation_of(number):
                found.append([])
            found[-1].append(number)
        return [self.part(part) for part in found]

    def assert_equal(self, mirror: Repository, number: int) -> None:
        """The snapshot is on the mirror as it was made."""
        self.states[number].assert_equals(SnapshotTree(mirror, mirror.find(str(number)).root))

    def close(self) -> None:
        self.repository.close()

"""A target that gets nothing but ciphertext: any other one, with encryption in front (snapfs/store/sealing.py).

The objects are sealed where they are read (`VolumeKeys.stage`, as the stage of a Source), everything else here. Whoever
uses it sees the volume's own records and numbers, as with any target.

Invariants:
1. What goes to the inner target was sealed; what comes from it was opened, and what does not open is refused.
2. The target has the wrapped keys before anything that is sealed with them.
3. A target cannot find out by itself what a snapshot needs, or what lives: `tell` says the first with each commit,
   `collect` the second.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace

from replicator.source import Part
from replicator.targets.base import Limits, SealableTarget, TargetState, Told
from replicator.volume_keys import VolumeKeys
from snapfs.blocks import Generation, Number, SnapshotNumber
from snapfs.store import wire
from snapfs.store.numbers import NumberSet
from snapfs.store.records import SnapshotRecord, StoreIdentity
from snapfs.store.sealing import Domain
from snapfs.store.wire import Refusal, refuse


class SealedTarget:
    """`name` is what it is called in messages."""

    def __init__(self, inner: SealableTarget, keys: VolumeKeys, name: str) -> None:
        self.inner, self._keys, self._name = inner, keys, name
        self._there: set[SnapshotNumber] = set()
        self._opened: dict[str, SnapshotRecord] = {}
        self._to_put = b""
        self._told = Told()

    @property
    def limits(self) -> Limits:
        return self.inner.limits

    async def open(self, identity: StoreIdentity) -> TargetState:
        state = await self.inner.open(StoreIdentity(identity.volume_id, 0, True))
        there = await self.inner.keys()
        agree = self._keys.agree
        self._to_put = await asyncio.to_thread(agree, there, self._name, is_empty=not state.snapshots)
        snapshots = await asyncio.to_thread(self._open_records, state.snapshots)
        self._there = {record.number for record in snapshots}
        return replace(state, snapshots=snapshots)

    async def claim(self, generation: Generation, holder: str) -> None:
        await self.inner.claim(generation, holder)
        if self._to_put:
            await self.inner.put_keys(self._to_put)
            self._to_put = b""

    async def lacks(self, numbers: NumberSet) -> NumberSet:
        return await self.inner.lacks(numbers)

    async def send(self, part: Part) -> int:
        return await self.inner.send(part)

    def tell(self, needs: NumberSet, first: Sequence[Number], *, whole: bool = False) -> None:
        """What the snapshots of the next commit need beyond what was acknowledged before, and what is read first.

        `whole`: all that they need, whatever was acknowledged.
        """
        self._told = Told(needs, max(self._there, default=SnapshotNumber(0)), tuple(first), whole)

    async def commit(self, records: Sequence[SnapshotRecord], *, history: bool = False) -> None:
        told, self._told = await self._fitting(self._told), Told()
        sealed = await asyncio.to_thread(lambda: [self._keys.sealer.seal_record(record) for record in records])
        await self.inner.commit(sealed, history=history, told=told)
        self._there.update(record.number for record in records)

    async def put_hot(self, number: SnapshotNumber, data: bytes) -> None:
        """Send the list of what is used most along, where the target keeps it."""
        put = getattr(self.inner, "put_hot", None)
        if put is not None:
            await put(number, self._keys.sealer.seal_blob(Domain.HOT, number, data))

    async def drop(self, numbers: Sequence[SnapshotNumber]) -> None:
        await self.inner.drop(numbers)
        self._there -= set(numbers) - {max(self._there, default=SnapshotNumber(0))}

    async def aside(self, after: SnapshotNumber, name: str) -> None:
        await self.inner.aside(after, name)
        self._there = {number for number in self._there if number <= after}

    async def collect(self, live: NumberSet) -> int:
        """Free what is not in `live`; bytes freed."""
        return await self.inner.free(live, sorted(self._there))

    async def close(self) -> None:
        await self.inner.close()

    async def _fitting(self, told: Told) -> Told:
        """What is too long for one message is asked for before it."""
        if told.needs is None or wire.fits(told.needs):
            return told
        missing = [int(number) for number in await self.inner.lacks(told.needs)]
        if missing:
            some = missing[: wire.MISSING_TOLD]
            raise refuse(Refusal.INCOMPLETE, f"{len(missing)} objects did not arrive", missing=some)
        return replace(told, needs=None)

    def _open_records(self, sealed: Sequence[SnapshotRecord]) -> tuple[SnapshotRecord, ...]:
        """Each is decrypted once, however often the target is asked."""
        sealer, known = self._keys.sealer, self._opened
        self._opened = {
            each.sealed: known.get(each.sealed) or sealer.open_record(each, self._name) for each in sealed
        }
        return tuple(self._opened[each.sealed].with_state(each.state) for each in sealed)

"""A target that gets nothing but ciphertext: any other one, with encryption in front (encryption.py).

The objects are encrypted where they are read (`VolumeKeys.stage`, as the stage of a Source), everything else here. A
caller sees the volume's own records and numbers, as with any target.

Invariants:
1. What goes to the inner target is encrypted; what comes from it is decrypted, and what cannot be is refused.
2. The target has the wrapped keys before anything that is encrypted with them.
3. A target cannot find out by itself what a snapshot needs, or what lives: `set_manifest` states the first before each
   commit, `collect` the second.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import msgspec

from replicator.source.selection import Part
from replicator.source.volume_keys import VolumeKeys
from replicator.targets.target import ContentHashOf, Manifest, SealableTarget, TargetLimits, TargetState
from snapfs.base.blocks import Generation, Number, SnapshotNumber
from snapfs.store.crypto.encryption import Domain
from snapfs.store.gates.gate_entries import GateEntry
from snapfs.store.log.holds import HoldRecord
from snapfs.store.log.locks import LockedSnapshot
from snapfs.store.log.peers import Peers
from snapfs.store.log.snapshot_records import SnapshotRecord, StoreIdentity
from snapfs.store.objects.number_set import NumberSet
from snapfs.store.protocol import number_runs, wire
from snapfs.store.protocol.refusals import Refusal, refuse


def _optional(target: SealableTarget, name: str) -> Any:
    """A method that not every target has. RefusedError if this one has not."""
    found = getattr(target, name, None)
    if found is None:
        raise refuse(Refusal.UNSUPPORTED, f"this target has no {name}")
    return found


class EncryptedTarget:
    """`name` is what it is called in messages."""

    def __init__(self, inner: SealableTarget, keys: VolumeKeys, name: str) -> None:
        self.inner, self._keys, self._name = inner, keys, name
        self._there: set[SnapshotNumber] = set()
        self._opened: dict[str, SnapshotRecord] = {}
        self._to_put = b""
        self._manifest = Manifest()

    @property
    def limits(self) -> TargetLimits:
        return self.inner.limits

    async def open(self, identity: StoreIdentity, *, make: bool = True) -> TargetState:
        state = await self.inner.open(StoreIdentity(identity.volume_id, 0, True), make=make)
        there = await self.inner.keys()
        agree = self._keys.agree
        self._to_put = await asyncio.to_thread(agree, there, self._name, is_empty=not state.snapshots)
        snapshots = await asyncio.to_thread(self._open_records, state.snapshots)
        self._there = {record.number for record in snapshots}
        return replace(state, snapshots=snapshots)

    async def claim(
        self, generation: Generation, writer_id: str, snapshot: int = 0, peers: Peers | None = None
    ) -> None:
        await self.inner.claim(generation, writer_id, snapshot, peers)
        if self._to_put:
            await self.inner.put_keys(self._to_put)
            self._to_put = b""

    async def lacks(self, numbers: NumberSet, content_hash_of: ContentHashOf | None = None) -> NumberSet:
        return await self.inner.lacks(numbers)

    async def send(self, part: Part) -> int:
        return await self.inner.send(part)

    def set_manifest(self, needs: NumberSet, first: Sequence[Number], *, whole: bool = False) -> None:
        """What the snapshots of the next commit need beyond what was acknowledged before, and what is read first.

        `whole`: all that they need, whatever was acknowledged.
        """
        self._manifest = Manifest(needs, max(self._there, default=SnapshotNumber(0)), tuple(first), whole)

    async def commit(self, records: Sequence[SnapshotRecord], *, history: bool = False) -> int:
        manifest, self._manifest = await self._fitting(self._manifest), Manifest()
        sealed = await asyncio.to_thread(lambda: [self._keys.encryptor.encrypt_record(record) for record in records])
        revision = await self.inner.commit(sealed, history=history, manifest=manifest)
        self._there.update(record.number for record in records)
        return revision

    async def put_hot(self, number: SnapshotNumber, data: bytes) -> None:
        """Send the list of what is used most along, where the target keeps it."""
        put = getattr(self.inner, "put_hot", None)
        if put is not None:
            await put(number, self._keys.encryptor.encrypt_blob(Domain.HOT, number, data))

    async def gates(self) -> list[GateEntry]:
        """What the snapshots there have passed, which is not encrypted: numbers, times, and the name of a check."""
        found: list[GateEntry] = await _optional(self.inner, "gates")()
        return found

    async def put_gates(self, entries: Sequence[GateEntry]) -> None:
        """Send that along."""
        await _optional(self.inner, "put_gates")(entries)

    async def drop(self, numbers: Sequence[SnapshotNumber], why: str = "") -> Sequence[LockedSnapshot]:
        kept = await self.inner.drop(numbers, why)
        newest = max(self._there, default=SnapshotNumber(0))
        self._there -= set(numbers) - {newest, *(each.number for each in kept)}
        return kept

    async def put_holds(self, records: Sequence[HoldRecord]) -> frozenset[SnapshotNumber]:
        """Without the reasons, which are the owner's words."""
        return await self.inner.put_holds([msgspec.structs.replace(each, why="") for each in records])

    async def branch_off(self, after: SnapshotNumber, name: str) -> None:
        await self.inner.branch_off(after, name)
        self._there = {number for number in self._there if number <= after}

    async def collect(self, live: NumberSet, below: Number = Number(0)) -> int:
        """Free what is neither in `live` nor numbered up to `below`; bytes freed."""
        return await self.inner.free(live, sorted(self._there), below)

    async def close(self) -> None:
        await self.inner.close()

    async def _fitting(self, manifest: Manifest) -> Manifest:
        """A manifest too long for one message is replaced by a query before it."""
        if manifest.needs is None or number_runs.fits(manifest.needs):
            return manifest
        missing = [int(number) for number in await self.inner.lacks(manifest.needs)]
        if missing:
            some = missing[: wire.MISSING_LISTED]
            raise refuse(Refusal.INCOMPLETE, f"{len(missing)} objects did not arrive", missing=some)
        return replace(manifest, needs=None)

    def _open_records(self, sealed: Sequence[SnapshotRecord]) -> tuple[SnapshotRecord, ...]:
        """Each is decrypted once, however often the target is opened."""
        encryptor, known = self._keys.encryptor, self._opened
        self._opened = {
            each.ciphertext: known.get(each.ciphertext) or encryptor.decrypt_record(each, self._name) for each in sealed
        }
        return tuple(self._opened[each.ciphertext].with_state(each.state) for each in sealed)

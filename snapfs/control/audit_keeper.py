"""What a daemon adds to snapshots.log by itself: how far the targets are, changed keys, signed checkpoints.

It is woken by each snapshot, and does nothing while none is made.

Invariants:
1. A line "replicated" (`target`, `snapshot`, `there`, `gone`) is written at most once in REPLICATED_EVERY_S for a
   target: the newest snapshot that it has, and what it has and does not have any more by the agent's report, where
   that differs from what the log says of it. The target's own log has each act.
2. A failure costs a line in daemon.log and nothing else; what is lacking is written after the next snapshot.
"""

from __future__ import annotations

import hashlib
import logging
import os
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

import msgspec
import trio

from snapfs.base.errors import SnapfsError
from snapfs.base.settings.audit_settings import AuditSettings
from snapfs.base.volumes.volume_files import KEYS_FILE
from snapfs.store.gates.gates import REPLICATED
from snapfs.store.gates.number_ranges import NumberRanges
from snapfs.store.log.replica_state import ReplicaReader, TargetFacts
from snapfs.store.repository.repository import Repository, SnapshotRecord

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

log = logging.getLogger(__name__)
REPLICATED_EVERY_S: Final = 60.0


def replicated_fields(target: TargetFacts, logged: NumberRanges, here: NumberRanges) -> dict[str, Any] | None:
    """Of the line about a target of which the log says `logged`; None if there is nothing to add. Pure.

    `here`: the snapshots that there are. Of a target whose list is not known, nothing is said to be gone.
    """
    known = target.known_there()
    new = known.without(logged).without(known.without(here))
    gone = NumberRanges() if isinstance(target.there, msgspec.UnsetType) else logged.without(known)
    if not new and not gone:
        return None
    lists = {"there": new.runs(), "gone": gone.runs()} if gone else {"there": new.runs()}
    return {"target": target.name, "snapshot": target.newest or target.had} | lists


class AuditKeeper:
    """Of one mounted volume. `run` in the trio thread; `note` in any one thread at a time."""

    def __init__(
        self, settings: AuditSettings, volume_path: str, repository: Repository, replicas: ReplicaReader,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:  # fmt: skip
        self._settings, self._volume_path, self._repository = settings, volume_path, repository
        self._replicas, self._clock = replicas, clock
        self._woken = trio.Event()
        self._noted_s = self._signed_s = -1e9
        self._keys = self._keys_now()
        self._key: Ed25519PrivateKey | None = None

    def wake(self, _record: SnapshotRecord) -> None:
        """A snapshot was made."""
        self._woken.set()

    async def run(self) -> None:
        """Note what there is to note after each snapshot, for ever."""
        while True:
            await self._woken.wait()
            self._woken = trio.Event()
            await trio.to_thread.run_sync(self.note)

    def note(self) -> None:
        """Write the lines that are due, durably. Never raises."""
        for what, act in (("replication", self._replicated), ("keys", self._changed_keys), ("signing", self._sign)):
            try:
                act()
            except (OSError, SnapfsError) as error:
                log.error("audit: %s could not be recorded: %s", what, error)

    def _replicated(self) -> None:
        now_s, found, catalog = self._clock(), self._replicas.look(), self._repository.catalog
        latest = catalog.latest()
        if found is None or latest is None or now_s - self._noted_s < REPLICATED_EVERY_S:
            return
        if latest.generation > found.generation:
            return  # it is of another life of the volume: its numbers may mean other snapshots
        here = NumberRanges.of(catalog.numbers())
        for each in found.targets:
            fields = replicated_fields(each, catalog.on_target(each.name), here)
            if fields is not None:
                self._repository.record_event(REPLICATED, **fields)
                self._noted_s = now_s

    def _changed_keys(self) -> None:
        now = self._keys_now()
        if now != self._keys:
            self._repository.record_event("keys-changed", keys=now)
            self._keys = now

    def _keys_now(self) -> str:
        """Which keys the volume has; "" if it has none."""
        try:
            with open(os.path.join(self._volume_path, KEYS_FILE), "rb") as file:
                return hashlib.sha256(file.read(1 << 20)).hexdigest()[:16]
        except OSError:
            return ""

    def _sign(self) -> None:
        now_s = self._clock()
        if not self._settings.sign_key or now_s - self._signed_s < self._settings.every:
            return
        from snapfs.store.audit import checkpoints  # brings `cryptography` along

        key = self._key = self._key or checkpoints.private_key(self._settings.sign_key)
        volume_id = self._repository.identity.volume_id

        def signed(lines: int, head: str) -> dict[str, Any]:
            return checkpoints.signed(key, volume_id, lines, head)

        self._repository.record_checkpoint(signed)
        self._signed_s = now_s

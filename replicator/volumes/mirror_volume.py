"""One volume on a mirror: the requests that change it. Synchronous; called from threads.

It is an ordinary volume's folder (volume.toml, store/), so that `snapfs list`, `verify` and `restore` work on it, and
it is held locked while it is served. What only a mirror has is in its log, as events: "claimed" (who writes) and
"aside" (snapshots that a new writer made a branch of).

Invariants:
1. Each change by a writer calls that writer's fence under the receiver's lock (mirror_claims.py).
2. The receiver's two locks are taken in this order: `turn`, which commits, drops and collection take, then `lock`,
   which guards each change.
"""

from __future__ import annotations

import os
from typing import Any

from replicator.volumes.mirror_content import MirrorContent
from replicator.volumes.mirror_encrypted import EncryptedVolume
from replicator.volumes.mirror_space import Pause, no_pause
from snapfs.base.blocks import Disk, Generation, SnapshotNumber
from snapfs.base.volumes.volume import Volume
from snapfs.store.gates.gate_entries import GateEntry, GateList, entries_of, lines_for
from snapfs.store.ingest.hold_writer import take_in
from snapfs.store.ingest.receiver import PartReceiver
from snapfs.store.log import snapshot_records
from snapfs.store.log.drops import PERSON, TARGET, WRITER
from snapfs.store.log.holds import MAX_RECORDS, HoldRecord
from snapfs.store.log.locks import LockedSnapshot
from snapfs.store.log.peers import Peers
from snapfs.store.log.snapshot_records import SnapshotRecord, StoreIdentity
from snapfs.store.protocol import hot_codec, messages, number_runs, wire
from snapfs.store.protocol.messages import Limits
from snapfs.store.protocol.refusals import Refusal, refuse
from snapfs.store.protocol.wire import Mode
from snapfs.store.repair.suspects import read_suspects, remove_suspects
from snapfs.store.repository.compaction import CollectReport
from snapfs.store.repository.repository import Repository
from snapfs.store.repository.store_folders import LOG, is_store


class MirrorVolume(MirrorContent):
    """An open volume of a mirror. Thread-safe."""

    @staticmethod
    def create(path: str, wanted: messages.CreateVolume, disk: Disk, **options: Any) -> MirrorVolume:
        """Make the volume, or complete one whose making was cut off, and open it.

        Raises RefusedError, CorruptionError if the volume that is there lost its log, OSError.
        """
        encrypted = wanted.mode is Mode.ENCRYPTED
        if encrypted and int(wanted.seed, 16):
            raise refuse(Refusal.BAD_REQUEST, "an encrypted volume's seed stays with its writer: send zeros")
        if not Volume.exists(path):
            Volume.create(
                path, disk, seed=int(wanted.seed, 16), volume_id=wanted.volume_id, holds_ciphertext=encrypted
            ).unlock()
        volume = Volume.open(path, disk)
        if not os.path.exists(os.path.join(volume.store_dir, LOG)):
            identity = StoreIdentity(volume.volume_id, volume.seed, volume.holds_ciphertext)
            Repository.create(volume.store_dir, identity, disk).close()
        made = MirrorVolume.open(path, disk, **options)
        try:
            made.check_identity(wanted)
        except BaseException:
            made.close()
            raise
        return made

    @staticmethod
    def exists(path: str) -> bool:
        """Whether there is a volume with a store, also one that lost its log; one whose making was cut off is none."""
        return Volume.exists(path) and is_store(os.path.join(path, "store"))

    @staticmethod
    def open(
        path: str, disk: Disk, *, cache_bytes: int = 32 << 20, max_open: int = 64, limits: Limits | None = None,
        lock_s: float = 0.0,
    ) -> MirrorVolume:  # fmt: skip
        """Lock and open the volume. Raises BusyError, UserError, CorruptionError, VersionError, OSError.

        `lock_s`: nothing that came less than so many seconds ago is dropped; a longer lock in the folder counts.
        """
        volume = Volume.open(path, disk)
        volume.lock("served by snapfs-replicator")
        try:
            return MirrorVolume(
                volume, disk, cache_bytes=cache_bytes, max_open=max_open, limits=limits or Limits(), lock_s=lock_s
            )
        except BaseException:
            volume.unlock()
            raise

    def check_identity(self, wanted: messages.CreateVolume) -> None:
        """Raises RefusedError if this is another volume."""
        if (
            wanted.volume_id == self.volume.volume_id
            and (wanted.mode is Mode.ENCRYPTED) != self.volume.holds_ciphertext
        ):
            raise refuse(Refusal.EXISTS, wire.MODE_DIFFERS[wanted.mode])
        if (wanted.volume_id, int(wanted.seed, 16)) != (self.volume.volume_id, self.volume.seed):
            why = f"another volume (id {self.volume.volume_id}) is kept here as {self.name}: choose another name"
            raise refuse(Refusal.EXISTS, why)

    # Who writes.

    def claim(
        self, generation: Generation, writer_id: str, note: str = "", snapshot: int = 0, peers: Peers | None = None
    ) -> None:
        """Make `writer_id` the only writer, as this generation; durable on return. Raises RefusedError, OSError.

        `snapshot`: the snapshot that a writer who takes over goes on from. `peers`: the other targets it replicates to.
        """
        with self.receiver.lock:
            self.claims.claim(generation, writer_id, note, snapshot, peers)

    def promote(self, writer_id: str, by: str = "") -> None:
        """Fence the present writer by the next generation. Raises OSError; UserError if there is no next one.

        `by`: the token that asked, which the log gets.
        """
        with self.receiver.lock:
            self.claims.promote(writer_id, by)

    # -- receiving

    def part(self, generation: Generation, writer_id: str) -> PartReceiver:
        """Begin to receive a part. Raises RefusedError."""
        fence = self.claims.fence(generation, writer_id)
        fence()
        return self.receiver.part(generation, fence)

    def commit(
        self,
        candidates: list[SnapshotRecord],
        history: bool,
        generation: Generation,
        writer_id: str,
        manifest: messages.Commit | None = None,
    ) -> list[SnapshotRecord]:
        """Make snapshots visible; returns those that were not. Raises RefusedError, OSError.

        `manifest`: of an encrypted volume, what its snapshots need.
        """
        late = next((record for record in candidates if record.generation > generation), None)
        if late is not None:
            raise refuse(Refusal.BAD_REQUEST, f"snapshot {late.number} is of a later generation than its sender")
        fence = self.claims.fence(generation, writer_id)
        needs = number_runs.unpack_needs(manifest.needs) if manifest is not None and manifest.needs else None
        ground = manifest.ground if manifest is not None else 0
        with self.receiver.turn:
            fence()
            self._mark_suspects(manifest)
            made = self.receiver.commit(candidates, history=history, fence=fence, needs=needs, ground=ground)
            if made:
                remove_suspects(self.volume.store_dir, self._disk)
        if made and self.encrypted is not None and manifest is not None and manifest.first:
            self.encrypted.put_first(made[-1].number, manifest.first)
        return made

    def _mark_suspects(self, manifest: messages.Commit | None) -> None:
        """Request again what cannot be read. Only the writer of an encrypted volume knows which snapshots need it: its
        next commit has to list all that they need, once."""
        known = set(self.receiver.union.suspects)
        suspects = read_suspects(self.volume.store_dir)
        if suspects:
            bad = self.receiver.suspect(suspects)
            whole = manifest is not None and manifest.whole and known.issuperset(bad)
            if bad and self.encrypted is not None and not whole:
                raise refuse(
                    Refusal.INCOMPLETE, f"{len(bad)} objects are damaged here, {bad[0]:#x} the first of them: list all "
                    "that these snapshots need", missing=[int(number) for number in bad[: wire.MISSING_LISTED]],
                )  # fmt: skip

    def branch_off(self, after: int, branch: str, generation: Generation, writer_id: str) -> None:
        """Make a branch of what older generations made after a snapshot. Raises RefusedError, OSError."""
        with self.receiver.turn, self.receiver.lock:
            self.claims.fence(generation, writer_id)()
            for record in self.repository.snapshots():
                if record.number > after and record.generation < generation:
                    fields = {"snapshot": record.number, "branch": branch, "record": snapshot_records.to_fields(record)}
                    self.repository.log.append("aside", fields)
                    self.repository.catalog.remove(record.number)
                    self.retention.forget(record.number)
                    self.branches[branch, record.number] = record

    def put_hot(self, number: SnapshotNumber, data: bytes, generation: Generation, writer_id: str) -> None:
        """Keep the hot list of a snapshot. Raises RefusedError, OSError."""
        if self.encrypted is None:
            hot_codec.unpack_hot(data)
        elif len(data) > wire.MAX_ENCRYPTED_HOT_BYTES:
            raise refuse(Refusal.TOO_LARGE, f"a hot list of {len(data)} bytes")
        with self.receiver.lock:
            self.claims.fence(generation, writer_id)()
            self.hot_lists.put(number, data)

    def put_gates(self, entries: list[GateEntry], generation: Generation, writer_id: str) -> None:
        """Take in what the writer found out about snapshots. Raises RefusedError, OSError."""
        catalog = self.repository.catalog
        with self.receiver.lock:
            self.claims.fence(generation, writer_id)()
            for line in lines_for(entries, lambda number: catalog.gates(SnapshotNumber(number)), catalog.root_number):
                self.repository.record_event(line.pop("kind"), **line, holder=writer_id)

    def gate_list(self) -> GateList:
        """What the snapshots here have passed."""
        catalog = self.repository.catalog
        return GateList(list(entries_of(catalog.passed_gates(), catalog.root_number)))

    # Of an encrypted volume.

    def must_be_encrypted(self) -> EncryptedVolume:
        """Raises RefusedError."""
        if self.encrypted is None:
            raise refuse(Refusal.NOT_FOUND, f"{self.name} is not encrypted here, and has no keys")
        return self.encrypted

    def put_keys(self, data: bytes, generation: Generation, writer_id: str) -> bytes:
        """Keep the wrapped keys; what is kept. Raises RefusedError, OSError."""
        encrypted = self.must_be_encrypted()
        with self.receiver.lock:
            self.claims.fence(generation, writer_id)()
            encrypted.put_keys(data, self.retention.lock_s)
            return encrypted.keys()

    def collect_by_manifest(
        self, manifest: messages.Collect, generation: Generation, writer_id: str
    ) -> messages.Collected:
        """Free what the writer of an encrypted volume does not name. Raises RefusedError, OSError."""
        encrypted = self.must_be_encrypted()
        with self.receiver.turn:
            with self.receiver.lock:
                self.claims.fence(generation, writer_id)()
            report = encrypted.collect(manifest, branches=bool(self.branches), lock_s=self.retention.lock_s)
            return messages.Collected(report.freed_bytes if report is not None else 0)

    # What is kept.

    def drop(self, numbers: list[int], generation: Generation, writer_id: str, rule: str = "") -> list[LockedSnapshot]:
        """Drop snapshots; those that are there and stay, with why. `rule`: by which of the writer's for this target.

        Raises RefusedError, OSError.
        """
        with self.receiver.turn, self.receiver.lock:
            self.claims.fence(generation, writer_id)()
            who = f"{writer_id}, generation {generation}"
            return self.retention.drop(numbers, TARGET if rule else WRITER, f"{rule}; {who}" if rule else who)

    def prune(self, numbers: list[int], who: str, rule: str = "") -> list[LockedSnapshot]:
        """Drop snapshots at the request of a person, whichever host writes; those that stay. Raises OSError.

        `rule`: by which, where no person named them.
        """
        with self.receiver.turn, self.receiver.lock:
            return self.retention.drop(numbers, TARGET if rule else PERSON, f"{rule}; {who}" if rule else who)

    def expire(self, keep: int) -> list[int]:
        """Drop all but the newest `keep` snapshots, and those with a name; which were dropped. Raises OSError."""
        with self.receiver.turn, self.receiver.lock:
            return self.retention.expire(keep)

    def hold(self, name: str, number: int, seconds: float) -> None:
        """Keep a snapshot for a while. Raises RefusedError if there is none, OSError."""
        with self.receiver.lock:
            self.find(str(number))
            self.retention.hold(name, SnapshotNumber(number), seconds)

    def put_holds(
        self, records: list[HoldRecord], generation: Generation, writer_id: str, *, may_end: bool = True
    ) -> None:
        """Keep what people decided to hold, or not any more. Raises RefusedError, OSError.

        Nobody drops meanwhile: `drop` takes the same lock. Not `may_end`: what would end a hold earlier is passed over.
        """
        with self.receiver.lock:
            self.claims.fence(generation, writer_id)()
            known, now_ns = self.repository.catalog.hold_records, self.repository.clock()
            if not may_end:
                records = [each for each in records if not each.ends_before(known.get(each.snapshot), now_ns)]
            if len({each.snapshot for each in (*known.all(), *records)}) > MAX_RECORDS:
                raise refuse(Refusal.TOO_LARGE, f"more than {MAX_RECORDS} snapshots were ever held")
            take_in(self.repository, records, f"{writer_id}, generation {generation}")

    def upkeep(self, pause: Pause = no_pause, part_age_seconds: float = 7 * 86400.0) -> None:
        """Merge small segments, free what no snapshot needs, remove stale parts. Raises OSError, CorruptionError."""
        self.space.upkeep(pause, part_age_seconds)

    def collect(self, pause: Pause = no_pause) -> CollectReport:
        """Free what no snapshot needs. Raises OSError, CorruptionError: then nothing was freed."""
        return self.space.collect(pause)

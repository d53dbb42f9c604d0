"""A folder on this host as a source: a volume's own folder, or a mirror's."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator, Sequence

from snapfs.base.blocks import Disk, Generation, Ino, Number
from snapfs.base.errors import CorruptionError, UserError
from snapfs.base.volumes.volume import Volume
from snapfs.base.volumes.volume_files import HOT_FILE, KEYS_FILE
from snapfs.store.gates.gate_entries import GateEntry, entries_of
from snapfs.store.log.claims import Succession, with_succession
from snapfs.store.log.holds import HoldRecord, Holds
from snapfs.store.log.peers import AskedTarget, Peers, decoded, with_peers
from snapfs.store.log.snapshot_log import SnapshotLog
from snapfs.store.log.snapshot_records import SnapshotRecord, StoreIdentity
from snapfs.store.log.target_id import read_target_id
from snapfs.store.objects.format import NULL, Pointer, unpack_frame
from snapfs.store.protocol import wire
from snapfs.store.protocol.hint_files import HOT
from snapfs.store.protocol.hot_codec import Hot, unpack_hot
from snapfs.store.protocol.number_runs import Run, runs_of
from snapfs.store.protocol.object_stream import Item
from snapfs.store.protocol.refusals import Refusal, refuse
from snapfs.store.repair.missing_objects import lacking
from snapfs.store.repository.repository import Repository
from snapfs.store.repository.store_folders import LOG, is_store
from snapfs.store.tables.reachability import bases_of_all
from snapfs.store.tables.snapshot import SnapshotTree
from snapfs.transfer.sources.sources import Origin, needs_key


class FolderSource:
    """The store of a volume or a mirror on this host, opened for reading."""

    is_near = True

    def __init__(self, path: str) -> None:
        """Raises UserError if there is none."""
        self.name = path
        self._volume = Volume.open(path, Disk())
        if not is_store(self._volume.store_dir):
            raise UserError(f"{path} has no snapshot to begin with: `snapfs snapshot` makes one")
        identity = StoreIdentity(self._volume.volume_id, self._volume.seed, self._volume.holds_ciphertext)
        store_dir = self._volume.store_dir
        self._repository = Repository.open(store_dir, identity, Disk(), readonly=True, cache_bytes=16 << 20)
        self._refreshing = threading.Lock()

    @property
    def is_encrypted(self) -> bool:
        return self._volume.holds_ciphertext

    def keys(self) -> bytes:
        with contextlib.suppress(FileNotFoundError), open(os.path.join(self._volume.path, KEYS_FILE), "rb") as file:
            return file.read(wire.MAX_JSON_BYTES)
        return b""

    def wrapped_keys(self) -> bytes:
        """The wrapped keys of an encrypted volume."""
        return self.keys()

    def origin(self) -> Origin:
        if self.is_encrypted:
            raise needs_key(self.name)
        return self.encrypted_origin()

    def encrypted_origin(self) -> Origin:
        """As `origin`, also of an encrypted store."""
        found = self.snapshots()
        newest = max((record.generation for record in found), default=Generation(1))
        generation = max(self._volume.generation, newest, self._claimed()[0])
        return Origin(self._repository.identity, generation, found[-1] if found else None)

    def snapshots(self) -> list[SnapshotRecord]:
        """The snapshots; those that lack something are reported as damaged."""
        with self._refreshing:
            self._repository.refresh()
            self._repository.look_for_loss(lacking, thorough=True)
        return self._repository.snapshots()

    def branches(self) -> list[SnapshotRecord]:
        with self._refreshing:
            self._repository.refresh()
        return self._repository.catalog.branches()

    def objects(self, pointers: Sequence[Pointer], *, urgent: bool = True, bases: bool = True) -> Iterator[Item]:
        sent: set[Number] = set()
        for pointer in pointers:
            try:
                numbers = self._with_bases(pointer.number) if bases else [pointer.number]
                items = [self._item(number) for number in numbers if number not in sent]
            except (CorruptionError, FileNotFoundError):
                continue
            if items and pointer.content_hash in (b"", items[-1].content_hash):
                sent.update(item.frame.number for item in items)
                yield from items

    def bases(self, runs: Sequence[Run]) -> list[Run]:
        numbers = (number for first, last in runs for number in range(first, last + 1))
        return list(runs_of(bases_of_all(self._repository.index, self._repository.objects, numbers)))

    def _with_bases(self, number: Number) -> list[Number]:
        return [*sorted(self._repository.objects.bases_of(number)), number]

    def _item(self, number: Number) -> Item:
        source, row = self._repository.objects.index.locate(number)
        framed = source.frame(row)
        return Item(row.content_hash, unpack_frame(framed), framed)

    def tables(self, record: SnapshotRecord, limit_bytes: int) -> Iterator[Item]:
        """No round trip is saved here: just the root, and what is on the way to the root directory."""
        noting = RecordingReader(self._repository)
        tree = SnapshotTree(noting, record.root)
        root = tree.inode(Ino(1))
        if root is not None:
            next(tree.entries(root), None)
        return self.objects(noting.pointers)

    def hot(self, record: SnapshotRecord) -> list[Hot]:
        return unpack_hot(self.hot_bytes(record))

    def hot_bytes(self, record: SnapshotRecord) -> bytes:
        """The hot list as it was sent, which of an encrypted volume is ciphertext."""
        folder = os.path.join(self._volume.store_dir, HOT_FILE)
        pushed = [int(name) for name in (os.listdir(folder) if os.path.isdir(folder) else ()) if name.isdecimal()]
        newest = max((number for number in pushed if number <= record.number), default=None)
        place = os.path.join(self._volume.path, HOT_FILE) if newest is None else os.path.join(folder, str(newest))
        return HOT.read(place) or b""

    def gates(self) -> list[GateEntry]:
        with self._refreshing:
            self._repository.refresh()
        catalog = self._repository.catalog
        return list(entries_of(catalog.passed_gates(), catalog.root_number))

    def target_peers(self) -> AskedTarget:
        peers: Peers | None = None
        with self._refreshing:
            self._repository.refresh()
        for event in self._repository.events():
            if event.kind == "claimed":
                peers = with_peers(peers, decoded(event.fields.get("peers")), event.fields["holder"])
        return AskedTarget(read_target_id(self._volume.path), peers)

    def successions(self) -> list[Succession]:
        found: list[Succession] = []
        for event in self._repository.events():
            if event.kind == "claimed":
                made = Succession(event.fields["generation"], event.fields["holder"], event.fields.get("snapshot", 0))
                found = with_succession(found, made)
        return found

    def claim(self, generation: Generation, writer_id: str, note: str, snapshot: int = 0) -> None:
        """Record the claim in the log of a folder that snapshots are pushed to. A volume's own folder has no claims."""
        if not self._claimed()[0]:
            return
        self._volume.lock("claimed for another host")
        log = SnapshotLog(os.path.join(self._volume.store_dir, LOG), Disk(), readonly=False)
        try:
            known, who, base = Generation(0), "", 0
            for event in log.follow():
                if event.kind == "claimed":
                    known, who = Generation(event.fields["generation"]), event.fields["holder"]
                    base = event.fields.get("snapshot", 0)
            if known > generation or (known == generation and who != writer_id):
                why = f"generation {known} of {self.name} is {who}'s"
                raise refuse(Refusal.FENCED, why, generation=known, writer_id=who)
            if known < generation or snapshot not in (0, base):
                log.cut_torn_tail()
                fields = {"generation": generation, "holder": writer_id, "note": note, "snapshot": snapshot}
                log.append("claimed", fields)
        finally:
            log.close()
            self._volume.unlock()

    def _claimed(self) -> tuple[Generation, str]:
        """The newest claim, generation 0 where there never was one."""
        found = (Generation(0), "")
        for event in self._repository.events():
            if event.kind == "claimed":
                found = Generation(event.fields["generation"]), event.fields["holder"]
        return found

    def hold(self, record: SnapshotRecord, holder: str, seconds: float) -> None:
        if record.branch:
            return  # a branch is never dropped, and its number may be that of another snapshot
        holds = Holds(self._volume.store_dir, Disk())
        if seconds:
            holds.take(holder, [record.number], seconds, "a volume that was mounted from here is not all there yet")
        else:
            holds.release(holder)

    def hold_records(self) -> list[HoldRecord]:
        with self._refreshing:
            self._repository.refresh()
        return self._repository.catalog.hold_records.all()

    def close(self) -> None:
        self._repository.close()


class RecordingReader:
    """Reads objects and records their pointers."""

    def __init__(self, repository: Repository) -> None:
        self._repository = repository
        self.pointers: list[Pointer] = []

    def read(self, pointer: Pointer) -> bytes:
        if pointer != NULL:
            self.pointers.append(pointer)
        return self._repository.read(pointer)

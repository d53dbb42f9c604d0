"""A source volume with a history of a model state, and what a target made of it."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from pathlib import Path

from replicator.agent.agent_status import TargetStatus
from replicator.agent.feeder import Feeder
from replicator.agent.target_session import TargetRole
from replicator.source.known_targets import Memory
from replicator.source.selection import Part
from replicator.source.volume_keys import VolumeKeys
from replicator.source.volume_source import VolumeSource, as_it_is
from replicator.targets.target import Target
from snapfs.base.blocks import Disk, Generation, Number
from snapfs.base.settings.replication_settings import EncryptionSettings, ReplicationSettings
from snapfs.base.settings.retention_settings import RetentionSettings
from snapfs.base.volumes.volume import Volume
from snapfs.store.crypto.encryption import Encryptor
from snapfs.store.log.snapshot_records import SnapshotRecord, StoreIdentity
from snapfs.store.repository.repository import Repository
from snapfs.store.tables.snapshot import SnapshotTree
from snapfs.store.tables.table_pages import ObjectReader
from tests.fakes.histories.history import History

WRITER_ID = "test-host"


class SourceVolume:
    """A volume with a real store, and the state that each snapshot holds."""

    def __init__(self, path: Path, seed: int, settings: dict[str, object] | None = None) -> None:
        self.path = path
        self.volume = Volume.create(str(path), Disk(), settings={"replication": settings} if settings else None)
        self.identity = StoreIdentity(self.volume.volume_id, self.volume.seed)
        self.history = History(Path(self.volume.store_dir), seed, self.identity)
        self.history.scatter()
        self.keys: VolumeKeys | None = None

    def grow(self, snapshots: int = 1, steps: int = 12) -> None:
        self.history.grow(snapshots, steps)

    @property
    def records(self) -> list[SnapshotRecord]:
        return self.history.records

    def encrypt(self) -> Encryptor:
        """From now on targets get ciphertext."""
        key = self.path.parent / "owners.key"
        if not key.exists():
            key.write_bytes(bytes(range(150, 182)))
            key.chmod(0o600)
        self.keys = self.new_keys(str(key))
        self.keys.agree(b"", "nowhere", is_empty=True)
        return self.keys.encryptor

    def new_keys(self, key_file: str) -> VolumeKeys:
        settings = EncryptionSettings(key_file=key_file)
        return VolumeKeys(str(self.path), settings, self.identity.volume_id, self.identity.seed, Disk())

    def open(self) -> VolumeSource:
        return VolumeSource(str(self.path), Disk(), self.keys.stage if self.keys is not None else as_it_is)

    def close(self) -> None:
        self.history.close()

    def assert_equal(self, reader: ObjectReader, number: int) -> None:
        """The snapshot, read by `reader`, is the state that it was made of."""
        record = next(record for record in self.records if record.number == number)
        self.history.states[number].assert_equals(SnapshotTree(reader, record.root))


def inherit(source: SourceVolume, path: Path, snapshots: int) -> SourceVolume:
    """The volume as it goes on from a copy of its folder, made after so many snapshots, as the next generation."""
    made = object.__new__(SourceVolume)
    made.path, made.identity, made.keys = path, source.identity, None
    made.volume = Volume.open(str(path), Disk())
    made.volume.lock()
    made.volume.bump_generation()
    made.volume.unlock()
    made.history = copy.copy(source.history)
    made.history.repository = Repository.open(made.volume.store_dir, made.identity, Disk())
    made.history.states = {number: state for number, state in source.history.states.items() if number <= snapshots}
    made.history._state = made.history.states[snapshots].copy()
    return made


def feeder(
    source: SourceVolume,
    target: Target,
    settings: ReplicationSettings | None = None,
    memory: Memory | None = None,
    retention: RetentionSettings | None = None,
    **more: object,
) -> Feeder:
    """A feeder as the agent makes it, with a source of its own."""
    return Feeder(
        source.open(), target, TargetStatus("target", "test://target"),
        TargetRole(
            settings or ReplicationSettings(), WRITER_ID, memory, retention=retention or RetentionSettings()
        ),
        changed=lambda urgent: None, **more,  # type: ignore[arg-type]
    )  # fmt: skip


def parts_of(source: VolumeSource, numbers: Iterable[Number], part_bytes: int) -> list[Part]:
    return list(source.parts(numbers, lambda: part_bytes, 1 << 16))


GENERATION = Generation(1)

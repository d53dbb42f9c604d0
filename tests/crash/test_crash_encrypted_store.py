"""A crash at every labelled act of a mirror that keeps an encrypted volume: what it acknowledged is there, and opens.

Each act is met by one of the three ways to die, each way by every third act.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from replicator.targets.target import Manifest, live_messages
from replicator.volumes.mirror_volume import MirrorVolume
from snapfs.base.blocks import Disk, Generation, Number, SnapshotNumber
from snapfs.store.crypto.encryption import Encryptor
from snapfs.store.crypto.keys import Keyring, OwnersKey, WrappedKeys
from snapfs.store.objects.number_set import NumberSet
from snapfs.store.protocol import messages, object_stream, wire
from snapfs.store.repair.verify import verify
from snapfs.store.tables.snapshot import SnapshotTree
from tests.fakes.disks.crashes import Crash, CrashDisk, PowerCutDisk
from tests.fakes.histories.history import IDENTITY, History
from tests.fakes.targets.decrypted_store import opened

CREATE = messages.CreateVolume(IDENTITY.volume_id, "0" * 16, wire.Mode.ENCRYPTED)
WRITER_ID, FIRST = "host-a", Generation(1)
OWNER = OwnersKey(bytes(range(180, 212)), "the key")
RING = Keyring.create(IDENTITY.volume_id, IDENTITY.seed)
ENCRYPTOR = Encryptor(RING)
KEYS = OWNER.wrap(RING).encode()


@pytest.fixture(scope="module")
def history(tmp_path_factory: pytest.TempPathFactory) -> Iterator[History]:
    made = History(tmp_path_factory.mktemp("source") / "store", 9)
    made.scatter()
    made.grow(4, steps=6)
    made.part(made.numbers(*made.records))  # its segments are open from here on
    yield made
    made.close()


class Story:
    """A mirror's encrypted volume, and what it has acknowledged."""

    def __init__(self, root: Path, history: History) -> None:
        self.path, self.history = root / "pg", history
        self.committed: set[int] = set()
        self.dropped: set[int] = set()
        self.has_keys = False
        self.mirror: MirrorVolume

    def open(self, disk: Disk) -> None:
        self.mirror = MirrorVolume.open(str(self.path), disk)

    def numbers(self, *numbers: int) -> NumberSet:
        return self.history.numbers(*(record for record in self.history.records if record.number in numbers))

    def put(self, numbers: list[Number]) -> None:
        part = self.mirror.part(FIRST, WRITER_ID)
        part.feed(object_stream.stream_header())
        for number in numbers:
            source, row = self.history.repository.index.locate(number)
            part.feed(object_stream.item_bytes(*ENCRYPTOR.encrypt(row, source.frame(row))))
        part.finish()

    def commit(self, *numbers: int) -> None:
        records = [record for record in self.history.records if record.number in numbers]
        manifest = Manifest(
            self.numbers(*numbers), SnapshotNumber(max(self.committed, default=0)), (records[0].root.number,)
        )
        encrypted = [ENCRYPTOR.encrypt_record(record) for record in records]
        self.mirror.commit(encrypted, True, FIRST, WRITER_ID, manifest.commit((), True))
        self.committed |= set(numbers)

    def all_of_it(self) -> None:
        self.mirror.claim(FIRST, WRITER_ID)
        self.mirror.put_keys(KEYS, FIRST, WRITER_ID)
        self.has_keys = True
        self.put(list(self.numbers(1)))
        self.commit(1)
        both = list(self.numbers(2, 3))
        self.put(both[: len(both) // 2])
        self.put(both[len(both) // 3 :])
        self.commit(2, 3)
        self.dropped |= {1}
        self.mirror.drop([1], FIRST, WRITER_ID)
        for message in live_messages(self.numbers(2, 3), [SnapshotNumber(2), SnapshotNumber(3)]):
            self.mirror.collect_by_manifest(message, FIRST, WRITER_ID)
        self.put(list(self.numbers(4)))
        self.commit(4)

    def check(self) -> None:
        self.mirror.check_invariants()
        repository = self.mirror.repository
        there = {record.number for record in repository.snapshots()}
        assert self.committed - self.dropped <= there
        report = verify(repository, repository.snapshots())
        assert report.is_whole, report
        reader = opened(repository.index, ENCRYPTOR, IDENTITY.seed)
        for record in repository.snapshots():
            real = ENCRYPTOR.decrypt_record(record, "there")
            self.history.states[real.number].assert_equals(SnapshotTree(reader, real.root))
        if self.has_keys:
            assert self.mirror.encrypted is not None
            wrapped = WrappedKeys.decode(self.mirror.encrypted.keys(), "there")
            assert OWNER.unwrap(wrapped, "there") == RING

    def die(self) -> None:
        if self.mirror.repository.index.unfinished is not None:
            self.mirror.repository.index.unfinished.close()
        self.mirror.close()


@pytest.mark.parametrize("mode", ["kill", "half", "power"])
def test_a_crash_at_every_act(tmp_path: Path, history: History, mode: str) -> None:
    at, done = ["kill", "half", "power"].index(mode), False
    while not done:
        story = Story(tmp_path / f"{at}" / "mirror", history)
        story.path.parent.mkdir(parents=True)
        MirrorVolume.create(str(story.path), CREATE, Disk()).close()
        disk = PowerCutDisk(story.path.parent, at) if mode == "power" else CrashDisk(at, half=mode == "half")
        opened_it = False
        try:
            story.open(disk)
            opened_it = True
            story.all_of_it()
            done = True
        except Crash:
            pass
        if opened_it:
            story.die()
        if isinstance(disk, PowerCutDisk):
            disk.cut()
        story.open(Disk())
        story.check()
        story.all_of_it()
        story.check()
        story.die()
        at += 3
    assert at > 40, "the story has acts"


def test_verify_finds_what_is_missing_without_any_key(tmp_path: Path, history: History) -> None:
    story = Story(tmp_path, history)
    MirrorVolume.create(str(story.path), CREATE, Disk()).close()
    story.open(Disk())
    story.all_of_it()
    segments = story.mirror.repository.index.segments()
    lost = next(info for info in segments if not any(
        info.first <= number <= info.last for r in history.records for number in (r.root.number, r.last_number)
    ))  # fmt: skip
    story.die()
    Path(lost.path).unlink()
    story.open(Disk())
    report = verify(story.mirror.repository, story.mirror.repository.snapshots())
    assert not report.is_good
    assert {bad.why for bad in report.bad} == {"it is missing"}
    story.die()

"""A standby's live tree goes from one snapshot of a random history to the next, and to another branch of it.

After every step, and after a crash at any labelled act of a step, it is exactly one of the two snapshots: names,
attributes, links and bytes, as the volume that it would be handed over as shows them.
"""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import stat
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from snapfs.base.blocks import CHUNK_SIZE, Disk, Generation, Ino
from snapfs.base.errors import CorruptionError
from snapfs.base.volumes.volume import Volume
from snapfs.live.backing.backing import Backing
from snapfs.live.backing.host_life import HostLife
from snapfs.live.namespace.namespace import Namespace
from snapfs.live.residency import residency_pages
from snapfs.live.tree import LiveTree
from snapfs.store.log.snapshot_records import SnapshotRecord, StoreIdentity
from snapfs.store.repository.repository import Repository
from snapfs.store.tables.snapshot import SnapshotTree
from snapfs.transfer.common.store_source import StoreSource
from snapfs.transfer.failover import standby_apply
from snapfs.transfer.failover.standby_apply import ReplicaTree
from tests.fakes.disks.crashes import Crash, CrashDisk
from tests.fakes.histories.history import _Writer as Sealing
from tests.fakes.histories.state_model import _CHANGES, REGULAR, State

FOR_EVER = 1e18


class SmallState(State):
    """Files of a few chunks to a few dozen, some with holes."""

    def change(self, rng: random.Random, steps: int) -> None:
        for _ in range(steps):
            self.clock += rng.randrange(1, 10**10)
            act = rng.choice(_CHANGES)
            getattr(type(self), act.__name__, act)(self, rng)
        for node in self.nodes.values():
            if stat.S_ISDIR(node.mode):
                node.nlink = 2 + sum(stat.S_ISDIR(self.nodes[ino].mode) for ino in node.names.values())

    def write(self, rng: random.Random) -> None:
        ino = self.pick(rng, REGULAR)
        if ino is None:
            return
        node = self.nodes[ino]
        for _ in range(rng.choice([1, 1, 3, 20])):
            index = rng.choice([0, 1, rng.randrange(6), rng.randrange(40)])
            plain = rng.randbytes(rng.choice([1, 9, 40]))
            node.chunks[index] = plain.rstrip(b"\0") or b"x"
            node.size = max(node.size, index * CHUNK_SIZE + len(plain) + rng.choice([0, 100]))
        node.mtime = self.clock

    def truncate(self, rng: random.Random) -> None:
        if rng.random() < 0.8:
            return
        ino = self.pick(rng, REGULAR)
        if ino is not None:
            node = self.nodes[ino]
            node.size = rng.choice([0, 1, 3 * CHUNK_SIZE + 1, 30 * CHUNK_SIZE, rng.randrange(node.size + 1)])
            node.mtime = self.clock
            for index in [index for index in node.chunks if index * CHUNK_SIZE >= node.size - 50]:
                del node.chunks[index]


class Story:
    """A volume with a store of its own, its snapshots, and the state that each of them has."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.volume = Volume.create(str(folder / "volume"), Disk())
        self.identity = StoreIdentity(self.volume.volume_id, self.volume.seed)
        self.repository = Repository.create(self.volume.store_dir, self.identity, Disk())
        self.rng, self.states = random.Random(seed), dict[int, State]()

    def grow(self, state: State, parent: SnapshotRecord | None, generation: int, steps: int) -> SnapshotRecord:
        old = self.states[parent.number] if parent else None
        tree = SnapshotTree(self.repository, parent.root) if parent else None
        state.change(self.rng, steps)
        transaction = self.repository.begin(Generation(generation))
        root = state.seal(Sealing(transaction), tree, old)
        record = transaction.commit(
            root, parent=parent.number if parent else None, name=None, cut_time_ns=1, trigger="control"
        )
        self.states[record.number] = state.copy()
        return record

    def history(self) -> list[SnapshotRecord]:
        """Four snapshots, and two of a branch that left after the second and used the same inode numbers anew."""
        state, records, branch = SmallState(), list[SnapshotRecord](), State()
        for count in range(4):
            records.append(self.grow(state, records[-1] if records else None, 1, 70 if not count else 20))
            branch = state.copy() if count == 1 else branch
        records.append(self.grow(branch, records[1], 2, 40))
        records.append(self.grow(branch, records[4], 2, 30))
        return records


@pytest.fixture
def story(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Story]:
    made = Story(tmp_path, request.param)
    yield made
    made.repository.close()


@pytest.fixture(autouse=True)
def nothing_is_synced(monkeypatch: pytest.MonkeyPatch) -> None:
    """No power is cut here; the labelled acts stay."""
    monkeypatch.setattr(Disk, "sync_filesystem", lambda self, label, fd: None)
    monkeypatch.setattr(os, "fsync", lambda fd: None)
    monkeypatch.setattr(os, "fdatasync", lambda fd: None)


def assert_is(volume: Volume, repository: Repository, *either: SnapshotRecord) -> SnapshotRecord:
    """The live tree, handed over and opened as a mount opens it, shows one of these and counts nothing as changed."""
    replica = ReplicaTree(volume, repository, Disk())
    record = replica.record
    assert record is not None
    assert record.number in [each.number for each in either]
    replica.check_invariants()
    replica.hand_over()
    snapshot = SnapshotTree(repository, record.root)
    names = Namespace(volume.namespace_path, Disk())
    source, life = StoreSource(repository, snapshot), HostLife(volume.live_dir, Disk(), standby_apply.boot_id())
    tree = LiveTree(volume.live_dir, names, Disk(), boot_id=life.token, host_life=life, source=source)
    try:
        assert tree.recovered == []
        assert not tree.has_changes()
        compare(tree, snapshot)
    finally:
        tree.close()
    return record


def compare(tree: LiveTree, snapshot: SnapshotTree) -> None:
    while unloaded := tree.names.unloaded(100):
        for directory, listing in unloaded:
            tree.load(directory, tree.fetch_names(listing))
    shown = {Ino(1)}
    for record in snapshot.inodes():
        attr = tree.getattr(record.ino)
        assert (attr.mode, attr.uid, attr.gid, attr.nlink, attr.mtime_ns, attr.ctime_ns, attr.atime_ns) == (
            record.mode, record.uid, record.gid, record.nlink, record.mtime_ns, record.ctime_ns, record.atime_ns,
        ), record  # fmt: skip
        assert {name: tree.getxattr(record.ino, name) for name in tree.listxattr(record.ino)} == dict(record.xattrs)
        if stat.S_ISDIR(record.mode):
            entries = tree.readdir(record.ino, 0, 100_000)
            assert {(name, attr.ino) for _, name, attr in entries} == {
                (entry.name, entry.ino) for entry in snapshot.entries(record)
            }
            shown.update(attr.ino for _, _, attr in entries)
        elif stat.S_ISREG(record.mode):
            assert attr.size == record.size
            assert tree.read(record.ino, 0, record.size) == snapshot.read(record, 0, record.size), record
        else:
            assert attr.size == len(record.target)
    assert shown == {record.ino for record in snapshot.inodes()}
    files = sum(stat.S_ISREG(record.mode) for record in snapshot.inodes())
    assert len(tree.names.regular_inos()) == files
    assert {ino for ino, _ in tree._backing.scan()} | set(tree.names.absent_inos()) == set(tree.names.regular_inos())


@pytest.mark.parametrize("story", range(4), indirect=True)
def test_a_tree_becomes_each_snapshot_partly_and_all_of_it(story: Story) -> None:
    records = story.history()
    replica = ReplicaTree(story.volume, story.repository, Disk())
    for record in [*records, records[1], records[3], records[0]]:
        replica.become(record)
        assert replica.record == record
        while story.rng.random() < 0.7 and not replica.is_whole:
            replica.advance(time.monotonic())
        replica.check_invariants()
        if story.rng.random() < 0.3:
            replica.close()
            assert_is(story.volume, story.repository, record)
            replica = ReplicaTree(story.volume, story.repository, Disk())
    assert replica.advance(FOR_EVER)
    assert not replica.has_absent()
    replica.close()
    assert_is(story.volume, story.repository, records[0])


@pytest.mark.parametrize("power_cut", [False, True])
@pytest.mark.parametrize("story", [7], indirect=True)
def test_a_crash_at_any_step_leaves_one_whole_snapshot(
    story: Story, power_cut: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There and back again, one step further each time; after a power cut what was not synced may be anything."""
    records = story.history()
    there, back = records[3], records[4]
    at, crashed = 0, True
    replicate(story, back)
    while crashed:
        disk = CrashDisk(at, half=bool(at & 1))
        crashed = not goes_through(story, there, disk)
        if power_cut:
            monkeypatch.setattr(standby_apply, "boot_id", partial(str, f"boot-{at}"))
            scribble(story.volume)
        shown = assert_is(story.volume, story.repository, there, back)
        if at % 5 == 0:
            replicate(story, shown)
            assert_is(story.volume, story.repository, shown)
        if shown == there:
            there, back = back, there
        at += story.rng.randrange(4, 28)
    assert at > 60


@pytest.mark.parametrize("story", [8], indirect=True)
def test_a_crash_in_the_beginning_leaves_nothing_or_the_snapshot(story: Story) -> None:
    record = story.grow(SmallState(), None, 1, 60)
    at, crashed = 0, True
    while crashed:
        crashed = not goes_through(story, record, CrashDisk(at))
        replica = ReplicaTree(story.volume, story.repository, Disk())
        begun = replica.record is not None
        replica.close()
        if begun:
            assert_is(story.volume, story.repository, record)
        shutil.rmtree(story.volume.live_dir, ignore_errors=True)
        at += 1 if at < 12 else 61  # there are hundreds of folders to be made
    assert begun
    assert at > 100


@pytest.mark.parametrize("story", [9], indirect=True)
def test_a_discarded_tree_is_whole_or_none_at_every_act(story: Story, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its namespace goes first: names that had lost their files were taken for the whole snapshot."""
    records = story.history()

    def unknown(tree: ReplicaTree, record: SnapshotRecord) -> None:
        raise CorruptionError("the store", "here", "it cannot be read what differs")

    monkeypatch.setattr(ReplicaTree, "_step_to", unknown)
    labels = list[str]()
    while "replica:live" not in labels:
        replicate(story, records[0])
        replica = ReplicaTree(story.volume, story.repository, disk := CrashDisk())
        disk.at, disk.half = len(disk.labels) + len(labels), True
        with pytest.raises(Crash) as crash:
            replica.become(records[3])
        labels.append(str(crash.value))
        disk.at = None
        replica.close()
        replica = ReplicaTree(story.volume, story.repository, Disk())
        is_whole = replica.record is not None
        replica.close()
        if is_whole:
            assert_is(story.volume, story.repository, records[0])
        shutil.rmtree(story.volume.live_dir, ignore_errors=True)
    assert labels.count("replica:discard") == 3


def goes_through(story: Story, record: SnapshotRecord, disk: CrashDisk) -> bool:
    """Let the tree become the snapshot; False if it died on the way."""
    replica = None
    try:
        replica = ReplicaTree(story.volume, story.repository, disk)
        replica.become(record)
        assert replica.advance(FOR_EVER)
    except Crash:
        return False
    finally:
        disk.at = None
        if replica is not None:
            with contextlib.suppress(OSError):
                replica.close()
    return True


def replicate(story: Story, record: SnapshotRecord) -> None:
    replica = ReplicaTree(story.volume, story.repository, Disk())
    replica.become(record)
    assert replica.advance(FOR_EVER)
    replica.close()


def scribble(volume: Volume) -> None:
    """Into every chunk that is not DURABLE in its residency file."""
    for name in os.listdir(os.path.join(volume.live_dir, "presence")):
        if "." in name:
            continue
        with open(os.path.join(volume.live_dir, "presence", name), "rb") as file:
            packed = file.read()
        chunks = residency_pages.HEAD.unpack_from(packed)[4]
        durable = residency_pages.read(name, packed, residency_pages.Layout(chunks), "boot").durable
        path = Backing(volume.live_dir, Disk(), 1).path(Ino(int(name, 16)))
        if not os.path.exists(path):
            continue
        times = os.stat(path)
        with open(path, "r+b") as file:
            for chunk in range(chunks):
                room = min(CHUNK_SIZE, times.st_size - chunk * CHUNK_SIZE)
                if not durable >> chunk & 1 and room > 0:
                    file.seek(chunk * CHUNK_SIZE)
                    file.write(b"?" * room)
        os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))

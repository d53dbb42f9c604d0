"""A snapshot put into a plain directory, or into a volume of its own, is what was there: everything exotic included."""

from __future__ import annotations

import errno
import os
import random
import stat
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from snapfs.base.blocks import CHUNK_SIZE, ROOT_INO, Disk, Generation, Ino
from snapfs.base.errors import CorruptionError, UserError
from snapfs.base.volumes.volume import Volume
from snapfs.live.namespace.namespace import Namespace
from snapfs.live.tree import LiveTree
from snapfs.store.repository.repository import Repository, SnapshotRecord, StoreIdentity
from snapfs.store.tables.snapshot import SnapshotTree
from snapfs.transfer.common.store_source import StoreSource
from snapfs.transfer.restore.clone import clone
from snapfs.transfer.restore.restore import restore
from snapfs.transfer.restore.tree_compare import differences
from snapfs.transfer.seal.sealer import seal
from tests.fakes.disks.crashes import Crash, CrashDisk

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="owners and devices take root")
ME = (os.geteuid(), os.getegid())


class Opened:
    """A volume without a mount."""

    def __init__(self, volume: Volume) -> None:
        self.volume, disk = volume, Disk()
        identity = StoreIdentity(volume.volume_id, volume.seed)
        if not os.listdir(volume.store_dir):
            Repository.create(volume.store_dir, identity, disk).close()
        self.repository = Repository.open(volume.store_dir, identity, disk)
        latest = self.repository.latest()
        source = StoreSource(self.repository, SnapshotTree(self.repository, latest.root)) if latest else None
        names = Namespace(volume.namespace_path, disk)
        self.tree = LiveTree(volume.live_dir, names, disk, boot_id="boot", source=source)

    def make(self, parent: Ino, name: bytes, mode: int = stat.S_IFREG | 0o644, rdev: int = 0) -> Ino:
        return self.tree.mknod(parent, name, mode, rdev, *ME).ino

    def write(self, ino: Ino, offset: int, data: bytes) -> None:
        while not self.tree.ready_to_write(ino):
            self.tree.prepare_write(ino)
        self.tree.write(ino, offset, data)

    def seal(self) -> SnapshotRecord:
        parent = self.repository.latest()
        generation = Generation(self.volume.generation)
        record = seal(self.tree.cut(), self.repository, parent, generation=generation, threads=2)
        self.tree.tidy()
        return record

    def close(self) -> None:
        self.tree.close()
        self.repository.close()


@pytest.fixture
def opened(volume_dir: Path) -> Iterator[Opened]:
    volume = Opened(Volume.create(str(volume_dir), Disk()))
    yield volume
    volume.close()


def fill(volume: Opened, chance: random.Random) -> None:
    """A tree with one of everything."""
    tree = volume.tree
    folder = volume.make(ROOT_INO, b"folder", stat.S_IFDIR | 0o2755)
    sparse = volume.make(folder, b"sparse")
    volume.write(sparse, 5 << 32, b"far out")
    volume.write(sparse, 3 * CHUNK_SIZE + 4096, b"island")
    tree.setattr(sparse, size=(6 << 32) + 1)
    text = volume.make(folder, b"\xff\xfe\x80 no utf-8")
    volume.write(text, 0, chance.randbytes(300_000))
    tree.link(text, ROOT_INO, b"n" * 255)
    tree.setxattr(text, b"user.note", chance.randbytes(3000))
    tree.setattr(text, mode=0o4711, atime_ns=1, mtime_ns=1_600_000_000_123_456_789)
    volume.make(folder, b"empty")
    tree.symlink(folder, b"link", b"../\xff nowhere", *ME)
    volume.make(folder, b"fifo", stat.S_IFIFO | 0o622)
    volume.make(folder, b"socket", stat.S_IFSOCK | 0o600)
    tree.setattr(volume.make(folder, b"secret", stat.S_IFDIR | 0o700), mode=0o000)
    deep = folder
    for number in range(40):
        deep = volume.make(deep, b"d" * 200 + b"%d" % number, stat.S_IFDIR | 0o755)
    volume.write(volume.make(deep, b"beyond PATH_MAX"), 0, b"deep")
    tree.setattr(folder, mtime_ns=1_500_000_000_000_000_001)


def found_differences(volume: Opened, record: SnapshotRecord, path: Path) -> list[tuple[bytes, str]]:
    tree = SnapshotTree(volume.repository, record.root)
    return [tuple(each) for each in differences(volume.repository, tree, str(path))]


def test_everything_comes_back(opened: Opened, tmp_path: Path) -> None:
    fill(opened, random.Random(1))
    record = opened.seal()
    steps: list[tuple[int, int]] = []
    report = restore(
        opened.repository, record, str(tmp_path / "out"), verify=True, progress=lambda *step: steps.append(step)
    )
    assert report.verified
    assert report.not_restored == {}
    assert (report.files, report.others) == (4, 3)
    assert found_differences(opened, record, tmp_path / "out") == []
    assert os.stat(tmp_path / "out/folder/sparse").st_blocks < 100
    assert steps
    assert not (tmp_path / "out.partial").exists()
    subprocess.run(["rm", "-rf", str(tmp_path / "out")], check=True)


@needs_root
def test_owners_devices_and_acls(opened: Opened, tmp_path: Path) -> None:
    acl = bytes.fromhex("0200000001000600ffffffff02000400e803000004000400ffffffff10000600ffffffff20000400ffffffff")
    device = opened.make(ROOT_INO, b"null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    file = opened.make(ROOT_INO, b"file", stat.S_IFREG | 0o664)
    opened.tree.setxattr(file, b"system.posix_acl_access", acl)
    opened.tree.setxattr(file, b"trusted.secret", b"1")
    for ino in (device, file):
        opened.tree.setattr(ino, uid=4242, gid=4343)
    record = opened.seal()
    report = restore(opened.repository, record, str(tmp_path / "out"), verify=True)
    assert report.not_restored == {}
    assert found_differences(opened, record, tmp_path / "out") == []


def test_a_difference_is_found(opened: Opened, tmp_path: Path) -> None:
    fill(opened, random.Random(2))
    record = opened.seal()
    out = tmp_path / "out"
    restore(opened.repository, record, str(out))
    text = out / "folder" / os.fsdecode(b"\xff\xfe\x80 no utf-8")
    status = os.stat(text)
    with open(text, "r+b") as file:
        file.seek(200_000)
        file.write(b"?")
    os.utime(text, ns=(status.st_atime_ns, status.st_mtime_ns))
    (out / "folder" / "fifo").unlink()
    (out / "more").touch()
    found = {(os.path.basename(path), what) for path, what in found_differences(opened, record, out)}
    assert {(b"\xff\xfe\x80 no utf-8", "content"), (b"fifo", "missing"), (b"more", "extra")} <= found
    subprocess.run(["rm", "-rf", str(out)], check=True)


def test_a_destination_in_use_is_refused(opened: Opened, tmp_path: Path) -> None:
    opened.make(ROOT_INO, b"file")
    record = opened.seal()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    (tmp_path / "was.partial").mkdir()
    for name, why in (("full", "not an empty directory"), ("was", "interrupted"), ("no/such/place", "cannot restore")):
        with pytest.raises(UserError, match=why):
            restore(opened.repository, record, str(tmp_path / name))
    (tmp_path / "empty").mkdir()
    restore(opened.repository, record, str(tmp_path / "empty"))
    assert os.listdir(tmp_path / "empty") == ["file"]


def test_a_failed_restore_leaves_nothing(opened: Opened, tmp_path: Path) -> None:
    opened.write(opened.make(ROOT_INO, b"file"), 0, os.urandom(5 * CHUNK_SIZE))
    record = opened.seal()
    (segment,) = Path(opened.volume.store_dir, "segments").iterdir()
    data = bytearray(segment.read_bytes())
    data[2 * CHUNK_SIZE] ^= 1
    segment.write_bytes(data)
    identity = StoreIdentity(opened.volume.volume_id, opened.volume.seed)
    damaged = Repository.open(opened.volume.store_dir, identity, Disk(), readonly=True)
    try:
        with pytest.raises(CorruptionError):
            restore(damaged, record, str(tmp_path / "out"))
    finally:
        damaged.close()
    assert not list(tmp_path.glob("out*"))


def test_a_clone_is_the_snapshot_and_goes_its_own_way(opened: Opened, tmp_path: Path) -> None:
    fill(opened, random.Random(3))
    record = opened.seal()
    opened.write(opened.make(ROOT_INO, b"later"), 0, b"not in the clone")
    opened.seal()
    report = clone(opened.volume, opened.repository, record, str(tmp_path / "clone"), Disk())
    assert (report.linked, report.copied) == (1, 0)
    copy = Opened(Volume.open(str(tmp_path / "clone"), Disk()))
    try:
        assert copy.volume.volume_id != opened.volume.volume_id
        folder = copy.tree.lookup(ROOT_INO, b"folder").ino
        text = copy.tree.lookup(folder, b"\xff\xfe\x80 no utf-8")
        original = opened.tree.read(text.ino, 0, text.size)
        assert copy.tree.read(text.ino, 0, text.size, nowait=True) is None
        assert copy.tree.read(text.ino, 0, text.size) == original
        assert not any(name for _, _, files in os.walk(copy.volume.live_dir + "/data") for name in files)
        copy.write(text.ino, 1000, b"the clone's own")
        copy.tree.setattr(copy.tree.lookup(folder, b"sparse").ino, mode=0o600)
        own = copy.seal()
        assert own.stats.dirty_bytes == CHUNK_SIZE
        restore(copy.repository, own, str(tmp_path / "out"), verify=True)
        assert opened.tree.read(text.ino, 0, text.size) == original
        changed = (original or b"")[:1000] + b"the clone's own" + (original or b"")[1015:]
        assert (tmp_path / "out" / ("n" * 255)).read_bytes() == changed
        copy.tree.check_invariants()
        copy.tree.names.check_invariants()
    finally:
        copy.close()
        subprocess.run(["rm", "-rf", str(tmp_path / "out")], check=True)


def test_a_clone_elsewhere_is_a_copy(opened: Opened, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Elsewhere(Disk):
        def link(self, label: str, source: str, target: str) -> None:
            raise OSError(errno.EXDEV, "another filesystem")

    opened.write(opened.make(ROOT_INO, b"file"), 0, b"bytes")
    report = clone(opened.volume, opened.repository, opened.seal(), str(tmp_path / "clone"), Elsewhere())
    assert (report.linked, report.copied) == (0, 1)
    assert report.copied_bytes > 0


def test_a_clone_that_dies_is_no_volume(opened: Opened, tmp_path: Path) -> None:
    """At every act: the new volume is whole, or not there."""
    opened.write(opened.make(ROOT_INO, b"file"), 0, b"bytes")
    record = opened.seal()
    place = tmp_path / "clone"

    def attempt(disk: Disk) -> None:
        clone(opened.volume, opened.repository, record, str(place), disk)

    at = 0
    while _dies(attempt, CrashDisk(at)):
        if place.exists():
            copy = Opened(Volume.open(str(place), Disk()))
            ino = copy.tree.lookup(ROOT_INO, b"file").ino
            copy.tree.open(ino, False)
            found = copy.tree.read(ino, 0, 10)
            copy.tree.release(ino, False)
            copy.close()
            assert found == b"bytes"
        subprocess.run(["rm", "-rf", str(place), f"{place}.partial"], check=True)
        at += 1
    assert at > 10


def test_a_restore_that_dies_leaves_the_whole_snapshot_or_none(opened: Opened, tmp_path: Path) -> None:
    """At every act; what it leaves beside the place is named by the next one, which makes it after that is removed."""
    opened.write(opened.make(ROOT_INO, b"file"), 0, b"bytes")
    record, dest = opened.seal(), tmp_path / "out"

    def attempt(disk: Disk) -> None:
        opened.repository.disk = disk
        restore(opened.repository, record, str(dest))

    disk, left = CrashDisk(0, half=True), list[tuple[str, bool, bool]]()
    while _dies(attempt, disk):
        partial = os.path.exists(f"{dest}.partial")
        left.append((next(label for label in disk.labels[disk.at :]), dest.exists(), partial))
        if dest.exists():
            assert (dest / "file").read_bytes() == b"bytes"
        if partial:
            with pytest.raises(UserError, match="out"):
                attempt(Disk())
        subprocess.run(["rm", "-rf", str(dest), f"{dest}.partial"], check=True)
        disk = CrashDisk(len(left), half=True)
    assert left == [
        ("restore:build", False, False),
        ("restore:links", False, True),
        ("restore:sync", False, True),
        ("restore:publish", False, True),
        ("restore:staging", True, True),
        ("restore:publish", True, False),
    ]
    assert (dest / "file").read_bytes() == b"bytes"
    assert not os.path.exists(f"{dest}.partial")


def test_a_restore_that_fails_at_an_act_leaves_nothing_beside_its_place(opened: Opened, tmp_path: Path) -> None:
    opened.write(opened.make(ROOT_INO, b"file"), 0, b"bytes")
    record, dest = opened.seal(), tmp_path / "out"
    for label in ("restore:build", "restore:links", "restore:sync", "restore:publish", "restore:staging"):

        class Failing(Disk):
            def __getattribute__(self, name: str) -> object:
                act = super().__getattribute__(name)

                def checked(name: str, *arguments: object, **options: object) -> object:
                    if name == label:  # noqa: B023 - it is used in this turn only
                        raise OSError(errno.EIO, os.strerror(errno.EIO))
                    return act(name, *arguments, **options)  # type: ignore[operator]

                return checked

        opened.repository.disk = Failing()
        with pytest.raises((OSError, UserError)):
            restore(opened.repository, record, str(dest))
        assert not os.path.exists(f"{dest}.partial"), label
        assert not dest.exists() or (dest / "file").read_bytes() == b"bytes"
        subprocess.run(["rm", "-rf", str(dest)], check=True)


def _dies(attempt: Callable[[Disk], None], disk: CrashDisk) -> bool:
    try:
        attempt(disk)
    except Crash:
        return True
    return False

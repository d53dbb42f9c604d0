"""A restore by an ordinary user: the bytes all come, and what he may not make is counted, never silently left out."""

from __future__ import annotations

import errno
import os
import shutil
import stat
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from tqdm import tqdm

from snapfs.base.blocks import ROOT_INO, Disk, Generation, Ino
from snapfs.base.volumes.volume import Volume
from snapfs.commands import cli
from snapfs.live.namespace.namespace import Namespace
from snapfs.live.tree import LiveTree
from snapfs.store.repository.repository import Repository, StoreIdentity
from snapfs.store.tables.snapshot import SnapshotTree
from snapfs.transfer.restore import restore as restoring
from snapfs.transfer.restore.restore import RestoreReport, restore
from snapfs.transfer.restore.tree_compare import differences
from snapfs.transfer.seal.sealer import seal

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="takes root, to be another user")

STRANGER, OTHER = 65534, 4242
IDENTITY = StoreIdentity("ab" * 16, 7)


@pytest.fixture
def place() -> Iterator[Path]:
    """A folder that an ordinary user reaches, and owns."""
    with tempfile.TemporaryDirectory(prefix="snapfs-stranger-") as name:
        yield Path(name)


def make_store(folder: Path) -> None:
    """One snapshot: files of this user and of others, a set-user-id file, a device, a FIFO, extended attributes."""
    (folder / "live").mkdir(parents=True)
    disk = Disk()
    repository = Repository.create(str(folder / "store"), IDENTITY, disk)
    tree = LiveTree(str(folder / "live"), Namespace(str(folder / "live/namespace.db"), disk), disk, boot_id="boot")

    def make(parent: Ino, name: bytes, mode: int, owner: int, rdev: int = 0) -> Ino:
        return tree.mknod(parent, name, mode, rdev, owner, owner).ino

    def write(ino: Ino, data: bytes) -> None:
        while not tree.ready_to_write(ino):
            tree.prepare_write(ino)
        tree.write(ino, 0, data)

    inner = make(ROOT_INO, b"folder", stat.S_IFDIR | 0o555, STRANGER)
    for name, mode, owner in ((b"mine", 0o640, STRANGER), (b"his", 0o604, OTHER), (b"setuid", 0o4755, OTHER)):
        write(make(inner, name, stat.S_IFREG | mode, owner), name * 50_000)
    tree.setxattr(tree.lookup(inner, b"mine").ino, b"user.note", b"kept")
    tree.setxattr(tree.lookup(inner, b"his").ino, b"trusted.note", b"not for him")
    tree.link(tree.lookup(inner, b"mine").ino, ROOT_INO, b"again")
    make(ROOT_INO, b"null", stat.S_IFCHR | 0o666, STRANGER, os.makedev(1, 3))
    make(ROOT_INO, b"pipe", stat.S_IFIFO | 0o600, STRANGER)
    closed = make(ROOT_INO, b"closed", stat.S_IFDIR | 0, STRANGER)
    write(make(make(closed, b"more", stat.S_IFDIR | 0o200, STRANGER), b"inside", stat.S_IFREG | 0, STRANGER), b"inside")
    for ino in (ROOT_INO, Ino(inner)):
        tree.setattr(ino, uid=STRANGER, gid=STRANGER)
    seal(tree.cut(), repository, None, generation=Generation(1))
    tree.close()
    repository.close()


def by_a_stranger(folder: Path, verify: bool, *, fail: bool = False) -> RestoreReport | None:
    """In a process of his own: an identity that was given up does not come back."""
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        try:
            os.setgroups([])
            os.setresgid(STRANGER, STRANGER, STRANGER)
            os.setresuid(STRANGER, STRANGER, STRANGER)
            if fail:
                setattr(restoring, "_publish", refuse)  # noqa: B010
            repository = Repository.open(str(folder / "store"), IDENTITY, Disk(), readonly=True)
            report = restore(repository, repository.find("1"), str(folder / "out"), verify=verify)
            os.write(writing, msgspec.json.encode(report))
        except Refused:
            pass
        except BaseException as failure:
            print(f"{type(failure).__name__}: {failure}", file=sys.__stderr__, flush=True)
            os.write(writing, b"failed")
        finally:
            os._exit(0)
    os.close(writing)
    with open(reading, "rb") as pipe:
        answer = pipe.read()
    os.waitpid(child, 0)
    return msgspec.json.decode(answer, type=RestoreReport) if answer else None


class Refused(Exception):
    pass


def refuse(_staging: str, dest: str, *_arguments: object) -> None:
    raise Refused(dest)


@pytest.mark.parametrize("verify", [False, True])
def test_all_bytes_come_and_what_takes_privilege_is_reported(place: Path, verify: bool) -> None:
    make_store(place)
    for path in (place, *place.rglob("*")):
        shutil.chown(path, STRANGER, STRANGER)
    report = by_a_stranger(place, verify)
    assert report is not None
    assert report.not_restored == {"owner": 2, "mode": 1, "xattrs": 1, "device": 1}
    assert report.examples["device"] == ["null"]
    assert report.verified is verify
    out = place / "out"
    for name in ("mine", "his", "setuid"):
        assert (out / "folder" / name).read_bytes() == name.encode() * 50_000
        assert (out / "folder" / name).stat().st_uid == STRANGER
    assert os.getxattr(out / "folder/mine", "user.note") == b"kept"
    assert (out / "again").samefile(out / "folder/mine")
    modes = {name: stat.S_IMODE((out / "folder" / name).stat().st_mode) for name in ("mine", "his", "setuid")}
    assert modes == {"mine": 0o640, "his": 0o604, "setuid": 0o755}
    assert stat.S_IMODE((out / "folder").stat().st_mode) == 0o555
    assert not (out / "null").exists()
    assert stat.S_IMODE((out / "closed").stat().st_mode) == 0
    assert stat.S_IMODE((out / "closed/more").stat().st_mode) == 0o200
    assert stat.S_IMODE((out / "closed/more/inside").stat().st_mode) == 0
    assert not (place / "out.partial").exists()


def test_the_comparison_names_what_is_missing_and_nothing_else(place: Path) -> None:
    make_store(place)
    for path in (place, *place.rglob("*")):
        shutil.chown(path, STRANGER, STRANGER)
    by_a_stranger(place, verify=False)
    repository = Repository.open(str(place / "store"), IDENTITY, Disk(), readonly=True)
    try:
        tree = SnapshotTree(repository, repository.find("1").root)
        found = {path for path, _ in differences(repository, tree, str(place / "out"))}
    finally:
        repository.close()
    assert {os.path.basename(path) for path in found} == {b"his", b"setuid", b"null"}


def test_a_restore_that_fails_leaves_nothing_not_even_what_is_closed_to_its_owner(place: Path) -> None:
    make_store(place)
    for path in (place, *place.rglob("*")):
        shutil.chown(path, STRANGER, STRANGER)
    assert by_a_stranger(place, verify=True, fail=True) is None
    assert sorted(os.listdir(place)) == ["live", "store"]


def test_an_attribute_that_finds_no_room_is_reported(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """ext4 calls it a full disk when the attributes of one file are more than a block."""
    make_store(place)
    set_it = os.setxattr

    def cramped(path: bytes, name: bytes, value: bytes, **how: bool) -> None:
        if name == b"user.note":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        set_it(path, name, value, **how)

    monkeypatch.setattr(os, "setxattr", cramped)
    repository = Repository.open(str(place / "store"), IDENTITY, Disk(), readonly=True)
    try:
        report = restore(repository, repository.find("1"), str(place / "out"), verify=True)
    finally:
        repository.close()
    assert report.not_restored == {"xattrs": 1}
    assert report.examples["xattrs"] in (["mine"], ["again"])
    assert (place / "out/again").read_bytes() == b"mine" * 50_000


def test_a_disk_that_has_no_room_for_a_restore_is_one_line(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    volume = Volume.create(str(place / "volume"), Disk(), volume_id=IDENTITY.volume_id, seed=IDENTITY.seed)
    make_store(place)
    os.rmdir(volume.store_dir)
    shutil.move(place / "store", volume.store_dir)

    def full(*ignored: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(restoring, "_sync_filesystem", full)
    monkeypatch.setattr(tqdm, "monitor_interval", 0)  # a thread of its own
    assert cli.run(["restore", volume.path, "1", str(place / "out")]) == 3
    words = f"snapfs: cannot restore to {place}/out: No space left on device: nothing of it is left, make room first\n"
    assert capsys.readouterr().err == words
    assert not (place / "out.partial").exists()

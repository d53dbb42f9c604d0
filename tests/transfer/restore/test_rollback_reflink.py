"""A rollback stages a changed file: shared with the present one where the host filesystem can, rebuilt where it cannot.

On real filesystems of each kind, loop-mounted. Sharing is seen by what the disk has less of afterwards.
"""

from __future__ import annotations

import os
import random
import shutil
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from snapfs.base.blocks import CHUNK_SIZE, ROOT_INO, Disk, Generation, Ino
from snapfs.live.namespace.namespace import Namespace
from snapfs.live.tree import LiveTree
from snapfs.store.repository.repository import Repository, StoreIdentity
from snapfs.store.tables.snapshot import SnapshotTree
from snapfs.transfer.restore.rollback import Rollback, roll_back
from snapfs.transfer.seal.sealer import seal

IMAGE_BYTES = 400 << 20
FILE_CHUNKS = 640  # 40 MiB
MAKE = {
    "ext4": ["mkfs.ext4", "-q", "-m", "0"],
    "xfs": ["mkfs.xfs", "-q", "-m", "reflink=1"],
    "btrfs": ["mkfs.btrfs", "-q"],
}
SHARES = {"ext4": False, "xfs": True, "btrfs": True}


@pytest.fixture(params=sorted(MAKE))
def host(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """(kind, mountpoint) of a filesystem of its own."""
    kind: str = request.param
    if os.geteuid() or not shutil.which(MAKE[kind][0]) or not Path("/dev/loop-control").exists():
        pytest.skip(f"needs root, loop devices and {MAKE[kind][0]}")
    image, point = tmp_path / "image", tmp_path / "host"
    point.mkdir()
    with image.open("wb") as file:
        file.truncate(IMAGE_BYTES)
    subprocess.run([*MAKE[kind], str(image)], check=True, capture_output=True)
    if subprocess.run(["mount", "-o", "loop", str(image), str(point)], check=False).returncode:
        pytest.skip(f"this kernel cannot mount {kind}")
    yield kind, point
    subprocess.run(["umount", str(point)], check=True)


class Volume:
    def __init__(self, folder: Path) -> None:
        (folder / "live").mkdir(parents=True)
        self.disk = Disk()
        self.repository = Repository.create(str(folder / "store"), StoreIdentity("ab" * 16, 1), self.disk)
        names = Namespace(str(folder / "live/namespace.db"), self.disk)
        self.tree = LiveTree(str(folder / "live"), names, self.disk, boot_id="boot")

    def write(self, ino: Ino, offset: int, data: bytes) -> None:
        while not self.tree.ready_to_write(ino):
            self.tree.prepare_write(ino)
        self.tree.write(ino, offset, data)

    def seal(self) -> None:
        seal(self.tree.cut(), self.repository, self.repository.latest(), generation=Generation(1))
        self.tree.tidy()

    def close(self) -> None:
        self.tree.close()
        self.repository.close()


@pytest.fixture
def volume(host: tuple[str, Path]) -> Iterator[Volume]:
    made = Volume(host[1] / "volume")
    yield made
    made.close()


def used_bytes(point: Path) -> int:
    subprocess.run(["sync", "-f", str(point)], check=True)
    found = os.statvfs(point)
    return (found.f_blocks - found.f_bfree) * found.f_frsize


def test_a_rollback_of_a_few_blocks(host: tuple[str, Path], volume: Volume, monkeypatch: pytest.MonkeyPatch) -> None:
    """The bytes are the snapshot's, on whatever filesystem; a shared file costs what differs, a rebuilt one itself."""
    kind, point = host
    data = random.Random(1).randbytes(FILE_CHUNKS * CHUNK_SIZE)
    ino = volume.tree.mknod(ROOT_INO, b"file", stat.S_IFREG | 0o644, 0, 0, 0).ino
    volume.write(ino, 0, data)
    volume.seal()
    for chunk in (0, 77, FILE_CHUNKS - 1):
        volume.write(ino, chunk * CHUNK_SIZE + 500, b"of the present")
    volume.write(ino, len(data), b"and more")
    volume.seal()
    grew: list[int] = []
    stage = Rollback._stage

    def weighed(self: Rollback, *change: object) -> object:
        before = used_bytes(point)
        result = stage(self, *change)  # type: ignore[arg-type]
        grew.append(used_bytes(point) - before)
        return result

    monkeypatch.setattr(Rollback, "_stage", weighed)
    target = volume.repository.find("1")
    roll_back(
        volume.tree, volume.repository, target, volume.disk, parent=volume.repository.latest(),
        generations=(Generation(1), Generation(1)), force=False,
    )  # fmt: skip
    assert len(grew) == 1
    assert (grew[0] < len(data) // 4) == SHARES[kind], f"{grew[0]} bytes for a file of {len(data)}"
    assert volume.tree.getattr(ino).size == len(data)
    with volume.tree.borrow_backing(ino) as fd:
        assert os.pread(fd, len(data) + 1, 0) == data
    volume.seal()
    latest = volume.repository.latest()
    assert latest is not None
    tree = SnapshotTree(volume.repository, latest.root)
    file = tree.inode(ino)
    assert file is not None
    assert tree.read(file, 0, file.size) == data

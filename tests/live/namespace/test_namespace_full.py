"""A disk that is full under the namespace: ENOSPC, nothing half done, names can still go, and all goes on with room."""

from __future__ import annotations

import errno
import os
import resource
import signal
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from snapfs.base.blocks import ROOT_INO, Disk, Ino
from snapfs.live.namespace.namespace import Namespace

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small filesystem takes root")
FILE = 0o100644


@pytest.fixture(params=["ext4", "tmpfs"])
def small_disk(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Path]:
    """A filesystem of 32 MiB, mounted."""
    folder, image = tmp_path / "disk", tmp_path / "image"
    folder.mkdir()
    if request.param == "tmpfs":
        mount = ["mount", "-t", "tmpfs", "-o", "size=32m", "tmpfs", str(folder)]
    else:
        image.touch()
        os.truncate(image, 32 << 20)
        subprocess.run(["mkfs.ext4", "-q", "-m", "0", str(image)], check=True)
        mount = ["mount", "-o", "loop", str(image), str(folder)]
    subprocess.run(mount, check=True)
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(folder: Path) -> Path:
    """Take all the room there is."""
    ballast = folder / "ballast"
    with open(ballast, "wb", buffering=0) as file, suppress(OSError):
        for size in (1 << 20, 4096, 1):
            with suppress(OSError):
                while True:
                    file.write(b"x" * size)
    return ballast


def create_until_refused(ns: Namespace, made: set[bytes], most: int = 100_000) -> int:
    """Create files, keeping account of those that worked; the errno that ended it, 0 if `most` were made."""
    for _ in range(most):
        name = b"%050d" % len(made)
        try:
            ns.create(ROOT_INO, name, FILE, 0, 0)
        except OSError as failure:
            return failure.errno or -1
        made.add(name)
        if len(made) % 200 == 0:
            with suppress(OSError):
                ns.checkpoint()
    return 0


def names(ns: Namespace) -> set[bytes]:
    return {entry.name for entry in ns.readdir(ROOT_INO, 0, 1 << 30)}


@needs_root
def test_a_full_disk_breaks_nothing(small_disk: Path) -> None:
    path = str(small_disk / "namespace.db")
    ns = Namespace(path, Disk())
    made: set[bytes] = set()
    create_until_refused(ns, made, 100)
    ballast = fill(small_disk)
    assert create_until_refused(ns, made) == errno.ENOSPC
    for _ in range(3):
        assert create_until_refused(ns, made, 1) in (0, errno.ENOSPC)
    assert names(ns) == made
    ns.check_invariants()
    frozen = ns.cut(ns.epoch) if make_room_for_one(ns, made) else None
    ballast.unlink()
    if frozen is not None:
        assert {name for name, _, _ in frozen.entries(ROOT_INO)} == made
        frozen.close()
    assert create_until_refused(ns, made, 300) == 0
    ns.sync()
    assert names(ns) == made
    ns.check_invariants()
    ns.close()
    again = Namespace(path, Disk())
    again.check_invariants()
    assert names(again) == made
    again.close()


def make_room_for_one(ns: Namespace, made: set[bytes]) -> bool:
    """Whether a transaction of one page goes through on the full disk."""
    try:
        ns.setattr(ROOT_INO, mode=0o700)
    except OSError as failure:
        if failure.errno != errno.ENOSPC:
            raise
        return False
    return True


@needs_root
def test_names_can_go_from_a_full_disk(small_disk: Path) -> None:
    """WAL and database have room of their own, so that what fills the disk can be removed."""
    ns = Namespace(str(small_disk / "namespace.db"), Disk())
    made: set[bytes] = set()
    create_until_refused(ns, made, 1500)
    fill(small_disk)
    for number, name in enumerate(sorted(made)):
        ns.unlink(ROOT_INO, name)
        if number % 20 == 0:
            ns.checkpoint()
    ns.remove_orphans(ns.orphans())
    ns.sync()
    assert names(ns) == set()
    ns.check_invariants()
    ns.close()


@needs_root
def test_a_namespace_on_a_full_disk_opens(small_disk: Path) -> None:
    path = str(small_disk / "namespace.db")
    ns = Namespace(path, Disk())
    ns.create(ROOT_INO, b"a", FILE, 0, 0)
    ns.close()
    ballast = fill(small_disk)
    try:
        ns = Namespace(path, Disk())
    except OSError as failure:
        if failure.errno != errno.ENOSPC:
            raise
        ballast.unlink()
        ns = Namespace(path, Disk())
    assert names(ns) == {b"a"}
    ns.close()


def test_a_file_size_limit_is_an_error_of_the_operation(tmp_path: Path) -> None:
    """EFBIG below SQLite is an I/O error: EIO, rolled back, and all goes on without the limit."""
    ns = Namespace(str(tmp_path / "namespace.db"), Disk())
    made: set[bytes] = set()
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (9 << 20, before[1]))
    try:
        frozen = ns.cut(ns.epoch)  # keeps the WAL from starting over
        assert create_until_refused(ns, made) == errno.EIO
        assert names(ns) == made
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    frozen.close()
    assert create_until_refused(ns, made, 50) == 0
    ns.check_invariants()
    assert names(ns) == made
    ns.close()


def test_a_database_that_became_read_only_is_erofs(tmp_path: Path) -> None:
    ns = Namespace(str(tmp_path / "namespace.db"), Disk())
    ino: Ino = ns.create(ROOT_INO, b"a", FILE, 0, 0).ino
    ns._writer.db.execute("PRAGMA query_only=1")
    with pytest.raises(OSError, match="Read-only") as caught:
        ns.setattr(ino, uid=5)
    assert caught.value.errno == errno.EROFS
    ns._writer.db.execute("PRAGMA query_only=0")
    assert ns.inode(ino).uid == 0
    assert ns.setattr(ino, uid=5).uid == 5
    ns.close()

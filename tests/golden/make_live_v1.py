"""Makes live-v1.tar.gz: a live tree as version 1 of each of its formats left it when its daemon was killed.

Run with the last commit that writes these formats; later ones read it (tests/live/test_live_golden.py). It holds:

    /kept       160,000 bytes, with an extended attribute, synced          /link       a symbolic link
    /sub/late   written, not synced, hard link /sub/again                  /big        partly present: 6 of 9 chunks
    /far        absent: all of its bytes are in the store
"""

from __future__ import annotations

import os
import shutil
import stat
import sys
import tarfile
import tempfile
from pathlib import Path

from snapfs.base.blocks import CHUNK_SIZE, ROOT_INO, Disk, Ino
from snapfs.live.database.namespace_rows import AbsentFile, Inode, LoadedEntry
from snapfs.live.namespace.namespace import Namespace
from snapfs.live.tree import LiveTree

BIG, FAR = Ino(70), Ino(71)
BIG_SIZE = 9 * CHUNK_SIZE - 77


def content(ino: int, size: int) -> bytes:
    """What the store has of a file: each 16 bytes name their place."""
    return b"".join(b"%04d %010d\n" % (ino, at) for at in range(-(-size // 16)))[:size]


class Source:
    def read(self, ino: Ino, origin: bytes, offset: int, size: int) -> bytes:
        return content(ino, BIG_SIZE)[offset : offset + size]

    def chunks(self, ino: Ino, origin: bytes, first: int, count: int, urgent: bool) -> list[tuple[int, bytes]]:
        data = self.read(ino, origin, first * CHUNK_SIZE, count * CHUNK_SIZE)
        return [(first + at // CHUNK_SIZE, data[at : at + CHUNK_SIZE]) for at in range(0, len(data), CHUNK_SIZE)]

    def fill(self, ino: Ino, origin: bytes, fd: int) -> None:
        os.pwrite(fd, content(ino, BIG_SIZE), 0)

    def names(self, listing: bytes, wanted: bool = False) -> list[LoadedEntry]:
        raise NotImplementedError


def make(folder: Path) -> None:
    names = Namespace(str(folder / "namespace.db"), Disk())
    with names.bulk(sealed=True) as bulk:
        for ino, name in ((BIG, b"big"), (FAR, b"far")):
            bulk.put_inode(Inode(ino, 0o100640, 5, 6, 0, 1, 1_000, 2_000, 3_000))
            bulk.put_entry(ROOT_INO, name, ino)
            bulk.set_absent(ino, AbsentFile(BIG_SIZE, 2_000, 3_000, b"where"))
    tree = LiveTree(str(folder), names, Disk(), boot_id="boot-golden", source=Source())
    kept = tree.mknod(ROOT_INO, b"kept", stat.S_IFREG | 0o4711, 0, 11, 12).ino
    tree.write(kept, 0, content(kept, 160_000))
    tree.setxattr(kept, b"user.what", b"an attribute")
    tree.fsync(kept)
    tree.symlink(ROOT_INO, b"link", b"sub/late", 1, 2)
    sub = tree.mknod(ROOT_INO, b"sub", stat.S_IFDIR | 0o750, 0, 0, 0).ino
    late = tree.mknod(sub, b"late", stat.S_IFREG | 0o600, 0, 0, 0).ino
    tree.write(late, 0, content(late, 5_000))
    tree.link(late, sub, b"again")
    tree.hydrate(BIG, 5)
    tree.prepare_write(BIG, 7 * CHUNK_SIZE + 100, 10)
    tree.write(BIG, 7 * CHUNK_SIZE + 100, b"0123456789")
    tree.fsync(BIG)
    tree.tidy()
    tree.sync_soon()
    os._exit(0)  # a kill: the log of the namespace is not written back


def main() -> None:
    with tempfile.TemporaryDirectory() as work:
        live = Path(work, "live")
        live.mkdir()
        child = os.fork()
        if not child:
            make(live)
        os.waitpid(child, 0)
        for name in ("namespace.db-shm", "namespace.db-reserve"):
            (live / name).unlink()
        shutil.rmtree(live / "preserve")
        with tarfile.open(sys.argv[1], "w:gz") as archive:
            archive.add(live, "live")


if __name__ == "__main__":
    main()

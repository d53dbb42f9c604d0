"""Makes live-v4.tar.gz: a lazily mounted tree whose daemon was killed, with namespace.db of version 4; run once.

Later versions read it (tests/live/test_live_golden.py); it is never made anew. It holds:

    /dir     unloaded: its names are only in the store, one of them an unloaded directory
    /far     absent: all of its bytes are in the store
    /kept    160,000 bytes, made here and synced
"""

from __future__ import annotations

import os
import shutil
import stat
import sys
import tarfile
import tempfile
from pathlib import Path

from snapfs.base.blocks import ROOT_INO, Disk, Ino
from snapfs.live.backing.host_life import HostLife
from snapfs.live.database.namespace_rows import AbsentFile, Inode, LoadedEntry
from snapfs.live.namespace.namespace import Namespace
from snapfs.live.tree import LiveTree
from tests.golden.make_live_v1 import BIG_SIZE, FAR, Source, content

BOOT = "boot-golden"
DIR, BELOW, LATE = Ino(80), Ino(72), Ino(73)
LISTING, BELOW_LISTING = b"the names of dir", b"the names of below"
ABSENT = AbsentFile(BIG_SIZE, 2_000, 3_000, b"where")


class LazySource(Source):
    """The store's side of the tree."""

    def names(self, listing: bytes, wanted: bool = False) -> list[LoadedEntry]:
        if listing == BELOW_LISTING:
            return []
        assert listing == LISTING
        below = Inode(BELOW, 0o040711, 9, 9, 0, 2, 1_000, 2_000, 3_000)
        late = Inode(LATE, 0o100640, 5, 6, 0, 1, 1_000, 2_000, 3_000)
        return [
            LoadedEntry(b"below", below, listing=BELOW_LISTING),
            LoadedEntry(b"late", late, ((b"user.what", b"an attribute"),), ABSENT),
        ]


def make(folder: Path) -> None:
    names = Namespace(str(folder / "namespace.db"), Disk())
    with names.bulk(sealed=True) as bulk:
        bulk.put_inode(Inode(ROOT_INO, 0o040755, 0, 0, 0, 3, 1_000, 2_000, 3_000))
        bulk.put_inode(Inode(FAR, 0o100640, 5, 6, 0, 1, 1_000, 2_000, 3_000))
        bulk.put_entry(ROOT_INO, b"far", FAR)
        bulk.set_absent(FAR, ABSENT)
        bulk.put_inode(Inode(DIR, 0o040750, 7, 8, 0, 3, 1_000, 2_000, 3_000))
        bulk.put_entry(ROOT_INO, b"dir", DIR)
        bulk.set_unloaded(DIR, LISTING)
    tree = LiveTree(str(folder), names, Disk(), boot_id=BOOT, source=LazySource())
    kept = tree.mknod(ROOT_INO, b"kept", stat.S_IFREG | 0o4711, 0, 11, 12).ino
    tree.write(kept, 0, content(kept, 160_000))
    tree.fsync(kept)
    tree.sync_soon()
    os._exit(0)  # a kill: the log of the namespace is not written back


def main() -> None:
    with tempfile.TemporaryDirectory() as work:
        live = Path(work, "live")
        live.mkdir()
        child = os.fork()
        if not child:
            make(live)
        assert os.waitpid(child, 0)[1] == 0
        HostLife(str(live), Disk(), BOOT).close()
        for name in ("namespace.db-shm", "namespace.db-reserve"):
            (live / name).unlink()
        shutil.rmtree(live / "preserve")
        with tarfile.open(sys.argv[1], "w:gz") as archive:
            archive.add(live, "live")


if __name__ == "__main__":
    main()

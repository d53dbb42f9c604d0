"""kill -9 of a process that works on a live tree, again and again, at random moments.

The child appends what was answered to a log (write(2), as a client that was answered would remember it): each write
with its stamp after it returned, each cut that was finished. After the kill the tree is opened as on the same boot, and
nothing that was answered may be missing: neither bytes, nor names, nor from the next cut.
"""

from __future__ import annotations

import os
import random
import signal
import stat
import struct
import subprocess
import sys
import time
from pathlib import Path

import pytest

from snapfs.base.blocks import BLOCK_SIZE, CHUNK_SIZE, ROOT_INO, Disk, Ino
from snapfs.live.cut import Cut
from snapfs.live.namespace.namespace import Namespace
from snapfs.live.tree import LiveTree

pytestmark = pytest.mark.usefixtures("data_path")

KILLS = int(os.environ.get("SNAPFS_KILLS", "6"))
FILES, BLOCKS = 8, 64
ACK = struct.Struct("<QIQ")  # inode, block, stamp


def open_tree(folder: Path) -> LiveTree:
    disk = Disk()
    return LiveTree(str(folder), Namespace(str(folder / "namespace.db"), disk), disk, boot_id="this boot")


def work(folder: Path, log: Path, image: Path, seed: int) -> None:
    """Write stamps for ever. The image is what a store would have: per file the bytes of the last finished cut."""
    rng, tree = random.Random(seed), open_tree(folder)
    acks = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    named = {name: attr.ino for _, name, attr in tree.readdir(ROOT_INO, 0, 1000)}
    stamp = seed << 32
    print("ready", flush=True)
    while True:
        name = b"%d" % rng.randrange(FILES)
        if name not in named:
            named[name] = tree.mknod(ROOT_INO, name, stat.S_IFREG | 0o600, 0, 0, 0).ino
        block, stamp = rng.randrange(BLOCKS), stamp + 1
        tree.write(named[name], block * BLOCK_SIZE, struct.pack("<Q", stamp) * (BLOCK_SIZE // 8))
        os.write(acks, ACK.pack(named[name], block, stamp))
        if rng.random() < 0.01:
            cut = tree.cut()
            tree.write(named[name], block * BLOCK_SIZE, struct.pack("<Q", stamp + 1) * (BLOCK_SIZE // 8))
            stamp += 1
            store(cut, image)
            cut.finish(True)
            tree.tidy()
            tree.sync_soon()


def store(cut: Cut, image: Path) -> None:
    """Put the changed chunks into the image, then the record that makes them count."""
    record = {}
    for ino in sorted({*cut.changed_files(), *(ino for ino, _ in cut.names.changed())} - {ROOT_INO}):
        file = cut.open_file(ino)
        assert file is not None
        path = image / f"{ino}"
        data = bytearray((b"" if file.whole or not path.exists() else path.read_bytes())[: file.size])
        data.extend(bytes(file.size - len(data)))
        for chunk, _ in file.dirty_chunks():
            fresh = file.read_chunk(chunk)
            data[chunk * CHUNK_SIZE : chunk * CHUNK_SIZE + len(fresh)] = fresh
        file.close()
        record[ino] = bytes(data)
    for ino, content in record.items():
        new = image / f"{ino}.new"
        new.write_bytes(content)
        new.rename(image / f"{ino}")


def kill_at_work(folder: Path, log: Path, image: Path, seed: int) -> None:
    command = [sys.executable, __file__, str(folder), str(log), str(image), str(seed)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n"
        time.sleep(random.Random(seed).uniform(0.0, 0.4))
        assert child.poll() is None
        child.send_signal(signal.SIGKILL)


def check(folder: Path, log: Path, image: Path) -> None:
    tree = open_tree(folder)
    tree.check_invariants()
    tree.names.check_invariants()
    named = {attr.ino: attr for _, _, attr in tree.readdir(ROOT_INO, 0, 1000)}
    answered: dict[tuple[Ino, int], int] = {}
    for ino, block, stamp in ACK.iter_unpack(log.read_bytes()):
        answered[Ino(ino), block] = stamp
    for (ino, block), stamp in answered.items():
        data = tree.read(ino, block * BLOCK_SIZE, BLOCK_SIZE)
        assert data
        found = set(struct.unpack(f"<{BLOCK_SIZE // 8}Q", data))
        assert min(found) >= stamp, (ino, block, found, stamp)
    cut = tree.cut()
    known = [ino for ino in cut.changed_files() if (image / f"{ino}").exists()]  # others are new: all of them is dirty
    assert not any(file.whole for ino in known if (file := cut.open_file(ino)) and not file.close())
    store(cut, image)
    cut.finish(True)
    for ino, attr in named.items():
        assert (image / f"{ino}").read_bytes() == tree.read(ino, 0, attr.size)
    tree.close()


def test_nothing_answered_is_lost(tmp_path: Path) -> None:
    folder, log, image = tmp_path / "live", tmp_path / "acks", tmp_path / "image"
    folder.mkdir()
    image.mkdir()
    for seed in range(1, KILLS + 1):
        kill_at_work(folder, log, image, seed)
        check(folder, log, image)


if __name__ == "__main__":
    work(Path(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4]))

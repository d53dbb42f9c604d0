#!/usr/bin/env python3
"""Bytes that a snapshot adds, beside `btrfs send -p | zstd -1` of exactly the same change.

Each load is recorded as two states of a plain directory (delta_loads.py). Both states are then replayed onto a fresh
btrfs on a loop device and onto a fresh snapfs live tree: files, then only the 4 KiB blocks that differ, renames as
renames. Each side takes a snapshot after either state; what the second one adds is weighed. Of several samples the
median counts. With --breakdown it states what the bytes are, by kind and encoding. Needs root (losetup).

    tools/bench/delta_size.py [--load pgbench|sqlite|redis]... [--seconds 1] [--scratch DIR]
        [--breakdown] [--json FILE]
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import stat
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tools import environment

if __name__ == "__main__":
    environment.enter()

from delta_loads import BARS, LOADS, State

from snapfs.base.blocks import BLOCK_SIZE, ROOT_INO, Disk, Generation, Ino
from snapfs.live.namespace.namespace import Namespace
from snapfs.live.tree import LiveTree
from snapfs.store.objects import format as fmt
from snapfs.store.repository.repository import Repository, SnapshotRecord, StoreIdentity
from snapfs.transfer.seal.sealer import seal

PIECE = 1 << 20


class Target(Protocol):
    """What a state is replayed onto. Paths are relative bytes."""

    def mkdir(self, path: bytes) -> None: ...
    def create(self, path: bytes) -> None: ...
    def write(self, path: bytes, offset: int, data: bytes) -> None: ...
    def truncate(self, path: bytes, size: int) -> None: ...
    def rename(self, path: bytes, new: bytes) -> None: ...
    def remove(self, path: bytes, directory: bool) -> None: ...


class PlainTarget:
    """A directory of any filesystem."""

    def __init__(self, root: Path) -> None:
        self.root = os.fsencode(root)

    def _at(self, path: bytes) -> bytes:
        return os.path.join(self.root, path)

    def mkdir(self, path: bytes) -> None:
        os.mkdir(self._at(path))

    def create(self, path: bytes) -> None:
        os.close(os.open(self._at(path), os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))

    def write(self, path: bytes, offset: int, data: bytes) -> None:
        with open(self._at(path), "r+b", buffering=0) as file:
            os.pwrite(file.fileno(), data, offset)

    def truncate(self, path: bytes, size: int) -> None:
        os.truncate(self._at(path), size)

    def rename(self, path: bytes, new: bytes) -> None:
        os.rename(self._at(path), self._at(new))

    def remove(self, path: bytes, directory: bool) -> None:
        (os.rmdir if directory else os.unlink)(self._at(path))


class TreeTarget:
    """A snapfs live tree, called as the mount calls it."""

    def __init__(self, tree: LiveTree) -> None:
        self.tree = tree

    def _ino(self, path: bytes) -> Ino:
        ino = ROOT_INO
        for name in path.split(b"/") if path else ():
            ino = self.tree.lookup(ino, name).ino
        return ino

    def _place(self, path: bytes) -> tuple[Ino, bytes]:
        parent, name = os.path.split(path)
        return self._ino(parent), name

    def mkdir(self, path: bytes) -> None:
        self.tree.mknod(*self._place(path), stat.S_IFDIR | 0o700, 0, 0, 0)

    def create(self, path: bytes) -> None:
        self.tree.mknod(*self._place(path), stat.S_IFREG | 0o600, 0, 0, 0)

    def write(self, path: bytes, offset: int, data: bytes) -> None:
        ino = self._ino(path)
        if not self.tree.ready_to_write(ino):
            self.tree.prepare_write(ino)
        self.tree.write(ino, offset, data)

    def truncate(self, path: bytes, size: int) -> None:
        ino = self._ino(path)
        self.tree.prepare_truncate(ino, size)
        self.tree.setattr(ino, size=size)

    def rename(self, path: bytes, new: bytes) -> None:
        self.tree.rename(*self._place(path), *self._place(new), 0)

    def remove(self, path: bytes, directory: bool) -> None:
        (self.tree.rmdir if directory else self.tree.unlink)(*self._place(path))


class Replay:
    """Makes `target`, which holds `before` (or nothing), hold `after`."""

    def __init__(self, before: State | None, after: State, target: Target) -> None:
        self.before, self.after, self.target = before, after, target
        self.was = before.identity if before else {}

    def run(self) -> None:
        moved = self._moved()
        for old, new in moved.items():  # over the old file of that name, as the application did
            self.target.rename(old, new)
        gone = set(self.was) - set(self.after.identity) - set(moved)
        for path in sorted(gone, reverse=True):
            self.target.remove(path, os.path.isdir(self._old(path)))
        origin = {new: old for old, new in moved.items()}
        for path in sorted(self.after.identity):
            self._put(path, origin.get(path, path))

    def _moved(self) -> dict[bytes, bytes]:
        """Files that have another name in the after state: a file is known by inode and birth time."""
        places = {identity: path for path, identity in self.was.items()}
        return {
            places[identity]: path
            for path, identity in self.after.identity.items()
            if identity in places and places[identity] != path
        }

    def _put(self, path: bytes, origin: bytes) -> None:
        new = os.path.join(os.fsencode(self.after.directory), path)
        known = origin != path or self.was.get(path) == self.after.identity[path]
        if os.path.isdir(new):
            if path not in self.was:
                self.target.mkdir(path)
        elif known:
            self._write(path, self._old(origin), new)
        elif path in self.was:  # another file under the same name: written beside it and renamed over
            self._write_new(path + b".replay", new)
            self.target.rename(path + b".replay", path)
        else:
            self._write_new(path, new)

    def _old(self, path: bytes) -> bytes:
        assert self.before is not None
        return os.path.join(os.fsencode(self.before.directory), path)

    def _write_new(self, path: bytes, source: bytes) -> None:
        self.target.create(path)
        self._write(path, b"/dev/null", source)

    def _write(self, path: bytes, old: bytes, new: bytes) -> None:
        size = os.path.getsize(new)
        if os.path.getsize(old) != size:
            self.target.truncate(path, size)
        with open(old, "rb") as before, open(new, "rb") as after:
            offset = 0
            while piece := after.read(PIECE):
                for start, data in differing(before.read(PIECE), piece):
                    self.target.write(path, offset + start, data)
                offset += len(piece)


def differing(old: bytes, new: bytes) -> Iterator[tuple[int, bytes]]:
    """Runs of 4 KiB blocks of `new` that are not the same in `old`; zeros beyond its end are the same."""
    if old == new:
        return
    start = None
    for at in range(0, len(new) + BLOCK_SIZE, BLOCK_SIZE):
        block = new[at : at + BLOCK_SIZE]
        differs = block != old[at : at + BLOCK_SIZE].ljust(len(block), b"\0")
        if differs and start is None:
            start = at
        elif not differs and start is not None:
            yield start, new[start:at]
            start = None


@contextlib.contextmanager
def btrfs(scratch: Path) -> Iterator[Path]:
    image, mountpoint = scratch / "btrfs.img", scratch / "btrfs"
    with open(image, "wb") as file:
        file.truncate(8 << 30)
    mountpoint.mkdir()
    subprocess.run(["mkfs.btrfs", "-q", str(image)], check=True)
    subprocess.run(["mount", "-o", "loop", str(image), str(mountpoint)], check=True)
    try:
        yield mountpoint
    finally:
        subprocess.run(["umount", str(mountpoint)], check=True)
        image.unlink()
        mountpoint.rmdir()


def btrfs_bytes(scratch: Path, before: State, after: State) -> int:
    """Size of `btrfs send -p | zstd -1` of the change."""
    with btrfs(scratch) as mountpoint:
        subprocess.run(["btrfs", "-q", "subvolume", "create", str(mountpoint / "state")], check=True)
        target = PlainTarget(mountpoint / "state")
        Replay(None, before, target).run()
        _btrfs_snapshot(mountpoint, "one")
        Replay(before, after, target).run()
        _btrfs_snapshot(mountpoint, "two")
        pipe = f"btrfs -q send -p {mountpoint}/one {mountpoint}/two | zstd -1 -q | wc -c"
        return int(subprocess.run(pipe, shell=True, check=True, capture_output=True).stdout)


def _btrfs_snapshot(mountpoint: Path, name: str) -> None:
    command = ["btrfs", "-q", "subvolume", "snapshot", "-r", str(mountpoint / "state"), str(mountpoint / name)]
    subprocess.run(command, check=True)
    subprocess.run(["sync", "-f", str(mountpoint)], check=True)


def snapfs_record(scratch: Path, before: State, after: State) -> tuple[SnapshotRecord, dict[str, list[int]]]:
    """The record of the second snapshot, whose `stored_bytes` is the whole segment, and its breakdown."""
    folder, disk = scratch / "volume", Disk()
    (folder / "live").mkdir(parents=True)
    names = Namespace(str(folder / "live/namespace.db"), disk)
    tree = LiveTree(str(folder / "live"), names, disk, boot_id="bench")
    repository = Repository.create(str(folder / "store"), StoreIdentity(uuid.uuid4().hex, 1), disk)
    try:
        Replay(None, before, TreeTarget(tree)).run()
        first = seal(tree.cut(), repository, None, generation=Generation(1))
        Replay(before, after, TreeTarget(tree)).run()
        second = seal(tree.cut(), repository, first, generation=Generation(1))
        return second, breakdown(repository)
    finally:
        tree.close()
        repository.close()
        shutil.rmtree(folder)


def breakdown(repository: Repository) -> dict[str, list[int]]:
    """[objects, payload bytes] of the newest segment by kind and encoding, and [objects, bytes] of what frames them."""
    found: dict[str, list[int]] = {}
    reader = repository.index.reader(repository.index.segments()[-1].first)
    assert reader is not None
    for row in reader.rows():
        for name, size in (
            (f"{fmt.ObjectKind(row.kind).name} {fmt.Encoding(row.encoding).name}", row.stored),
            ("frames and table rows", fmt.FRAME_BYTES + fmt.ROW_BYTES),
        ):
            entry = found.setdefault(name, [0, 0])
            entry[0] += 1
            entry[1] += size
    return dict(sorted(found.items(), key=lambda item: -item[1][1]))


def measure(load: str, seconds: float, scratch: Path) -> dict[str, Any]:
    samples = []
    for before, after in LOADS[load](scratch, seconds):
        samples.append(_sample(scratch, before, after))
        for state in (before, after):
            shutil.rmtree(state.directory)
    shutil.rmtree(scratch / "app")
    ratio = statistics.median(sample["ratio"] for sample in samples)
    return {"load": load, "seconds": seconds, "ratio": round(ratio, 4), "bar": BARS[load], "samples": samples}


def _sample(scratch: Path, before: State, after: State) -> dict[str, Any]:
    started = time.monotonic()
    record, parts = snapfs_record(scratch, before, after)
    replayed = time.monotonic() - started
    against = btrfs_bytes(scratch, before, after)
    return {
        "snapfs_bytes": record.stats.stored_bytes,
        "btrfs_send_zstd_bytes": against,
        "ratio": record.stats.stored_bytes / against,
        "dirty_chunk_bytes": record.stats.dirty_bytes,
        "objects": record.stats.new_objects,
        "seal_seconds": record.stats.seal_seconds,
        "replay_seconds": round(replayed, 2),
        "breakdown": parts,
    }


def _print(result: dict[str, Any], with_breakdown: bool) -> None:
    for sample in result["samples"]:
        print(
            f"{result['load']:8} snapfs {sample['snapfs_bytes'] / 1e6:8.3f} MB   btrfs send | zstd -1 "
            f"{sample['btrfs_send_zstd_bytes'] / 1e6:8.3f} MB   ratio {sample['ratio']:.4f}",
            file=sys.stderr,
        )
        for name, (objects, size) in sample["breakdown"].items() if with_breakdown else ():
            print(f"    {name:24} {objects:6} objects {size:9} bytes", file=sys.stderr)
    print(f"{result['load']:8} ratio {result['ratio']:.4f} (bar {result['bar']})", file=sys.stderr)


def main() -> int:
    parser = argparse.ArgumentParser(
        allow_abbrev=False, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--load", action="append", choices=sorted(LOADS), help="default: all three")
    parser.add_argument("--seconds", type=float, default=1.0, help="of load between the two snapshots")
    parser.add_argument("--scratch", default=tempfile.gettempdir(), help="a place with about 6 GB of room")
    parser.add_argument("--breakdown", action="store_true", help="state what the bytes of each sample are")
    parser.add_argument("--json", metavar="FILE", help="also write the results there (- for stdout)")
    options = parser.parse_args()
    results = []
    for load in options.load or LOADS:
        with tempfile.TemporaryDirectory(prefix="snapfs-delta-", dir=options.scratch) as scratch:
            os.chmod(scratch, 0o755)  # PostgreSQL runs as another user
            results.append(measure(load, options.seconds, Path(scratch)))
        _print(results[-1], options.breakdown)
    if options.json:
        text = json.dumps({"delta_size": results}, indent=2) + "\n"
        if options.json == "-":
            print(text, end="")
        else:
            Path(options.json).write_text(text)
    return 0 if all(row["ratio"] <= row["bar"] for row in results) else 1


if __name__ == "__main__":
    sys.exit(main())

"""A volume without a mount, driven by a seed against a model that remembers every version.

`World` does to a live tree what an application and its operator would do: changes of every kind, cuts, seals that
succeed or fail, restarts, kills, rollbacks, drops. The model beside it is a few plain dicts. At a cut the model is
remembered; every snapshot that exists must equal what was remembered, byte for byte and attribute for attribute,
whatever has happened since.

With `threads` 0 the sealer runs in a thread that moves only when it is given the baton, a chunk or a durable act at a
time: the same seed gives the same history, step by step. With threads it runs as it does in the daemon, and the same
must hold.

A kill is a copy of the volume, taken at that instant: what the abandoned life still does in its own folder counts for
nothing.
"""

from __future__ import annotations

import errno
import os
import random
import stat
import subprocess
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from snapfs.base.blocks import CHUNK_SIZE, ROOT_INO, ChunkIndex, Disk, Generation, Ino, SnapshotNumber
from snapfs.base.errors import SnapshotError
from snapfs.live.cut import Cut, FrozenFile
from snapfs.live.namespace.namespace import Namespace
from snapfs.live.tree import LiveTree
from snapfs.store.repository.repository import Repository, SnapshotRecord, StoreIdentity
from snapfs.store.tables.snapshot import SnapshotTree
from snapfs.transfer.common.store_source import StoreSource
from snapfs.transfer.restore.rollback import roll_back
from snapfs.transfer.seal.sealer import seal

IDENTITY = StoreIdentity("0123456789abcdef0123456789abcdef", 0x5EED)
NAMES = [f"n{number}".encode() for number in range(9)] + [b"\xff\xfe not utf-8", b"x" * 255]
MAX_SIZE = 6 * CHUNK_SIZE
SEALER = "world-sealer"
MIX = {
    "write": 30, "append": 10, "big_write": 3, "truncate": 6, "create": 8, "mkdir": 3, "special": 2, "symlink": 2,
    "unlink": 5, "rmdir": 2, "rename": 6, "exchange": 1, "link": 3, "chmod": 2, "chown": 2, "times": 2, "setxattr": 3,
    "removexattr": 1, "fsync": 2, "open": 2, "release": 2, "far": 0.5, "replace": 2, "tidy": 3, "snapshot": 4,
    "advance": 60, "fail": 0.3, "restart": 0.4, "kill": 0.6, "drop": 0.6, "rollback": 0.3, "check": 0.5,
}  # fmt: skip


class Abandoned(BaseException):
    """The life that this sealer belongs to is over."""


class Baton:
    """Lets one other thread run, a step at a time."""

    def __init__(self) -> None:
        self._go, self._stop = threading.Semaphore(0), threading.Semaphore(0)
        self.abandoned = False
        self.ended = False

    def pause(self) -> None:
        """By the other thread, between two steps."""
        self._stop.release()
        self._go.acquire()
        if self.abandoned:
            raise Abandoned

    def step(self) -> None:
        """Let it run up to its next pause, or its end."""
        self._go.release()
        self._stop.acquire()

    def begin(self) -> None:
        self._go.acquire()
        if self.abandoned:
            raise Abandoned

    def end(self) -> None:
        self.ended = True
        self._stop.release()


class WorldDisk(Disk):
    """Pauses the sealer at its durable acts, and fails one of them on request."""

    def __init__(self) -> None:
        self.pause: Callable[[], None] | None = None
        self.fail_at: int | None = None

    def _act(self, label: str) -> None:
        if threading.current_thread().name != SEALER or not label.startswith(("seal:", "log:")):
            return
        if self.fail_at is not None:
            self.fail_at -= 1
            if self.fail_at == -1:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), label)
        if self.pause is not None and label.startswith("seal:"):  # the log is written with the repository's lock held
            self.pause()

    def append(self, label: str, fd: int, data: bytes) -> None:
        self._act(label)
        super().append(label, fd, data)

    def pwrite(self, label: str, fd: int, data: bytes, offset: int) -> None:
        self._act(label)
        super().pwrite(label, fd, data, offset)

    def fsync(self, label: str, fd: int) -> None:
        self._act(label)
        super().fsync(label, fd)

    def fdatasync(self, label: str, fd: int) -> None:
        self._act(label)
        super().fdatasync(label, fd)

    def rename(self, label: str, source: str, target: str) -> None:
        self._act(label)
        super().rename(label, source, target)


class PausingFile:
    """A frozen file that hands the baton over before each chunk."""

    def __init__(self, file: FrozenFile, pause: Callable[[], None]) -> None:
        self._file, self._pause = file, pause

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def read_chunk(self, chunk: ChunkIndex) -> bytes:
        self._pause()
        return self._file.read_chunk(chunk)


class PausingCut:
    def __init__(self, cut: Cut, pause: Callable[[], None]) -> None:
        self._cut, self._pause = cut, pause

    def __getattr__(self, name: str) -> Any:
        return getattr(self._cut, name)

    def open_file(self, ino: Ino) -> Any:
        self._pause()
        found = self._cut.open_file(ino)
        return None if found is None else PausingFile(found, self._pause)


@dataclass
class Node:
    """An inode of the model."""

    mode: int
    uid: int
    gid: int
    rdev: int = 0
    data: bytes = b""
    target: bytes = b""
    entries: dict[bytes, Ino] = field(default_factory=dict)
    xattrs: dict[bytes, bytes] = field(default_factory=dict)
    nlink: int = 1
    times: tuple[int, int, int] = (0, 0, 0)  # taken from the tree at a cut

    @property
    def is_dir(self) -> bool:
        return stat.S_ISDIR(self.mode)

    @property
    def is_file(self) -> bool:
        return stat.S_ISREG(self.mode)


Image = dict[Ino, Node]


@dataclass
class Sealing:
    image: Image
    thread: threading.Thread
    baton: Baton | None
    outcome: list[SnapshotRecord | BaseException] = field(default_factory=list)


class World:
    def __init__(self, seed: int, folder: Path, threads: int = 0) -> None:
        self.rng = random.Random(seed)
        self.folder, self.threads, self.life, self.boot = folder, threads, 0, 0
        self.now_ns = 1_700_000_000_000_000_000
        self.generation = Generation(1)
        self.nodes: Image = {ROOT_INO: Node(stat.S_IFDIR | 0o755, os.geteuid(), os.getegid(), nlink=2)}
        self.opens: list[Ino] = []
        self.snapshots: dict[SnapshotNumber, Image] = {}
        self.sealing: Sealing | None = None
        self.counts: Counter[str] = Counter()
        self.exclude: tuple[str, ...] = ()
        self._open()

    # -- lives

    @property
    def volume(self) -> Path:
        return self.folder / f"life{self.life}"

    def clock(self) -> int:
        self.now_ns += 1_000_000
        return self.now_ns

    def _open(self) -> None:
        live, store = self.volume / "live", self.volume / "store"
        self.disk = WorldDisk()
        if not live.exists():
            live.mkdir(parents=True)
            Repository.create(str(store), IDENTITY, self.disk).close()
        self.repository = Repository.open(str(store), IDENTITY, self.disk, clock=self.clock, cache_bytes=4 << 20)
        self.parent = self.repository.latest()
        source = None
        if self.parent is not None:
            source = StoreSource(self.repository, SnapshotTree(self.repository, self.parent.root))
        names = Namespace(str(live / "namespace.db"), self.disk, self.clock)
        self.tree = LiveTree(
            str(live), names, self.disk, boot_id=f"boot-{self.boot}", max_open_files=8, source=source, clock=self.clock
        )

    def close(self) -> None:
        while self.sealing is not None:
            self.advance()
        self.tree.close()
        self.repository.close()

    def restart(self) -> None:
        self._end_sealing()
        self._release_all()
        self.close()
        self.boot += self.rng.random() < 0.5
        self._open()
        self.check_tree()

    def kill(self) -> None:
        """The process dies, or with it the machine (whose disk, mercifully, has everything)."""
        if self.threads:
            self._end_sealing()  # who copies while others write has a state that never was
        for state in self.tree._content.pending_times():
            self.tree._content.apply_times(state)  # what a kill takes back of times is not promised
        old = self.volume
        self.life += 1
        subprocess.run(["cp", "-a", "--sparse=always", str(old), str(self.volume)], check=True)
        image = self._abandon()
        subprocess.run(["rm", "-rf", str(old)], check=True)
        self.boot += self.rng.random() < 0.3
        self.opens = []
        self.nodes = {ino: node for ino, node in self.nodes.items() if node.nlink}
        self._open()
        latest = self.repository.latest()
        if image is not None and latest is not None and latest.number not in self.snapshots:
            self.snapshots[latest.number] = image  # it died after the commit
            self.counts["committed and died"] += 1
        self.check_tree()
        self.check_snapshots()

    def _abandon(self) -> Image | None:
        sealing, self.sealing = self.sealing, None
        if sealing is not None:
            if sealing.baton is not None and not sealing.baton.ended:
                sealing.baton.abandoned = True
                self.disk.pause = None
                sealing.baton.step()
            sealing.thread.join()
        self.tree.close(clean=False)
        self.repository.close()
        return sealing.image if sealing is not None else None

    def _release_all(self) -> None:
        for ino in self.opens:
            self.tree.release(ino, True)
        opened, self.opens = set(self.opens), []
        for ino in opened:
            self._drop_if_gone(ino)

    # -- steps

    def step(self) -> None:
        name = self.rng.choices(list(MIX), list(MIX.values()))[0]
        self.counts[name] += 1
        getattr(self, name)()

    def _some(self, wanted: Callable[[Node], bool]) -> Ino | None:
        found = sorted(ino for ino, node in self.nodes.items() if wanted(node))
        return self.rng.choice(found) if found else None

    def _directory(self) -> Ino:
        found = self._some(lambda node: node.is_dir and node.nlink > 0)
        assert found is not None
        return found

    def _entry(self, wanted: Callable[[Node], bool] = lambda node: True) -> tuple[Ino, bytes, Ino] | None:
        """A name that leads to something wanted."""
        found = [
            (parent, name, ino)
            for parent, node in sorted(self.nodes.items())
            for name, ino in sorted(node.entries.items())
            if wanted(self.nodes[ino])
        ]
        return self.rng.choice(found) if found else None

    def _free_name(self) -> tuple[Ino, bytes] | None:
        parent, name = self._directory(), self.rng.choice(NAMES)
        return None if name in self.nodes[parent].entries else (parent, name)

    # -- bytes

    def _write(self, ino: Ino, offset: int, length: int, data: bytes | None = None) -> None:
        chance = self.rng.random()
        if data is None:
            data = bytes(length) if chance < 0.1 else self.rng.randbytes(length)
            data = (data[:16] * (length // 16 + 1))[:length] if chance > 0.6 else data
        while not self.tree.ready_to_write(ino):
            self.tree.prepare_write(ino)
        assert self.tree.write(ino, offset, data) == length
        node = self.nodes[ino]
        node.data = node.data[:offset].ljust(offset, b"\0") + data + node.data[offset + length :]
        now = self.clock()
        self.tree.setattr(ino, mtime_ns=now, ctime_ns=now)

    def write(self) -> None:
        ino = self._some(lambda node: node.is_file)
        if ino is not None:
            offset = self.rng.randrange(min(len(self.nodes[ino].data) + 5000, MAX_SIZE))
            self._write(ino, offset, self.rng.choice([1, 100, 4096, 5000, 20000]))

    def append(self) -> None:
        ino = self._some(lambda node: node.is_file and len(node.data) < MAX_SIZE)
        if ino is not None:
            self._write(ino, len(self.nodes[ino].data), self.rng.choice([10, 128, 4096, 8192]))

    def big_write(self) -> None:
        ino = self._some(lambda node: node.is_file)
        if ino is not None:
            self._write(ino, self.rng.randrange(4) * CHUNK_SIZE, self.rng.randrange(1, 4) * CHUNK_SIZE)

    def far(self) -> None:
        ino = self._some(lambda node: node.is_file)
        if ino is not None:
            self._write(ino, MAX_SIZE + self.rng.randrange(4 * MAX_SIZE), 10)

    def truncate(self) -> None:
        ino = self._some(lambda node: node.is_file)
        if ino is None:
            return
        node = self.nodes[ino]
        size = self.rng.choice([0, len(node.data), self.rng.randrange(MAX_SIZE), self.rng.randrange(5) * CHUNK_SIZE])
        self.tree.prepare_truncate(ino, size)
        self.tree.setattr(ino, size=size)
        node.data = node.data[:size].ljust(size, b"\0")

    def fsync(self) -> None:
        ino = self._some(lambda node: node.is_file)
        if ino is not None:
            self.tree.fsync(ino, self.rng.random() < 0.5)

    # -- names

    def _make(self, mode: int, rdev: int = 0) -> Ino | None:
        place = self._free_name()
        if place is None or len(self.nodes) > 60:
            return None
        parent, name = place
        uid, gid = self.rng.randrange(5), self.rng.randrange(5)
        attr = self.tree.mknod(parent, name, mode, rdev, uid, gid)
        node = Node(attr.mode, attr.uid, attr.gid, rdev, nlink=2 if stat.S_ISDIR(mode) else 1)
        assert stat.S_IFMT(attr.mode) == stat.S_IFMT(mode)
        self.nodes[attr.ino] = node
        self.nodes[parent].entries[name] = attr.ino
        self.nodes[parent].nlink += node.is_dir
        return attr.ino

    def create(self) -> None:
        ino = self._make(stat.S_IFREG | self.rng.randrange(0o10000))
        if ino is not None and self.rng.random() < 0.5:
            self._write(ino, 0, self.rng.randrange(1, 30000))

    def mkdir(self) -> None:
        self._make(stat.S_IFDIR | self.rng.randrange(0o10000))

    def special(self) -> None:
        kind = self.rng.choice([stat.S_IFIFO, stat.S_IFSOCK, stat.S_IFCHR, stat.S_IFBLK])
        device = os.makedev(self.rng.randrange(4000), self.rng.randrange(300)) if kind in (
            stat.S_IFCHR, stat.S_IFBLK
        ) else 0  # fmt: skip
        self._make(kind | 0o600, device)

    def symlink(self) -> None:
        place = self._free_name()
        if place is not None:
            target = self.rng.choice([b"..", b"n1/n2", b"/" + b"y" * self.rng.randrange(1, 4000), b"\xff\xfe"])
            attr = self.tree.symlink(*place, target, 1, 2)
            self.nodes[attr.ino] = Node(attr.mode, attr.uid, attr.gid, target=target)
            self.nodes[place[0]].entries[place[1]] = attr.ino

    def _lose(self, parent: Ino, name: bytes) -> None:
        """The model's side of a name that is gone."""
        ino = self.nodes[parent].entries.pop(name)
        node = self.nodes[ino]
        if node.is_dir:
            self.nodes[parent].nlink -= 1
            node.nlink = 0
        else:
            node.nlink -= 1
        self._drop_if_gone(ino)

    def _drop_if_gone(self, ino: Ino) -> None:
        if ino in self.nodes and self.nodes[ino].nlink == 0 and ino not in self.opens:
            del self.nodes[ino]
            self.tree.forget(ino)

    def unlink(self) -> None:
        found = self._entry(lambda node: not node.is_dir)
        if found is not None:
            self.tree.unlink(*found[:2])
            self._lose(*found[:2])

    def rmdir(self) -> None:
        found = self._entry(lambda node: node.is_dir and not node.entries)
        if found is not None:
            self.tree.rmdir(*found[:2])
            self._lose(*found[:2])

    def link(self) -> None:
        place, ino = self._free_name(), self._some(lambda node: not node.is_dir and node.nlink > 0)
        if place is not None and ino is not None:
            self.tree.link(ino, *place)
            self.nodes[ino].nlink += 1
            self.nodes[place[0]].entries[place[1]] = ino

    def _is_below(self, ino: Ino, above: Ino) -> bool:
        return ino == above or any(
            self._is_below(ino, child) for child in self.nodes[above].entries.values() if self.nodes[child].is_dir
        )

    def rename(self) -> None:
        found = self._entry()
        if found is not None:
            self._rename(found, self._directory(), self.rng.choice(NAMES))

    def _rename(self, found: tuple[Ino, bytes, Ino], new_parent: Ino, new_name: bytes) -> None:
        parent, name, ino = found
        moved, old = self.nodes[ino], self.nodes[new_parent].entries.get(new_name)
        if (moved.is_dir and self._is_below(new_parent, ino)) or old == ino:
            return
        if old is not None:
            replaced = self.nodes[old]
            if moved.is_dir != replaced.is_dir or replaced.entries:
                return
        self.tree.rename(parent, name, new_parent, new_name)
        if old is not None:
            self._lose(new_parent, new_name)
        del self.nodes[parent].entries[name]
        self.nodes[new_parent].entries[new_name] = ino
        self.nodes[parent].nlink -= moved.is_dir
        self.nodes[new_parent].nlink += moved.is_dir

    def replace(self) -> None:
        """A file is written anew beside the old one, a little shifted, and renamed over it."""
        found, name = self._entry(lambda node: node.is_file and len(node.data) > 5000), b"replacement"
        if found is None or name in self.nodes[found[0]].entries:
            return
        parent, old_name, old = found
        attr = self.tree.mknod(parent, name, stat.S_IFREG | 0o600, 0, 0, 0)
        data = self.rng.randbytes(self.rng.randrange(500)) + self.nodes[old].data[: 4 * CHUNK_SIZE]
        self.nodes[attr.ino] = Node(attr.mode, attr.uid, attr.gid)
        self.nodes[parent].entries[name] = attr.ino
        self._write(attr.ino, 0, len(data), data)
        self._rename((parent, name, attr.ino), parent, old_name)

    def exchange(self) -> None:
        one, two = self._entry(), self._entry()
        if one is None or two is None or one[2] == two[2]:
            return
        first, second = self.nodes[one[2]], self.nodes[two[2]]
        if (first.is_dir and self._is_below(two[0], one[2])) or (second.is_dir and self._is_below(one[0], two[2])):
            return
        self.tree.rename(*one[:2], *two[:2], 2)
        self.nodes[one[0]].entries[one[1]], self.nodes[two[0]].entries[two[1]] = two[2], one[2]
        for parent, gained, lost in ((one[0], second, first), (two[0], first, second)):
            self.nodes[parent].nlink += gained.is_dir - lost.is_dir

    # -- attributes

    def chmod(self) -> None:
        ino = self._some(lambda node: node.nlink > 0)
        if ino is not None:
            mode = self.rng.randrange(0o10000)
            self.tree.setattr(ino, mode=mode)
            self.nodes[ino].mode = stat.S_IFMT(self.nodes[ino].mode) | mode

    def chown(self) -> None:
        ino = self._some(lambda node: node.nlink > 0)
        if ino is not None:
            uid, gid = self.rng.randrange(1 << 31), self.rng.randrange(1 << 31)
            self.tree.setattr(ino, uid=uid, gid=gid)
            self.nodes[ino].uid, self.nodes[ino].gid = uid, gid

    def times(self) -> None:
        ino = self._some(lambda node: node.nlink > 0)
        if ino is not None:
            when = self.rng.randrange(-(10**18), 4 * 10**18)
            self.tree.setattr(ino, atime_ns=when, mtime_ns=when + 1)

    def setxattr(self) -> None:
        ino = self._some(lambda node: node.nlink > 0)
        if ino is not None:
            name, value = b"user.%d" % self.rng.randrange(4), self.rng.randbytes(self.rng.choice([0, 5, 300, 5000]))
            self.tree.setxattr(ino, name, value)
            self.nodes[ino].xattrs[name] = value

    def removexattr(self) -> None:
        ino = self._some(lambda node: bool(node.xattrs))
        if ino is not None:
            name = self.rng.choice(sorted(self.nodes[ino].xattrs))
            self.tree.removexattr(ino, name)
            del self.nodes[ino].xattrs[name]

    # -- open files

    def open(self) -> None:
        ino = self._some(lambda node: node.is_file)
        if ino is not None:
            self.tree.open(ino, True)
            self.opens.append(ino)

    def release(self) -> None:
        if self.opens:
            ino = self.opens.pop(self.rng.randrange(len(self.opens)))
            self.tree.release(ino, True)
            self._drop_if_gone(ino)

    def tidy(self) -> None:
        self.tree.tidy()
        self.tree.sync_soon()

    # -- what is excluded: nothing here

    def shown(self, image: Image) -> Image:
        """What a snapshot has of `image`."""
        return image

    def rolled_back(self, target: Image, before: Image, present: Image) -> Image:
        """What the tree is after a rollback to `target`, which was `present`, as its snapshot has it `before`."""
        return target

    def expected(self, failure: SnapshotError) -> bool:
        """Whether a seal may have failed like this on a good disk."""
        return False

    # -- snapshots

    def image(self) -> Image:
        """The model as it is now, with the times that the tree shows."""
        result: Image = {}
        for ino, node in self.nodes.items():
            if node.nlink:
                attr = self.tree.getattr(ino)
                times = (attr.atime_ns, attr.mtime_ns, attr.ctime_ns)
                result[ino] = replace(node, entries=dict(node.entries), xattrs=dict(node.xattrs), times=times)
        return result

    def snapshot(self) -> None:
        """Cut, and begin to seal."""
        if self.sealing is not None:
            return
        image = self.shown(self.image())
        cut, parent, repository, exclude = self.tree.cut(), self.parent, self.repository, self.exclude
        baton = Baton() if self.threads == 0 else None
        self.disk.pause = baton.pause if baton else None
        sealing = self.sealing = Sealing(image, threading.Thread(), baton)

        def run() -> None:
            try:
                if baton is not None:
                    baton.begin()
                source: Any = cut if baton is None else PausingCut(cut, baton.pause)
                record = seal(
                    source, repository, parent, generation=self.generation, threads=self.threads, exclude=exclude
                )
                sealing.outcome.append(record)
            except (SnapshotError, Abandoned) as failure:
                cut.finish(False)  # where it was abandoned before it began
                sealing.outcome.append(failure)
            finally:
                if baton is not None:
                    baton.end()

        sealing.thread = threading.Thread(target=run, name=SEALER)
        sealing.thread.start()

    def advance(self) -> None:
        """Let the sealer go on; take what it made, if it is done."""
        sealing = self.sealing
        if sealing is None:
            return
        if sealing.baton is not None:
            for _ in range(self.rng.randrange(1, 6)):
                if not sealing.baton.ended:
                    sealing.baton.step()
            if not sealing.baton.ended:
                return
        elif sealing.thread.is_alive() and self.rng.random() < 0.9:
            return
        self._take(sealing)

    def _end_sealing(self) -> None:
        while self.sealing is not None:
            self.advance()

    def _take(self, sealing: Sealing) -> None:
        sealing.thread.join()
        self.sealing, self.disk.pause = None, None
        failed, self.disk.fail_at = self.disk.fail_at is not None, None
        (outcome,) = sealing.outcome
        if isinstance(outcome, SnapshotRecord):
            self.parent = outcome
            self.snapshots[outcome.number] = sealing.image
            self.check_snapshot(outcome)
            self.counts["sealed"] += 1
        else:
            assert isinstance(outcome, SnapshotError)
            if self.expected(outcome):
                return
            assert failed, outcome
            assert outcome.errno == errno.ENOSPC
            self.counts["failed"] += 1
        self.tree.tidy()

    def fail(self) -> None:
        """Let the disk be full after a few more acts of the sealer."""
        if self.sealing is not None:
            self.disk.fail_at = self.rng.randrange(6)

    def drop(self) -> None:
        """Not the newest: what the tree's changes are relative to."""
        older = sorted(self.snapshots)[:-1]
        if len(older) > 4:
            number = self.rng.choice(older)
            if self.parent is None or number != self.parent.number:
                self.repository.drop(number)
                del self.snapshots[number]

    def rollback(self) -> None:
        if not self.snapshots:
            return
        self._end_sealing()
        self._release_all()
        self.tree.tidy()
        target = self.repository.find(str(self.rng.choice(sorted(self.snapshots))))
        before, present = self.shown(self.image()), self.image()
        next_generation = Generation(self.generation + 1)
        report = roll_back(
            self.tree, self.repository, target, self.disk, parent=self.parent,
            generations=(self.generation, next_generation), threads=self.threads, exclude=self.exclude,
        )  # fmt: skip
        self.generation = next_generation
        self.snapshots[report.kept] = before
        self.parent = self.repository.latest()
        assert self.parent is not None
        assert self.parent.number == report.now
        assert self.parent.parent == target.number
        image = self.rolled_back(self.snapshots[target.number], before, present)
        self.snapshots[report.now] = self.shown(image)
        self.nodes = {
            ino: replace(node, entries=dict(node.entries), xattrs=dict(node.xattrs)) for ino, node in image.items()
        }
        self.check_tree()
        for number in (report.kept, report.now):
            self.check_snapshot(self.repository.find(str(number)))

    # -- checks

    def check(self) -> None:
        self.tree.check_invariants()
        self.repository.check_invariants()
        self.check_tree()

    def check_tree(self) -> None:
        """The live tree is what the model is."""
        self.tree.names.check_invariants()
        for ino, node in self.nodes.items():
            attr = self.tree.getattr(ino)
            assert (attr.mode, attr.uid, attr.gid, attr.nlink, attr.rdev) == (
                node.mode, node.uid, node.gid, node.nlink, node.rdev,
            ), ino  # fmt: skip
            if node.is_dir:
                listed = {name: each.ino for _, name, each in self.tree.readdir(ino, 0, 1000)}
                assert listed == node.entries, ino
            elif node.is_file:
                assert attr.size == len(node.data), ino
                found = self.tree.read(ino, 0, len(node.data) + 1, nowait=True)
                found = self.tree.read(ino, 0, len(node.data) + 1) if found is None else found
                assert found == node.data, ino

    def check_snapshots(self) -> None:
        records = self.repository.snapshots()
        assert {record.number for record in records} == set(self.snapshots)
        for record in records:
            self.check_snapshot(record)

    def check_snapshot(self, record: SnapshotRecord) -> None:
        """The snapshot holds exactly what was there at its cut."""
        assert record.state == "good"
        image = self.snapshots[record.number]
        tree = SnapshotTree(self.repository, record.root)
        found = {each.ino: each for each in tree.inodes()}
        assert found.keys() == image.keys(), record.number
        assert tree.root.inodes == len(image)
        for ino, node in image.items():
            each = found[ino]
            where = f"snapshot {record.number}, inode {ino}"
            assert (each.mode, each.uid, each.gid, each.nlink, each.rdev) == (
                node.mode, node.uid, node.gid, node.nlink, node.rdev,
            ), where  # fmt: skip
            times = (each.atime_ns, each.mtime_ns, each.ctime_ns)
            assert times == node.times, (where, times, node.times)
            assert each.xattrs == tuple(sorted(node.xattrs.items())), where
            assert each.target == node.target, where
            if node.is_dir:
                assert {entry.name: entry.ino for entry in tree.entries(each)} == node.entries, where
                for entry in tree.entries(each):
                    assert entry.kind == image[entry.ino].mode >> 12, where
            elif node.is_file:
                assert each.size == len(node.data), where
                assert _difference(tree.read(each, 0, each.size), node.data) is None, where

    def finish(self) -> None:
        """End in order, and look at everything once more in a new life."""
        self._end_sealing()
        self._release_all()
        self.snapshot()
        self._end_sealing()
        self.close()
        self._open()
        self.check_tree()
        self.check_snapshots()
        self.tree.close()
        self.repository.close()


def _difference(found: bytes, expected: bytes) -> str | None:
    """Where they differ, in blocks."""
    if found == expected:
        return None
    blocks = [at // 4096 for at in range(0, len(expected), 4096) if found[at : at + 4096] != expected[at : at + 4096]]
    zero = all(not found[at * 4096 : at * 4096 + 4096].strip(b"\0") for at in blocks)
    return f"{len(found)} and {len(expected)} bytes; blocks {blocks} differ{', found as zeros' if zero else ''}"


def run(seed: int, folder: Path, steps: int, threads: int = 0, make: type[World] = World) -> Counter[str]:
    """One whole history. An AssertionError carries the seed and the step."""
    world = make(seed, folder, threads)
    for number in _numbers(steps):
        try:
            world.step()
        except BaseException as failure:
            failure.add_note(f"seed {seed}, threads {threads}, step {number}; {dict(world.counts)}")
            raise
    world.finish()
    return world.counts


def _numbers(steps: int) -> Iterator[int]:
    yield from range(steps)

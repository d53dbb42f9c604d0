"""The bytes of a file are durable before the name it takes from another one, in every order of threads.

A rename over a file is made while another thread makes the log of the namespace durable, at each labelled step of that
in turn. Whenever the log has become durable with a rename in it, the bytes of the file must have been synced before.
"""

from __future__ import annotations

import os
import stat
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from snapfs.base.blocks import ROOT_INO, Disk, Ino
from snapfs.live.database import checkpointer
from snapfs.live.database.namespace_rows import RENAME_EXCHANGE
from snapfs.live.namespace.namespace import Namespace
from snapfs.live.tree import LiveTree
from tests.fakes.patience import PATIENCE_S

pytestmark = pytest.mark.usefixtures("data_path")


class OrderDisk(Disk):
    """Runs `meanwhile` in the other thread before act number `at` of one thread; knows which files were synced."""

    def __init__(self) -> None:
        self.synced: set[int] = set()
        self.meanwhile: Callable[[], None] | None = None
        self.at = self.count = 0
        self.thread: threading.Thread | None = None
        self.labels: list[str] = []
        self.log_is_durable: Callable[[], None] = lambda: None

    def act(self, label: str) -> None:
        if threading.current_thread() is not self.thread:
            return
        self.labels.append(label)
        self.count += 1
        if self.count == self.at and self.meanwhile is not None:
            self.meanwhile()

    def fsync(self, label: str, fd: int) -> None:
        self.act(label)
        super().fsync(label, fd)
        name = os.path.basename(os.readlink(f"/proc/self/fd/{fd}"))
        if label in ("backing:settle", "backing:sync") and name != "data":
            self.synced.add(int(name, 16))
        if name == "data":
            self.log_is_durable()

    def fdatasync(self, label: str, fd: int) -> None:
        self.act(label)
        super().fdatasync(label, fd)
        if label == "namespace:wal":
            self.log_is_durable()

    def write_out(self, label: str, fd: int) -> None:
        self.act(label)
        super().write_out(label, fd)
        if label == "namespace:write_out":
            self.log_is_durable()


class Bench:
    def __init__(self, folder: Path, exchange: bool = False) -> None:
        self.disk = OrderDisk()
        names = Namespace(str(folder / "namespace.db"), self.disk)
        self.tree = LiveTree(str(folder), names, self.disk, boot_id="boot")
        self.flags = RENAME_EXCHANGE if exchange else 0
        self.renamed: list[Ino] = []
        self.wrong: list[str] = []
        self.disk.log_is_durable = self.check
        for name in (b"first", b"second"):
            self.new_file(name)
        self.tree.names.sync()
        self.new_file(b"third")
        self.rename(b"third", b"first")  # something that every sync has to settle

    def new_file(self, name: bytes) -> None:
        ino = self.tree.mknod(ROOT_INO, name, stat.S_IFREG | 0o600, 0, 0, 0).ino
        self.tree.write(ino, 0, b"bytes of " + name)

    def rename(self, old: bytes, new: bytes) -> None:
        ino = self.tree.lookup(ROOT_INO, old).ino
        self.tree.rename(ROOT_INO, old, ROOT_INO, new, self.flags)
        self.renamed.append(ino)

    def check(self) -> None:
        """The log is durable now, with all that is committed."""
        late = [ino for ino in self.renamed if ino not in self.disk.synced]
        if late:
            self.wrong.append(f"the names of {late} are durable before their bytes, at {self.disk.labels[-1:]}")


WAYS: dict[str, Callable[[LiveTree], None]] = {
    "sync": lambda tree: tree.names.sync(),
    "fsync of another file": lambda tree: tree.fsync(tree.lookup(ROOT_INO, b"first").ino),
    "housekeeping": lambda tree: tree.sync_soon(),
    "the host": lambda tree: tree._backing.sync_all("backing:settle"),
    "checkpoint": lambda tree: tree.names.checkpoint(),
}


def run_way(folder: Path, way: str, at: int, *, exchange: bool = False) -> tuple[Bench, int]:
    """One way to make the log durable in a thread, and a rename before its act number `at`. All acts of the thread."""
    bench = Bench(folder, exchange)
    bench.new_file(b"new")

    def work() -> None:
        WAYS[way](bench.tree)

    thread = bench.disk.thread = threading.Thread(target=work)
    reached, done = threading.Event(), threading.Event()

    def meanwhile() -> None:
        reached.set()
        done.wait(0.3)  # the rename itself may have to wait for what this thread is doing: then both go on

    bench.disk.at, bench.disk.meanwhile = at, meanwhile
    original = bench.tree.names._wal.checkpoints._pass

    def write_back() -> None:
        bench.disk.act("checkpoint")
        original()
        bench.check()

    bench.tree.names._wal.checkpoints._pass = write_back  # type: ignore[method-assign]
    thread.start()
    while thread.is_alive() and not reached.wait(0.01):
        pass
    bench.rename(b"new", b"first")
    done.set()
    thread.join()
    bench.tree.names.sync()
    return bench, bench.disk.count


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Path]:
    """A folder where syncing costs nothing: nothing here depends on a device."""
    if os.access("/dev/shm", os.W_OK):
        with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
            yield Path(folder)
    else:
        yield tmp_path


@pytest.fixture(autouse=True)
def early_checkpoints(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpointer, "CHECKPOINT_AT_BYTES", 1)


@pytest.mark.parametrize("exchange", [False, True], ids=["replace", "exchange"])
@pytest.mark.parametrize("way", WAYS)
def test_bytes_are_durable_before_the_name_at_each_step(place: Path, way: str, exchange: bool) -> None:
    at, acts = 1, 1
    while at <= acts:
        folder = place / f"{at}"
        folder.mkdir()
        bench, acts = run_way(folder, way, at, exchange=exchange)
        bench.tree.close()
        assert bench.wrong == [], (way, at, bench.disk.labels)
        at += 1
    assert acts >= 2


def test_who_finds_nothing_to_settle_waits_for_who_is_at_it(place: Path) -> None:
    """Housekeeping has taken the file over, and is not done with it, as another thread syncs the log."""
    bench = Bench(place)
    syncing = threading.Event()
    bench.disk.thread = house = threading.Thread(target=bench.tree._replaces.settle)

    def sync() -> None:
        syncing.set()
        bench.tree.names.sync()

    other = threading.Thread(target=sync)

    def meanwhile() -> None:
        other.start()
        syncing.wait(PATIENCE_S)
        other.join(0.3)

    bench.disk.at, bench.disk.meanwhile = 1, meanwhile
    house.start()
    house.join(PATIENCE_S)
    other.join(PATIENCE_S)
    assert bench.wrong == []
    bench.tree.close()

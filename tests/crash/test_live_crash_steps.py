"""A crash at every labelled durable step of the live tree, at each in turn.

A fixed script of creates, writes, truncates, cuts and ends is run again and again in a child process, which dies at its
n-th durable act: before it, or (a torn write) after half of it. Whatever then lies in the folder is opened, once as on
the same boot and once as on another; the tree must be sound, every write that was answered must be there, and the next
cut, applied to the last image that the simulated sealer finished, must give the tree as it is. The same story with acts
that fail but do not stop it must stay just as sound.
"""

from __future__ import annotations

import errno
import os
import pickle
import shutil
import stat
import tempfile
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from snapfs.base.blocks import CHUNK_SIZE, ROOT_INO, Disk, Ino
from snapfs.live.cut import Cut
from snapfs.live.namespace.namespace import Namespace
from snapfs.live.tree import LiveTree

pytestmark = pytest.mark.usefixtures("data_path")

Images = dict[Ino, bytes]


class Crash(BaseException):
    """No handler of an OSError may see it."""


class CountingDisk(Disk):
    """Stops at act number `stop_at` (0: never); `fault` makes what is raised, `torn` lets half of a write happen."""

    def __init__(self, stop_at: int = 0, fault: Callable[[], BaseException] = Crash, torn: bool = False) -> None:
        self.count, self.stop_at, self.fault, self.torn = 0, stop_at, fault, torn
        self.labels: list[str] = []
        self.crashed = False

    def act(self, label: str, half: Callable[[], None] = lambda: None) -> None:
        if self.crashed:
            raise Crash  # nothing happens after a crash
        self.count += 1
        self.labels.append(label)
        if self.count == self.stop_at:
            if self.torn:
                half()
            failure = self.fault()
            self.crashed = isinstance(failure, Crash)
            raise failure

    def append(self, label: str, fd: int, data: bytes) -> None:
        self.act(label, lambda: Disk.append(self, label, fd, data[: len(data) // 2]))
        super().append(label, fd, data)

    def pwrite(self, label: str, fd: int, data: bytes, offset: int) -> None:
        self.act(label, lambda: Disk.pwrite(self, label, fd, data[: len(data) // 2], offset))
        super().pwrite(label, fd, data, offset)

    def fsync(self, label: str, fd: int) -> None:
        self.act(label)
        super().fsync(label, fd)

    def fdatasync(self, label: str, fd: int) -> None:
        self.act(label)
        super().fdatasync(label, fd)

    def write_out(self, label: str, fd: int) -> None:
        self.act(label)
        super().write_out(label, fd)

    def truncate(self, label: str, fd: int, size: int) -> None:
        self.act(label)
        super().truncate(label, fd, size)

    def rename(self, label: str, source: str, target: str) -> None:
        self.act(label)
        super().rename(label, source, target)

    def link(self, label: str, source: str, target: str) -> None:
        self.act(label)
        super().link(label, source, target)

    def unlink(self, label: str, path: str) -> None:
        self.act(label)
        super().unlink(label, path)

    def mkdir(self, label: str, path: str) -> None:
        self.act(label)
        super().mkdir(label, path)

    def sync_dir(self, label: str, path: str) -> None:
        self.act(label)
        super().sync_dir(label, path)


class Story:
    """The script, and what was promised while it ran. `model` has what was answered."""

    def __init__(self, folder: Path, disk: Disk) -> None:
        self.folder, self.disk = folder, disk
        self.model: dict[bytes, bytearray] = {}
        self.inos: dict[bytes, Ino] = {}
        self.unsure: set[bytes] = set()  # names whose operation was not answered
        self.image: Images = {}
        self.tree: LiveTree | None = None

    def open(self, boot_id: str = "boot") -> LiveTree:
        names = Namespace(str(self.folder / "namespace.db"), self.disk, boot_id=boot_id)
        self.tree = LiveTree(str(self.folder), names, self.disk, boot_id=boot_id)
        return self.tree

    def chapters(self) -> Iterator[Callable[[], None]]:
        """The story, in steps that may each be answered with an error."""
        yield lambda: self.create(b"a")
        yield lambda: self.create(b"b")
        yield lambda: self.write(b"a", 0, b"A" * 300_000)
        yield lambda: self.write(b"b", 0, b"B" * 900_000)
        yield lambda: self.sync(b"a")
        yield lambda: self.whole_cut(lambda: self.write(b"a", 5_000, b"x" * 10_000))
        yield self.house
        yield lambda: self.write(b"b", 70_000, b"y" * 500_000)
        yield lambda: self.whole_cut(lambda: self.truncate(b"b", 0), lambda: self.write(b"b", 0, b"C" * 70_000))
        yield lambda: self.truncate(b"a", 100_000)
        yield lambda: self.truncate(b"a", 200_000)
        yield lambda: self.create(b"c")
        yield lambda: self.write(b"c", 100_000, b"c" * 100_000)
        yield lambda: self.whole_cut(lambda: self.truncate(b"c", 50_000), sealed=False)
        yield self.house
        yield lambda: self.rename(b"c", b"a")
        yield self.house
        yield lambda: self.write(b"a", 10, b"z" * 10)
        yield lambda: self.whole_cut(lambda: self.write(b"b", 0, b"d" * 10))
        yield self.house
        yield lambda: self.remove(b"b")
        yield self.house
        yield lambda: self.sync(b"a")

    def create(self, name: bytes) -> None:
        self.unsure.add(name)
        self.inos[name] = self.live.mknod(ROOT_INO, name, stat.S_IFREG | 0o600, 0, 0, 0).ino
        self.model[name] = bytearray()
        self.unsure.discard(name)

    def write(self, name: bytes, offset: int, data: bytes) -> None:
        if name not in self.model:
            return
        self.unsure.add(name)
        self.live.write(self.inos[name], offset, data)
        model = self.model[name]
        model.extend(bytes(max(offset - len(model), 0)))
        model[offset : offset + len(data)] = data
        self.unsure.discard(name)

    def truncate(self, name: bytes, size: int) -> None:
        if name not in self.model:
            return
        self.unsure.add(name)
        self.live.setattr(self.inos[name], size=size)
        model = self.model[name]
        del model[size:]
        model.extend(bytes(size - len(model)))
        self.unsure.discard(name)

    def rename(self, old: bytes, new: bytes) -> None:
        if old not in self.model:
            return
        self.unsure |= {old, new}
        self.live.rename(ROOT_INO, old, ROOT_INO, new)
        if new in self.inos:
            self.live.forget(self.inos[new])
        self.model[new], self.inos[new] = self.model.pop(old), self.inos.pop(old)
        self.unsure -= {old, new}

    def remove(self, name: bytes) -> None:
        if name not in self.model:
            return
        self.unsure.add(name)
        self.live.unlink(ROOT_INO, name)
        self.live.forget(self.inos.pop(name))
        del self.model[name]
        self.unsure.discard(name)

    def sync(self, name: bytes) -> None:
        self.live.fsync(self.inos[name])

    def house(self) -> None:
        self.live.tidy()
        self.live.sync_soon()

    @property
    def live(self) -> LiveTree:
        assert self.tree is not None
        return self.tree

    def whole_cut(self, *meanwhile: Callable[[], None], sealed: bool = True) -> None:
        """A cut with changes before the sealer comes to read."""
        cut = self.live.cut()
        try:
            for change in meanwhile:
                change()
            image = next_image(cut, self.image)
        except OSError:
            cut.finish(False)
            raise
        if sealed:
            self.image = image
        cut.finish(sealed)

    @property
    def promises(self) -> Promises:
        return Promises({name: bytes(data) for name, data in self.model.items()}, self.unsure, self.image)


@dataclass
class Promises:
    model: dict[bytes, bytes]
    unsure: set[bytes]
    image: Images
    acts: list[str] = field(default_factory=list)
    opened: bool = True


def next_image(cut: Cut, before: Images) -> Images:
    """The snapshot that a sealer makes of `cut`, from the last one and what the cut calls changed."""
    image = {ino: data for ino, data in before.items() if cut.names.inode(ino) is not None}
    for ino in sorted({*cut.changed_files(), *(ino for ino, _ in cut.names.changed())}):
        inode = cut.names.inode(ino)
        if inode is None or not stat.S_ISREG(inode.mode):
            continue
        file = cut.open_file(ino)
        assert file is not None
        try:
            data = bytearray((b"" if file.whole else image[ino])[: file.size].ljust(file.size, b"\0"))
            for chunk, _ in file.dirty_chunks():
                fresh = file.read_chunk(chunk)
                data[chunk * CHUNK_SIZE : chunk * CHUNK_SIZE + len(fresh)] = fresh
        finally:
            file.close()
        image[ino] = bytes(data)
    return image


def run_script(folder: Path, disk: CountingDisk) -> Promises:
    """Run the script in a child that then exits at once; returns what it had promised."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            promises = script(folder, disk)
            with open(writing, "wb") as pipe:
                pickle.dump(promises, pipe)
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    os.close(writing)
    with open(reading, "rb") as pipe:
        answer = pipe.read()
    assert os.waitpid(child, 0)[1] == 0
    promises = pickle.loads(answer)
    assert isinstance(promises, Promises)
    return promises


def script(folder: Path, disk: CountingDisk) -> Promises:
    story = Story(folder, disk)
    opened = False
    with suppress(Crash, OSError):
        story.open()
        opened = True
    for chapter in story.chapters() if opened else ():
        with suppress(OSError, Crash):
            chapter()
        if disk.crashed:
            break
        story.live.check_invariants()
    promises = story.promises
    promises.acts, promises.opened = disk.labels, opened
    return promises


def check(promises: Promises, folder: Path, boot_id: str) -> None:
    """The tree in `folder` is as promised, and the next cut has all that changed."""
    tree = Story(folder, Disk()).open(boot_id)
    try:
        tree.check_invariants()
        tree.names.check_invariants()
        listed = {name: attr for _, name, attr in tree.readdir(ROOT_INO, 0, 100)}
        for name, data in promises.model.items():
            if name not in promises.unsure:
                assert tree.read(listed[name].ino, 0, 1 << 20) == data, name
        assert listed.keys() <= promises.model.keys() | promises.unsure
        present = {int(name, 16) for _, _, names in os.walk(folder / "data") for name in names}
        assert present == {attr.ino for attr in listed.values()}
        assert not os.listdir(folder / "staging")
        assert not os.listdir(folder / "preserve")
        cut = tree.cut()
        image = next_image(cut, promises.image)
        cut.finish(True)
        for name, attr in listed.items():
            assert image[attr.ino] == tree.read(attr.ino, 0, 1 << 20), name
    finally:
        tree.close()


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Path]:
    """A folder where syncing costs nothing: nothing here depends on a device."""
    if os.access("/dev/shm", os.W_OK):
        with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
            yield Path(folder)
    else:
        yield tmp_path


def interesting(acts: list[str]) -> list[int]:
    """Numbers of the acts, but of the 256 data folders only the first few."""
    return [number for number, label in enumerate(acts, 1) if label != "live:folder" or number < 6]


@contextmanager
def explained(acts: list[str], number: int) -> Iterator[None]:
    try:
        yield
    except BaseException as failure:
        failure.add_note(f"act {number}: {acts[number - 1]}")
        raise


def test_the_story_meets_every_kind_of_act(place: Path) -> None:
    promises = run_script(place, CountingDisk())
    check(promises, place, "boot")
    assert set(promises.acts) >= {
        "backing:name", "backing:settle", "backing:sync", "backing:unlink", "intents:append", "intents:header",
        "intents:name", "intents:relist", "intents:retire", "intents:sync", "live:folder", "live:folders",
        "namespace:wal", "preserve:block", "preserve:drop", "recovery:settle", "detach:keep", "detach:replace",
    }  # fmt: skip


@pytest.mark.parametrize("torn", [False, True], ids=["before", "torn"])
def test_crash_at_each_act(place: Path, torn: bool) -> None:
    acts = run_whole_script(place)
    for number in interesting(acts):
        live, copy = place / "live", place / "copy"
        live.mkdir()
        with explained(acts, number):
            promises = run_script(live, CountingDisk(number, torn=torn))
            shutil.copytree(live, copy)
            check(promises, live, "boot")
            check(promises, copy, "another boot")
        shutil.rmtree(live)
        shutil.rmtree(copy)


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO], ids=["full", "broken"])
def test_failure_at_each_act(place: Path, code: int) -> None:
    """One act fails, and the tree goes on; then it is killed."""
    acts = run_whole_script(place)
    for number in interesting(acts):
        live = place / "live"
        live.mkdir()
        with explained(acts, number):
            promises = run_script(live, CountingDisk(number, lambda: OSError(code, "injected")))
            check(promises, live, "boot")
        shutil.rmtree(live)


def test_crash_at_each_act_of_recovery(place: Path) -> None:
    """A recovery that is cut short leaves what the next one needs."""
    before = place / "before"
    promises = run_until_last_cut(place, before)
    for number in range(1, 200):
        live = place / "live"
        shutil.copytree(before, live)
        if len(run_only_opening(live, CountingDisk(number)).acts) < number:
            break
        check(promises, live, "a later boot")
        shutil.rmtree(live)
    assert number > 5


def run_until_last_cut(place: Path, folder: Path) -> Promises:
    """A story that stops in `folder` in the middle of its last cut."""
    acts = run_whole_script(place)
    folder.mkdir()
    return run_script(
        folder, CountingDisk(max(number for number, label in enumerate(acts, 1) if label == "preserve:block"))
    )


def run_only_opening(folder: Path, disk: CountingDisk) -> Promises:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Story, "chapters", lambda self: iter(()))
        return run_script(folder, disk)


def run_whole_script(place: Path) -> list[str]:
    """The labels of all acts of the story."""
    folder = place / "whole"
    folder.mkdir()
    acts = run_script(folder, CountingDisk()).acts
    shutil.rmtree(folder)
    return acts

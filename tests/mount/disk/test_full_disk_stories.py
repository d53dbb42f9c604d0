"""Random stories on a disk that is full, or nearly, most of the time: nothing lies, and with room again all goes on.

An application writes, overwrites, truncates, renames and removes files, with and without fsync, on a mount whose host
has little room, which others take and give back; snapshots are requested, and daemons die. After each snapshot that is
reported as made, each file of it is what a reader of the mount then saw. What was fsynced since and not changed after
that is there after a kill. At the end, with room, a snapshot and a remount show the same.

SNAPFS_FULL_SEED and SNAPFS_FULL_STEPS set the seed and the length; tools/chaos/fulldisk is the long form.
"""

from __future__ import annotations

import contextlib
import errno
import os
import random
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Mounted, run_snapfs
from tests.fakes.disks.seen_bytes import difference, look_at
from tests.fakes.disks.small_ext4 import small_ext4

pytestmark = pytest.mark.usefixtures("data_path")

SEED = int(os.environ.get("SNAPFS_FULL_SEED", "1"))
STEPS = int(os.environ.get("SNAPFS_FULL_STEPS", "150"))
FILES = 12
LARGEST = 3_000_000
NO_ROOM = (errno.ENOSPC, errno.EDQUOT)


@pytest.fixture
def volume_dir(tmp_path: Path) -> Iterator[Path]:
    """On an ext4 of 64 MiB."""
    with small_ext4(tmp_path, 64, "-m", "0") as folder:
        yield folder / "volume"


class Story:
    """One application, and the one that fills the disk. What no room was found for is no error of it."""

    def __init__(self, mounted: Mounted, seed: int) -> None:
        self.mounted, self.rng = mounted, random.Random(seed)
        self.filler = mounted.volume.parent / "filler"
        self.filler.touch()
        self.durable: dict[str, bytes] = {}
        self.counts: Counter[str] = Counter()

    def run(self, steps: int) -> None:
        kinds = [self.write, self.overwrite, self.sync, self.truncate, self.rename, self.remove, self.fill, self.give,
                 self.snapshot, self.kill]  # fmt: skip
        for _ in range(steps):
            step = self.rng.choices(kinds, [9, 9, 6, 3, 3, 2, 9, 1, 6, 1])[0]
            try:
                step()
            except OSError as error:
                if error.errno not in NO_ROOM:
                    raise
                self.counts[f"no room to {step.__name__}"] += 1

    def names(self) -> list[str]:
        return sorted(name for name in os.listdir(self.mounted.path) if name.startswith("f"))

    def some(self) -> str:
        return f"f{self.rng.randrange(FILES)}"

    def change(self, name: str, offset: int, data: bytes) -> None:
        self.durable.pop(name, None)
        fd = os.open(self.mounted.path / name, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            os.pwrite(fd, data, offset)
        finally:
            os.close(fd)

    def write(self) -> None:
        self.change(self.some(), 0, self.rng.randbytes(self.rng.choice([10, 5000, 100_000, LARGEST])))

    def overwrite(self) -> None:
        for name in self.rng.sample(self.names(), min(1, len(self.names()))):
            self.change(name, self.rng.randrange(LARGEST), self.rng.randbytes(self.rng.choice([10, 5000, 100_000])))

    def sync(self) -> None:
        name = self.some()
        with contextlib.suppress(FileNotFoundError):
            fd = os.open(self.mounted.path / name, os.O_RDWR)
            try:
                os.fsync(fd)
                self.durable[name] = os.pread(fd, 2 * LARGEST, 0)
            finally:
                os.close(fd)

    def truncate(self) -> None:
        name = self.some()
        self.durable.pop(name, None)
        with contextlib.suppress(FileNotFoundError):
            os.truncate(self.mounted.path / name, self.rng.choice([0, self.rng.randrange(LARGEST)]))

    def rename(self) -> None:
        source, target = self.some(), self.some()
        if source != target and source in self.names():
            self.durable.pop(source, None)
            self.durable.pop(target, None)
            os.rename(self.mounted.path / source, self.mounted.path / target)

    def remove(self) -> None:
        name = self.some()
        self.durable.pop(name, None)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self.mounted.path / name)

    def fill(self) -> None:
        """Another user of the disk takes all the room, or nearly."""
        leave = self.rng.choice([0, 0, 200_000, 2_000_000])
        with open(self.filler, "ab", buffering=0) as file, contextlib.suppress(OSError):
            for size in (1 << 20, 1 << 12):
                while True:
                    room = os.statvfs(self.filler)
                    if room.f_bavail * room.f_frsize <= leave + size:
                        break
                    file.write(bytes(size))

    def give(self) -> None:
        os.truncate(self.filler, os.stat(self.filler).st_size // 2 if self.rng.random() < 0.5 else 0)

    def look(self) -> dict[str, bytes]:
        return {name: look_at(self.mounted.path / name) for name in self.names()}

    def snapshot(self) -> None:
        before = self.look()
        number = self.mounted.snapshot()["snapshot"]["number"]
        self.counts["snapshots"] += 1
        after = self.look()
        folder = self.mounted.path / f".snapfs/snapshots/{number}"
        assert sorted(os.listdir(folder)) == sorted(after)
        for name, data in after.items():
            stored = look_at(folder / name)
            # not `==` in the assertion: pytest would compare megabytes for longer than the test may take
            assert difference(stored, data) == "", f"{name} of snapshot {number} is not what is seen"
            assert len(before[name]) == len(data), name

    def kill(self) -> None:
        """A daemon dies; the next one goes on."""
        pid = self.mounted.status()["pid"]
        os.kill(pid, 9)
        for name, data in self.durable.items():
            seen = look_at(self.mounted.path / name)
            assert difference(seen, data) == "", f"{name} was synced, and is another now"
        self.counts["kills"] += 1


def test_on_a_disk_that_is_full_most_of_the_time_nothing_lies(
    mount: Callable[..., Mounted], mountpoint: Path, record_property: Callable[[str, Any], None]
) -> None:
    story = Story(mount(), SEED)
    try:
        story.run(STEPS)
        story.filler.unlink()
        with contextlib.suppress(OSError):
            story.mounted.snapshot("first")  # may report what was lost before
        story.snapshot()
        shown = story.look()
        run_snapfs("umount", mountpoint)
        story.mounted = mount()
        again = story.look()
        assert sorted(again) == sorted(shown)
        assert [name for name in shown if again[name] != shown[name]] == []
        story.snapshot()
        run_snapfs("verify", mountpoint)
        run_snapfs("umount", mountpoint)
    except BaseException as error:
        error.add_note(f"seed {SEED}: {dict(story.counts)}")
        raise
    for what, count in story.counts.items():
        record_property(what, count)
    print(f"seed {SEED}: {dict(story.counts)}")

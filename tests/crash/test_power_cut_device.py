"""Power cuts of a disk that drops, keeps a prefix of, or reorders what was not flushed, under four host filesystems.

The worker of test_live_power_cut.py works on a filesystem on a recorded disk (tests/fakes/disks/recorded_disk.py), and
notes with each promise how far the disk was. Afterwards the disk is cut at many points, in each way; each of the images
is mounted, its journal replayed, the tree opened as on another boot. What was promised up to that point is there, and
the next cut, applied to the last finished image, is what the tree has.

SNAPFS_POWER_SEED, _SECONDS and _CUTS (the same prefix) set the seed, how long it works, and how many cuts are made.
"""

from __future__ import annotations

import os
import pickle
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from snapfs.base.blocks import BLOCK_SIZE, ROOT_INO, Ino
from snapfs.live.tree import LiveTree
from tests.crash.test_live_power_cut import Images, Worker, next_image, open_tree
from tests.fakes.disks import recorded_disk
from tests.fakes.patience import PATIENCE_S, eventually

pytestmark = pytest.mark.usefixtures("data_path")

SECONDS = float(os.environ.get("SNAPFS_POWER_SECONDS", "2"))
CUTS = int(os.environ.get("SNAPFS_POWER_CUTS", "3"))
SEED = int(os.environ.get("SNAPFS_POWER_SEED", "1"))
ROOT = Path(__file__).resolve().parents[2]
HOSTS = {
    "ext4": (["mkfs.ext4", "-q"], "", 96),
    "ext4 data=writeback": (["mkfs.ext4", "-q"], "data=writeback", 96),
    "xfs": (["mkfs.xfs", "-q"], "", 320),
    "btrfs": (["mkfs.btrfs", "-q", "-M"], "", 192),
}


class RecordingWorker(Worker):
    """Notes how long the disk's log was as each promise held."""

    def __init__(self, folder: Path, notes: Path, seed: int, log: Path) -> None:
        self.log = log
        super().__init__(folder, notes, seed)

    def note(self, *fields: object) -> None:
        super().note(os.stat(self.log).st_size, *fields)

    def cut(self) -> None:
        """As there; each image is kept, with the length of the log when it was finished."""
        cut = self.tree.cut()
        for _ in range(self.rng.randrange(6)):
            self.rng.choice([self.stamped, self.random_write, self.truncate])()
        self.image = next_image(cut, self.image)
        place = self.notes / f"image-{os.stat(self.log).st_size}"
        place.write_bytes(pickle.dumps(self.image))
        cut.finish(True)
        self.note("cut")


def work(folder: Path, notes: Path, seed: int, log: Path) -> None:
    worker = RecordingWorker(folder, notes, seed, log)
    print("ready", flush=True)
    worker.run()


# -- the parent


@contextmanager
def recorded(image: Path, log: Path, point: Path) -> Iterator[Path]:
    """The recorded file."""
    point.mkdir()
    command = [sys.executable, recorded_disk.__file__, str(image), str(log), str(point)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            assert server.stdout.readline() == "ready\n"
            yield point / os.fsdecode(recorded_disk.NAME)
        finally:
            subprocess.run(["umount", "-l", str(point)], check=False)
            server.wait(PATIENCE_S)


@contextmanager
def mounted(device: Path, point: Path, options: str) -> Iterator[None]:
    words = ",".join(filter(None, ["loop", options]))
    subprocess.run(["mount", "-o", words, str(device), str(point)], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", str(point)], check=True)
        find = ["losetup", "-j", str(device)]
        eventually(lambda: not subprocess.run(find, check=True, capture_output=True).stdout, "the loop device's end")


@pytest.fixture(params=list(HOSTS))
def host(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[Path, str]]:
    """The image of an empty filesystem, and the options to mount it with."""
    command, options, mebibytes = HOSTS[request.param]
    if os.geteuid() or not shutil.which(command[0]) or not Path("/dev/loop-control").exists():
        pytest.skip(f"needs root, loop devices and {command[0]}")
    image, point = tmp_path / "base", tmp_path / "mnt"
    point.mkdir()
    with image.open("wb") as file:
        file.truncate(mebibytes << 20)
    subprocess.run([*command, str(image)], check=True, capture_output=True)
    yield image, options
    for place in (point, tmp_path / "device"):
        subprocess.run(["umount", "-l", str(place)], check=False, capture_output=True)


def copied(source: Path, target: Path) -> Path:
    subprocess.run(["cp", "--sparse=always", str(source), str(target)], check=True)
    return target


def promised_until(notes: Path, upto: int) -> dict[Ino, dict[int, int]]:
    promised: dict[Ino, dict[int, int]] = {}
    for line in (notes / "acks").read_text().splitlines():
        position, kind, *fields = line.split()
        if kind == "fsync" and int(position) <= upto:
            known = promised.setdefault(Ino(int(fields[0])), {})
            known.update({int(block): int(stamp) for block, stamp in (field.split("=") for field in fields[1:])})
    return promised


def image_until(notes: Path, upto: int) -> Images:
    """What the newest snapshot has that was finished then."""
    places = {int(path.name.partition("-")[2]): path for path in notes.glob("image-*")}
    newest = max((position for position in places if position <= upto), default=None)
    return {} if newest is None else pickle.loads(places[newest].read_bytes())  # type: ignore[no-any-return]


def check(tree: LiveTree, notes: Path, upto: int) -> None:
    tree.check_invariants()
    tree.names.check_invariants()
    names = {name: attr for _, name, attr in tree.readdir(ROOT_INO, 0, 10_000)}
    present = {attr.ino for attr in names.values()}
    for ino, blocks in promised_until(notes, upto).items():
        assert ino in present, f"the name of inode {ino} was synced and is gone"
        for block, stamp in blocks.items():
            data = tree.read(ino, block * BLOCK_SIZE, 8)
            assert data, (ino, block)
            assert int.from_bytes(data, "little") >= stamp, (ino, block)
    cut = tree.cut()
    image = next_image(cut, image_until(notes, upto))
    cut.finish(True)
    for name, attr in names.items():
        assert image[attr.ino] == tree.read(attr.ino, 0, attr.size), name


def record(host: tuple[Path, str], tmp_path: Path) -> tuple[int, int]:
    """Let the worker work; where the log was when it began, and when it was stopped."""
    base, options = host
    log, point = tmp_path / "log", tmp_path / "mnt"
    disk = copied(base, tmp_path / "disk")
    with recorded(disk, log, tmp_path / "device") as device, mounted(device, point, options):
        (point / "live").mkdir()
        subprocess.run(["sync", "-f", str(point)], check=True)  # sync(2) would wait for all other tests
        command = [sys.executable, __file__, str(point / "live"), str(tmp_path / "notes"), str(SEED), str(log)]
        with subprocess.Popen(
            command, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)}
        ) as child:
            try:
                assert child.stdout is not None
                assert child.stdout.readline() == "ready\n"
                ready = os.stat(log).st_size
                time.sleep(SECONDS)
                assert child.poll() is None
                child.send_signal(signal.SIGSTOP)
                return ready, os.stat(log).st_size
            finally:
                child.kill()


@pytest.mark.parametrize("data_path", ["python", "native", "native, names in Python"], indirect=True)
def test_every_state_that_a_power_cut_may_leave_is_opened_and_compared(host: tuple[Path, str], tmp_path: Path) -> None:
    base, options = host
    notes, point = tmp_path / "notes", tmp_path / "mnt"
    notes.mkdir()
    ready, end = record(host, tmp_path)
    writes, flushed = recorded_disk.read_log(tmp_path / "log", end)
    assert 0 < flushed <= len(writes), "the loop device passes flushes on"
    rng = random.Random(SEED)
    for number in range(CUTS):
        policy, upto = recorded_disk.POLICIES[number % len(recorded_disk.POLICIES)], rng.randrange(ready, end + 1)
        image = copied(base, tmp_path / "crashed")
        recorded_disk.crash_image(tmp_path / "log", upto, policy, rng, image)
        with mounted(image, point, options):
            tree = open_tree(point / "live", f"after-{number}")
            try:
                check(tree, notes, upto)
            except BaseException as error:
                error.add_note(f"seed {SEED}, cut {number}: {policy} at {upto} of {end}")
                raise
            finally:
                tree.close(clean=False)


if __name__ == "__main__":
    work(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4]))

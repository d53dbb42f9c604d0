"""The native data path under C threads that never stop changing, while snapshots are cut, sealed, and fail.

hammer.c has what the threads write, and what a snapshot must have of it: in each slot a write that had begun before
the cut was over, and nothing older than what was answered before the cut began. Slots are compared in every file of
every snapshot; a snapshot is the last one with the dirty chunks read anew, so a missing dirty bit shows as an old slot.
"""

from __future__ import annotations

import ctypes
import os
import random
import shutil
import stat
import subprocess
import sysconfig
import time
from array import array
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from snapfs.base.blocks import CHUNK_SIZE, ROOT_INO, Disk, Ino
from snapfs.live.content import datapath
from snapfs.live.cut import Cut
from snapfs.live.namespace.namespace import Namespace
from snapfs.live.tree import LiveTree
from tests.fakes.histories.cut_images import CutImages

pytestmark = [
    pytest.mark.skipif(bool(datapath.why_not_native()), reason=datapath.why_not_native() or "built"),
    pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler"),
]

FILES, THREADS, SLOTS, SLOT = 5, 4, 150, 512
RUN_S = float(os.environ.get("SNAPFS_HAMMER_S", "2"))
Prepare = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_uint64, ctypes.c_int)


@pytest.fixture(scope="module")
def hammer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    here = Path(__file__).parent.parent
    built = tmp_path_factory.mktemp("hammer") / "hammer.so"
    headers = here.parents[1] / "snapfs" / "live" / "native"
    flags = os.environ.get("SNAPFS_HAMMER_CFLAGS", "-O2").split()
    command = ["cc", "-std=gnu11", *flags, "-shared", "-fPIC", "-pthread", f"-I{headers}", str(here / "hammer.c")]
    subprocess.run([*command, "-o", str(built)], check=True)
    assert sysconfig.get_config_var("EXT_SUFFIX")
    library = ctypes.CDLL(str(built))
    library.hammer_start.restype = ctypes.c_void_p
    library.hammer_operations.restype = ctypes.c_uint64
    library.hammer_measure.restype = ctypes.c_double
    return library


@pytest.fixture
def tree(tmp_path: Path) -> Iterator[LiveTree]:
    disk = Disk()
    names = Namespace(str(tmp_path / "namespace.db"), disk)
    made = LiveTree(str(tmp_path), names, disk, boot_id="boot", data_path="native", max_open_files=3, max_states=3)
    yield made
    if made.is_open:
        made.close()


def pointers(tree: LiveTree) -> tuple[ctypes.c_void_p, ctypes.c_void_p]:
    """The API, and the Core as its functions take it (`core_of` gives the object itself)."""
    from snapfs.live.content import _content

    get = ctypes.pythonapi.PyCapsule_GetPointer
    get.restype, get.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
    return ctypes.c_void_p(get(_content.API, b"snapfs.live.content._content.API")), ctypes.c_void_p(id(tree.native))


class Hammer:
    """The threads at work on `inos`."""

    def __init__(self, library: Any, tree: LiveTree, inos: list[Ino]) -> None:
        self.library, self.tree, self.inos = library, tree, inos
        self._inos = (ctypes.c_uint64 * len(inos))(*inos)
        self._prepare = Prepare(self._prepared)
        self.plan = ctypes.c_void_p(
            library.hammer_start(*pointers(tree), self._prepare, self._inos, len(inos), THREADS, SLOTS)
        )

    def _prepared(self, ino: int, kind: int) -> int:
        try:
            if kind == datapath.Need.NAMES:  # a sync of a file whose row is not durable is Python's as a whole
                self.tree.fsync(Ino(ino))
            else:
                self.tree.prepare(Ino(ino), kind)
        except OSError as failure:
            return failure.errno or 5
        return 0

    def look(self) -> tuple[array[int], array[int]]:
        """(begun, done) of each slot."""
        size = len(self.inos) * THREADS * SLOTS
        tables = [(ctypes.c_uint64 * size)() for _ in range(2)]
        self.library.hammer_look(self.plan, *tables)
        return array("Q", tables[0]), array("Q", tables[1])

    def check(self) -> None:
        failure = self.library.hammer_failure(self.plan)
        assert not failure, os.strerror(failure) if failure > 0 else "a short write"


class Sealers(CutImages):
    """Seal one cut after another, and compare the slots of each with what was written and answered by then."""

    def __init__(self, hammer: Hammer, pool: ThreadPoolExecutor) -> None:
        super().__init__(pool)
        self.hammer = hammer

    def seal(self, cut: Cut, done: array[int], begun: array[int], sealed: bool) -> None:
        image = self.image(cut)
        for number, ino in enumerate(self.hammer.inos):
            at = number * THREADS * SLOTS
            check_slots(image[ino], done[at : at + THREADS * SLOTS], begun[at : at + THREADS * SLOTS])
        self.finish(cut, image, sealed)


def check_slots(data: bytes, done: array[int], begun: array[int]) -> None:
    words = array("Q", data[: THREADS * SLOTS * SLOT].ljust(THREADS * SLOTS * SLOT, b"\0"))
    per_slot = SLOT // 8
    for slot in range(THREADS * SLOTS):
        first = words[slot * per_slot]
        assert words[slot * per_slot : (slot + 1) * per_slot] == array("Q", [first]) * per_slot, f"slot {slot} is torn"
        count = first & ((1 << 56) - 1)
        assert not first or first >> 56 == slot // SLOTS
        assert done[slot] <= count <= begun[slot], (slot, done[slot], count, begun[slot])


def test_every_snapshot_is_of_one_instant(hammer: Any, tree: LiveTree) -> None:
    inos = [tree.mknod(ROOT_INO, b"%d" % n, stat.S_IFREG | 0o600, 0, 0, 0).ino for n in range(FILES)]
    threads = Hammer(hammer, tree, inos)
    try:
        with ThreadPoolExecutor(3) as pool, ThreadPoolExecutor(1) as sealing, ThreadPoolExecutor(1) as house:
            sealers = Sealers(threads, pool)
            keep_cutting(tree, threads, sealers, sealing.submit, house.submit)
    finally:
        failure = hammer.hammer_stop(threads.plan)
    assert not failure
    assert sealers.sealed > 3
    assert sealers.failed > 1
    tree.check_invariants()


def change_beyond_slots(tree: LiveTree, ino: Ino, rng: random.Random) -> None:
    """What the owner's thread does to the same files meanwhile."""
    base = THREADS * SLOTS * SLOT
    match rng.randrange(5):
        case 0:
            size = base + rng.choice([0, rng.randrange(10 * CHUNK_SIZE)])
            if not tree.ready_to_truncate(ino, size):
                tree.prepare_truncate(ino, size)
            tree.setattr(ino, size=size)
        case 1:
            tree.write(ino, base + rng.randrange(CHUNK_SIZE), b"beyond" * rng.randrange(1, 2000))
        case 2:
            tree.fallocate(ino, 3, base, 5 * CHUNK_SIZE)
        case 3:
            tree.setattr(ino, mtime_ns=rng.randrange(1 << 60), mode=0o600 | rng.randrange(8))
        case 4:
            tree.fsync(ino)


def keep_cutting(
    tree: LiveTree, threads: Hammer, sealers: Sealers, seal: Callable[..., Any], keep_house: Callable[..., Any]
) -> None:
    deadline = time.monotonic() + RUN_S
    running, house, rng = seal(lambda: None), keep_house(lambda: None), random.Random(1)
    while time.monotonic() < deadline:
        threads.check()
        if house.done():
            house.result()
            house = keep_house(tree.sync_soon)
        if running.done():
            running.result()
            tree.tidy()
            tree._content.evict(10)
            _, done = threads.look()
            cut = tree.cut()
            begun, _ = threads.look()
            running = seal(sealers.seal, cut, done, begun, (sealers.sealed + sealers.failed) % 3 != 2)
        change_beyond_slots(tree, rng.choice(threads.inos), rng)
        time.sleep(0.002)
    running.result()
    house.result()

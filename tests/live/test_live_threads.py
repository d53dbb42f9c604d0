"""The live tree under real threads: an owner that never stops changing, sealers that read, workers that sync.

Timing decides what meets what, so a run is not repeatable; the deterministic twin is test_live_model.py. What must hold
does not depend on timing: every cut is the model at its instant.
"""

from __future__ import annotations

import os
import random
import stat
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from snapfs.base.blocks import CHUNK_SIZE, ROOT_INO, Disk, Ino
from snapfs.live.cut import Cut
from snapfs.live.namespace.namespace import Namespace
from snapfs.live.tree import LiveTree
from tests.fakes.histories.cut_images import CutImages

pytestmark = pytest.mark.usefixtures("data_path")

FILES = 6
MAX_SIZE = 10 * CHUNK_SIZE
RUN_S = float(os.environ.get("SNAPFS_HAMMER_S", "2"))
ENOUGH_SEALED, ENOUGH_FAILED = 4, 2
"""Cuts of each end that a run has, however long they take."""


@pytest.fixture
def impatient() -> Iterator[None]:
    """Let threads take turns as often as can be."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(before)


class Owner:
    def __init__(self, folder: Path, seed: int) -> None:
        disk = Disk()
        names = Namespace(str(folder / "namespace.db"), disk)
        self.tree = LiveTree(str(folder), names, disk, boot_id="boot", max_open_files=3, max_states=4)
        self.rng = random.Random(seed)
        self.model: dict[Ino, bytearray] = {}
        for number in range(FILES):
            ino = self.tree.mknod(ROOT_INO, b"%d" % number, stat.S_IFREG | 0o600, 0, 0, 0).ino
            self.tree.open(ino, True)
            self.model[ino] = bytearray()

    def step(self) -> None:
        ino = self.rng.choice(list(self.model))
        data = self.model[ino]
        if self.rng.random() < 0.06:
            size = self.rng.choice([0, 0, self.rng.randrange(MAX_SIZE)])
            self.tree.setattr(ino, size=size)
            del data[size:]
            data.extend(bytes(size - len(data)))
            return
        offset, fresh = self.rng.randrange(MAX_SIZE), self.rng.randbytes(self.rng.choice([50, 4096, 40_000]))
        assert self.tree.write(ino, offset, fresh) == len(fresh)
        data.extend(bytes(max(offset - len(data), 0)))
        data[offset : offset + len(fresh)] = fresh

    def image(self) -> dict[Ino, bytes]:
        return {ino: bytes(data) for ino, data in self.model.items()}


class Sealers(CutImages):
    """Seal one cut after another in threads, and compare each with the model at the cut."""

    @property
    def are_enough(self) -> bool:
        return self.sealed >= ENOUGH_SEALED and self.failed >= ENOUGH_FAILED

    def seal(self, cut: Cut, expected: dict[Ino, bytes], sealed: bool) -> None:
        image = self.image(cut)
        for ino, data in expected.items():
            assert image[ino] == data, ino
        self.finish(cut, image, sealed)


def keep_doing(stop: threading.Event, failures: list[BaseException], action: Callable[[], object]) -> threading.Thread:
    def run() -> None:
        try:
            while not stop.is_set():
                action()
        except BaseException as failure:
            failures.append(failure)

    thread = threading.Thread(target=run)
    thread.start()
    return thread


def test_cuts_are_exact_under_threads(tmp_path: Path, impatient: None) -> None:
    owner = Owner(tmp_path, seed=1)
    stop, failures = threading.Event(), list[BaseException]()
    inos = list(owner.model)
    others = random.Random(2)
    workers = [
        keep_doing(stop, failures, lambda: owner.tree.fsync(others.choice(inos))),
        keep_doing(stop, failures, owner.tree.sync_soon),
        keep_doing(stop, failures, lambda: owner.tree.prepare_truncate(others.choice(inos), 3 * CHUNK_SIZE + 5)),
    ]
    with ThreadPoolExecutor(3) as pool, ThreadPoolExecutor(1) as sealing:
        sealers = Sealers(pool)
        try:
            run_owner(owner, sealers, sealing, failures)
        finally:
            stop.set()
            for worker in workers:
                worker.join()
    assert not failures, failures
    assert sealers.are_enough
    owner.tree.check_invariants()
    owner.tree.close()


def run_owner(owner: Owner, sealers: Sealers, sealing: ThreadPoolExecutor, failures: list[BaseException]) -> None:
    """Change without end; cut whenever the last cut is sealed."""
    deadline = time.monotonic() + RUN_S
    running = sealing.submit(lambda: None)
    while (time.monotonic() < deadline or not sealers.are_enough) and not failures:
        for _ in range(20):
            owner.step()
        if running.done():
            running.result()
            owner.tree.tidy()
            expected = owner.image()
            cut = owner.tree.cut()
            running = sealing.submit(sealers.seal, cut, expected, (sealers.sealed + sealers.failed) % 3 != 2)
    running.result()

"""Seals that end with their process are counted, and end in a clear word."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from pathlib import Path

import pytest

from snapfs.base.blocks import Disk, Generation
from snapfs.base.boot import boot_id
from snapfs.base.errors import SnapshotError
from snapfs.base.schedule import rules
from snapfs.base.settings.units import Seconds
from snapfs.base.settings.volume_settings import SnapshotSettings
from snapfs.base.volumes.volume import Volume
from snapfs.daemon.snapshot_parts import MeasuredSeal
from snapfs.live.namespace.namespace import Namespace
from snapfs.live.tree import LiveTree
from snapfs.store.repository.repository import Repository, StoreIdentity
from snapfs.transfer.seal.seal_attempts import MOST, NAME, Attempts

_dead: list[object] = []


def dies(attempts: Attempts, ready_bytes: int) -> None:
    """An attempt whose process does not live to take its note back."""
    attempt = attempts.attempt(ready_bytes)
    attempt.__enter__()
    _dead.append(attempt)


@pytest.fixture(autouse=True)
def _let_go() -> Iterator[None]:
    yield
    _dead.clear()


def test_deaths_without_progress_end_in_a_clear_word_and_the_next_command_tries_anew(tmp_path: Path) -> None:
    """The daemon was killed and restarted 162 times and the command never returned."""
    attempts = Attempts(str(tmp_path), "boot", Disk(), lambda: "64 MiB")
    for _ in range(MOST):
        dies(attempts, 0)
    with pytest.raises(SnapshotError, match="4 daemons in a row.*64 MiB of memory: 128 MiB are enough") as failure:
        dies(attempts, 0)
    assert failure.value.errno == errno.ENOMEM
    for _ in range(MOST):
        dies(attempts, 0)
    with pytest.raises(SnapshotError):
        dies(attempts, 0)


def test_deaths_with_progress_between_them_do_not_count(tmp_path: Path) -> None:
    attempts = Attempts(str(tmp_path), "boot", Disk(), lambda: "")
    for ready in range(0, 50_000, 1000):
        dies(attempts, ready)
    for _ in range(MOST - 1):
        dies(attempts, 49_000)
    with pytest.raises(SnapshotError, match="none got further than the one before") as failure:
        dies(attempts, 49_000)
    assert failure.value.errno == errno.EIO


def test_after_a_refused_attempt_the_next_snapshot_is_made(tmp_path: Path) -> None:
    """The cut of the refused one stayed open: every later snapshot failed until the daemon ended."""
    volume = Volume.create(str(tmp_path / "volume"), Disk())
    live = tmp_path / "volume/live"
    repository = Repository.create(str(tmp_path / "volume/store"), StoreIdentity(volume.volume_id, volume.seed), Disk())
    tree = LiveTree(str(live), Namespace(str(live / "namespace.db"), Disk()), Disk(), boot_id="boot")
    seal = MeasuredSeal(volume, repository, tree, Disk())
    for _ in range(MOST):
        dies(Attempts(str(live), boot_id(), Disk()), 0)
    with pytest.raises(SnapshotError, match="in a row"):
        seal(tree.cut(), repository, None, generation=Generation(1))
    assert seal(tree.cut(), repository, None, generation=Generation(1)).number == 1
    tree.close()
    repository.close()


@pytest.mark.parametrize("fails", [False, True])
def test_a_seal_that_ends_well_or_not_leaves_no_note(tmp_path: Path, fails: bool) -> None:
    attempts = Attempts(str(tmp_path), "boot", Disk(), lambda: "")
    for _ in range(3 * MOST):
        try:
            with attempts.attempt(0):
                if fails:
                    raise OSError(errno.ENOSPC, "full")
        except OSError:
            pass
    assert not (tmp_path / NAME).exists()


def test_a_note_of_another_boot_or_a_damaged_one_is_none(tmp_path: Path) -> None:
    for _ in range(MOST):
        dies(Attempts(str(tmp_path), "boot", Disk(), lambda: ""), 0)
    dies(Attempts(str(tmp_path), "another", Disk(), lambda: ""), 0)
    for _ in range(MOST - 1):
        dies(Attempts(str(tmp_path), "another", Disk(), lambda: ""), 0)
    data = bytearray((tmp_path / NAME).read_bytes())
    data[len(data) // 2] ^= 4
    (tmp_path / NAME).write_bytes(data)
    dies(Attempts(str(tmp_path), "another", Disk(), lambda: ""), 0)


@pytest.mark.parametrize(
    ("every", "age", "changed", "overdue"),
    [(10, 29, True, 0), (10, 31, True, 21), (10, 31, False, 0), (0, 1000, True, 0)],
)
def test_no_snapshot_since_is_reported_after_three_intervals(every: int, age: int, changed: bool, overdue: int) -> None:
    """15 minutes without a snapshot, and without a report."""
    assert rules.overdue_s(SnapshotSettings(every=Seconds(every)), age, changed) == overdue

"""Die at every labelled durable act of a rollback to a snapshot of a fork, which is in another store."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from snapfs.base.blocks import CHUNK_SIZE, ROOT_INO, Disk, Generation
from snapfs.store.repository.repository import Repository
from snapfs.transfer.restore.fork import INOS_OF_FORK
from snapfs.transfer.restore.rollback import roll_back
from tests.crash.test_crash_seal import IDENTITY, Life, beginning, change, copy, live_and_die

__all__ = ["beginning"]


def change_otherwise(life: Life) -> None:
    """What the origin does while the fork is used."""
    life.write(life.make(ROOT_INO, b"of the origin"), 0, b"origin" * 30000)
    life.write(life.ino(b"big"), 5, b"otherwise")
    life.tree.unlink(life.ino(b"folder"), b"old")
    life.tree.fsync(life.ino(b"big"))


@pytest.fixture
def forked(beginning: Path, tmp_path: Path) -> Path:
    """A fork, with its own numbers for new inodes, of which snapshot 2 is to be brought back."""
    folder = copy(beginning, tmp_path / "fork")
    life = Life(folder, Disk())
    with life.tree.names.bulk() as bulk:
        bulk.raise_next_ino(INOS_OF_FORK)
    change(life)
    life.write(life.make(ROOT_INO, b"of the fork"), 0, b"fork" * CHUNK_SIZE)
    assert life.seal() == 2
    life.close()
    return folder


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_die_in_a_rollback_to_a_fork(beginning: Path, forked: Path, tmp_path: Path) -> None:
    """The tree is the present or the fork's, never a mixture; the present is kept before it is left. The next life is
    of the same boot and of another in turns."""

    def go_over(life: Life, report_line: Callable[[str], None]) -> None:
        change_otherwise(life)
        report_line("changed")
        source = Repository.open(str(forked / "store"), IDENTITY, Disk(), readonly=True)
        report = roll_back(
            life.tree, life.repository, source.find("2"), life.disk, parent=life.repository.latest(),
            generations=(Generation(1), Generation(2)), threads=1, source=source,
        )  # fmt: skip
        report_line(f"sealed {report.now}")

    fork = Life(forked, Disk())
    target = fork.dump()
    fork.close()
    whole = Life(copy(beginning, tmp_path / "whole"), Disk())
    change_otherwise(whole)
    present = whole.dump()
    whole.close()
    seen = set()
    _, acts = live_and_die(copy(beginning, tmp_path / "ended"), go_over, None, half=False)
    assert acts, "it fails without a death"
    for at in range(acts):
        folder = copy(beginning, tmp_path / f"life{at}")
        reported, _ = live_and_die(folder, go_over, at, half=False)
        life = Life(folder, Disk(), ("boot", "another")[at % 2])
        tree = life.dump()
        numbers = [record.number for record in life.repository.snapshots()]
        if "changed" in reported:
            assert tree in (present, target), (at, reported)
            seen.add(tree == target)
        if 2 in numbers:
            assert life.dump_snapshot("2") == present
        if tree == target:
            assert 2 in numbers, "the present was left and not kept"
        if 3 in numbers:
            assert life.dump_snapshot("3") == target
        assert ("sealed 3" in reported) <= (3 in numbers)
        assert life.make(ROOT_INO, b"next") > (INOS_OF_FORK if tree == target else 0)
        life.check()
        life.seal()
        life.close()
        shutil.rmtree(folder)
    assert seen == {False, True}

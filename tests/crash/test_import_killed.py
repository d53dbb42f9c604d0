"""An import is killed at each labelled act, and within each copy; the next one goes on, and is whole."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from snapfs.base.blocks import Disk
from snapfs.base.volumes.volume import Volume
from snapfs.transfer.move_in import copied_content
from snapfs.transfer.move_in.directory_import import DirectoryImport
from snapfs.transfer.restore.restore import restore
from tests.fakes.disks.crashes import CrashDisk
from tests.fakes.trees.move_world import move_in, sealed
from tests.fakes.trees.random_tree import random_tree
from tests.fakes.trees.same_tree import picture, without_link_access


class DeadlyDisk(CrashDisk):
    """The process ends at the act, without a word."""

    def _act(self, label: str, half: Callable[[], object] = lambda: None) -> None:
        if self.at is not None and len(self.labels) == self.at:
            os._exit(9)
        self.labels.append(label)


def in_a_child(work: Callable[[], object]) -> bool:
    """Whether it came to its end."""
    child = os.fork()
    if not child:
        code = 8
        with contextlib.suppress(BaseException):
            work()
            code = 0
        os._exit(code)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert code in (0, 9)
    return code == 0


def is_whole(volume: Path, out: Path, wanted: object) -> bool:
    with sealed(volume) as (repository, record):
        restore(repository, record, str(out))
    found = without_link_access(picture(os.fsencode(out)))
    shutil.rmtree(out)
    return found == wanted


@pytest.fixture
def source(tmp_path: Path) -> Path:
    place = tmp_path / "source"
    place.mkdir()
    random_tree(os.fsencode(place), 21, 20)
    return place


def test_killed_at_each_act(source: Path, tmp_path: Path) -> None:
    wanted = without_link_access(picture(os.fsencode(source)))
    counting = DeadlyDisk()
    move_in(source, tmp_path / "counted", counting)
    labels = counting.labels
    # one kill for each label, at its first and at its last act
    steps = {labels.index(each) for each in labels} | {len(labels) - 1 - labels[::-1].index(each) for each in labels}
    for at in sorted(steps):
        volume = tmp_path / f"volume-{at}"
        in_a_child(lambda at=at, volume=volume: move_in(source, volume, DeadlyDisk(at)))  # type: ignore[misc]
        if Volume.exists(str(volume)):
            assert labels[at].startswith("import:publish"), labels[at]
        else:
            assert move_in(source, volume).changes == 0
        assert is_whole(volume, tmp_path / "out", wanted), labels[at]
        assert not os.path.lexists(f"{volume}.importing")
        shutil.rmtree(volume)
    assert without_link_access(picture(os.fsencode(source))) == wanted


def test_killed_within_the_copies(source: Path, tmp_path: Path) -> None:
    """What was noted as copied is not copied again; what was not, is."""
    wanted = without_link_access(picture(os.fsencode(source)))
    real = copied_content.copy_part

    def run(volume: Path, at: int) -> None:
        left = [at]

        def copy_part(fd: int, copy: int, number: int, size: int, sparse: bool) -> tuple[bytes, bytes]:
            if not left[0]:
                os.pwrite(copy, b"torn", 0)
                os._exit(9)
            left[0] -= 1
            return real(fd, copy, number, size, sparse)

        copied_content.copy_part = copy_part
        move_in(source, volume)

    at = 0
    while True:
        volume = tmp_path / f"volume-{at}"
        ended = in_a_child(lambda volume=volume, at=at: run(volume, at))  # type: ignore[misc]
        if not ended:
            with contextlib.closing(DirectoryImport(str(source), str(volume), Disk(), threads=2)) as making:
                assert making.copy(5, lambda size: None).changes == 0
                making.check(lambda done, total: None)
                making.publish()
        assert is_whole(volume, tmp_path / "out", wanted)
        shutil.rmtree(volume)
        if ended:
            break
        at += 4
    assert at > 4

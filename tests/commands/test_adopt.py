"""A directory is adopted, with a watcher at its path; undone, forgotten; and killed at each step of it."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from snapfs.base.blocks import Disk
from snapfs.base.mountinfo import FUSE_TYPE, mount_at
from snapfs.commands.checks import volume_checks
from snapfs.transfer.move_in.adoption_file import ADOPTION, ADOPTION_FILE, AdoptionFile, read_adoption
from tests.conftest import take_down
from tests.fakes.disks.crashes import CrashDisk
from tests.fakes.trees.random_tree import random_tree
from tests.fakes.trees.same_tree import picture


@pytest.fixture
def state(tmp_path: Path) -> Iterator[Path]:
    """A state directory; what is mounted in its place comes down again."""
    place = tmp_path / "state"
    place.mkdir()
    random_tree(os.fsencode(place), 11, 25)
    (place / "mark").write_text("the original")
    yield place
    for each in (place, tmp_path / "state.original"):
        take_down(each)


def seen(place: Path) -> dict[bytes, dict[str, Any]]:
    """What is there, without what a mount does not keep or an exchange moves."""
    found = picture(os.fsencode(place), access_times=False)
    return {path: {k: v for k, v in each.items() if k != "xattrs" or path} for path, each in found.items()}


def is_mounted(place: Path) -> bool:
    mount = mount_at(str(place))
    return mount is not None and mount.kind == FUSE_TYPE


def test_the_path_is_never_without_its_content(state: Path, snapfs: Callable[..., Any], tmp_path: Path) -> None:
    before = seen(state)
    code = (
        "import sys; from pathlib import Path; p = Path(sys.argv[1]) / 'mark'\n"
        "n = 0\n"
        "print('on', flush=True)\n"
        "import select\n"
        "while not select.select([sys.stdin], [], [], 0)[0]:\n"
        "    n += 1\n"
        "    assert p.stat().st_size == 12\n"
        "print(n)\n"
    )
    watcher = subprocess.Popen(
        [sys.executable, "-c", code, state], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd="/"
    )
    assert watcher.stdout is not None
    assert watcher.stdout.readline() == "on\n"
    done = snapfs("adopt", state, check=False)
    output, _ = watcher.communicate("\n")
    assert watcher.returncode == 0
    assert int(output) > 10
    assert done.returncode == 0, done.stderr
    assert is_mounted(state)
    assert seen(state) == before
    assert seen(tmp_path / "state.original") == before
    assert "fuse.snapfs" in done.stderr


def test_undo_puts_the_original_back(state: Path, snapfs: Callable[..., Any], tmp_path: Path) -> None:
    before, inode = seen(state), state.stat().st_ino
    done = snapfs("adopt", state)  # reading the copies back must not change their times
    assert "\\x0a" not in done.stderr
    snapfs("snapshot", state)
    (state / "new").write_text("written since")
    refused = snapfs("adopt", "--undo", state, check=False)
    assert refused.returncode == 3
    assert f"{state}/new is not as in the original" in refused.stderr
    (state / "new").unlink()
    os.utime(state, ns=(0, before[b""]["mtime"]))
    snapfs("adopt", "--undo", state)
    assert state.stat().st_ino == inode
    assert seen(state) == before
    assert not (tmp_path / "state.original").exists()
    assert not is_mounted(state)
    assert "1" in snapfs("list", tmp_path / "state.snapfs").stdout
    again = snapfs("adopt", "--undo", state, check=False)
    assert again.returncode == 3


def test_the_original_is_kept_until_it_is_forgotten(state: Path, snapfs: Callable[..., Any], tmp_path: Path) -> None:
    before = seen(state)
    snapfs("adopt", state, "--no-verify")
    output = snapfs("doctor", tmp_path / "state.snapfs", check=False).stdout
    assert f"the original of {state} is kept" in output
    snapfs("umount", state)
    refused = snapfs("adopt", "--forget-original", state, check=False)
    assert refused.returncode == 3
    assert "mount it first" in refused.stderr
    snapfs("mount", tmp_path / "state.snapfs", state)
    snapfs("adopt", "--forget-original", state)
    assert not (tmp_path / "state.original").exists()
    assert seen(state) == before
    assert read_adoption(str(tmp_path / "state.snapfs")) is None


def test_a_directory_in_use_is_not_adopted(state: Path, snapfs: Callable[..., Any], tmp_path: Path) -> None:
    with open(state / "mark"):
        refused = snapfs("adopt", state, check=False)
    assert refused.returncode == 4
    assert f"({os.getpid()})" in refused.stderr
    assert not (tmp_path / "state.snapfs").exists()


# -- killed


class DeadlyDisk(CrashDisk):
    """The process ends at the n-th act with a label; the daemon of a mount that it made lives on."""

    def __init__(self, label: str, at: int) -> None:
        super().__init__()
        self._label, self._left = label, at

    def _act(self, label: str, half: Callable[[], object] = lambda: None) -> None:
        if label == self._label:
            if not self._left:
                os.kill(os.getpid(), signal.SIGKILL)
            self._left -= 1


_KILLED = """
import sys
from snapfs.commands.moving import adopt_command
from snapfs.commands.moving.adoption import Adoption
from snapfs.commands.moving.import_command import ImportOptions
from tests.commands.test_adopt import DeadlyDisk
directory, volume, label, at, what = sys.argv[1:]
adoption = Adoption(directory, volume, DeadlyDisk(label, int(at)))
if what == "adopt":
    adopt_command.run(adoption, ImportOptions(threads=1, verify=False))
elif what == "undo":
    adoption.undo(adopt_command.first_difference, force=False)
else:
    adoption.forget()
"""


def kill(state: Path, volume: Path, label: str, at: int, what: str) -> None:
    """Run it in a process that dies at that act."""
    command = [sys.executable, "-c", _KILLED, str(state), str(volume), label, str(at), what]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=Path(__file__).parents[2])
    assert done.returncode == -signal.SIGKILL, f"{label} {at}: {done.returncode} {done.stderr}"


def test_an_adoption_that_is_killed_goes_on(state: Path, snapfs: Callable[..., Any], tmp_path: Path) -> None:
    """At each step: the path shows the content, doctor says where it is, and the next adoption ends it."""
    volume, original = tmp_path / "state.snapfs", tmp_path / "state.original"
    before, inode = seen(state), state.stat().st_ino
    for label, at in [
        ("adopt:state", 0), ("import:publish", 0), ("import:publish", 1), ("adopt:mountpoint", 0),
        ("adopt:exchange", 0), ("adopt:state", 4), ("adopt:state", 7),
    ]:  # fmt: skip
        kill(state, volume, label, at, "adopt")
        assert seen(state) == before, f"{label} {at}"
        words = " ".join(finding.words for finding in volume_checks.adoption(str(volume)))
        assert ("interrupted" in words) == ((label, at) != ("adopt:state", 7))
        facts = read_adoption(str(volume)) if volume.exists() else None
        if facts is None or facts.state == "prepared":
            snapfs("adopt", "--no-verify", state)
        assert is_mounted(state)
        assert seen(state) == before
        assert original.stat().st_ino == inode
        facts = read_adoption(str(volume))
        assert facts is not None
        assert facts.state == "adopted"
        assert not (volume / "import.db").exists() or (label, at) == ("adopt:state", 7)
        snapfs("umount", state)
        state.rmdir()
        original.rename(state)
        shutil.rmtree(volume)


def test_an_undo_that_is_killed_goes_on(state: Path, snapfs: Callable[..., Any], tmp_path: Path) -> None:
    volume, original = tmp_path / "state.snapfs", tmp_path / "state.original"
    before, inode = seen(state), state.stat().st_ino
    snapfs("adopt", "--no-verify", state)
    for label in ("adopt:state", "adopt:exchange", "adopt:mountpoint", "adopt:done"):
        kill(state, volume, label, 0, "undo")
        assert seen(state) == before, label
        snapfs("adopt", "--undo", state, volume)
        assert seen(state) == before
        assert (state.stat().st_ino, is_mounted(state), original.exists()) == (inode, False, False)
        assert read_adoption(str(volume)) is None
        state.rename(original)  # as it was before
        state.mkdir()
        facts = AdoptionFile("adopted", str(state), str(original), inode)
        ADOPTION.write("test", str(volume / ADOPTION_FILE), facts, Disk())
        snapfs("mount", volume, state)


def test_a_removal_of_the_original_that_is_killed_goes_on(
    state: Path, snapfs: Callable[..., Any], tmp_path: Path
) -> None:
    volume, original = tmp_path / "state.snapfs", tmp_path / "state.original"
    before = seen(state)
    snapfs("adopt", "--no-verify", state)
    for label in ("adopt:state", "adopt:forget", "adopt:done"):
        kill(state, volume, label, 0, "forget")
        assert seen(state) == before, label
        snapfs("adopt", "--forget-original", state)
        assert seen(state) == before
        assert not original.exists()
        assert read_adoption(str(volume)) is None
        original.mkdir()
        (original / "file").touch()
        facts = AdoptionFile("adopted", str(state), str(original), original.stat().st_ino)
        ADOPTION.write("test", str(volume / ADOPTION_FILE), facts, Disk())


def test_the_daemon_knows_the_place_where_it_came_to(state: Path, snapfs: Callable[..., Any]) -> None:
    """It was mounted beside: a snapshot that flushes, an upgrade and an end by the path of the directory."""
    snapfs("adopt", state, "--no-verify")
    with open(state / "mark", "w") as file:  # the cut has the kernel write it out, by the path of the mount
        file.write("changed")
        file.flush()
        snapfs("snapshot", state)
    assert (state / ".snapfs/snapshots/1/mark").read_text() == "changed"
    snapfs("upgrade", state)
    assert (state / "mark").read_text() == "changed"
    snapfs("umount", state)
    assert os.listdir(state) == []

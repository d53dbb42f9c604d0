"""`snapfs import` and `snapfs export` as a person runs them: words, exit codes, JSON; a full disk; shared bytes."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.fakes.disks.small_ext4 import small_ext4
from tests.fakes.trees.random_tree import random_tree
from tests.fakes.trees.same_tree import picture

SNAPFS = [sys.executable, "-m", "snapfs"]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    place = tmp_path / "source"
    place.mkdir()
    random_tree(os.fsencode(place), 31, 30, sockets=True)
    return place


def test_moved_in_and_out_again(
    source: Path, snapfs: Callable[..., Any], mountpoint: Path, volume_dir: Path, tmp_path: Path
) -> None:
    """Through a real mount; out of the mountpoint to a directory, out of the volume to an archive."""
    before = picture(os.fsencode(source), access_times=False)
    dry = json.loads(snapfs("import", "--json", "--dry-run", source, volume_dir).stdout)
    assert dry["files"] > 5
    assert dry["sockets"] == 1
    assert not volume_dir.exists()
    done = snapfs("import", source, volume_dir)
    assert f"imported {source} to {volume_dir}: {dry['files']} files" in done.stdout
    assert "about" in done.stderr
    assert "sockets are not copied: 1 (socket)" in done.stderr
    snapfs("mount", volume_dir, mountpoint)
    assert picture(os.fsencode(mountpoint), access_times=False) == before
    number = snapfs("snapshot", mountpoint).stdout.strip()
    output = snapfs("export", "--verify", mountpoint, number, tmp_path / "out").stdout
    assert output.startswith(f"exported snapshot {number} to")
    assert picture(os.fsencode(tmp_path / "out"), access_times=False) == before
    with open(tmp_path / "all.tar", "wb") as archive:
        subprocess.run([*SNAPFS, "export", volume_dir, number, "-"], stdout=archive, check=True)
    with tarfile.open(tmp_path / "all.tar") as read:
        assert len(read.getmembers()) == len(before)


def test_an_archive_comes_out_of_a_target(source: Path, snapfs: Callable[..., Any], tmp_path: Path) -> None:
    """What was pushed to a folder: by its URL, as restore takes it."""
    volume, place = tmp_path / "volume", tmp_path / "place"
    place.mkdir()
    snapfs("import", source, volume)
    snapfs("mount", volume, place, "--", "true")
    snapfs("mount", volume, place)
    snapfs("snapshot", place, "moved")
    snapfs("umount", place)
    command = [*SNAPFS, "export", f"file://{volume}", "moved", "-"]
    done = subprocess.run(command, capture_output=True, check=True)
    whole = subprocess.run([*SNAPFS, "export", volume, "moved", "-"], capture_output=True, check=True)
    assert done.stdout == whole.stdout
    closed = subprocess.run(f"{' '.join(command)} | head -c 100 > /dev/null; exit ${{PIPESTATUS[0]}}", shell=True,
                            executable="/bin/bash", capture_output=True, check=False)  # fmt: skip
    assert (closed.returncode, closed.stderr) == (141, b"")


def test_what_cannot_be_meant_is_refused(source: Path, snapfs: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full/file").touch()
    for arguments, code, words in [
        (("import", tmp_path / "none", tmp_path / "volume"), 3, "there is no"),
        (("import", source / "socket", tmp_path / "volume"), 3, "is not a directory"),
        (("import", source, source / "volume"), 3, "must not lie within each other"),
        (("import", source, tmp_path / "full"), 3, "not an empty directory"),
        (("export", "--verify", source, "1", "-"), 2, "cannot be read back"),
        (("export", "--json", source, "1", "-"), 2, "exclude each other"),
        (("adopt", "--force", source), 2, "belongs to --undo"),
    ]:
        done = snapfs(*arguments, check=False)
        assert done.returncode == code, done.stderr
        assert words in done.stderr
    assert not (tmp_path / "volume").exists()


def test_a_running_directory(source: Path, snapfs: Callable[..., Any], tmp_path: Path) -> None:
    """A writer that never rests: exit code 4 and no volume; prepared; with --force exit code 8 and the file named."""
    code = "import sys, itertools\nfor n in itertools.count():\n  open(sys.argv[1], 'w').write(str(n))"
    writer = subprocess.Popen([sys.executable, "-c", code, source / "busy"], cwd="/")
    try:
        refused = snapfs("import", "--passes", "2", source, tmp_path / "volume", check=False)
        assert refused.returncode == 4
        assert "(busy" in refused.stderr or "busy)" in refused.stderr
        assert "stop the application" in refused.stderr
        assert not (tmp_path / "volume").exists()
        prepared = snapfs("import", "--prepare", source, tmp_path / "volume")
        assert "prepared" in prepared.stdout
        forced = snapfs("import", "--passes", "2", "--force", source, tmp_path / "other", check=False)
        assert forced.returncode == 8
        assert (tmp_path / "other").exists()
    finally:
        writer.kill()
        writer.wait()
    done = json.loads(snapfs("import", "--json", source, tmp_path / "volume").stdout)
    assert done["unsettled"] == 0
    assert done["passes"] > 2
    assert done["copied_bytes"] < done["total_bytes"]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    with small_ext4(tmp_path, 48) as place:
        yield place


def test_a_full_disk_keeps_what_was_copied(snapfs: Callable[..., Any], small_disk: Path, tmp_path: Path) -> None:
    source, volume = tmp_path / "source", small_disk / "volume"
    source.mkdir()
    for number in range(6):
        (source / f"file{number}").write_bytes(os.urandom(4 << 20))
    (small_disk / "ballast").write_bytes(bytes(16 << 20))
    too_much = snapfs("import", source, volume, check=False)
    assert too_much.returncode == 3
    assert "are to be copied, and" in too_much.stderr
    assert not os.path.lexists(f"{volume}.importing/import.db")
    (source / "hole").touch()
    with open(small_disk / "ballast", "r+b") as file:  # it seems to fit, and does not
        file.truncate(4 << 20)
    filler = subprocess.Popen(
        [sys.executable, "-c", _FILLER, small_disk], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert filler.stdout is not None
    assert filler.stdout.readline() == "full\n"
    failed = snapfs("import", "--prepare", source, volume, check=False)
    filler.communicate("\n")
    assert failed.returncode == 3
    assert "no space" in failed.stderr or "are to be copied" in failed.stderr
    done = snapfs("import", source, volume)
    assert "7 files" in done.stdout


_FILLER = """
import os, sys
path = sys.argv[1] + "/filler"
room = os.statvfs(sys.argv[1])
with open(path, "wb") as file:
    file.write(bytes(max(room.f_bavail * room.f_frsize - (9 << 20), 0)))
print("full", flush=True)
sys.stdin.readline()
os.unlink(path)
"""


@pytest.fixture
def sharing_disk(tmp_path: Path) -> Iterator[Path]:
    """A filesystem that can clone files."""
    if os.geteuid() or not shutil.which("mkfs.xfs") or not Path("/dev/loop-control").exists():
        pytest.skip("needs root, loop devices and mkfs.xfs")
    image, place = tmp_path / "image", tmp_path / "xfs"
    place.mkdir()
    with open(image, "wb") as file:
        file.truncate(320 << 20)
    subprocess.run(["mkfs.xfs", "-q", image], check=True)
    if subprocess.run(["mount", "-o", "loop", image, place], check=False).returncode:
        pytest.skip("cannot mount xfs here")
    yield place
    subprocess.run(["umount", "-l", place], check=True)


def test_bytes_are_shared_where_they_can_be(
    snapfs: Callable[..., Any], sharing_disk: Path, mountpoint: Path, tmp_path: Path
) -> None:
    source, volume = sharing_disk / "source", sharing_disk / "volume"
    source.mkdir()
    random_tree(os.fsencode(source), 8, 15)
    (source / "large").write_bytes(os.urandom(60 << 20))
    before = picture(os.fsencode(source), access_times=False)
    free = os.statvfs(sharing_disk).f_bavail * os.statvfs(sharing_disk).f_frsize
    done = json.loads(snapfs("import", "--json", source, volume).stdout)
    taken = free - os.statvfs(sharing_disk).f_bavail * os.statvfs(sharing_disk).f_frsize
    assert done["shared_files"] >= 1
    assert taken < 40 << 20
    snapfs("mount", volume, mountpoint)
    assert picture(os.fsencode(mountpoint), access_times=False) == before
    with open(mountpoint / "large", "r+b") as file:
        file.write(b"changed")
    snapfs("umount", mountpoint)
    assert picture(os.fsencode(source), access_times=False) == before

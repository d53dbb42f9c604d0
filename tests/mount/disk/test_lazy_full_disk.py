"""A lazily mounted host with a full disk: what is at the source can be read, and all goes on when there is room."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import Mounted, run_snapfs, take_down
from tests.fakes.mounts.hydrated import wait_whole
from tests.fakes.patience import eventually

pytestmark = pytest.mark.skipif(os.getuid() != 0, reason="makes a small filesystem, which takes root")
FILES = 6


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A loop-mounted ext4 of 40 MiB."""
    image, folder = tmp_path / "image", tmp_path / "disk"
    folder.mkdir()
    with open(image, "wb") as file:
        file.truncate(40 << 20)
    subprocess.run(["mkfs.ext4", "-q", "-m", "0", "-b", "4096", str(image)], check=True)
    subprocess.run(["mount", "-o", "loop", str(image), str(folder)], check=True)
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(path: Path) -> None:
    """To the last byte."""
    with open(path, "wb", buffering=0) as file:
        try:
            while file.write(bytes(1 << 16)):
                pass
        except OSError:
            pass


def test_a_full_disk_is_read_through(mounted: Mounted, tmp_path: Path, small_disk: Path) -> None:
    contents = [os.urandom(3 << 19) for _ in range(FILES)]
    for number, content in enumerate(contents):
        (mounted.path / f"file{number}").write_bytes(content)
    mounted.snapshot("all")
    with open(small_disk / "ballast", "wb") as file:
        os.posix_fallocate(file.fileno(), 0, 29 << 20)
    place = tmp_path / "other"
    place.mkdir()
    try:
        run_snapfs("mount", "--from", mounted.volume, small_disk / "volume", place)
        other = Mounted(small_disk / "volume", place)
        fill(small_disk / "full")
        assert [(place / f"file{number}").read_bytes() for number in range(FILES)] == contents
        eventually(lambda: "No space left" in (small_disk / "volume" / "daemon.log").read_text(), "the full disk")
        assert "ended with" not in (small_disk / "volume" / "daemon.log").read_text()
        (small_disk / "full").unlink()
        (small_disk / "ballast").unlink()
        wait_whole(other)
        assert [(place / f"file{number}").read_bytes() for number in range(FILES)] == contents
    finally:
        take_down(place)

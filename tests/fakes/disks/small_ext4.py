"""A small ext4 in a file, mounted through a loop device, for tests that fill a disk."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest


@contextlib.contextmanager
def small_ext4(folder: Path, mib: int, *options: str) -> Iterator[Path]:
    """The mountpoint of a new ext4 of `mib` MiB, made in `folder` with these options of mkfs. Skips where it cannot be
    mounted."""
    if os.geteuid() or not shutil.which("mkfs.ext4") or not Path("/dev/loop-control").exists():
        pytest.skip("needs root, loop devices and mkfs.ext4")
    image, place = folder / "disk", folder / "fs"
    place.mkdir()
    with open(image, "wb") as file:
        file.truncate(mib << 20)
    subprocess.run(["mkfs.ext4", "-q", *options, str(image)], check=True)
    if subprocess.run(["mount", "-o", "loop", str(image), str(place)], check=False).returncode:
        pytest.skip("cannot mount ext4 here")
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)

"""Mounted live trees as fixtures."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fakes.mounts.fuse_device import open_to_all
from tests.mount.posix.live_mount import IS_ROOT, UNPRIVILEGED, Mount, mounted_as


@pytest.fixture
def short_dir() -> Iterator[Path]:
    """A folder that other users can reach."""
    folder = Path(tempfile.mkdtemp(prefix="snapfs-ops-", dir="/tmp"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def mnt(short_dir: Path) -> Iterator[Mount]:
    """Mounted by the user that runs the tests."""
    yield from mounted_as(short_dir, os.geteuid())


@pytest.fixture(params=["same", "unprivileged"])
def any_mnt(request: pytest.FixtureRequest, short_dir: Path) -> Iterator[Mount]:
    """Mounted by the user that runs the tests, and by a user without privileges, who then does the work too."""
    if request.param == "unprivileged" and not IS_ROOT:
        pytest.skip("the tests run as an unprivileged user anyway")
    if request.param == "unprivileged":
        open_to_all()
    yield from mounted_as(short_dir, UNPRIVILEGED if request.param == "unprivileged" else os.geteuid())

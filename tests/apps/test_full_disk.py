"""A disk that fills up under the volume: ENOSPC where it must be, nothing broken, and all goes on with room again."""

from __future__ import annotations

import errno
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.skipif(os.getuid() != 0, reason="makes a small filesystem, which takes root")
DISK_BYTES = 96 << 20


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A loop-mounted ext4 of 96 MiB."""
    image, folder = tmp_path / "image", tmp_path / "disk"
    folder.mkdir()
    with open(image, "wb") as file:
        file.truncate(DISK_BYTES)
    subprocess.run(["mkfs.ext4", "-q", "-m", "0", str(image)], check=True)
    subprocess.run(["mount", "-o", "loop", str(image), str(folder)], check=True)
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(path: Path) -> int:
    """Write until the filesystem refuses; returns how many MiB were written and synced."""
    descriptor = os.open(path, os.O_CREAT | os.O_WRONLY, 0o600)
    done = 0
    try:
        while True:
            os.write(descriptor, os.urandom(1 << 20))
            os.fsync(descriptor)
            done += 1
            assert done * (1 << 20) < 4 * DISK_BYTES, "the disk never fills up"
    except OSError as error:
        assert error.errno == errno.ENOSPC  # noqa: PT017 - the loop has no other way out
        return done
    finally:
        try:
            os.close(descriptor)
        except OSError as error:
            assert error.errno == errno.ENOSPC  # noqa: PT017


def test_a_full_disk_breaks_nothing(host: Any, small_disk: Path, tmp_path: Path) -> None:
    host.volume = small_disk / "volume"
    host.mount()
    try:
        kept = os.urandom(3 << 20)
        (host.mountpoint / "kept").write_bytes(kept)
        host.snapshot("before")

        # Written by the host itself below the volume, so that the store has no room either.
        ballast = small_disk / "ballast"
        ballast.write_bytes(bytes(40 << 20))
        assert fill(host.mountpoint / "filler") > 5

        with pytest.raises(OSError, match="No space left") as refused:
            host.snapshot("no-room")
        assert refused.value.errno == errno.ENOSPC
        explanation = str(host.status()["last_error"])
        assert "no-room" in explanation or "space" in explanation.lower()
        assert "no-room" not in [record["name"] for record in host.snapshots()]

        # What was there is there, and names can still be taken away, which is how a user makes room.
        assert (host.mountpoint / "kept").read_bytes() == kept
        assert (host.mountpoint / ".snapfs/snapshots/before/kept").read_bytes() == kept
        (host.mountpoint / "filler").unlink()
        ballast.unlink()

        (host.mountpoint / "after").write_bytes(b"room again")
        host.snapshot("after")
        assert (host.mountpoint / ".snapfs/snapshots/after/kept").read_bytes() == kept
        host.umount()
        host.restore("after", tmp_path / "restored")
        assert sorted(os.listdir(tmp_path / "restored")) == ["after", "kept"]
        assert (tmp_path / "restored/kept").read_bytes() == kept
        assert host.run("verify", str(host.volume)).returncode == 0
        host.mount()
        assert (host.mountpoint / "after").read_bytes() == b"room again"
    finally:
        host.clear()

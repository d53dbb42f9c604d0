"""Real limits of memory: 128 MiB for daemon, supervisor and helper suffice for any seal, and less is reported."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import SNAPFS, force_unmount
from tests.fakes.patience import PATIENCE_S

LIMIT, TOO_LITTLE = 128 << 20, 40 << 20
PLACES = (("/sys/fs/cgroup/memory", "memory.limit_in_bytes"), ("/sys/fs/cgroup", "memory.max"))


@pytest.fixture
def group(request: pytest.FixtureRequest) -> Iterator[Path]:
    """A control group with that limit, or the one of the test's parameter."""
    for root, name in PLACES:
        path = Path(root) / f"snapfs-test-{uuid.uuid4().hex[:8]}"
        try:
            path.mkdir()
        except OSError:
            continue
        try:
            (path / name).write_text(str(getattr(request, "param", LIMIT)))
        except OSError:
            path.rmdir()
            continue
        yield path
        with contextlib.suppress(OSError):
            path.rmdir()
        return
    pytest.skip("no control group with a limit of memory can be made here")


def test_a_limit_of_128_mib_suffices_for_a_state_of_twice_that(group: Path, tmp_path: Path) -> None:
    """The seal's memory is bounded by its window, and the window by the limit."""
    mountpoint, volume = tmp_path / "mnt", tmp_path / "volume"
    mountpoint.mkdir()
    begin = f'echo $$ > {group}/cgroup.procs; exec "$@"'
    subprocess.run(["sh", "-c", begin, "sh", *SNAPFS, "mount", str(volume), str(mountpoint)], check=True)
    try:
        with open(mountpoint / "state", "wb") as file:
            for _ in range(256):
                file.write(os.urandom(1 << 20))
        (mountpoint / "many").mkdir()
        for number in range(200):
            (mountpoint / "many" / str(number)).write_bytes(b"%d" % number)
        subprocess.run([*SNAPFS, "snapshot", str(mountpoint), "limited"], check=True, timeout=300)
        facts = json.loads((mountpoint / ".snapfs/status").read_bytes())
        assert facts["daemons_before"] == 0, "no daemon was killed for its memory"
        assert facts["last_snapshot"]["name"] == "limited"
        subprocess.run([*SNAPFS, "umount", str(mountpoint)], check=True, timeout=PATIENCE_S)
    finally:
        force_unmount(str(mountpoint))


@pytest.mark.parametrize("group", [TOO_LITTLE], indirect=True)
def test_a_limit_that_is_too_small_to_begin_is_named_with_what_suffices(group: Path, tmp_path: Path) -> None:
    """Below 128 MiB a clear word, and not only that the daemon died."""
    mountpoint, volume = tmp_path / "mnt", tmp_path / "volume"
    mountpoint.mkdir()
    begin = f'echo $$ > {group}/cgroup.procs; exec "$@"'
    command = ["sh", "-c", begin, "sh", *SNAPFS, "mount", str(volume), str(mountpoint)]
    try:
        done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=PATIENCE_S)
        assert not os.path.ismount(mountpoint)
    finally:
        force_unmount(str(mountpoint))
    lines = [line for line in done.stderr.splitlines() if "created a new volume" not in line]
    assert (done.returncode, len(lines)) == (9, 1), done.stderr
    assert "SIGKILL" in lines[0]
    assert f"{TOO_LITTLE >> 20} MiB: {LIMIT >> 20} MiB are enough" in lines[0]

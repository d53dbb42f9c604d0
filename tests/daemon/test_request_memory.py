"""What a daemon reads requests into is there before, so that a kill in the middle loses none (native/request_memory.c).

The kernel ends a request with EIO, and does not send it again, if the process that reads it is killed while memory for
it must be found. `tools/chaos/killedreads` kills daemons in that moment: before, one kill in ten lost a write.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from snapfs.fuse.kernel import router
from tests.conftest import Mounted
from tests.fakes.mounts import outlive_run

pytestmark = pytest.mark.skipif(router.why_not() is not None, reason=str(router.why_not()))

PIECE_KIB = 1024 + 8
_NOT_INHERITED = "dc"  # of VmFlags in /proc/PID/smaps: MADV_DONTFORK


def request_memory(pid: int) -> Iterator[tuple[int, int]]:
    """(size, what of it is there), in KiB, of each mapping of a daemon that requests are read into."""
    facts: dict[str, str] = {}
    for line in Path(f"/proc/{pid}/smaps").read_text().splitlines():
        key, _, value = line.partition(":")
        facts[key] = value
        if key == "VmFlags" and _NOT_INHERITED in value.split():
            yield int(facts["Size"].split()[0]), int(facts["Rss"].split()[0])


def write_and_read(folder: Path, number: int) -> None:
    data = os.urandom(1 << 20)
    fd = os.open(folder / f"file-{number}", os.O_CREAT | os.O_RDWR)
    for _ in range(5):
        os.pwrite(fd, data, 0)
        os.fsync(fd)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    assert os.pread(fd, 1 << 20, 0) == data
    os.close(fd)


@pytest.mark.parametrize("data_path", ["native", "python"])
def test_memory_for_requests_is_there_before_they_are_read(mount: Callable[..., Mounted], data_path: str) -> None:
    mounted = mount("-o", f"live.data_path={data_path}")
    facts: dict[str, Any] = outlive_run.supervisor_facts(mounted.volume)
    before = list(request_memory(facts["daemon"]))
    with ThreadPoolExecutor(6) as pool:
        list(pool.map(lambda number: write_and_read(mounted.path, number), range(6)))
    for pieces in before, list(request_memory(facts["daemon"])):
        assert sum(size for size, _ in pieces) >= PIECE_KIB, "there is none, or it would be inherited"
        assert [size for size, there in pieces if there < size] == []

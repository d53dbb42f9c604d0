"""Which processes write to a mount, from /proc alone: descriptors, mappings without one, nothing of other places."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from snapfs.fuse.kernel import openers
from snapfs.fuse.kernel.openers import writers_of

WRITER_ID = """
import mmap, os, sys
path, how = sys.argv[1:]
fd = os.open(path, os.O_RDONLY if how in ("read", "private") else os.O_RDWR)
if how in ("shared", "private"):
    flags = mmap.MAP_SHARED if how == "shared" else mmap.MAP_PRIVATE
    held = mmap.mmap(fd, 4096, flags=flags, prot=mmap.PROT_READ | mmap.PROT_WRITE)
    if how == "shared":
        os.close(fd)
print("held", flush=True)
sys.stdin.read()
"""


@contextmanager
def holding(path: Path, how: str) -> Iterator[None]:
    command = [sys.executable, "-c", WRITER_ID, str(path), how]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        assert child.stdin is not None
        assert child.stdout.readline() == "held\n"
        yield
        child.stdin.close()


@pytest.fixture
def file(mounted: object) -> Path:
    path: Path = mounted.path / "a file"  # type: ignore[attr-defined]
    path.write_bytes(bytes(4096))
    return path


@pytest.mark.parametrize(("how", "count"), [("read", 0), ("private", 0), ("write", 1)])
def test_descriptors(file: Path, how: str, count: int) -> None:
    before = writers_of(str(file.parent))  # processes that we may not look at
    with holding(file, how):
        assert writers_of(str(file.parent)) - before == count


def test_a_shared_mapping_writes_after_its_descriptor_is_closed(file: Path) -> None:
    before = writers_of(str(file.parent))
    with holding(file, "shared"):
        # mmap of Python keeps a duplicate of the descriptor, so that both are seen
        assert writers_of(str(file.parent)) - before == 2


def test_elsewhere_is_elsewhere(file: Path, tmp_path: Path) -> None:
    (tmp_path / "other").write_bytes(bytes(4096))
    before = writers_of(str(file.parent))
    with holding(tmp_path / "other", "write"):
        assert writers_of(str(file.parent)) == before


def test_a_process_that_ends_while_it_is_looked_at_does_not_count(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A read of an entry that was opened a moment before gives ESRCH."""

    def ending(path: str, mode: str = "r") -> object:
        if "/fdinfo/" in path:
            raise ProcessLookupError
        return open(path, mode)

    before = writers_of(str(file.parent))
    with holding(file, "write"):
        assert writers_of(str(file.parent)) - before == 1
        monkeypatch.setattr(openers, "open", ending, raising=False)
        assert writers_of(str(file.parent)) == before

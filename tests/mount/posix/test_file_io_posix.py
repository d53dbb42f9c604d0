"""The bytes of open files on a real mount: flags, mappings, locks, direct I/O."""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import random
from pathlib import Path

import pytest

from tests.mount.posix.live_mount import IS_ROOT, Mount, refused

pytestmark = [
    pytest.mark.skipif(not os.access("/dev/fuse", os.R_OK | os.W_OK), reason="no /dev/fuse here"),
    pytest.mark.usefixtures("data_path"),
]


def test_open_flags(mnt: Mount) -> None:
    path = mnt.path / "file"
    path.write_bytes(b"0123456789")
    with path.open("rb", buffering=0) as reader:
        assert reader.read(2) == b"01"
        os.close(os.open(path, os.O_WRONLY | os.O_TRUNC))
        assert path.stat().st_size == 0
        assert reader.read() == b""
    refused(errno.EEXIST, os.open, path, os.O_CREAT | os.O_EXCL)
    refused(errno.EISDIR, os.open, mnt.path, os.O_WRONLY)
    refused(errno.ENOTDIR, os.open, path, os.O_DIRECTORY)
    refused(errno.ENOENT, os.open, mnt.path / "missing", os.O_RDONLY)
    refused(errno.ENOENT, os.open, mnt.path / "missing", os.O_RDONLY)  # now from the kernel's memory
    (mnt.path / "missing").touch()
    assert (mnt.path / "missing").stat().st_size == 0


def test_direct_io_and_the_page_cache_agree(mnt: Mount) -> None:
    path = mnt.path / "file"
    block = mmap.mmap(-1, 8192)
    block.write(os.urandom(8192))
    fd = os.open(path, os.O_CREAT | os.O_RDWR | os.O_DIRECT)
    try:
        assert os.pwritev(fd, [block], 4096) == 8192
        assert path.read_bytes() == bytes(4096) + block[:]
        with path.open("r+b") as cached:
            cached.seek(4096)
            cached.write(b"through the cache")
        again = mmap.mmap(-1, 4096)
        assert os.preadv(fd, [again], 4096) == 4096
        assert again[:17] == b"through the cache"
        assert again[17:] == block[17:4096]
    finally:
        os.close(fd)


def test_shared_mappings(mnt: Mount) -> None:
    path = mnt.path / "file"
    with path.open("x+b") as file:
        file.truncate(3 * 4096 + 100)
        with mmap.mmap(file.fileno(), 0) as one, mmap.mmap(file.fileno(), 0) as two:
            one[5000:5005] = b"hello"
            assert two[5000:5005] == b"hello"
            one.flush()
            os.pwrite(file.fileno(), b"HELLO", 5000)
            assert two[5000:5005] == b"HELLO"
    mnt.remount()
    data = path.read_bytes()
    assert len(data) == 3 * 4096 + 100
    assert data[5000:5005] == b"HELLO"
    assert data.strip(b"\0") == b"HELLO"


def test_locks_hold_between_processes(mnt: Mount) -> None:
    path = mnt.path / "file"
    code = """import fcntl, sys
with open(sys.argv[1], "r+") as f:
    try: fcntl.{}(f, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError: print("held")
"""
    with path.open("w") as file:
        for name in ("flock", "lockf"):
            getattr(fcntl, name)(file, fcntl.LOCK_EX)
            assert mnt.run(code.format(name), path) == "held\n"
            getattr(fcntl, name)(file, fcntl.LOCK_UN)
            assert mnt.run(code.format(name), path) == ""


def test_random_reads_writes_truncates_and_mappings_agree_with_a_model(mnt: Mount) -> None:
    """What fsx does: one file, every way to change it, compared with bytes in memory."""
    chance = random.Random(7)
    path, model = mnt.path / "file", bytearray()
    path.touch()
    for step in range(600):
        kind = chance.choice(("write", "append", "truncate", "map", "read", "reopen", "fsync", "direct"))
        offset, length = chance.randrange(300_000), chance.randrange(1, 70_000)
        data = chance.randbytes(length)
        with path.open("r+b", buffering=0) as file:
            if kind == "write":
                model.extend(bytes(max(0, offset - len(model))))
                model[offset : offset + length] = data
                os.pwrite(file.fileno(), data, offset)
            elif kind == "append":
                model.extend(data[:500])
                with path.open("ab", buffering=0) as log:
                    log.write(data[:500])
            elif kind == "truncate":
                model[offset:] = b"" if offset < len(model) else bytes(offset - len(model))
                file.truncate(offset)
            elif kind == "map" and len(model) > length:
                start = chance.randrange(len(model) - length)
                model[start : start + length] = data
                with mmap.mmap(file.fileno(), 0) as mapping:
                    mapping[start : start + length] = data
            elif kind == "fsync":
                os.fsync(file.fileno())
            elif kind == "direct" and len(model) >= 8192:
                fd = os.open(path, os.O_RDWR | os.O_DIRECT)
                block = mmap.mmap(-1, 4096)
                block[:] = data[:4096].ljust(4096, b".")
                model[4096:8192] = block[:]
                os.pwritev(fd, [block], 4096)
                os.close(fd)
            elif kind == "reopen" and step % 7 == 0:
                Path("/proc/sys/vm/drop_caches").write_text("1") if IS_ROOT else None
            at = chance.randrange(len(model) + 1)
            assert os.pread(file.fileno(), 10_000, at) == model[at : at + 10_000], (step, kind)
    assert path.read_bytes() == model
    mnt.remount()
    assert path.read_bytes() == model


def test_many_files_with_few_descriptors(mnt: Mount) -> None:
    """The daemon's descriptors are bounded, however many files are known or open."""
    files = [(mnt.path / f"{i:04}").open("x+b", buffering=0) for i in range(700)]
    for number, file in enumerate(files):
        file.write(b"%d" % number)
    for number, file in enumerate(files):
        file.seek(0)
        assert file.read() == b"%d" % number
        file.close()

"""What made volumes-v1.tar.gz: run once, with the last commit in which every format of a volume had version 1.

That was before presence pages and the pages of namespace.db had checksums, and before small JSON files had any
(segments 1, namespace.db 1, intents 1, log lines without sums). Its command line was `python -m snapfs.cli`. The
archive holds four volumes; paths in them begin with /somewhere.

    unclean    two snapshots, changes after them, killed with its supervisor; all of the namespace is in its WAL
    source     its store at the second snapshot
    lazy       mounted from `source` without backfill, written to, killed
    standby    of `source`, at its newest snapshot

Later versions of snapfs must mount them for ever, so they are never made anew.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

SNAPFS = [sys.executable, "-P", "-m", "snapfs.cli"]


def content(name: bytes, size: int) -> bytes:
    """Each 16 bytes name their file and place."""
    return b"".join(b"%-6s%09d\n" % (name, at) for at in range(-(-size // 16)))[:size]


KEPT = content(b"kept", 160_000)
KEPT_TWO = KEPT[:100_000] + content(b"second", 4096) + KEPT[104_096:]
KEPT_NOW = KEPT_TWO[:130_000] + content(b"third", 4096) + KEPT_TWO[134_096:]
KEPT_LAZY = KEPT_TWO[:8192] + content(b"lazy", 4096) + KEPT_TWO[12288:]
BIG = content(b"big", 9 * 65536 - 77)
LATE = content(b"late", 5000)
GONE = content(b"gone", 5000)
NEW = content(b"new", 3000)


def run(*words: str | Path) -> None:
    subprocess.run([*SNAPFS, *map(str, words)], check=True)


def put(path: Path, offset: int, data: bytes) -> None:
    fd = os.open(path, os.O_RDWR | os.O_CREAT)
    try:
        os.pwrite(fd, data, offset)
        os.fsync(fd)
    finally:
        os.close(fd)


def kill(mnt: Path) -> None:
    facts = json.loads((mnt / ".snapfs/status").read_bytes())
    for pid in (facts["supervisor"], facts["pid"]):
        os.kill(pid, signal.SIGKILL)
    time.sleep(1)
    subprocess.run(["umount", "-l", mnt], check=True)


def make(folder: Path) -> None:
    mnt, unclean, source, lazy = (folder / name for name in ("mnt", "unclean", "source", "lazy"))
    mnt.mkdir()
    run("mount", unclean, mnt)
    (mnt / "sub").mkdir(0o750)
    put(mnt / "kept", 0, KEPT)
    os.setxattr(mnt / "kept", "user.what", b"an attribute")
    (mnt / "kept").chmod(0o640)
    put(mnt / "sub/gone", 0, GONE)
    (mnt / "link").symlink_to("sub/late")
    os.mkfifo(mnt / "fifo")
    run("snapshot", mnt, "one")
    (mnt / "sub/gone").unlink()
    put(mnt / "kept", 100_000, content(b"second", 4096))
    put(mnt / "big", 0, BIG)
    run("snapshot", mnt, "two")
    shutil.copytree(unclean, source, symlinks=True)
    put(mnt / "kept", 130_000, content(b"third", 4096))
    put(mnt / "sub/late", 0, LATE)
    os.link(mnt / "sub/late", mnt / "sub/again")
    os.truncate(mnt / "big", 300_000)
    kill(mnt)
    run("mount", "-o", "hydration.background=false", "--from", source, lazy, mnt)
    put(mnt / "kept", 8192, content(b"lazy", 4096))
    put(mnt / "new", 0, NEW)
    kill(mnt)
    run("standby", "--from", source, "--once", folder / "standby")


if __name__ == "__main__":
    make(Path(sys.argv[1]))

"""What an inode is made with, ACLs above all, is there from its first instant: one transaction makes it."""

from __future__ import annotations

import errno
import os
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import snapfs
from snapfs.base.blocks import ROOT_INO, Disk
from snapfs.live.namespace.namespace import Namespace

GIVEN = [(b"system.posix_acl_access", b"a" * 44), (b"system.posix_acl_default", b"d" * 44)]
KINDS = [stat.S_IFREG, stat.S_IFDIR, stat.S_IFIFO, stat.S_IFSOCK]


@pytest.fixture
def names(tmp_path: Path) -> Iterator[Namespace]:
    found = Namespace(str(tmp_path / "namespace.db"), Disk())
    yield found
    found.close()


@pytest.mark.parametrize("kind", KINDS)
def test_attributes_come_with_the_inode_in_one_transaction(names: Namespace, kind: int) -> None:
    names.allocate_ino()  # what reserves numbers is a transaction of its own, once in a thousand
    before = names._wal.committed
    made = names.create(ROOT_INO, b"name", kind | 0o640, 1, 2, xattrs=GIVEN)
    assert names._wal.committed == before + 1
    assert names.listxattr(made.ino) == [name for name, _ in GIVEN]
    assert [names.getxattr(made.ino, name) for name, _ in GIVEN] == [value for _, value in GIVEN]
    names.check_invariants()


def test_what_fails_leaves_no_attribute(names: Namespace) -> None:
    names.create(ROOT_INO, b"name", stat.S_IFREG | 0o640, 1, 2)
    with pytest.raises(OSError, check=lambda error: error.errno == errno.EEXIST):
        names.create(ROOT_INO, b"name", stat.S_IFREG | 0o640, 1, 2, xattrs=GIVEN)
    assert names._writer.rows("SELECT * FROM xattr") == []
    names.check_invariants()


CHILD = """
import itertools, stat, sys
from snapfs.base.blocks import ROOT_INO, Disk
from snapfs.live.namespace.namespace import Namespace
names = Namespace(sys.argv[1], Disk())
given = [(b"system.posix_acl_access", b"a" * 44), (b"system.posix_acl_default", b"d" * 44)]
for number in itertools.count():
    kind = (stat.S_IFREG, stat.S_IFDIR, stat.S_IFIFO)[number % 3]
    names.create(ROOT_INO, b"%d" % number, kind | 0o640, 1, 2, xattrs=given)
    print(number, flush=True)
"""


@pytest.mark.parametrize("wait_s", [0.05, 0.15, 0.3])
def test_a_kill_never_leaves_one_without_them(tmp_path: Path, wait_s: float) -> None:
    path = str(tmp_path / "namespace.db")
    environment = {**os.environ, "PYTHONPATH": str(Path(snapfs.__file__).parents[2])}
    child = subprocess.Popen([sys.executable, "-c", CHILD, path], stdout=subprocess.PIPE, env=environment)
    assert child.stdout is not None
    child.stdout.readline()
    time.sleep(wait_s)
    child.send_signal(signal.SIGKILL)
    answered = [int(line) for line in child.stdout.read().splitlines()]
    child.stdout.close()
    child.wait()
    names = Namespace(path, Disk())
    try:
        entries = names.readdir(ROOT_INO, 0, 1_000_000)
        assert len(entries) > max(answered)
        for entry in entries:
            assert stat.S_IMODE(entry.inode.mode) == 0o640
            assert names.listxattr(entry.inode.ino) == [name for name, _ in GIVEN]
        names.check_invariants()
    finally:
        names.close()

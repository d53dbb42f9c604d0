"""Extended attributes, ACLs and privileged bits on a real mount."""

from __future__ import annotations

import errno
import os
import shutil
import stat
import subprocess
from pathlib import Path

import pytest

from tests.mount.posix.live_mount import IS_ROOT, UNPRIVILEGED, Mount, needs_root, refused, run_as

pytestmark = [
    pytest.mark.skipif(not os.access("/dev/fuse", os.R_OK | os.W_OK), reason="no /dev/fuse here"),
    pytest.mark.usefixtures("data_path"),
]


def test_an_acl_that_is_not_there_can_be_removed(mnt: Mount) -> None:
    """As from ext4, xfs and tmpfs; programs that take all ACLs away rely on it."""
    path = mnt.path / "folder"
    path.mkdir()
    for name in ("system.posix_acl_access", "system.posix_acl_default"):
        os.removexattr(path, name)
        refused(errno.ENODATA, os.getxattr, path, name)
    path.rmdir()
    refused(errno.ENOENT, os.removexattr, path, "system.posix_acl_default")


def test_extended_attributes(mnt: Mount) -> None:
    path = mnt.path / "file"
    path.touch()
    refused(errno.ENODATA, os.getxattr, path, "user.none")
    refused(errno.ENODATA, os.removexattr, path, "user.none")
    os.setxattr(path, "user.a", b"1", os.XATTR_CREATE)
    refused(errno.EEXIST, os.setxattr, path, "user.a", b"2", os.XATTR_CREATE)
    refused(errno.ENODATA, os.setxattr, path, "user.b", b"2", os.XATTR_REPLACE)
    os.setxattr(path, "user.big", b"x" * 65536)
    refused(errno.E2BIG, os.setxattr, path, "user.bigger", b"x" * 65537)
    refused(errno.ERANGE, os.setxattr, path, "user." + "n" * 251, b"")
    refused(errno.EOPNOTSUPP, os.setxattr, path, "system.other", b"")
    os.setxattr(path, "user.empty", b"")
    assert sorted(os.listxattr(path)) == ["user.a", "user.big", "user.empty"]
    assert os.getxattr(path, "user.big") == b"x" * 65536
    assert os.getxattr(path, "user.empty") == b""
    if IS_ROOT:
        os.symlink("file", mnt.path / "link")
        os.setxattr(mnt.path / "link", "trusted.t", b"of the link", follow_symlinks=False)
        assert os.listxattr(mnt.path / "link", follow_symlinks=False) == ["trusted.t"]
        os.chmod(mnt.path, 0o755)
        os.setxattr(path, "trusted.t", b"of root")
        shown = "import os, sys; print(sorted(os.listxattr(sys.argv[1])))"
        assert run_as(UNPRIVILEGED, shown, path) == "['user.a', 'user.big', 'user.empty']\n"


def setfacl(*arguments: str | Path) -> None:
    subprocess.run(["setfacl", *map(str, arguments)], check=True)


def getfacl(path: Path) -> list[str]:
    shown = subprocess.run(["getfacl", "-cpn", str(path)], check=True, capture_output=True, text=True).stdout
    return [line.split("\t")[0] for line in shown.split("\n") if line]


@pytest.mark.skipif(shutil.which("setfacl") is None, reason="needs the package acl")
def test_acls_and_modes_keep_step(mnt: Mount) -> None:
    path = mnt.path / "file"
    path.touch()
    path.chmod(0o640)
    setfacl("-m", "u:1234:rwx", path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o670
    path.chmod(0o600)
    assert getfacl(path) == ["user::rw-", "user:1234:rwx", "group::r--", "mask::---", "other::---"]
    setfacl("-b", path)
    assert getfacl(path) == ["user::rw-", "group::---", "other::---"]
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert os.listxattr(path) == []


@pytest.mark.skipif(shutil.which("setfacl") is None, reason="needs the package acl")
def test_default_acls_are_inherited_and_the_umask_is_ignored(mnt: Mount) -> None:
    folder = mnt.path / "folder"
    folder.mkdir()
    setfacl("-d", "-m", "u::rwx,g::rwx,o::r-x,u:1234:rwx", folder)
    old = os.umask(0o077)
    try:
        (folder / "file").touch()
        (folder / "sub").mkdir()
        os.mkfifo(folder / "fifo")
        (mnt.path / "plain").touch()
    finally:
        os.umask(old)
    assert stat.S_IMODE((mnt.path / "plain").stat().st_mode) == 0o600
    assert stat.S_IMODE((folder / "file").stat().st_mode) == 0o664
    assert getfacl(folder / "file") == ["user::rw-", "user:1234:rwx", "group::rwx", "mask::rw-", "other::r--"]
    assert getfacl(folder / "fifo") == getfacl(folder / "file")
    assert getfacl(folder / "sub")[5:] == getfacl(folder)[3:]
    mnt.remount()
    assert getfacl(folder / "file") == ["user::rw-", "user:1234:rwx", "group::rwx", "mask::rw-", "other::r--"]


@needs_root
def test_setuid_goes_when_another_user_writes(mnt: Mount) -> None:
    path = mnt.path / "file"
    path.touch()
    act = "import os, sys; os.chdir(sys.argv[1]); {}"
    actions = [
        "f = os.open('file', os.O_WRONLY); os.write(f, b'x')",
        "os.truncate('file', 1)",
        "os.open('file', os.O_WRONLY | os.O_TRUNC)",
    ]
    for action in actions:
        path.chmod(0o6777)
        run_as(UNPRIVILEGED, act.format(action), mnt.path)
        assert stat.S_IMODE(path.stat().st_mode) == 0o777, action
        path.chmod(0o6777)
        mnt.run(act.format(action), mnt.path)
        assert stat.S_IMODE(path.stat().st_mode) == 0o6777, action
    os.chown(path, 1, 1)
    assert stat.S_IMODE(path.stat().st_mode) == 0o777

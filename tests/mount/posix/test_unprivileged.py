"""A user without privileges mounts a volume through fusermount3: everything works, and no file's owner gets lost.

The volume is filled by root with what only root can make (owners, device nodes, setuid bits, ACLs), then given to a
user who is made for the test.
"""

from __future__ import annotations

import json
import os
import pwd
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import pytest

from tests.conftest import force_unmount, run_snapfs
from tests.fakes.mounts.fuse_device import open_to_all
from tests.fakes.patience import PATIENCE_S, eventually

ROOT = Path(__file__).resolve().parents[3]
pytestmark = [
    pytest.mark.skipif(os.getuid() != 0, reason="makes a user, which takes root"),
    pytest.mark.skipif(not shutil.which("useradd"), reason="needs useradd"),
    pytest.mark.skipif(not shutil.which("fusermount3"), reason="needs fusermount3"),
]


@dataclass
class User:
    """An account made for the test, and a folder of its own."""

    name: str
    uid: int
    gid: int
    home: Path
    interpreter: str

    @property
    def volume(self) -> Path:
        return self.home / "volume"

    @property
    def mnt(self) -> Path:
        return self.home / "mnt"

    def run(self, *command: str | Path, check: bool = True) -> subprocess.CompletedProcess[str]:
        packages = str(Path(click.__file__).parents[2])
        done = subprocess.run(
            ["runuser", "-u", self.name, "--", *map(str, command)], capture_output=True, text=True, check=False,
            timeout=PATIENCE_S, cwd="/", env={**os.environ, "PYTHONPATH": f"{ROOT}:{packages}", "HOME": str(self.home)},
        )  # fmt: skip
        assert not check or done.returncode == 0, f"{command}: {done.stdout} {done.stderr}"
        return done

    def snapfs(self, *arguments: str | Path, check: bool = True) -> subprocess.CompletedProcess[str]:
        return self.run(self.interpreter, "-m", "snapfs", *arguments, check=check)

    def python(self, script: str, check: bool = True) -> str:
        """Run a script in the mount; what it prints."""
        start = f"import errno, json, os, stat; os.chdir({str(self.mnt)!r})\n"
        return self.run(self.interpreter, "-c", start + script, check=check).stdout

    def control(self, command: str) -> dict[str, Any]:
        status: dict[str, Any] = json.loads(
            self.python(
                "fd = os.open('.snapfs/control', os.O_RDWR)\n"
                f"try:\n    os.write(fd, {command!r}.encode())\nexcept OSError:\n    pass\n"
                "print(os.read(fd, 1 << 20).decode())"
            )
        )
        return status


def runs_something(name: str) -> bool:
    """Whether there is a process of this user: `umount` waits for one of a mount's, and userdel takes none."""
    return subprocess.run(["pgrep", "-u", name], check=False, capture_output=True).returncode == 0


@pytest.fixture
def user() -> Iterator[User]:
    name = f"snapfs{os.getpid()}"
    subprocess.run(["useradd", "--no-create-home", "--shell", "/bin/sh", name], check=True, capture_output=True)
    home = Path(tempfile.mkdtemp(prefix="snapfs-user-", dir="/tmp"))
    try:
        known = pwd.getpwnam(name)
        os.chown(home, known.pw_uid, known.pw_gid)
        home.chmod(0o755)
        open_to_all()
        made = User(name, known.pw_uid, known.pw_gid, home, "")
        made.mnt.mkdir()
        os.chown(made.mnt, made.uid, made.gid)
        for made.interpreter in (sys.executable, "/usr/bin/python3"):
            if made.run(made.interpreter, "-c", "import snapfs.daemon.daemon", check=False).returncode == 0:
                break
        else:
            pytest.skip("an ordinary user cannot run any interpreter that has the project's packages")
        yield made
        force_unmount(str(made.mnt))
    finally:
        eventually(lambda: not runs_something(name), "the end of all that the user runs")
        subprocess.run(["userdel", name], check=True, capture_output=True)
        shutil.rmtree(home)


Fact = tuple[Any, ...]
LOOK = """
def look(top):
    found = {}
    for folder, names, files in os.walk(top):
        for name in [*names, *files]:
            path = os.path.join(folder, name)
            s = os.lstat(path)
            size = s.st_size if stat.S_ISREG(s.st_mode) else 0
            found[os.path.relpath(path, top)] = [s.st_mode, s.st_uid, s.st_gid, s.st_rdev, s.st_mtime_ns, size]
    return found
"""


def looked(top: Path) -> dict[str, Fact]:
    scope: dict[str, Any] = {"os": os, "stat": stat}
    exec(LOOK, scope)
    found: dict[str, Fact] = scope["look"](str(top))
    return found


def fill(user: User) -> dict[str, Fact]:
    """As root, with what takes root."""
    top = user.mnt
    for name, mode, uid, gid in (("plain", 0o644, 0, 0), ("setuid", 0o4755, 12345, 54321), ("secret", 0o600, 7, 8)):
        (top / name).write_bytes(name.encode() * 1000)
        os.chown(top / name, uid, gid)
        (top / name).chmod(mode)
    os.mknod(top / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    os.mknod(top / "disk", stat.S_IFBLK | 0o640, os.makedev(254, 1048575))
    os.chown(top / "disk", 0, 6)
    os.mkfifo(top / "fifo", 0o622)
    os.symlink("nowhere", top / "link")
    os.chown(top / "link", 4711, 4712, follow_symlinks=False)
    (top / "sticky").mkdir()
    (top / "sticky").chmod(0o1777)
    (top / "mine").mkdir()
    (top / "mine/file").write_text("mine")
    for path in (top, top / "mine", top / "mine/file"):
        os.chown(path, user.uid, user.gid)
    return looked(top)


def test_everything_works_for_a_user_and_every_owner_is_kept(user: User, snapfs: Callable[..., Any]) -> None:
    run_snapfs("mount", user.volume, user.mnt)
    made = fill(user)
    run_snapfs("snapshot", user.mnt, "by-root")
    run_snapfs("umount", user.mnt)
    for folder, _, files in os.walk(user.volume):
        for path in (folder, *(os.path.join(folder, name) for name in files)):
            os.chown(path, user.uid, user.gid)

    user.snapfs("mount", user.volume, user.mnt)
    with pytest.raises(PermissionError):  # without allow_other not even root may look
        os.listdir(user.mnt)
    assert json.loads(user.python(LOOK + "print(json.dumps(look('.')))")) == made

    # What a user may not do is refused as on any filesystem, and what he may is remembered.
    refused = user.python(
        "for act in (lambda: os.chown('mine/file', 0, -1), lambda: os.chown('plain', os.getuid(), -1),\n"
        "            lambda: os.chmod('plain', 0o777), lambda: open('secret').read(),\n"
        "            lambda: os.mknod('mine/device', stat.S_IFCHR | 0o666, os.makedev(1, 3))):\n"
        "    try: print('done', act())\n"
        "    except OSError as error: print(errno.errorcode[error.errno])"
    )
    assert refused.split() == ["EPERM", "EPERM", "EPERM", "EACCES", "EPERM"]
    user.python(
        "os.chmod('mine/file', 0o6711); os.chown('mine/file', os.getuid(), os.getgid())\n"
        "os.chmod('mine/file', 0o4640); os.mkfifo('mine/fifo'); os.setxattr('mine/file', 'user.note', b'x')\n"
        "open('sticky/new', 'w').write('new')"
    )
    assert user.control("snapshot by-user")["ok"] is True
    remembered = json.loads(user.python(LOOK + "print(json.dumps(look('.')))"))
    assert remembered["mine/file"][0] & 0o7777 == 0o4640
    assert {name: fact for name, fact in remembered.items() if name in made and "mine" not in name} == {
        name: fact if name != "sticky" else remembered["sticky"] for name, fact in made.items() if "mine" not in name
    }

    # The past, by browsing, by restoring and by going back to it.
    for name, wanted in (("by-root", made), ("by-user", remembered)):
        assert json.loads(user.python(LOOK + f"print(json.dumps(look('.snapfs/snapshots/{name}')))")) == wanted
    assert user.python("print(open('.snapfs/snapshots/by-root/mine/file').read())") == "mine\n"
    out = user.home / "out"
    restored = user.snapfs("restore", "--verify", user.volume, "by-user", out)
    assert "not restored" in restored.stderr  # owners and devices, which take root
    assert (out / "setuid").read_bytes() == b"setuid" * 1000
    assert (out / "sticky/new").read_text() == "new"
    assert (out / "mine/file").stat().st_uid == user.uid
    user.python("os.unlink('mine/file'); open('mine/other', 'w').write('later')")
    user.snapfs("rollback", user.mnt, "by-root")
    assert json.loads(user.python(LOOK + "print(json.dumps(look('.')))")) == made

    user.snapfs("umount", user.mnt)
    assert not os.path.ismount(user.mnt)
    run_snapfs("mount", user.volume, user.mnt)  # and back to root, who finds it all as it was
    try:
        assert looked(user.mnt) == made
        assert (user.mnt / "secret").read_bytes() == b"secret" * 1000
    finally:
        run_snapfs("umount", user.mnt)


def test_a_users_mount_is_there_again_after_its_daemon_was_killed(user: User) -> None:
    """By itself where the mount outlives its daemon, or else by the next mount, which clears the dead one."""
    user.snapfs("mount", user.volume, user.mnt)
    user.python("open('kept', 'w').write('kept')")
    pid = int(json.loads(user.python("print(open('.snapfs/status').read())"))["pid"])
    os.kill(pid, signal.SIGKILL)
    again = user.snapfs("mount", user.volume, user.mnt, check=False)
    assert again.returncode in (0, 4), again.stderr
    assert user.python("print(open('kept').read())") == "kept\n"
    assert int(json.loads(user.python("print(open('.snapfs/status').read())"))["pid"]) != pid
    user.snapfs("umount", user.mnt)

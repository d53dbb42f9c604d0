"""`snapfs mount` and `umount` as their users meet them: wrong paths, dead daemons, fstab, ordinary users."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import pytest

from snapfs.base.blocks import Disk
from snapfs.base.mountinfo import mount_at
from snapfs.base.volumes.volume import Volume
from tests.fakes.mounts.fuse_device import open_to_all
from tests.fakes.patience import PATIENCE_S, eventually

ROOT = Path(__file__).resolve().parents[2]
SNAPFS = [sys.executable, "-m", "snapfs"]
as_root = pytest.mark.skipif(os.getuid() != 0, reason="takes root")


def is_mounted(path: Path) -> bool:
    return f" {path} " in Path("/proc/self/mountinfo").read_text(errors="replace")


def test_a_mount_answers_when_the_command_returns_and_is_free_after_umount(
    snapfs: Any, volume_dir: Path, mountpoint: Path
) -> None:
    done = snapfs("mount", volume_dir, mountpoint)
    assert done.stdout == ""
    assert done.stderr == f"snapfs: created a new volume at {volume_dir}\n"
    (mountpoint / "a").write_text("kept")
    waits = "snapfs: waiting for the daemon to end\n"  # said where the end takes more than a second
    assert snapfs("umount", mountpoint).stderr in ("", waits)
    assert not is_mounted(mountpoint)
    assert snapfs("mount", volume_dir, mountpoint).stderr == ""  # at once: the last daemon is gone
    assert (mountpoint / "a").read_text() == "kept"
    assert os.listdir(mountpoint) == ["a"]
    assert snapfs("umount", volume_dir).returncode == 0  # by the volume's own path
    assert not is_mounted(mountpoint)


def test_what_is_mounted_is_not_mounted_again(snapfs: Any, mounted: Any, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    pid = mounted.status()["pid"]
    holder = mounted.status()["supervisor"] or pid
    done = snapfs("mount", mounted.volume, other, check=False)
    assert (done.returncode, done.stdout) == (4, "")
    assert done.stderr == f"snapfs: {mounted.volume} is in use by process {holder}, mounted at {mounted.path}\n"
    done = snapfs("mount", tmp_path / "second", mounted.path, check=False)
    assert done.returncode == 4
    assert done.stderr == (
        f"snapfs: {mounted.path} already is a snapfs mount: unmount it first (snapfs umount {mounted.path})\n"
    )
    assert not (tmp_path / "second").exists()
    assert mounted.status()["pid"] == pid


@pytest.mark.parametrize(
    ("volume", "place", "line"),
    [
        ("v", "missing", "{tmp}/missing does not exist: make the mountpoint first (mkdir {tmp}/missing)"),
        ("v", "file", "{tmp}/file is not a directory: a mountpoint must be one"),
        ("v", "full", "{tmp}/full is not empty, and a mount would hide what is in it: choose an empty directory"),
        ("v\udcff", "empty", "{tmp}/v\\xff cannot be used, as it is not UTF-8: choose another path"),
        ("empty", "empty", "{tmp}/empty and {tmp}/empty must not lie within each other: name places apart"),
        ("empty/v", "empty", "{tmp}/empty/v and {tmp}/empty must not lie within each other: name places apart"),
        (
            "full",
            "empty",
            "{tmp}/full is not empty and not a volume: name an empty folder, or one that does not exist yet",
        ),
        (
            "no/v",
            "empty",
            "{tmp}/no/v: cannot create a volume there (No such file or directory): make the folder above it first",
        ),
        ("file", "empty", "{tmp}/file: cannot create a volume there (Not a directory)"),
    ],
)
def test_a_wrong_path_is_one_line_and_changes_nothing(
    snapfs: Any, tmp_path: Path, volume: str, place: str, line: str
) -> None:
    (tmp_path / "file").write_text("x")
    (tmp_path / "empty").mkdir()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").write_text("x")
    before = sorted(tmp_path.rglob("*"))
    done = snapfs("mount", tmp_path / volume, tmp_path / place, check=False)
    assert (done.returncode, done.stderr) == (3, f"snapfs: {line.format(tmp=tmp_path)}\n")
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    ("option", "code", "line"),
    [
        ("frobnicate", 3, "unknown mount option frobnicate: settings are named like snapshots.every=10s"),
        ("strictatime", 3, "strictatime cannot be had: leave it out"),
        ("snapshots.evry=1s", 3, "unknown setting snapshots.evry: see `snapfs configcheck --defaults`"),
        ("snapshots.every=1", 3, "command line: 1 has no unit: write it as in '10s', at snapshots.every"),
    ],
)
def test_a_wrong_option_is_one_line(
    snapfs: Any, volume_dir: Path, mountpoint: Path, option: str, code: int, line: str
) -> None:
    done = snapfs("mount", "-o", f"rw,{option}", volume_dir, mountpoint, check=False)
    assert done.returncode == code
    assert done.stderr.splitlines()[-1] == f"snapfs: {line}"
    assert not is_mounted(mountpoint)


def test_a_later_format_is_left_alone(snapfs: Any, mount: Any, mountpoint: Path, volume_dir: Path) -> None:
    mount()
    snapfs("umount", mountpoint)
    toml = volume_dir / "volume.toml"
    toml.write_text(toml.read_text().replace("format = 1", "format = 2"))
    done = snapfs("mount", volume_dir, mountpoint, check=False)
    assert (done.returncode, done.stderr) == (
        6,
        f"snapfs: {toml} has format 2, this snapfs knows up to 1: use a later snapfs\n",
    )


def test_what_the_daemon_finds_wrong_is_the_commands_own_error(
    snapfs: Any, mount: Any, mountpoint: Path, volume_dir: Path
) -> None:
    mount()
    snapfs("umount", mountpoint)
    names = volume_dir / "live" / "namespace.db"
    names.write_bytes(b"garbage" * 4096)
    done = snapfs("mount", volume_dir, mountpoint, check=False)
    assert done.returncode == 5
    assert "namespace" in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not is_mounted(mountpoint)
    names.unlink()  # the lock is free: nothing is left that holds it
    assert json.loads(snapfs("status", "--json", volume_dir).stdout)["held_by"] is None


def test_a_log_that_cannot_be_written_is_one_line(snapfs: Any, volume_dir: Path, mountpoint: Path) -> None:
    Volume.create(str(volume_dir), Disk())
    (volume_dir / "daemon.log").mkdir()
    refused = snapfs("mount", volume_dir, mountpoint, check=False)
    words = f"snapfs: {volume_dir}: cannot write its daemon.log (Is a directory)\n"
    assert (refused.returncode, refused.stderr) == (3, words)


def test_settings_of_the_command_line_are_in_force_for_this_mount(snapfs: Any, mount: Any, volume_dir: Path) -> None:
    mounted = mount("-o", "rw,noatime,snapshots.every=1h,x-systemd.automount", "-oseal.threads=2")
    assert mounted.status()["settings"]["snapshots"]["every"] == "1h"
    assert mounted.status()["settings"]["seal"]["threads"] == 2
    assert "snapshots.every = 'off'" in snapfs("configcheck", volume_dir).stdout.replace('"', "'")


def options_of(path: Path) -> set[str]:
    mount = mount_at(str(path))
    assert mount is not None
    return set(mount.options)


def test_access_times_are_what_the_mount_says(snapfs: Any, mount: Any, volume_dir: Path, mountpoint: Path) -> None:
    """Options noatime and relatime are what /proc/mounts states."""
    mounted = mount()
    assert "noatime" in options_of(mounted.path)
    (mounted.path / "file").write_bytes(b"read me")
    os.utime(mounted.path / "file", ns=(5, 10**18))
    assert (mounted.path / "file").read_bytes() == b"read me"
    snapfs("umount", mounted.path)
    mount()
    assert (mounted.path / "file").read_bytes() == b"read me"
    assert (mounted.path / "file").stat().st_atime_ns == 5
    snapfs("umount", mounted.path)
    assert "not kept" in snapfs("mount", "-o", "relatime", volume_dir, mountpoint).stderr
    assert "noatime" in options_of(mounted.path)
    snapfs("umount", mounted.path)
    assert snapfs("mount", "-o", "strictatime", volume_dir, mountpoint, check=False).returncode == 3


def test_a_read_only_mount(snapfs: Any, mount: Any, volume_dir: Path, mountpoint: Path) -> None:
    """`mount -o ro` takes no change."""
    mounted = mount()
    (mounted.path / "file").write_bytes(b"kept")
    mounted.snapshot("one")
    snapfs("umount", mounted.path)
    mount("-o", "ro")
    assert "ro" in options_of(mounted.path)
    for change in (
        lambda: (mounted.path / "new").write_bytes(b""), (mounted.path / "file").unlink,
        lambda: os.truncate(mounted.path / "file", 0), lambda: (mounted.path / "file").chmod(0o600),
        lambda: os.utime(mounted.path / "file"), lambda: os.setxattr(mounted.path / "file", "user.a", b"b"),
        (mounted.path / "sub").mkdir, lambda: (mounted.path / "file").rename(mounted.path / "other"),
    ):  # fmt: skip
        with pytest.raises(OSError, match="Read-only"):
            change()
    assert (mounted.path / "file").read_bytes() == b"kept"
    assert (mounted.path / ".snapfs/snapshots/one/file").read_bytes() == b"kept"
    assert "one" in snapfs("list", mounted.path).stdout
    refused = snapfs("snapshot", mounted.path, check=False)
    assert (refused.returncode, "read-only" in refused.stderr) == (3, True)
    os.kill(mounted.status()["pid"], signal.SIGKILL)  # the next daemon is as strict
    assert (mounted.path / "file").read_bytes() == b"kept"
    with pytest.raises(OSError, match="Read-only"):
        (mounted.path / "new").write_bytes(b"")
    snapfs("umount", mounted.path)
    assert snapfs("mount", "-o", "ro", "--from", volume_dir, volume_dir / "x", mountpoint, check=False).returncode == 3
    mount("-o", "ro,rw")
    (mounted.path / "new").write_bytes(b"")


def test_restrictions_hold(mount: Any) -> None:
    mounted = mount("-o", "nodev,nosuid,noexec")
    lines = Path("/proc/self/mounts").read_text(errors="replace").splitlines()
    line = next(line for line in lines if f" {mounted.path} " in line)
    assert {"nodev", "nosuid", "noexec"} <= set(line.split()[3].split(","))
    (mounted.path / "program").write_text("#!/bin/sh\n")
    (mounted.path / "program").chmod(0o755)
    with pytest.raises(PermissionError):
        subprocess.run([mounted.path / "program"], check=False)


def test_a_wish_that_cannot_be_leaves_no_volume_behind(snapfs: Any, volume_dir: Path, mountpoint: Path) -> None:
    done = snapfs("mount", "-o", "snapshots.evry=1h", volume_dir, mountpoint, check=False)
    assert done.returncode == 3
    assert done.stderr == "snapfs: unknown setting snapshots.evry: see `snapfs configcheck --defaults`\n"
    assert not volume_dir.exists()
    assert not is_mounted(mountpoint)


# A command under the mount


def test_a_command_runs_under_the_mount_and_its_exit_code_is_ours(
    snapfs: Any, volume_dir: Path, mountpoint: Path
) -> None:
    script = 'read line; echo "got $line" > "$0/a"; cat "$0/a"; exit 7'
    done = snapfs("mount", volume_dir, mountpoint, "--", "sh", "-c", script, mountpoint, input="hello\n", check=False)
    assert (done.returncode, done.stdout) == (7, "got hello\n")
    assert not is_mounted(mountpoint)
    done = snapfs("mount", volume_dir, mountpoint, "--", "sh", "-c", "kill -9 $$", check=False)
    assert done.returncode == 128 + 9
    assert not is_mounted(mountpoint)


def test_a_command_that_cannot_be_run_leaves_no_mount(snapfs: Any, volume_dir: Path, mountpoint: Path) -> None:
    done = snapfs("mount", volume_dir, mountpoint, "--", "/no/such/program", check=False)
    assert done.returncode == 3
    assert done.stderr.splitlines()[-1] == "snapfs: cannot run /no/such/program: No such file or directory"
    assert not is_mounted(mountpoint)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_reaches_the_command_and_the_mount_goes_after_it(
    volume_dir: Path, mountpoint: Path, number: signal.Signals
) -> None:
    script = f"trap 'echo stopped > \"$0/stopped\"; exit 5' {number.name[3:]}; echo ready; while :; do sleep 0.05; done"
    command = [*SNAPFS, "mount", str(volume_dir), str(mountpoint), "--", "sh", "-c", script, str(mountpoint)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(number)
        assert process.wait(PATIENCE_S) == 5
    assert not is_mounted(mountpoint)


def test_what_the_command_leaves_behind_does_not_keep_the_mount(volume_dir: Path, mountpoint: Path) -> None:
    script = 'exec 3> "$0/open"; sleep 300 >/dev/null 2>&1 & echo $!'
    command = [*SNAPFS, "mount", str(volume_dir), str(mountpoint), "--", "sh", "-c", script, str(mountpoint)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=PATIENCE_S)
    left_behind = int(done.stdout)
    try:
        assert done.returncode == 0
        assert f"{mountpoint} is still in use: it goes when its last user does" in done.stderr
        assert not is_mounted(mountpoint)
    finally:
        os.kill(left_behind, signal.SIGKILL)


# In the foreground


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_in_the_foreground_a_signal_unmounts(volume_dir: Path, mountpoint: Path, number: signal.Signals) -> None:
    command = [*SNAPFS, "mount", "--foreground", str(volume_dir), str(mountpoint)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        eventually(lambda: is_mounted(mountpoint), "the mount")
        (mountpoint / "a").write_text("x")
        process.send_signal(number)
        try:
            out, log = process.communicate(timeout=PATIENCE_S)
        except subprocess.TimeoutExpired:
            process.kill()
            raise
        assert (process.returncode, out) == (0, "")
        assert "is mounted at" in log
        assert "Traceback" not in log
    assert not is_mounted(mountpoint)


def test_in_the_foreground_with_a_command_is_a_contradiction(snapfs: Any, volume_dir: Path, mountpoint: Path) -> None:
    done = snapfs("mount", "--foreground", volume_dir, mountpoint, "--", "true", check=False)
    assert done.returncode == 2
    assert not volume_dir.exists()


# Unmounting


def test_a_mount_in_use_is_not_unmounted_and_its_user_is_named(snapfs: Any, mounted: Any) -> None:
    script = "import sys, time; f = open(sys.argv[1], 'w'); print('open', flush=True); time.sleep(300)"
    with subprocess.Popen(
        [sys.executable, "-c", script, str(mounted.path / "a")], stdout=subprocess.PIPE, text=True
    ) as user:
        assert user.stdout is not None
        user.stdout.readline()
        done = snapfs("umount", mounted.path, check=False)
        assert done.returncode == 4
        assert f"({user.pid}): stop it first, or use --lazy" in done.stderr
        assert mounted.status()["pid"]
        assert snapfs("umount", "--lazy", mounted.path).returncode == 0
        assert not is_mounted(mounted.path)
        user.kill()


@pytest.mark.parametrize(
    ("place", "line"),
    [
        ("nothing", "{tmp}/nothing is not mounted: `snapfs volumes` shows what is"),
        ("folder", "{tmp}/folder is not mounted: `snapfs volumes` shows what is"),
        ("/proc", "/proc is a mountpoint of something else (proc): use umount"),
    ],
)
def test_what_is_not_ours_is_not_unmounted(snapfs: Any, tmp_path: Path, place: str, line: str) -> None:
    (tmp_path / "folder").mkdir()
    done = snapfs("umount", tmp_path / place, check=False)
    assert (done.returncode, done.stderr) == (3, f"snapfs: {line.format(tmp=tmp_path)}\n")


def kill_daemon(mounted: Any) -> None:
    facts = mounted.status()
    for pid in filter(None, (facts["supervisor"], facts["pid"])):
        os.kill(pid, signal.SIGKILL)

    def dead() -> bool:
        try:
            os.stat(mounted.path / ".snapfs")
        except OSError:
            return True
        return False

    eventually(dead, "the end of the daemon")


def test_a_dead_mount_is_cleared_by_the_next_mount(snapfs: Any, mounted: Any) -> None:
    (mounted.path / "a").write_text("answered")
    kill_daemon(mounted)
    assert json.loads(snapfs("status", "--json", mounted.volume).stdout)["mounted"] is False
    done = snapfs("mount", mounted.volume, mounted.path)
    assert f"snapfs: {mounted.path}: the daemon of the last mount died; clearing its mountpoint" in done.stderr
    assert (mounted.path / "a").read_text() == "answered"


def test_a_dead_mount_can_be_unmounted(snapfs: Any, mounted: Any) -> None:
    kill_daemon(mounted)
    findings = json.loads(snapfs("doctor", "--json").stdout)
    assert any(f["check"] == "dead mount" and str(mounted.path) in f["finding"] for f in findings)
    assert snapfs("umount", mounted.path).returncode == 0
    assert not is_mounted(mounted.path)


# mount(8), fstab, and an ordinary user

_FSTAB_STORY = """
set -eu
base=$1 helpers=$2
mount -t tmpfs none "$base/over"
mkdir "$base/over/up" "$base/over/work" "$base/mnt" "$base/fstab-mnt"
sbin=$(readlink -f /sbin)
mount -t overlay overlay -o "lowerdir=$sbin,upperdir=$base/over/up,workdir=$base/over/work" "$sbin"
ln -s "$helpers/mount.fuse.snapfs" "$helpers/umount.fuse.snapfs" "$sbin/"

if mount -t fuse.snapfs "$base/volume" "$base/mnt" -o snapshots.every=1h; then exit 8; fi
test ! -e "$base/volume"
mount -t fuse.snapfs "$base/volume" "$base/mnt" -o snapshots.every=1h,noatime,create
grep -q '"every": "1h"' "$base/mnt/.snapfs/status"
echo kept > "$base/mnt/a"
umount "$base/mnt"

echo "$base/volume $base/fstab-mnt fuse.snapfs seal.threads=2,nofail,x-systemd.automount 0 0" > "$base/fstab"
mount -T "$base/fstab" -a
grep -q '"threads": 2' "$base/fstab-mnt/.snapfs/status"
cat "$base/fstab-mnt/a"
umount "$base/fstab-mnt"
mount -f -t fuse.snapfs "$base/volume" "$base/mnt"
if mount -t fuse.snapfs "$base/volume" "$base/missing"; then exit 9; fi
"""


@as_root
def test_mount_8_and_fstab_find_the_helper(tmp_path: Path) -> None:
    if subprocess.run(["unshare", "-m", "true"], check=False, capture_output=True).returncode:
        pytest.skip("no mount namespaces here")
    (tmp_path / "over").mkdir()
    launcher = tmp_path / "snapfs"
    launcher.write_text(f'#!/bin/sh\nexec {sys.executable} -m snapfs "$@"\n')
    launcher.chmod(0o755)
    done = subprocess.run(
        ["unshare", "-m", "sh", "-c", _FSTAB_STORY, "sh", str(tmp_path), str(ROOT / "systemd")],
        capture_output=True, text=True, check=False, timeout=PATIENCE_S, cwd=ROOT,
        env={**os.environ, "SNAPFS": str(launcher)},
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (0, "kept\n"), done.stderr


Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def nobody(tmp_path: Path) -> Run:
    """Runs a command as an ordinary user, who owns tmp_path. "snapfs" is the command line."""
    for folder in (tmp_path, *tmp_path.parents):
        if folder.stat().st_uid == os.getuid() and folder != Path("/"):
            folder.chmod(folder.stat().st_mode | 0o111)
    shutil.chown(tmp_path, "nobody")
    open_to_all()
    packages = str(Path(click.__file__).parents[1])
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{packages}", "HOME": str(tmp_path)}

    def run(program: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
        words = [*snapfs, *map(str, arguments)] if program == "snapfs" else [program, *map(str, arguments)]
        return subprocess.run(
            ["runuser", "-u", "nobody", "--", *words],
            capture_output=True, text=True, check=False, timeout=PATIENCE_S, cwd="/", env=environment,
        )  # fmt: skip

    # The interpreter of the tests may lie in a home directory that is closed to others.
    for interpreter in (sys.executable, "/usr/bin/python3"):
        snapfs = [interpreter, "-m", "snapfs"]
        if run(interpreter, "-c", "import snapfs.daemon.daemon").returncode == 0:
            return run
    pytest.skip("an ordinary user cannot run any interpreter that has the project's packages")


@as_root
def test_an_ordinary_user_mounts_for_himself(tmp_path: Path, nobody: Run, mountpoint: Path) -> None:
    shutil.chown(mountpoint, "nobody")
    volume = tmp_path / "volume"
    done = nobody("snapfs", "mount", volume, mountpoint)
    assert done.returncode == 0, done.stderr
    assert nobody("sh", "-c", f"echo mine > {mountpoint}/a && chmod 640 {mountpoint}/a").returncode == 0
    assert nobody("snapfs", "snapshot", mountpoint, "first").stdout == "1\n"
    assert nobody("cat", mountpoint / ".snapfs/snapshots/first/a").stdout == "mine\n"
    assert nobody("snapfs", "restore", volume, "first", tmp_path / "restored").returncode == 0
    assert (tmp_path / "restored" / "a").stat().st_mode & 0o777 == 0o640
    assert nobody("snapfs", "umount", mountpoint).returncode == 0
    assert not is_mounted(mountpoint)


@as_root
def test_another_users_volume_is_one_line(nobody: Run, mounted: Any) -> None:
    mounted.path.chmod(0o755)
    done = nobody("snapfs", "snapshot", mounted.path)
    assert done.returncode == 3
    assert (
        done.stderr
        == f"snapfs: {mounted.path}: only its owner, root and whom control.allow names may give it commands\n"
    )
    done = nobody("snapfs", "list", mounted.volume)
    assert done.returncode == 3
    assert len(done.stderr.splitlines()) == 1
    assert "ermission denied" in done.stderr


@pytest.mark.parametrize("closed", [(0,), (1,), (2,), (0, 2), (1, 2), (0, 1, 2)])
def test_standard_descriptors_that_are_closed(volume_dir: Path, mountpoint: Path, closed: tuple[int, ...]) -> None:
    """Mount with stdout closed ends in a traceback, with stdin and stderr closed it hangs. Both programs."""

    def run(*command: str | Path) -> int:
        shut = " ".join(f"{fd}{'<' if fd == 0 else '>'}&-" for fd in closed)
        line = shlex.join(map(str, command))
        with tempfile.TemporaryFile() as printed:
            code = subprocess.run(
                ["sh", "-c", f"exec {line} {shut}"], check=False, timeout=PATIENCE_S, stdin=subprocess.DEVNULL,
                stdout=printed, stderr=printed,
            ).returncode  # fmt: skip
            printed.seek(0)
            assert b"Traceback" not in printed.read()
        return code

    assert run(*SNAPFS, "mount", volume_dir, mountpoint) == 0
    (mountpoint / "file").write_bytes(b"content")
    for words in (["snapshot"], ["list"], ["status"], ["verify"], ["log"], ["show"], ["doctor"], ["upgrade"]):
        assert run(*SNAPFS, *words, mountpoint, *(["1"] if words == ["show"] else [])) == 0
    assert run(*SNAPFS, "list", "/missing") == 3
    assert run(sys.executable, "-m", "replicator", "--help") == 0
    assert run(sys.executable, "-m", "replicator", "status", volume_dir) in (0, 3, 8)
    assert (mountpoint / "file").read_bytes() == b"content"
    assert run(*SNAPFS, "umount", mountpoint) == 0
    assert not is_mounted(mountpoint)
    assert run(*SNAPFS, "mount", volume_dir, mountpoint, "--", "true") == 0


def test_a_mount_right_after_umount_8(snapfs: Any, mount: Any, volume_dir: Path, mountpoint: Path) -> None:
    """umount(8) and then mount at once works: the lock is waited for."""
    for number in range(3):
        mounted = mount("-o", "snapshots.on_unmount=true")
        (mounted.path / f"file{number}").write_bytes(os.urandom(2_000_000))
        subprocess.run(["fusermount3", "-u", mountpoint], check=True)
    mount()
    assert len(os.listdir(mountpoint)) == 3
    (mountpoint.parent / "mnt2").mkdir()
    busy = snapfs("mount", volume_dir, mountpoint.parent / "mnt2", check=False)
    assert (busy.returncode, "in use by" in busy.stderr) == (4, True)


def test_a_snapshot_may_be_called_like_an_option(snapfs: Any, mounted: Any) -> None:
    """A snapshot named `flush=no` or `wait=sealed` is named so: by the command line and the control file."""
    names = ["flush=no", "wait=sealed", "timeout=5", "force", "repair", "--", "-x", "a b", "wait="]
    for name in names:
        snapfs("snapshot", "--no-flush", "--", mounted.path, name)
        reply = mounted.command(f"snapshot flush=no -- {shlex.quote(name)}x")
        assert reply["snapshot"]["name"] == f"{name}x"
    found = [each["name"] for each in json.loads(snapfs("list", "--json", mounted.path).stdout)]
    assert found == [each for name in names for each in (name, f"{name}x")]
    snapfs("verify", "--repair", "--", mounted.path, *names)
    for name in ("flush=no", "force", "--"):
        snapfs("rollback", "--force", "--", mounted.path, name)
        mounted.command(f"drop -- {shlex.quote(name)}x")
        snapfs("drop", "--", mounted.path, name)

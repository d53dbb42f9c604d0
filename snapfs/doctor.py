"""Is this machine fit for snapfs, and is a volume well? Findings, each a line; the command prints them.

Invariants:
1. Looking changes nothing: no volume is repaired, no dead mount taken away, nothing is created that stays.
2. A check that cannot be made is a finding of its own; no check keeps another from being made.
3. Every BAD or WARN finding says what to do.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import platform
import resource
import shutil
import stat
import struct
import tempfile
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import Enum
from functools import partial
from typing import TYPE_CHECKING, Any

from snapfs.blocks import Disk
from snapfs.commands.place import mount_entries
from snapfs.errors import CorruptionError, SnapfsError, VersionError
from snapfs.fuse import router
from snapfs.live import datapath
from snapfs.live.recovery import has_lost_names
from snapfs.supervisor import read_status
from snapfs.volume import Volume, lock_holder

if TYPE_CHECKING:
    from snapfs.store.repository import Repository, SnapshotRecord

_FICLONE = 0x40049409
_MIN_KERNEL = (5, 4)
_KILLPRIV_KERNEL = (5, 12)
_RESEND_KERNEL = (6, 9)
_MIN_DESCRIPTORS = 1024
_ANSWER_S = 3.0


class Level(Enum):
    OK = "ok"
    NOTE = "note"  # good to know; nothing to do
    WARN = "warn"  # works, less well
    BAD = "bad"  # does not work, or something stored is damaged


@dataclass(frozen=True, slots=True)
class Finding:
    """What a check found. `damage`: stored bytes are not what they must be."""

    what: str
    level: Level
    words: str
    damage: bool = False
    newer: bool = False
    """Something is of a format that only a newer snapfs knows."""

    def facts(self) -> dict[str, Any]:
        facts = {"check": self.what, "level": self.level.value, "finding": self.words}
        return facts | {"damage": self.damage, "newer": self.newer}


def examine(volume_path: str | None = None) -> list[Finding]:
    """All findings about this machine and, if it is named, the volume there."""
    checks: list[Callable[[], Iterator[Finding]]]
    checks = [_fuse_device, _fusermount, _kernel, _data_path, _outliving, _user_allow_other, _descriptors, _dead_mounts]
    if volume_path is not None:
        looks = (_filesystem, _space, _identity, _store, _live, _supervisor)
        checks += [partial(check, volume_path) for check in looks]
    return list(dict.fromkeys(finding for check in checks for finding in _guarded(check)))


def _guarded(check: Callable[[], Iterator[Finding]]) -> list[Finding]:
    found: list[Finding] = []
    try:
        found.extend(check())
    except CorruptionError as error:
        found.append(Finding(error.what, Level.BAD, str(error), damage=True))
    except VersionError as error:
        found.append(Finding("format", Level.BAD, str(error), newer=True))
    except (OSError, SnapfsError) as error:
        found.append(Finding("check", Level.BAD, " ".join(str(error).split())))
    return found


def _fuse_device() -> Iterator[Finding]:
    try:
        mode = os.stat("/dev/fuse").st_mode
        if not stat.S_ISCHR(mode):
            yield Finding("/dev/fuse", Level.BAD, "is not a device: remove it and load the module (modprobe fuse)")
            return
        os.close(os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC))
        words = f"there, mode {mode & 0o777:04o}, and we may open it"
        if mode & 0o666 != 0o666:
            yield Finding("/dev/fuse", Level.NOTE, f"{words}; others may not mount before `chmod 666 /dev/fuse`")
        else:
            yield Finding("/dev/fuse", Level.OK, words)
    except FileNotFoundError:
        hint = "load the module (modprobe fuse), or give the container the device (--device /dev/fuse)"
        yield Finding("/dev/fuse", Level.BAD, f"missing: {hint}")
    except OSError as error:
        yield Finding(
            "/dev/fuse", Level.BAD, f"cannot be opened ({error.strerror}): its mode must be 0666, or yours its group"
        )


def _fusermount() -> Iterator[Finding]:
    path = shutil.which("fusermount3")
    if path is None:
        level = Level.NOTE if os.geteuid() == 0 else Level.BAD
        yield Finding("fusermount3", level, "not installed; only root can mount: install the package fuse3")
        return
    setuid = bool(os.stat(path).st_mode & stat.S_ISUID)
    if not setuid and os.geteuid() != 0:
        yield Finding("fusermount3", Level.BAD, f"{path} is not setuid root, so you cannot mount: reinstall fuse3")
    else:
        yield Finding("fusermount3", Level.OK, path if setuid else f"{path}, not setuid: only root can mount")


def _data_path() -> Iterator[Finding]:
    """Whether bytes are served in C, and the mount can outlive its daemon."""
    missing = [reason for reason in (router.why_not(), datapath.why_not_native()) if reason]
    hint = "install snapfs again where there is a C compiler (package gcc), or do with Python's path, which is slower"
    if missing:
        yield Finding("data path", Level.WARN, f"{'; '.join(missing)}: {hint}")
    else:
        yield Finding("data path", Level.OK, "native: both extensions are there")


def _kernel() -> Iterator[Finding]:
    release = platform.release()
    version = tuple(int(part) for part in release.split("-")[0].split(".")[:2])
    if version < _MIN_KERNEL:
        yield Finding("kernel", Level.BAD, f"{release}: too old, 5.4 is the least")
    elif version < _KILLPRIV_KERNEL:
        yield Finding(
            "kernel", Level.WARN, f"{release}: without HANDLE_KILLPRIV_V2 each write asks for an attribute; 5.12 has it"
        )
    elif version < _RESEND_KERNEL:
        yield Finding(
            "kernel", Level.NOTE, f"{release}: all features but resending requests to a restarted daemon (6.9)"
        )
    else:
        yield Finding("kernel", Level.OK, f"{release}: all features")


def _outliving() -> Iterator[Finding]:
    """Whether a mount outlives its daemon."""
    why_not = router.why_not()
    if why_not is not None:
        words = f"a mount ends with its daemon: {why_not}; install a C compiler and install snapfs again"
        yield Finding("restarts", Level.WARN, words)
    elif tuple(int(part) for part in platform.release().split("-")[0].split(".")[:2]) < _RESEND_KERNEL:
        yield Finding("restarts", Level.NOTE, "a mount ends with its daemon: Linux 6.9 and later can do without")
    else:
        yield Finding("restarts", Level.OK, "a mount outlives its daemon")


def _supervisor(volume: str) -> Iterator[Finding]:
    """What the supervisor of the volume's mount says, or said last."""
    facts = read_status(volume)
    if facts is None:
        return
    if facts["state"] == "failed":
        yield Finding("supervisor", Level.WARN, str(facts["words"]))
    elif lock_holder(volume) is not None:
        words = f"process {facts['supervisor']}, {facts['state']}: {facts['restarts']} restarts"
        yield Finding("supervisor", Level.OK, f"{words}, {facts['upgrades']} upgrades")


def _user_allow_other() -> Iterator[Finding]:
    if os.geteuid() == 0:
        yield Finding("allow_other", Level.OK, "root may show mounts to other users")
        return
    with contextlib.suppress(FileNotFoundError), open("/etc/fuse.conf") as file:
        if any(line.strip() == "user_allow_other" for line in file):
            yield Finding("allow_other", Level.OK, "user_allow_other is set in /etc/fuse.conf")
            return
    words = "your mounts are for you alone; for other users, root adds the line user_allow_other to /etc/fuse.conf"
    yield Finding("allow_other", Level.NOTE, words)


def _descriptors() -> Iterator[Finding]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    words = f"{soft} soft, {hard} hard"
    if soft < _MIN_DESCRIPTORS:
        words += f": raise it to {_MIN_DESCRIPTORS}, or lower live.max_open_files to half of it"
        yield Finding("open files", Level.WARN, words)
    else:
        yield Finding("open files", Level.OK, words)


def _dead_mounts() -> Iterator[Finding]:
    places = [entry.mountpoint for entry in mount_entries()]
    for mountpoint in places:
        verdict = _probe(mountpoint)
        if verdict == errno.ENOTCONN:
            words = f"{mountpoint}: its daemon is gone; mount the volume there again, or `snapfs umount {mountpoint}`"
            yield Finding("dead mount", Level.WARN, words)
        elif verdict is None:
            words = f"{mountpoint}: its daemon does not answer; see its log, and if need be `snapfs umount --lazy` it"
            yield Finding("silent mount", Level.WARN, words)
    yield Finding("mounts", Level.OK, f"{len(places)} of snapfs looked at")


def _probe(mountpoint: str) -> int | None:
    """The errno of a statfs (0: it answers). None if no answer comes; the thread that waits for it ends with us."""
    verdict: list[int] = []

    def ask() -> None:
        try:
            os.statvfs(mountpoint)
            verdict.append(0)
        except OSError as error:
            verdict.append(error.errno or errno.EIO)

    asker = threading.Thread(target=ask, name="probe", daemon=True)
    asker.start()
    asker.join(_ANSWER_S)
    return verdict[0] if verdict else None


def _filesystem(volume: str) -> Iterator[Finding]:
    """What the filesystem under the volume can do, tried out in a folder that goes again."""
    if os.statvfs(volume).f_flag & os.ST_RDONLY:
        yield Finding("filesystem", Level.BAD, f"{volume} is on a read-only filesystem: mount that for writing")
        return
    if not os.access(volume, os.W_OK):
        yield Finding("filesystem", Level.BAD, f"{volume} cannot be written: become its owner or root")
        return
    with tempfile.TemporaryDirectory(prefix=".doctor-", dir=volume) as folder:
        path = os.path.join(folder, "probe")
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            lacking = [name for name, works in _abilities(fd, path) if not works]
        finally:
            os.close(fd)
    if "a clone of files" in lacking:
        lacking.remove("a clone of files")
        yield Finding(
            "reflink", Level.NOTE, "not here: a rollback copies the files it changes; XFS and btrfs would share them"
        )
    else:
        yield Finding("reflink", Level.OK, "files can be cloned")
    if lacking:
        yield Finding("filesystem", Level.BAD, f"under {volume} lacks {', '.join(lacking)}: use ext4, XFS or btrfs")
    else:
        yield Finding("filesystem", Level.OK, "sparse files, hard links, locks, times to the nanosecond")


def _abilities(fd: int, path: str) -> Iterator[tuple[str, bool]]:
    os.ftruncate(fd, 1 << 20)
    os.pwrite(fd, b"x", (1 << 20) - 1)
    yield "sparse files", os.fstat(fd).st_blocks * 512 < 1 << 20
    yield "finding holes (SEEK_DATA)", _works(lambda: os.lseek(fd, 0, os.SEEK_DATA))
    yield "hard links", _works(lambda: os.link(path, f"{path}.link"))
    yield "locks", _works(lambda: fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB))
    os.utime(fd, ns=(10**18 + 1, 10**18 + 1))
    yield "times to the nanosecond", os.fstat(fd).st_mtime_ns == 10**18 + 1
    yield "files above 4 GiB", _works(lambda: os.ftruncate(fd, 1 << 40))
    os.ftruncate(fd, 4096)
    clone = os.open(f"{path}.clone", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        yield "a clone of files", _works(lambda: fcntl.ioctl(clone, _FICLONE, fd))
    finally:
        os.close(clone)


def _works(act: Callable[[], object]) -> bool:
    try:
        act()
    except (OSError, struct.error):
        return False
    return True


def _space(volume: str) -> Iterator[Finding]:
    facts = os.statvfs(volume)
    free, total = facts.f_bavail * facts.f_frsize, facts.f_blocks * facts.f_frsize
    words = f"{free / 2**30:.1f} GiB of {total / 2**30:.1f} GiB free"
    short = free < max(total // 50, 64 << 20)
    yield Finding("space", Level.WARN if short else Level.OK, f"{words}: make room" if short else words)
    if facts.f_files and facts.f_favail * 50 < facts.f_files:
        yield Finding("space", Level.WARN, f"{facts.f_favail} inodes free: each file of the state takes one")


def _identity(path: str) -> Iterator[Finding]:
    volume = Volume.open(path, Disk())
    missing = [name for name in (volume.live_dir, volume.store_dir) if not os.path.isdir(name)]
    if missing:
        words = f"{', '.join(missing)} missing: restore it from a copy, or clone the newest snapshot into a new volume"
        yield Finding("volume", Level.BAD, words, damage=True)
        return
    holder = lock_holder(path)
    yield Finding("volume", Level.OK, f"{volume.volume_id}, generation {volume.generation}, {holder or 'not in use'}")


def _store(path: str) -> Iterator[Finding]:
    from snapfs.store.repository import Repository, StoreIdentity

    volume = Volume.open(path, Disk())
    if not os.path.exists(os.path.join(volume.store_dir, "snapshots.log")) and not os.listdir(volume.store_dir):
        yield Finding("store", Level.OK, "empty: never mounted")
        return
    identity = StoreIdentity(volume.volume_id, volume.seed)
    try:
        repository = Repository.open(volume.store_dir, identity, Disk(), readonly=True)
        try:
            events = sum(1 for _ in repository.events())
            records = repository.snapshots()
            repository.check_end()
            is_lazy = repository.lazy is not None
            lacking = [] if is_lazy else [record for record in records if _lacks_segment(repository, record)]
        finally:
            repository.close()
    except CorruptionError as error:
        words = f"{error}: `snapfs verify --repair {path}` makes a new log of what is left"
        yield Finding("log", Level.BAD, words, damage=True)
        return
    yield Finding("log", Level.OK, f"{events} lines, their chain is whole")
    if is_lazy:
        yield Finding("hydration", Level.NOTE, "part of the store is still where the volume was mounted from")
    for record in records:
        if record.state != "good":
            words = f"snapshot {record.number} is {record.state}: `snapfs verify --repair {path}`, or drop it"
            yield Finding("snapshot", Level.BAD, words, damage=True)
    for record in lacking:
        words = f"what snapshot {record.number} wrote is missing or damaged, and others may need it, too"
        yield Finding("segments", Level.BAD, f"{words}: `snapfs verify --repair {path}`", damage=True)
    if not lacking:
        words = f"those of {len(records)} snapshots are there; `snapfs verify {path}` reads every byte of them"
        yield Finding("segments", Level.OK, words)


def _lacks_segment(repository: Repository, record: SnapshotRecord) -> bool:
    """Whether the last object that the snapshot wrote is not where it must be."""
    try:
        return repository.index.peek(record.last_number) is None
    except CorruptionError:
        return True


def _live(path: str) -> Iterator[Finding]:
    """The live tree, as far as one can look without opening it."""
    volume = Volume.open(path, Disk())
    lost = "namespace.db" if has_lost_names(volume.live_dir, has_past=False) else ""
    if os.path.exists(volume.namespace_path) and not os.path.isdir(os.path.join(volume.live_dir, "data")):
        lost = "data/"
    if lost:
        words = f"live/{lost} is missing: put it back from a copy, or clone the newest snapshot into a new volume"
        yield Finding("live tree", Level.BAD, words, damage=True)
        return
    if not os.path.exists(volume.namespace_path):
        yield Finding("live tree", Level.OK, "not made yet: the first mount makes it")
        return
    if lock_holder(path) is not None:
        yield Finding("live tree", Level.OK, "in use; its daemon has checked it")
        return
    yield from _database(volume.namespace_path)


def _database(path: str) -> Iterator[Finding]:
    import sqlite3

    from snapfs.live.schema import SCHEMA_VERSION

    # A database with a WAL cannot be read without writing beside it, so the check works on a copy.
    with tempfile.TemporaryDirectory(prefix="snapfs-doctor-") as folder:
        for suffix in ("", "-wal"):
            with contextlib.suppress(FileNotFoundError):
                shutil.copyfile(f"{path}{suffix}", os.path.join(folder, f"names.db{suffix}"))
        try:
            with contextlib.closing(sqlite3.connect(os.path.join(folder, "names.db"))) as database:
                version = database.execute("PRAGMA user_version").fetchone()[0]
                verdict = database.execute("PRAGMA quick_check(1)").fetchone()[0]
            if version > SCHEMA_VERSION:
                words = f"{path} has namespace format {version}; this snapfs reads up to {SCHEMA_VERSION}"
                raise VersionError(f"{words}: use a newer snapfs")
        except sqlite3.DatabaseError as error:
            verdict = str(error)
    if verdict != "ok":
        words = f"namespace.db is damaged ({verdict}): clone the newest snapshot into a new volume"
        yield Finding("live tree", Level.BAD, words, damage=True)
    else:
        yield Finding("live tree", Level.OK, "namespace.db is sound")

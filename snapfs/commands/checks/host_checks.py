"""Checks of this host: FUSE, kernel, data path, limits, dead mounts. Nothing is changed by them."""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import platform
import resource
import shutil
import stat
import time
from collections.abc import Iterator

from snapfs.base import native_build
from snapfs.commands.checks.findings import Finding, Level
from snapfs.commands.support.bounded_look import BoundedLook, NoAnswerError, statfs_errno
from snapfs.commands.support.locate import mount_entries
from snapfs.fuse.kernel import router
from snapfs.live.content import datapath

_MIN_KERNEL = (5, 4)
_KILLPRIV_KERNEL = (5, 12)
_RESEND_KERNEL = (6, 9)
_MIN_DESCRIPTORS = 1024
_ANSWER_S = 3.0


def fuse_device() -> Iterator[Finding]:
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


def fusermount() -> Iterator[Finding]:
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


def data_path() -> Iterator[Finding]:
    """Whether bytes are served in C, and the mount can outlive its daemon."""
    refusal = native_build.refusal("auto")
    missing = [reason for reason in (router.why_not(), datapath.why_not_native()) if reason]
    hint = "install snapfs again where there is a C compiler (package gcc), or do with Python's path, which is slower"
    if refusal:
        yield Finding("data path", Level.BAD, f"nothing can be mounted: {refusal}")
    elif missing:
        yield Finding("data path", Level.WARN, f"{'; '.join(missing)}: {hint}")
    else:
        yield Finding("data path", Level.OK, "native: both extensions are there")


def kernel() -> Iterator[Finding]:
    release = platform.release()
    version = tuple(int(part) for part in release.split("-")[0].split(".")[:2])
    if version < _MIN_KERNEL:
        yield Finding("kernel", Level.BAD, f"{release}: too old, 5.4 is the least")
    elif version < _KILLPRIV_KERNEL:
        yield Finding(
            "kernel", Level.WARN, f"{release}: without HANDLE_KILLPRIV_V2 each write queries an attribute; 5.12 has it"
        )
    elif version < _RESEND_KERNEL:
        yield Finding(
            "kernel", Level.NOTE, f"{release}: all features but resending requests to a restarted daemon (6.9)"
        )
    else:
        yield Finding("kernel", Level.OK, f"{release}: all features")


def outliving() -> Iterator[Finding]:
    """Whether a mount outlives its daemon."""
    why_not = router.why_not()
    if why_not is not None:
        words = f"a mount ends with its daemon: {why_not}; install a C compiler and install snapfs again"
        yield Finding("restarts", Level.WARN, words)
    elif tuple(int(part) for part in platform.release().split("-")[0].split(".")[:2]) < _RESEND_KERNEL:
        yield Finding("restarts", Level.NOTE, "a mount ends with its daemon: Linux 6.9 and later can do without")
    else:
        yield Finding("restarts", Level.OK, "a mount outlives its daemon")


def user_allow_other() -> Iterator[Finding]:
    if os.geteuid() == 0:
        yield Finding("allow_other", Level.OK, "root may show mounts to other users")
        return
    with contextlib.suppress(FileNotFoundError), open("/etc/fuse.conf") as file:
        if any(line.strip() == "user_allow_other" for line in file):
            yield Finding("allow_other", Level.OK, "user_allow_other is set in /etc/fuse.conf")
            return
    words = "your mounts are for you alone; for other users, root adds the line user_allow_other to /etc/fuse.conf"
    yield Finding("allow_other", Level.NOTE, words)


def descriptors() -> Iterator[Finding]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    words = f"{soft} soft, {hard} hard"
    if soft < _MIN_DESCRIPTORS:
        words += f": mounts fit themselves into it; {_MIN_DESCRIPTORS} or more spare them to open files again and again"
        yield Finding("open files", Level.WARN, words)
    else:
        yield Finding("open files", Level.OK, words)


def dead_mounts() -> Iterator[Finding]:
    looks = {
        entry.mountpoint: BoundedLook(functools.partial(statfs_errno, entry.mountpoint)) for entry in mount_entries()
    }
    end = time.monotonic() + _ANSWER_S
    for mountpoint, look in looks.items():
        try:
            if look.answer(end) == errno.ENOTCONN:
                words = (
                    f"{mountpoint}: its daemon is gone; mount the volume there again, or `snapfs umount {mountpoint}`"
                )
                yield Finding("dead mount", Level.WARN, words)
        except NoAnswerError:
            words = f"{mountpoint}: its daemon does not answer; see its log, and if need be `snapfs umount --lazy` it"
            yield Finding("silent mount", Level.WARN, words)
    yield Finding("mounts", Level.OK, f"{len(looks)} of snapfs looked at")

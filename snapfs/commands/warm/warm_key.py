"""Which warm process may start a daemon for us: the name of its socket is a hash of all that a daemon inherits.

A daemon that is forked of a warm process lives in that one's namespaces, control group, limits and privileges, and runs
the program that was installed when that was started. So a process looks under the hash of its own: where anything
differs there is none, and the daemon is started as ever. An installation that changes has another hash as well.

The sockets are in a folder of this user alone: /run/snapfs/warm for root, else $XDG_RUNTIME_DIR/snapfs/warm or
/tmp/snapfs-warm-UID; $SNAPFS_WARM is a folder in their place, or `off`.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import stat
import sys
from collections.abc import Iterator
from typing import Any, Final

import msgspec

import snapfs

VARIABLE: Final = "SNAPFS_WARM"
OFF: Final = "off"
_SPACES: Final = ("cgroup", "ipc", "mnt", "net", "pid", "pid_for_children", "time", "user", "uts")
_STATUS: Final = (
    "Uid", "Gid", "Groups", "CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb", "NoNewPrivs", "Seccomp", "Umask",
    "Cpus_allowed_list", "Mems_allowed_list",
)  # fmt: skip
_AT_START: Final = ("PYTHON", "LD_", "MALLOC_", "GLIBC_", "SNAPFS_", "LC_")
"""Beginnings of variables that are read while a program starts and imports; a daemon gets all others of its caller."""


def folder() -> str | None:
    """Where the sockets are, for this user; None if there are to be none."""
    chosen = os.environ.get(VARIABLE)
    if chosen == OFF:
        return None
    if chosen:
        return os.path.abspath(chosen)
    if os.geteuid() == 0:
        return "/run/snapfs/warm"
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    return f"{runtime}/snapfs/warm" if runtime else f"/tmp/snapfs-warm-{os.geteuid()}"


def socket_path() -> str | None:
    """The socket of the warm process that fits; None if the folder is not this user's alone."""
    place = folder()
    return None if place is None or not is_private(place) else os.path.join(place, f"{key()}.sock")


def is_private(place: str) -> bool:
    """Whether nobody else can have put anything there."""
    try:
        found = os.lstat(place)
    except OSError:
        return False
    return stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid() and not found.st_mode & 0o077


def make_folder() -> bool:
    """Make it, if there are to be sockets; whether it is there now, and this user's alone."""
    place = folder()
    if place is None:
        return False
    with contextlib.suppress(OSError):
        os.makedirs(os.path.dirname(place), exist_ok=True)
        os.mkdir(place, 0o700)
    return is_private(place)


def key() -> str:
    """The hash, of this process as it is now. Some milliseconds: it looks at each file of the program."""
    facts = {"inherited": _inherited(), "program": sorted(_program())}
    return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()[:32]


def _inherited() -> dict[str, Any]:
    with open("/proc/self/status", encoding="utf-8", errors="replace") as file:
        status = dict(line.rstrip("\n").partition(":")[::2] for line in file)
    found: dict[str, Any] = {name: status.get(name) for name in _STATUS}
    for name in _SPACES:
        found[f"ns {name}"] = _link(f"/proc/self/ns/{name}")
    for name in ("cgroup", "limits", "oom_score_adj", "attr/current"):
        found[name] = _content(f"/proc/self/{name}")
    found["root"] = _link("/proc/self/root")
    found["nice"] = os.getpriority(os.PRIO_PROCESS, 0)
    found["scheduler"] = (os.sched_getscheduler(0), os.sched_getparam(0).sched_priority)
    found["environment"] = {name: value for name, value in os.environ.items() if _is_read_at_start(name)}
    found["python path"] = [
        each for each in os.environ.get("PYTHONPATH", "").split(":") if each not in ("", package_folder())
    ]
    return found


def package_folder() -> str:
    """The folder that this package is imported from."""
    return os.path.dirname(os.path.dirname(os.path.abspath(snapfs.__file__)))


def python_path() -> str:
    """PYTHONPATH for a process that is to find this package where we did, and nothing in the folder it starts in."""
    return os.pathsep.join([package_folder(), *filter(None, [os.environ.get("PYTHONPATH")])])


def _is_read_at_start(name: str) -> bool:
    return (name.startswith(_AT_START) or name in ("LANG", "TZ", "HOME")) and name not in (VARIABLE, "PYTHONPATH")


def _program() -> Iterator[tuple[str, int, int]]:
    """The files of the program, with size and time of change; and the folders that all else is imported from."""
    yield from _files(os.path.join(package_folder(), "snapfs"))
    for path in (sys.executable, os.path.dirname(os.__file__), os.path.dirname(os.path.dirname(msgspec.__file__))):
        with contextlib.suppress(OSError):
            found = os.stat(path)
            yield path, found.st_mtime_ns, 0


def _files(folder_: str) -> Iterator[tuple[str, int, int]]:
    with os.scandir(folder_) as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                if entry.name != "__pycache__":
                    yield from _files(entry.path)
            elif entry.name.endswith((".py", ".so", ".json")):
                found = entry.stat()
                yield entry.path, found.st_mtime_ns, found.st_size


def _link(path: str) -> str:
    with contextlib.suppress(OSError):
        return os.readlink(path)
    return ""


def _content(path: str) -> str:
    with contextlib.suppress(OSError), open(path, "rb") as file:
        return file.read(4096).decode(errors="replace")
    return ""

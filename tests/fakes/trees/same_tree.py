"""All that can be seen of a directory, for a strict comparison: bytes, holes, attributes, links, to the nanosecond."""

from __future__ import annotations

import os
import stat
from typing import Any


def picture(root: bytes, *, access_times: bool = True, sockets: bool = False) -> dict[bytes, dict[str, Any]]:
    """Everything below `root`, by relative path. With `access_times` these stay as they are; else nothing is set."""
    found: dict[bytes, dict[str, Any]] = {}
    first_names: dict[int, bytes] = {}
    waiting = [b""]
    while waiting:
        path = waiting.pop()
        place = os.path.join(root, path) if path else root
        facts = os.lstat(place)
        if stat.S_ISSOCK(facts.st_mode) and not sockets:
            continue
        seen = _facts(place, facts)
        if not access_times:
            del seen["atime"]
        elif stat.S_ISLNK(facts.st_mode):
            os.utime(place, ns=(facts.st_atime_ns, facts.st_mtime_ns), follow_symlinks=False)
        if not stat.S_ISDIR(facts.st_mode):
            seen["same as"] = first_names.setdefault(facts.st_ino, path)
        found[path] = seen
        if stat.S_ISDIR(facts.st_mode):
            names = sorted(os.listdir(place), reverse=True)
            if access_times:
                os.utime(place, ns=(facts.st_atime_ns, facts.st_mtime_ns))  # listing moved the access time
            waiting += [os.path.join(path, name) for name in names]
    return found


def _facts(place: bytes, facts: os.stat_result) -> dict[str, Any]:
    seen: dict[str, Any] = {
        "mode": oct(facts.st_mode), "owner": (facts.st_uid, facts.st_gid), "rdev": facts.st_rdev,
        "mtime": facts.st_mtime_ns, "atime": facts.st_atime_ns,
        "xattrs": {
            name: os.getxattr(place, name, follow_symlinks=False)
            for name in sorted(os.listxattr(place, follow_symlinks=False))
        },
    }  # fmt: skip
    if stat.S_ISREG(facts.st_mode):
        seen |= {"size": facts.st_size, "data": _data(place, facts.st_size)}
    if stat.S_ISLNK(facts.st_mode):
        seen["target"] = os.readlink(place)
    return seen


def _data(place: bytes, size: int) -> list[tuple[int, bytes]]:
    """The blocks that are not zero, with their places; of holes nothing is read."""
    found = []
    fd = os.open(place, os.O_RDONLY | os.O_NOATIME)
    try:
        at = 0
        while at < size:
            try:
                at = os.lseek(fd, at, os.SEEK_DATA) & ~4095
            except OSError:
                break
            end = os.lseek(fd, at, os.SEEK_HOLE)
            while at < end:
                block = os.pread(fd, 4096, at)
                if block.strip(b"\0"):
                    found.append((at, block))
                at += 4096
    finally:
        os.close(fd)
    return found


def without_link_access(seen: dict[bytes, dict[str, Any]]) -> dict[bytes, dict[str, Any]]:
    """The same without the access times of symbolic links, which move with each look at the target."""
    return {
        path: {k: v for k, v in each.items() if k != "atime" or "target" not in each} for path, each in seen.items()
    }


def allocated(root: bytes) -> int:
    """Bytes on the disk of all files below `root`."""
    places = (os.path.join(folder, name) for folder, _, names in os.walk(root) for name in names)
    return sum(os.lstat(place).st_blocks * 512 for place in places)

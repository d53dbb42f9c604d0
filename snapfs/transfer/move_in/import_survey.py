"""What an import will take: how much there is, and how long it takes here, by trying.

The trial copies a few of the files into a folder beside the copies, and syncs: what the disks can do, and what one
more file costs, differ by a factor of a hundred. It takes a fraction of a second and leaves nothing.
"""

from __future__ import annotations

import contextlib
import os
import stat
import time
from dataclasses import dataclass, field

from snapfs.base.blocks import Disk
from snapfs.transfer.move_in import copied_content
from snapfs.transfer.move_in.source_walk import SourceWalk, open_below

_TRIAL_FILES = 48
_TRIAL_BYTES = 24 << 20
_TRIAL_S = 0.5
_EXAMPLES = 3


@dataclass(slots=True)
class Survey:
    """What there is. `allocated_bytes`: what it takes on its disk, without holes."""

    device: int
    files: int = 0
    directories: int = 0
    others: int = 0
    total_bytes: int = 0
    allocated_bytes: int = 0
    sockets: list[bytes] = field(default_factory=list)
    elsewhere: list[bytes] = field(default_factory=list)
    """Mountpoints below it."""
    sample: list[bytes] = field(default_factory=list)


def survey(root: int) -> Survey:
    """Count what is below the open directory. OSError of what may not be read."""
    found, linked = Survey(os.fstat(root).st_dev), set[int]()
    walk = SourceWalk(root)
    for directory in walk.directories():
        found.directories += 1
        for name, facts in directory.entries:
            if facts.st_dev != found.device:
                continue
            if facts.st_nlink > 1 and not stat.S_ISDIR(facts.st_mode):
                if facts.st_ino in linked:
                    continue
                linked.add(facts.st_ino)
            _count(found, directory.path + b"/" + name if directory.path else name, facts)
    found.elsewhere = walk.elsewhere
    return found


def _count(found: Survey, path: bytes, facts: os.stat_result) -> None:
    if stat.S_ISREG(facts.st_mode):
        found.files += 1
        found.total_bytes += facts.st_size
        found.allocated_bytes += facts.st_blocks * 512
        if len(found.sample) < _TRIAL_FILES:
            found.sample.append(path)
    elif stat.S_ISSOCK(facts.st_mode):
        found.sockets.append(path)
    elif not stat.S_ISDIR(facts.st_mode):
        found.others += 1


def estimate(root: int, found: Survey, folder: str, disk: Disk, *, verify: bool) -> float:
    """Seconds that the import takes here, tried out in `folder`, of which nothing stays. OSError of a full disk."""
    if not found.files:
        return 0.0
    path = os.path.join(folder, "trial")
    started = time.monotonic()
    files = size = 0
    shared = False
    for name in found.sample:
        with contextlib.suppress(FileNotFoundError):
            done, shared = _try(root, name, path, disk)
            files, size = files + 1, size + done
        disk.unlink("import:trial", path)
        if size >= _TRIAL_BYTES or time.monotonic() - started > _TRIAL_S:
            break
    took_s = max(time.monotonic() - started, 1e-6)
    if shared or not files:
        return took_s / max(files, 1) * found.files
    by_count, by_size = found.files / files, found.allocated_bytes / size if size else 0.0
    return took_s * max(by_count if not size else min(by_count, by_size), by_size) * (1.5 if verify else 1.0)


def _try(root: int, name: bytes, path: str, disk: Disk) -> tuple[int, bool]:
    """Copy up to the trial's bytes of a file; the bytes, and whether they are shared."""
    copy = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        source = open_below(root, name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            size = min(os.fstat(source).st_size, _TRIAL_BYTES)
            if copied_content.share(source, copy):
                return size, True
            copied_content.copy_part(source, copy, 0, size, sparse=True)
            if size > 1 << 20:
                disk.fdatasync("import:trial", copy)
            return size, False
        finally:
            os.close(source)
    finally:
        os.close(copy)

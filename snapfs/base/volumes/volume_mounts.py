"""The volumes that are mounted on this host, each once, without those that only claim to be.

Invariants:
1. No daemon is asked: mountinfo says what is mounted where.
2. A mount counts if root made it, or who owns the volume that it names: any user may mount anything under any name.
3. A bind mount of a mount, or of a part of it, is no further one.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from snapfs.base.mountinfo import FUSE_TYPE, MountLine, mounts, user_of


@dataclass(frozen=True, slots=True)
class VolumeMount:
    """`volume`: the folder, as its daemon named it."""

    volume: str
    mountpoint: str


def volume_mounts(lines: Iterable[MountLine] | None = None) -> list[VolumeMount]:
    """Those of this mount namespace, in the order they were made. `lines`: of mountinfo."""
    found: dict[int, VolumeMount] = {}
    for line in mounts() if lines is None else lines:
        is_whole = line.kind == FUSE_TYPE and line.root == "/" and line.device not in found
        if is_whole and (line.owner in (None, 0) or line.owner == user_of(line.source)):
            found[line.device] = VolumeMount(line.source, line.mountpoint)
    return list(found.values())

"""Keeps a member of a group's cut from going by a rule while another member of it stays by its own.

A cut of a group is of use when all members have it (store/log/group_cuts.py). Each member is a volume with rules of its
own, and a daemon of its own, which decides for itself; so it looks at what the rules of the others keep. What keeps one
for the sake of the others does not count there, or two would keep each other for ever.

Invariants:
1. Where a member of a group that is defined on this host cannot be read, its part of every cut counts as kept.
2. A member that is no longer in the group's definition (base/volumes/group_file.py) keeps nothing. Without the
   definition nobody does.
3. This is about rules. A person who names a snapshot drops it: else no cut of a group could ever be dropped.
"""

from __future__ import annotations

import os
from collections.abc import Mapping

from snapfs.base.blocks import Disk, SnapshotNumber
from snapfs.base.errors import SnapfsError
from snapfs.base.volumes import group_file
from snapfs.base.volumes.volume import Volume
from snapfs.base.volumes.volume_files import REPLICATION_FILE, VOLUME_TOML
from snapfs.store.log.group_cuts import OtherMember, kept_for_others
from snapfs.store.log.holds import FOLDER
from snapfs.store.log.snapshot_records import StoreIdentity
from snapfs.store.repository.repository import Repository
from snapfs.store.repository.store_folders import LOG
from snapfs.transfer.retention.expiry import Keeping, verdicts
from snapfs.transfer.retention.protection import Reasons, protected, replicated_reasons


def group_reasons(repository: Repository, volume_id: str) -> Reasons:
    """Those of the volume whose store this is. They raise OSError, SnapfsError where it is not known what groups there
    are."""

    known: dict[str, tuple[object, frozenset[str] | None]] = {}

    def kept(path: str, other_id: str) -> frozenset[str] | None:
        """Judged anew when something has changed there. (A hold that only ends keeps until then.)"""
        stamp = _stamp(path)
        if path not in known or known[path][0] != stamp:
            known[path] = stamp, _kept_there(path, other_id)
        return known[path][1]

    def reasons() -> Mapping[SnapshotNumber, str]:
        others = {each.volume_id: each.volume for each in group_file.others_with(volume_id)}
        own = [each for each in repository.catalog.pages() if each.cut.group is not None] if others else []
        if not own:
            return {}
        found = [OtherMember(other_id, kept(path, other_id)) for other_id, path in others.items()]
        return kept_for_others(own, found)

    return reasons


def _stamp(path: str) -> object:
    """Changes with what the verdict on the volume there depends on: its log, holds, targets and settings."""
    found = []
    for each in (f"store/{LOG}", f"store/{FOLDER}", REPLICATION_FILE, VOLUME_TOML):
        try:
            stat = os.stat(os.path.join(path, each))
            found.append((stat.st_ino, stat.st_size, stat.st_mtime_ns))
        except OSError:
            found.append((0, 0, 0))
    return found


def _kept_there(path: str, volume_id: str) -> frozenset[str] | None:
    """The cuts that the rules of the volume in that folder keep; None if it cannot be read, or is another one."""
    try:
        volume = Volume.open(path, Disk())
        if volume.volume_id != volume_id:
            return None
        identity = StoreIdentity(volume_id, volume.seed)
        repository = Repository.open(volume.store_dir, identity, Disk(), readonly=True, max_open_segments=2)
        try:
            records, keeping = repository.snapshots(), Keeping.of(volume.config)
            stay = protected(repository, (replicated_reasons(volume),))
            found = verdicts(records, keeping, repository.clock(), lambda: stay)
        finally:
            repository.close()
    except (OSError, SnapfsError):
        return None
    kept = {verdict.number for verdict in found if not verdict.goes}
    return frozenset(each.cut.group.cut for each in records if each.cut.group is not None and each.number in kept)

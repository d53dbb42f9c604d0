"""Fork: a snapshot as a writable volume of its own, begun in a time that does not depend on the size of the state.

What a clone shares it shares (hard links of the segments), and it begins as a remount does: of the names only those in
the root directory are loaded, all else is read from its own store when it is requested. Nothing is copied until it is
written, and nothing comes in behind.

Invariants:
1. The fork's volume does not exist, or is whole: it is built in `PATH.partial`, and the rename is the commit point. A
   crash leaves `PATH.partial`, which belongs to no process: the next fork of that name removes it.
2. Nothing is shared but segments, which never change: the origin may drop the snapshot, be compacted, or be removed. So
   an origin that is still being fetched from elsewhere cannot be forked.
3. A fork has another id, no targets, no hooks and no rules for snapshots: what its origin has of these is the origin's.
4. fork.json is there when the volume is (base/volumes/fork_file.py).
5. New inodes of a fork have numbers that no inode of its origin gets, so that the two can be compared, and the fork's
   state brought back. The numbers of one fork are INOS_OF_FORK, more than its origin may use meanwhile.
"""

from __future__ import annotations

import json
import os
import random
import time
from dataclasses import dataclass
from typing import Any, Final

from snapfs.base.blocks import Disk, Ino, SnapshotNumber
from snapfs.base.errors import BusyError, UserError
from snapfs.base.settings.config import Config, encode
from snapfs.base.staged_folder import building_folder
from snapfs.base.volumes.fork_file import ForkFile, write_fork
from snapfs.base.volumes.volume import Volume
from snapfs.live.database.namespace_rows import INO_LIMIT
from snapfs.store.log.holds import Holds
from snapfs.store.repair import duplicate_store
from snapfs.store.repair.duplicate_store import SharedSegments
from snapfs.store.repository.repository import Repository, SnapshotRecord
from snapfs.store.tables.snapshot import SnapshotTree
from snapfs.transfer.lazy import snapshot_hold
from snapfs.transfer.lazy.root_namespace import fill_root

INOS_OF_FORK: Final = 1 << 24
_APART: Final = 16
"""The numbers of two forks of one volume are the same with a chance of one in so many: then they cannot be brought into
one another, and nothing else."""
_INHERITED: Final = ("seal", "live", "mount", "hydration", "control")


@dataclass(frozen=True, slots=True)
class ForkReport:
    """A fork that was begun. `seconds`: what that took, without the snapshot and the mount."""

    snapshot: SnapshotNumber
    path: str
    linked: int
    copied: int
    seconds: float


def fork(
    volume: Volume, repository: Repository, record: SnapshotRecord, path: str, disk: Disk, *,
    mountpoint: str = "", made_mountpoint: bool = False,
) -> ForkReport:  # fmt: skip
    """Make the volume `path`, which must not exist, of the snapshot `record` of `volume`. The origin may be mounted.

    `mountpoint`, `made_mountpoint`: see ForkFile. Raises UserError for an unusable place, BusyError if another process
    makes it or a part of the origin is still elsewhere, CorruptionError for a damaged snapshot, OSError for a failing
    or full disk: nothing is left then.
    """
    started, path = time.monotonic(), os.path.abspath(path)
    if os.path.lexists(path):
        raise UserError(f"{path} exists: name a folder that does not exist yet with --volume")
    if repository.lazy is not None:
        raise BusyError(f"part of {volume.path} is still on its way from elsewhere: it can be forked when all is here")
    with building_folder(path, disk) as building:
        shared = _build(volume, repository, record, building, disk)
        note = ForkFile(
            volume.path, volume.volume_id, record.number, time.time_ns(), record.name, mountpoint, made_mountpoint
        )
        write_fork(building, note, disk)
        disk.rename("fork:publish", building, path)
    disk.sync_dir("fork:publish", os.path.dirname(path))
    return ForkReport(record.number, path, shared.linked, shared.copied, time.monotonic() - started)


def _build(volume: Volume, repository: Repository, record: SnapshotRecord, building: str, disk: Disk) -> SharedSegments:
    made = Volume.create(
        building, disk, seed=volume.seed, generation=volume.generation, text=_settings_text(volume.config)
    )
    shared = duplicate_store.share(repository, record, made.store_dir, made.volume_id, disk)
    snapshot_hold.hold(Holds(made.store_dir, disk), record.number)
    tree = SnapshotTree(repository, record.root)
    fill_root(made, repository, tree, disk, next_ino=first_ino(tree.root.next_ino))
    return shared


def first_ino(next_ino: int) -> Ino:
    """The first number of a fork's new inodes, of an origin whose next one is `next_ino`. UserError if none is left."""
    first = (next_ino // INOS_OF_FORK + 1 + random.randrange(_APART)) * INOS_OF_FORK
    if first + INOS_OF_FORK > INO_LIMIT:
        raise UserError("it is a fork of a fork, and so on, too many times: `snapfs restore` it into a new volume")
    return Ino(first)


def _settings_text(config: Config) -> str:
    """What a fork takes over of the settings of its origin, and what is its own, as text of TOML."""
    found, usual = encode(config), encode(Config())
    tables: dict[str, dict[str, object]] = {
        section: {name: value for name, value in found[section].items() if value != usual[section][name]}
        for section in _INHERITED
    }
    tables["hydration"]["background"] = False
    lines = ["", "# A fork: it has no targets, no hooks and no rules for snapshots until you give it some here."]
    for section, table in tables.items():
        if table:
            lines += ["", f"[{section}]", *(f"{name} = {_toml(value)}" for name, value in table.items())]
    return "\n".join(lines) + "\n"


def _toml(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(name)} = {_toml(each)}" for name, each in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_toml, value)) + "]"
    return json.dumps(value, ensure_ascii=False)

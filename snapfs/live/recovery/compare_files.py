"""Backing files held against the namespace: strays removed or moved, missing files made or reported, new ones found.

Invariants:
1. A file is deleted because no inode has it only if the mark confirms the log of the namespace
   (high_water_mark.py); else it is moved to the strays (stray_files.py).
2. After a power cut a row may be durable without its file, whose bytes were never synced: the file is made, empty. In
   any other case a missing file is damage: it is reported, and reading it gives EIO.
3. No file in data/ is removed whose inode exists.
"""

from __future__ import annotations

import contextlib
import os
import stat

from snapfs.base.blocks import Ino
from snapfs.live.backing.backing import Backing
from snapfs.live.database.high_water_mark import LogVerdict
from snapfs.live.namespace.namespace import Namespace
from snapfs.live.recovery.log_findings import Findings
from snapfs.live.recovery.stray_files import StrayFolder

ORPHAN_BATCH = 256


def compare(
    names: Namespace, backing: Backing, findings: Findings, repairs: list[str], strays: StrayFolder | None
) -> None:
    """Remove or move files without an inode; make or report missing ones; mark the new ones as dirty."""
    removed = 0
    present: set[Ino] = set()
    for ino, path in backing.scan():
        if ino and _is_file(names, ino):
            present.add(ino)
        elif ino:
            _discard(backing, ino, path, strays)
            removed += 1
        else:
            repairs.append(f"{path} is no file of snapfs; left alone")
    if removed and strays is None:
        repairs.append(f"removed {removed} files of creations and removals that were cut short")
    _find_missing(names, backing, findings, present, repairs)
    if findings.power_cut:
        for ino in present:
            if ino >= findings.new_from:
                findings.mark_whole(ino)


def _find_missing(
    names: Namespace, backing: Backing, findings: Findings, present: set[Ino], repairs: list[str]
) -> None:
    for ino in names.regular_inos():
        if ino in present or names.absent(ino) is not None:
            continue
        if findings.power_cut and names.log is not LogVerdict.CUT_SHORT:
            backing.create(ino)
            backing.sync_name(ino)
            present.add(ino)
            findings.mark_whole(ino)
            repairs.append(f"inode {ino} had not reached the disk when the machine stopped: its file is empty now")
        else:
            repairs.append(f"the bytes of inode {ino} are missing: reading the file will fail")


def find_new(names: Namespace, backing: Backing, findings: Findings) -> None:
    """Mark files as dirty that were new in a log that is not exact, under a mount that lives on: none is made."""
    for ino in names.regular_inos():
        if ino >= findings.new_from and os.path.exists(backing.path(ino)):
            findings.mark_whole(ino)


def _is_file(names: Namespace, ino: Ino) -> bool:
    with contextlib.suppress(OSError):
        return stat.S_ISREG(names.inode(ino).mode)
    return False


def _discard(backing: Backing, ino: Ino, path: str, strays: StrayFolder | None) -> None:
    if strays is not None:
        strays.put(path, "data")
    backing.remove(ino, "recovery:stray")


def clean_up(names: Namespace, backing: Backing, strays: StrayFolder | None) -> None:
    """At the end of an adopted mount: remove files that no inode has, or move them to the strays."""
    for ino, path in backing.scan():
        if ino and not _is_file(names, ino):
            _discard(backing, ino, path, strays)
    if strays is not None:
        strays.settle()


def remove_orphans(names: Namespace, backing: Backing, inos: list[Ino], strays: StrayFolder | None = None) -> None:
    """Remove the rows of inodes without links, then, once that is durable, remove or move their files."""
    for start in range(0, len(inos), ORPHAN_BATCH):
        batch = inos[start : start + ORPHAN_BATCH]
        names.remove_orphans(batch)
        names.sync()
        for ino in batch:
            if strays is not None and strays.damage:
                strays.put(backing.path(ino), "data")
            backing.remove(ino)
    if strays is not None:
        strays.settle()

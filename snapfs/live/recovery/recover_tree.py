"""From what the last life left to a tree that can be used: exactly what is dirty, and nothing that does not belong.

Steps, each of which may be repeated after a crash in it:

1. Redo the renames of a rollback that was committed (pending_swaps.py).
2. Read the intent logs (log_findings.py), and restore the times that they note (file_times.py). If any log was not
   closed in order: compare the backing files with the namespace (compare_files.py), and sync the host filesystem, so
   that nothing from before needs a listing any more.
3. Write one new log that has all that the old ones have, durably (first_log.py); then remove the old ones.
4. Remove what only the last life could use: preserved blocks, staged files.
5. Remove orphans: rows first, durably, then files.

Before step 2 a sync of the host filesystem finds out whether it failed to write anything back: then the logs of this
life are not exact.

A daemon that *adopts* the living mount of one that died must not let the application wait: it trusts what the same life
of the host's filesystem has in its page cache. In place of the second half of step 2, what may not be durable is noted
(`mark_suspect`), and every file that an old log lists is listed in the new one. Step 5 waits for the end of the mount
(`clean_up`), for the kernel may still hold orphans; so do files of creations and removals that were cut short.

Invariants:
1. What is found dirty includes every difference from the last snapshot (log_findings.py).
2. Where the log of the namespace lacks what was answered, that is reported, no number that may be in use is given out
   again, and the next snapshot has everything. All that is durable before the high-water mark begins to claim anew.
3. No file is deleted that may be all that is left of what was lost (compare_files.py).
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterable, Mapping

from snapfs.base.blocks import Disk, Ino
from snapfs.base.errors import CorruptionError
from snapfs.base.volumes.volume_files import NAMESPACE_DB
from snapfs.live.backing.backing import Backing
from snapfs.live.backing.backing_files import is_stamped
from snapfs.live.content.datapath import PYTHON, DataPath
from snapfs.live.content.file_states import EpochFiles
from snapfs.live.database.high_water_mark import LogVerdict
from snapfs.live.intents import intents_mark
from snapfs.live.intents.intents import Intents
from snapfs.live.namespace.namespace import Namespace
from snapfs.live.recovery import compare_files, first_log, pending_swaps
from snapfs.live.recovery.log_findings import Findings, find_changes
from snapfs.live.recovery.stray_files import StrayFolder
from snapfs.live.residency.residency import Residency


def recover(
    live_dir: str,
    names: Namespace,
    backing: Backing,
    disk: Disk,
    boot_id: str,
    latch: threading.Lock,
    partial: Mapping[Ino, Residency],
    adopting: bool = False,
    types: DataPath = PYTHON,
    suspects: Iterable[Ino] = (),
    strays: StrayFolder | None = None,
) -> tuple[Intents, EpochFiles, list[str]]:
    """Do all steps; returns the open intent log, the files of the current epoch, and a line for each repair.

    `suspects`: files that must be compared in full for the next snapshot, whatever is in the logs. `strays` takes files
    that no inode has; without it they are removed.
    OSError, VersionError, CorruptionError if it cannot be done; nothing is lost then.
    """
    repairs: list[str] = []
    if not os.path.isdir(backing.root) and any(names.absent(ino) is None for ino in names.regular_inos()):
        raise CorruptionError("the live tree", live_dir, "its folder data/ is missing, with the bytes of all files")
    backing.make_folders()
    folder = _folder(disk, live_dir, "intents")
    swapped = pending_swaps.redo(names, backing, repairs)
    findings = find_changes(folder, boot_id, backing, adopting, repairs)
    _restore_noted_times(backing, findings.noted_times)
    for ino in (*swapped, *suspects):
        findings.mark_whole(ino)
    if adopting:
        _note_unsynced(names, backing, findings)
    else:
        findings.listed, findings.listed_from = set(), None
        _settle(names, backing, findings, repairs, strays)
        if not findings.unclean:
            backing.flush_marks.trust()
    mark = intents_mark.opened(folder)
    intents = Intents(folder, disk, boot_id, latch, types.log_file, sequence=findings.last_sequence, mark=mark)
    current = first_log.begin(names, backing, intents, findings, types)
    for ino, state in current.files.items():
        state.absent = partial.get(ino)
    for path in findings.paths:
        disk.unlink("recovery:log", path)
    _empty(disk, _folder(disk, live_dir, "preserve"))
    _empty(disk, backing.staging)
    if not adopting:
        compare_files.remove_orphans(names, backing, names.orphans(), strays)
    return intents, current, repairs


def _note_unsynced(names: Namespace, backing: Backing, findings: Findings) -> None:
    """In place of comparing, under a mount that lives on: note what may not be durable."""
    backing.mark_suspect(names.allocate_ino())
    names.mark_suspect()
    if findings.power_cut:
        compare_files.find_new(names, backing, findings)


def _settle(
    names: Namespace, backing: Backing, findings: Findings, repairs: list[str], strays: StrayFolder | None
) -> None:
    """The second half of step 2, where a log was not closed in order or the namespace's own was cut short."""
    is_short = names.log is LogVerdict.CUT_SHORT
    if not findings.unclean and not is_short:
        return
    compare_files.compare(names, backing, findings, repairs, strays)
    if strays is not None:
        strays.settle()
    if is_short:
        names.after_loss()
    names.sync()
    backing.sync_all("recovery:settle")


def has_lost_names(live_dir: str, has_past: bool) -> bool:
    """Whether a live tree was here of which the namespace is gone. `has_past`: there are snapshots of it.

    The namespace is made before all else, and is not empty before the first name is: its absence is a new volume's, or
    damage. A new one would take the old one's inode numbers, and so its files.
    """
    path = os.path.join(live_dir, NAMESPACE_DB)
    if os.path.exists(path) and os.path.getsize(path):
        return False
    return has_past or any(names for _, _, names in os.walk(os.path.join(live_dir, "data")))


def _folder(disk: Disk, live_dir: str, name: str) -> str:
    path = os.path.join(live_dir, name)
    with contextlib.suppress(FileExistsError):
        disk.mkdir("live:folder", path)
        disk.sync_dir("live:folder", live_dir)
    return path


# -- step 2


def _restore_noted_times(backing: Backing, noted_times: Mapping[Ino, tuple[int, int]]) -> None:
    """Restore the mtimes that the host's stamps replaced. A file with another ctime got other times after the note."""
    for ino, (mtime_ns, ctime_ns) in noted_times.items():
        with contextlib.suppress(FileNotFoundError):
            found = os.stat(backing.path(ino))
            if is_stamped(found) and found.st_atime_ns == ctime_ns:
                with backing.changing(ino):
                    os.utime(backing.path(ino), ns=(ctime_ns, mtime_ns))


# -- steps 4 and 5


def _empty(disk: Disk, folder: str) -> None:
    for name in os.listdir(folder):
        disk.unlink("recovery:leftover", os.path.join(folder, name))

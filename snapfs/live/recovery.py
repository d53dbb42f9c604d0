"""From what the last life left to a tree that can be used: exactly what is dirty, and nothing that does not belong.

Steps, each of which may be repeated after a crash in it:

1. Redo the renames of a rollback that was committed (`pending_swap`).
2. Read the intent logs. If any was not closed in order: compare the backing files with the namespace, and make
   the host filesystem durable, so that nothing from before needs a listing any more.
3. Write one new log that says all that the old ones say, durably; then remove the old ones.
4. Remove what only the last life knew the meaning of: preserved blocks, staged files.
5. Remove orphans: rows first, durably, then files.

A daemon that *adopts* the living mount of one that died must not let the application wait: it trusts what the same run
of the machine has in its page cache. In place of the second half of step 2, what may not be durable is noted (`doubt`),
and every file that an old log lists is listed in the new one. Step 5 waits for the end of the mount (`clean_up`), for
the kernel may still hold orphans; so do files of creations and removals that were cut short.

Invariants:
1. What is found dirty includes every difference from the last snapshot: of a log of this boot, its exact blocks; of one
   closed in order, the same; of one of another boot, each file it lists, in full, and each file that was new in it.
2. After a power cut a row may be durable without its file, whose bytes were never synced: the file is made, empty.
   In any other case a missing file is damage: it is reported, and reading it gives EIO.
3. Nothing in data/ is removed whose inode exists.
"""

from __future__ import annotations

import contextlib
import os
import stat
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field

from snapfs.blocks import Disk, Ino
from snapfs.errors import CorruptionError
from snapfs.live.backing import Backing
from snapfs.live.datapath import PYTHON, DataPath
from snapfs.live.dirty import DirtyMap
from snapfs.live.intent_records import Kind, Story, read_log, record, records_of
from snapfs.live.intents import Intents
from snapfs.live.namespace import Namespace
from snapfs.live.presence import Presence
from snapfs.live.states import EpochFiles, FileState

ORPHAN_BATCH = 256
BATCH_BYTES = 1 << 20


@dataclass(slots=True)
class Findings:
    dirty: dict[Ino, DirtyMap] = field(default_factory=dict)
    new_from: Ino = Ino(0)
    unclean: bool = False
    power_cut: bool = False
    listed: set[Ino] = field(default_factory=set)
    listed_from: Ino | None = None
    last_sequence: int = 0
    paths: list[str] = field(default_factory=list)


def recover(
    live_dir: str,
    names: Namespace,
    backing: Backing,
    disk: Disk,
    boot_id: str,
    latch: threading.Lock,
    partial: Mapping[Ino, Presence],
    adopting: bool = False,
    types: DataPath = PYTHON,
) -> tuple[Intents, EpochFiles, list[str]]:
    """Do all steps; returns what the live tree goes on with, and a line for each repair.

    OSError, VersionError, CorruptionError if it cannot be done; nothing is lost then.
    """
    said: list[str] = []
    if not os.path.isdir(backing.root) and any(names.absent(ino) is None for ino in names.regular_inos()):
        raise CorruptionError("the live tree", live_dir, "its folder data/ is missing, with the bytes of all files")
    backing.make_folders()
    folder = _folder(disk, live_dir, "intents")
    swapped = _redo_swaps(names, backing, said)
    findings = read_findings(folder, boot_id, [] if adopting else said)
    for ino in swapped:
        findings.dirty.setdefault(ino, DirtyMap()).mark_whole()
    adopting = adopting and not findings.power_cut
    if adopting:
        backing.doubt(names.allocate_ino())
        names.doubt()
    else:
        findings.listed, findings.listed_from = set(), None
    if findings.unclean and not adopting:
        _compare_files(names, backing, findings, said)
        names.sync()
        backing.sync_all("recovery:settle")
    intents = Intents(folder, disk, boot_id, latch, types.log_file)
    intents.sequence = findings.last_sequence
    current = _go_on(names, backing, intents, findings, types)
    for ino, state in current.files.items():
        state.absent = partial.get(ino)
    for path in findings.paths:
        disk.unlink("recovery:log", path)
    _empty(disk, _folder(disk, live_dir, "preserve"))
    _empty(disk, backing.staging)
    if not adopting:
        remove_orphans(names, backing, names.orphans())
    return intents, current, said


def has_lost_names(live_dir: str, has_past: bool) -> bool:
    """Whether a live tree was here of which the namespace is gone. `has_past`: there are snapshots of it.

    The namespace is made before all else, and is not empty before the first name is: its absence is a new volume's, or
    damage. A new one would take the old one's inode numbers, and so its files.
    """
    path = os.path.join(live_dir, "namespace.db")
    if os.path.exists(path) and os.path.getsize(path):
        return False
    return has_past or any(names for _, _, names in os.walk(os.path.join(live_dir, "data")))


def clean_up(names: Namespace, backing: Backing) -> None:
    """What an adoption left for later, at the end of the mount: remove files that no inode has."""
    for ino, _ in backing.scan():
        if ino and not _is_file(names, ino):
            backing.remove(ino, "recovery:stray")


def _folder(disk: Disk, live_dir: str, name: str) -> str:
    path = os.path.join(live_dir, name)
    with contextlib.suppress(FileExistsError):
        disk.mkdir("live:folder", path)
        disk.sync_dir("live:folder", live_dir)
    return path


def _redo_swaps(names: Namespace, backing: Backing, said: list[str]) -> list[Ino]:
    pending = names.pending_swaps()
    if pending:
        names.sync()
        swap(names, backing, pending)
        said.append(f"finished a rollback that was interrupted ({len(pending)} files)")
    return pending


def swap(names: Namespace, backing: Backing, inos: list[Ino]) -> None:
    """Rename staged files into place and forget the list. Those that are in place already are passed over.

    The list is durable before, or a power cut could leave new bytes under old names.
    """
    for ino in inos:
        with contextlib.suppress(FileNotFoundError):
            backing.replace(ino, os.path.join(backing.staging, f"{ino:x}"), "swap:rename")
        _set_times(names, backing, ino)
    for ino in inos:
        backing.sync_name(ino)
    names.clear_swaps()


def _set_times(names: Namespace, backing: Backing, ino: Ino) -> None:
    """Give a file that was swapped, or of which only the times were to be, the times that its row says."""
    inode = names.inode(ino)
    with contextlib.suppress(FileNotFoundError), backing.descriptors.borrow(ino) as fd:
        os.utime(fd, ns=(inode.ctime_ns, inode.mtime_ns))
        backing.disk.fsync("swap:times", fd)


# -- step 2


def read_findings(folder: str, boot_id: str, said: list[str]) -> Findings:
    """What the logs say together."""
    findings = Findings()
    stories: list[Story] = []
    for name in sorted(os.listdir(folder)):
        path = os.path.join(folder, name)
        findings.paths.append(path)
        with contextlib.suppress(ValueError):
            findings.last_sequence = max(findings.last_sequence, int(name.partition(".")[0], 16))
        story = read_log(path)
        if story is not None:
            stories.append(story)
    for story in stories:
        _add(findings, story, boot_id)
    lost = [story.new_from for story in stories if not _is_exact(story, boot_id)]
    live = [story.new_from for story in stories if not story.sealed]
    findings.unclean = not stories or not all(story.clean for story in stories)
    findings.power_cut = bool(lost) or not stories
    findings.new_from = min(lost + live, default=Ino(0))
    findings.listed = set[Ino]().union(*(story.files for story in stories))
    findings.listed_from = min((story.new_from for story in stories), default=None)
    if findings.power_cut and stories:
        said.append("the machine stopped without warning: files in use are compared in full for the next snapshot")
    elif findings.unclean and stories:
        said.append("the last mount did not end in order: what it had changed is known from the intent log")
    return findings


def _is_exact(story: Story, boot_id: str) -> bool:
    return story.clean or story.boot_id == boot_id


def _add(findings: Findings, story: Story, boot_id: str) -> None:
    exact = _is_exact(story, boot_id)
    if exact and story.sealed:
        return
    for dirty in story.files.values() if not exact else ():
        dirty.mark_whole()
    for ino, dirty in story.changed():
        findings.dirty.setdefault(ino, DirtyMap()).join(dirty)


def _compare_files(names: Namespace, backing: Backing, findings: Findings, said: list[str]) -> None:
    """Remove files without an inode; make or report missing ones; find the new ones."""
    strays = 0
    present: set[Ino] = set()
    for ino, path in backing.scan():
        if ino and _is_file(names, ino):
            present.add(ino)
        elif ino:
            backing.remove(ino, "recovery:stray")
            strays += 1
        else:
            said.append(f"{path} is none of ours; left alone")
    if strays:
        said.append(f"removed {strays} files of creations and removals that were cut short")
    _find_missing(names, backing, findings, present, said)
    if findings.power_cut:
        for ino in present:
            if ino >= findings.new_from:
                findings.dirty.setdefault(ino, DirtyMap()).mark_whole()


def _is_file(names: Namespace, ino: Ino) -> bool:
    with contextlib.suppress(OSError):
        return stat.S_ISREG(names.inode(ino).mode)
    return False


def _find_missing(names: Namespace, backing: Backing, findings: Findings, present: set[Ino], said: list[str]) -> None:
    for ino in names.regular_inos():
        if ino in present or names.absent(ino) is not None:
            continue
        if findings.power_cut:
            backing.create(ino)
            backing.sync_name(ino)
            present.add(ino)
            findings.dirty.setdefault(ino, DirtyMap()).mark_whole()
            said.append(f"inode {ino} had not reached the disk when the machine stopped: its file is empty now")
        else:
            said.append(f"the bytes of inode {ino} are missing: reading the file will fail")


# -- step 3


def _go_on(
    names: Namespace, backing: Backing, intents: Intents, findings: Findings, types: DataPath
) -> EpochFiles:
    """Begin the first log of this life with all that is dirty."""
    # Below the namespace's own bound a file is known to be dirty only by being listed, as those found above are.
    new_from = max(min(findings.new_from, names.allocate_ino()), names.first_new)
    listed_from = new_from if findings.listed_from is None else min(new_from, findings.listed_from)
    log = intents.new_log(names.epoch, listed_from)
    current = EpochFiles(names.epoch, new_from)
    batch = bytearray()
    for ino, dirty in sorted(findings.dirty.items()):
        if ino >= new_from:
            dirty.mark_whole()
        try:
            state = _dirty_state(backing, current, ino, types.taken_over(dirty), types)
        except FileNotFoundError:
            continue  # removed before the stop, or lost
        for each in records_of(ino, dirty):
            batch += each
        if len(batch) >= BATCH_BYTES:
            log.append(bytes(batch), "recovery:intents")
            batch.clear()
        log.listed.add(ino)
        current.files[ino] = state
        current.chunks += dirty.count
    for ino in sorted(findings.listed - log.listed):
        batch += record(Kind.LIST, ino)
        log.listed.add(ino)
    if batch:
        log.append(bytes(batch), "recovery:intents")
    log.flush()
    intents.logs.append(log)
    return current


def _dirty_state(backing: Backing, current: EpochFiles, ino: Ino, dirty: DirtyMap, types: DataPath) -> FileState:
    found = os.stat(backing.path(ino))
    state = types.file_state(ino, found.st_size, found.st_mtime_ns, found.st_atime_ns)
    state.epoch, state.dirty = current.epoch, dirty
    return state


# -- steps 4 and 5


def _empty(disk: Disk, folder: str) -> None:
    for name in os.listdir(folder):
        disk.unlink("recovery:leftover", os.path.join(folder, name))


def remove_orphans(names: Namespace, backing: Backing, inos: list[Ino]) -> None:
    """Forget inodes without links, then, once that is durable, remove their files."""
    for start in range(0, len(inos), ORPHAN_BATCH):
        batch = inos[start : start + ORPHAN_BATCH]
        names.remove_orphans(batch)
        names.sync()
        for ino in batch:
            backing.remove(ino)

"""The parts of an open live tree, and the order in which they are opened.

1. The backing files and the materializer, then recovery, which reads what the last life left.
2. The mark of the namespace's log begins, once recovery has done what the log requires.
3. The content with its hydration; it watches changes of names from then on.
4. What makes pending replaces durable is registered with the namespace, which runs it before each sync.

OSError, CorruptionError, VersionError: then the backing files are closed, and namespace and `host_life` are left to
the caller.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable
from dataclasses import dataclass

from snapfs.base.blocks import Disk
from snapfs.base.errors import CorruptionError
from snapfs.live.attributes import AttributeReader
from snapfs.live.backing.backing import Backing
from snapfs.live.backing.host_health import HostHealth
from snapfs.live.backing.host_life import HostLife
from snapfs.live.content import datapath
from snapfs.live.content.content import Content
from snapfs.live.content.datapath import DataPath
from snapfs.live.content.file_states import EpochFiles
from snapfs.live.content.open_counts import Opens
from snapfs.live.database.high_water_mark import LogVerdict
from snapfs.live.database.namespace_paths import damaged_path
from snapfs.live.file_hydration import FileHydration
from snapfs.live.intents.intents import Intents
from snapfs.live.lazy.content_source import ContentSource
from snapfs.live.lazy.materializer import Materializer
from snapfs.live.namespace.namespace import Namespace
from snapfs.live.pending_deletes import PendingDeletes
from snapfs.live.pending_replace import PendingReplace
from snapfs.live.recovery.recover_tree import recover
from snapfs.live.recovery.stray_files import DAMAGED, StrayFolder


@dataclass(frozen=True, slots=True)
class TreeParts:
    """All parts but those that only `LiveTree` itself uses."""

    live_dir: str
    names: Namespace
    disk: Disk
    clock: Callable[[], int]
    types: DataPath
    backing: Backing
    materializer: Materializer
    intents: Intents
    hydration: FileHydration
    content: Content
    opens: Opens
    attributes: AttributeReader
    deletes: PendingDeletes
    replaces: PendingReplace
    adopted: bool
    strays: StrayFolder | None
    recovered: list[str]
    damaged: bool


def open_parts(
    live_dir: str, names: Namespace, disk: Disk, *, boot_id: str, max_open_files: int, max_states: int,
    source: ContentSource | None, clock: Callable[[], int], adopting: bool, data_path: str,
    host_life: HostLife | None, native_changes: bool,
) -> TreeParts:  # fmt: skip
    """Open everything, in the order above; arguments as for `LiveTree`."""
    types, latch = datapath.choose(data_path), threading.Lock()
    marks = types.flush_marks()
    backing = Backing(
        live_dir, disk, max_open_files, types.descriptors, HostHealth(host_life, marks), names.settled, marks
    )
    materializer = Materializer(backing, source, boot_id)
    try:
        strays = _strays_of(live_dir, names, disk, adopting)
        found = materializer.open(
            names.absent, None if strays is None else functools.partial(strays.put, kind="presence")
        )
        intents, current, recovered = recover(
            live_dir, names, backing, disk, boot_id, latch, materializer.partial, adopting, types,
            suspects=found.suspects, strays=strays,
        )  # fmt: skip
    except BaseException:
        backing.close()
        raise
    recovered[:0] = found.recovered
    damaged = _report_strays(strays, recovered)
    if not adopting or strays is None:  # else files that the log does not confirm are moved when the mount ends
        names.start_mark()
    hydration = FileHydration(
        names, backing, materializer, intents,
        functools.partial(_make_content, names, backing, materializer, intents, latch, current, max_states, types),
    )  # fmt: skip
    content = hydration.content
    opens = content.make_opens()
    if adopting:
        opens.are_unknown()
    content.serve_names(names, native_changes)
    attributes = AttributeReader(names, content, backing)
    orphans = names.orphans() if adopting else []
    deletes = PendingDeletes(names, content, backing, materializer, opens, orphans)
    replaces = PendingReplace(names, backing, materializer, opens, attributes)
    names.settle_first(replaces.settle)
    return TreeParts(
        live_dir, names, disk, clock, types, backing, materializer, intents, hydration, content, opens, attributes,
        deletes, replaces, adopting, strays, recovered, damaged,
    )  # fmt: skip


def _make_content(
    names: Namespace, backing: Backing, materializer: Materializer, intents: Intents, latch: threading.Lock,
    current: EpochFiles, max_states: int, types: DataPath, hydration: FileHydration,
) -> Content:  # fmt: skip
    return _content_class(types)(
        backing, intents, latch, current,
        find_absent=names.absent, find_partial=materializer.partial.get, fetch_chunks=hydration.fetch_chunks,
        prepare=hydration.prepare_write, max_states=max_states, types=types,
    )  # fmt: skip


def _content_class(types: DataPath) -> type[Content]:
    if types.core is None:
        return Content
    from snapfs.live.content.native_content import NativeContent

    return NativeContent


def _strays_of(live_dir: str, names: Namespace, disk: Disk, adopting: bool) -> StrayFolder | None:
    """Where strays go if the namespace may lack inodes that were answered (high_water_mark.py). CorruptionError."""
    if names.log is LogVerdict.WHOLE:
        return None
    short, wal = names.log is LogVerdict.CUT_SHORT, f"{names.path}-wal"
    why = f"{wal} ends before what was answered" if short else "no mark confirms the log of the namespace"
    strays = StrayFolder(live_dir, disk, why, damage=short)
    if short and adopting:
        why = "it ends before what was answered: unmount, and mount again"
        raise CorruptionError("the log of the namespace", wal, why)
    if short and names.is_lazy:
        why = "it ends before what was answered, and part of the rest is still in the store: mount --from it anew"
        raise CorruptionError("the log of the namespace", wal, why)
    if short:
        strays.put(damaged_path(names.path), "")
    return strays


def _report_strays(strays: StrayFolder | None, recovered: list[str]) -> bool:
    """Add lines for the strays that were moved; whether answered transactions were lost."""
    if strays is None:
        return False
    if strays.damage:
        recovered.insert(
            0, f"{DAMAGED}{strays.why}: names and attributes are those of an earlier moment, and the next snapshot "
            "will have everything"
        )  # fmt: skip
    if strays.files:
        recovered.append(f"{strays.files} files that no inode has were moved to {strays.path}, which may be removed")
    return strays.damage

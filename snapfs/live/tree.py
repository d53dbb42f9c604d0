"""The live tree: the one place that orders the steps between names (SQLite) and bytes (backing files).

Invariants:
1. A file's bytes exist before its name can be seen (name_operations.py), and go after its row is gone for good
   (pending_deletes.py). A crash between leaves a stray file, which recovery removes.
2. A file that replaces another one's content without an fsync is durable in time (pending_replace.py).
3. `fsync` makes durable: bytes, then times, then the file's name on the host, then names and attributes. Its intent
   was durable before its bytes could be.
4. Changes come from the owner thread. From any thread may be called: `read` (without nowait), `prepare_write`,
   `prepare_truncate`, `fsync`, `fsyncdir`, `sync_soon`, and what cut.py lists.

This module has durability, housekeeping, cuts and the end; what is done to names is in name_operations.py, to bytes in
file_operations.py; how the parts are opened in tree_parts.py. Attributes are those of attributes.py.
"""

from __future__ import annotations

import errno
import os
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager

from snapfs.base.blocks import Disk, Ino
from snapfs.base.errors import BusyError
from snapfs.live.backing.host_health import SYNC
from snapfs.live.backing.host_life import HostLife
from snapfs.live.change_counters import ChangeCounters
from snapfs.live.content.datapath import CHANGES_NAMES
from snapfs.live.cut import READERS, Cut
from snapfs.live.cut_maker import CutMaker
from snapfs.live.database.namespace_rows import AbsentFile
from snapfs.live.file_operations import FileOperations
from snapfs.live.lazy.content_source import ContentSource
from snapfs.live.namespace.namespace import Namespace
from snapfs.live.recovery import compare_files, pending_swaps
from snapfs.live.suspect_files import SuspectFiles
from snapfs.live.tree_parts import open_parts

MAX_STATES = 8192
"""Files whose size and times are kept in memory, beyond those that are dirty."""


class LiveTree(FileOperations):
    """Opens live/ at `live_dir`, recovering what the last life left; `recovered` has a line for each repair.

    `damaged`: transactions that were answered are lost, and `recovered` has a line for that too. `boot_id`
    distinguishes a killed process from a power cut: the token of `host_life`, or in tests any word. `adopting`: under a
    living mount, whose open files and orphans only the kernel knows. `native_changes`: C changes names, too
    (datapath.py). Namespace and `host_life` are closed with the tree.
    """

    def __init__(
        self,
        live_dir: str,
        namespace: Namespace,
        disk: Disk,
        *,
        boot_id: str,
        max_open_files: int = 512,
        max_readers: int = READERS,
        max_states: int = MAX_STATES,
        max_dirty_files: int = 100_000,
        max_dirty_chunks: int = 1_000_000,
        source: ContentSource | None = None,
        clock: Callable[[], int] = time.time_ns,
        adopting: bool = False,
        data_path: str = "",
        host_life: HostLife | None = None,
        native_changes: bool = CHANGES_NAMES,
    ) -> None:
        parts = open_parts(
            live_dir, namespace, disk,
            boot_id=boot_id, max_open_files=max_open_files, max_states=max_states, source=source, clock=clock,
            adopting=adopting, data_path=data_path, host_life=host_life, native_changes=native_changes,
        )  # fmt: skip
        super().__init__(parts)
        self.recovered, self.damaged, self._strays = parts.recovered, parts.damaged, parts.strays
        self._cuts = CutMaker(live_dir, namespace, parts.content, parts.intents, parts.types, disk, clock, max_readers)
        self._counters = ChangeCounters(namespace, parts.content, max_dirty_files, max_dirty_chunks)
        self._suspects = SuspectFiles(
            namespace, parts.content, parts.intents, parts.backing, parts.materializer, adopted=adopting
        )
        self._retiring = threading.Lock()
        self.hydrated_files = 0
        self._share_flushes = os.stat(self._backing.root).st_dev == os.stat(namespace.path).st_dev
        self.is_open = True

    # -- durability

    def fsync(self, ino: Ino, datasync: bool = False) -> None:
        """Make the file durable (invariant 3); `datasync`: but for its times. OSError. Any thread."""
        state = self._content.states.get(ino) or self._content.state(ino)
        if not isinstance(state.absent, AbsentFile):
            if state.absent is not None and not datasync and (state.times_pending or state.wrote):
                self._content.apply_times(state)
            begun = self._backing.flush_marks.begin_sync()
            written = self.names.write_out() if self._share_flushes and self.names.needs_sync(ino) else 0
            self._materializer.settle({ino}, lambda: self._content.sync(ino, datasync, flush=written > 0))
            self._backing.flush_marks.end_sync(ino, begun, datasync)
            self.names.flushed(written)
        if self.names.needs_sync(ino):
            self.names.sync()

    def fsyncdir(self, ino: Ino) -> None:
        """Make the names in a directory durable. Any thread."""
        if self.names.needs_sync(ino):
            self.names.sync()

    # -- housekeeping

    def tidy(self) -> None:
        """The short part of housekeeping, for the owner thread: about every second, before `sync_soon`."""
        self._cuts.note_sealed()
        self._replaces.note_refilled()
        self._backing.take_births()
        for ino in self._content.take_left_over():
            self._content.forget(ino)
            self._backing.remove(ino)
        self.remove_forgotten()
        while self._materializer.arrived:
            self.names.clear_absent(self._materializer.arrived.popleft())
            self.hydrated_files += 1
        self._content.evict_surplus()

    def sync_soon(self) -> None:
        """The long part, for another thread: bounds what a power cut takes back, and frees space."""
        self._suspects.check_host()
        self._replaces.settle()
        with self.health.watching(SYNC):
            self._apply_pending_times()
            self.reclaim()
            self.names.sync()
        self._retire_intents()
        with self.health.watching(SYNC):
            self.names.checkpoint()

    def _apply_pending_times(self) -> None:
        for state in self._content.pending_times():
            self._content.apply_times(state)

    def _retire_intents(self) -> None:
        with self._retiring:
            self._intents.make_spare()
            old = self._intents.retirable()
            if old:
                self._intents.retire(old, self._opens.is_written, self._content.dirty_inos, self._settle)

    def _settle(self, inos: set[Ino], new_from: Ino, upto: Ino) -> None:
        self._materializer.settle(inos, lambda: self._backing.settle(inos, new_from, upto))

    @property
    def has_forgotten(self) -> bool:
        """Whether there are files that have no name and that the kernel does not know any more."""
        return self._deletes.has_forgotten

    def remove_forgotten(self) -> bool:
        """Remove the rows of some unreachable files, whose bytes `reclaim` removes; whether there were any."""
        self._content.note_replaced()
        removed = self._deletes.remove_rows()
        self._replaces.forget(removed)
        return bool(removed)

    def reclaim(self) -> None:
        """Remove the backing files whose rows were removed before the call: frees space. Waits. Any thread."""
        self._deletes.reclaim()

    # -- files whose bytes cannot be trusted (suspect_files.py)

    def suspects(self) -> list[Ino]:
        """Files to be given to `compare_suspects`; none while the host is not under suspicion."""
        return self._suspects.list_files()

    def compare_suspects(self, inos: list[Ino]) -> list[Ino]:
        """Have the next snapshot compare these in full; returns what the kernel should read anew. Waits. Any thread."""
        return self._suspects.compare(inos)

    def mark_suspect(self, inos: list[Ino]) -> None:
        """Have the next snapshot compare these files in full. Waits for the disk."""
        self._suspects.mark(inos)

    def mark_whole(self, inos: list[Ino]) -> None:
        """Have the next snapshot contain these files as a whole, as far as they are here. Waits. Any thread."""
        self._content.mark_present_suspect(inos)

    def mark_all_suspect(self) -> None:
        """Have the next snapshot contain everything, as if there were none before. Waits. BusyError while lazy."""
        self._suspects.mark_all()

    # -- bytes replaced from outside

    @property
    def staging(self) -> str:
        """The folder of files that will take the place of a file's bytes, each called by its inode number in hex."""
        return self._backing.staging

    def borrow_backing(self, ino: Ino) -> AbstractContextManager[int]:
        """A descriptor of the file's bytes, to be read while nothing changes. OSError; ENODATA if some are absent."""
        if ino in self._materializer.partial:
            raise OSError(errno.ENODATA, "the file is not all here")
        return self._backing.descriptors.borrow(ino)

    def swap_staged(self) -> None:
        """Put ``staging/<inode in hex>`` (complete and durable) in place for each pending swap of the namespace.

        After the bulk transaction that listed them and left inodes that are gone without links. The replaced files
        count as changed whole. Waits for the disk. BusyError while a cut is open. After a crash, opening the tree
        does the rest.
        """
        if self._content.cut is not None:
            raise BusyError("a snapshot is being made")
        self.reclaim()  # a file that comes back must not be removed afterwards
        pending = self.names.pending_swaps()
        self._content.mark_suspect([ino for ino in pending if os.path.exists(self._backing.path(ino))])
        for ino in pending:
            if self.names.absent(ino) is None:  # else the swap is of its times alone
                self._materializer.drop(ino)
        pending_swaps.swap(self.names, self._backing, pending)
        self._content.reload(pending)
        self._deletes.forget_all(self.names.orphans())
        self.limit_size(self.size_limit[0])

    # -- cuts

    def cut(self) -> Cut:
        """End the epoch. BusyError while another cut is open; OSError if the disk fails: then nothing happened."""
        return self._cuts.make()

    @property
    def dirty_files(self) -> int:
        """Files that have changed since the last cut, new ones included."""
        return self._counters.dirty_files

    @property
    def dirty_bytes(self) -> int:
        """An upper bound for what changed of files that are not new, in bytes."""
        return self._counters.dirty_bytes

    @property
    def written_bytes(self) -> int:
        """Bytes written in this life, at least as much as has changed."""
        return self._counters.written_bytes

    def has_changes(self) -> bool:
        """Whether a snapshot made now would differ from the last one."""
        self._cuts.note_sealed()
        return self._counters.has_changes()

    def pressure(self) -> bool:
        """Whether memory for dirty maps runs short, so that a cut should be made soon."""
        return self._counters.pressure()

    @property
    def copied_bytes(self) -> int:
        """Bytes that were preserved for cuts that are finished."""
        return self._cuts.copied_bytes

    @property
    def preserved_bytes(self) -> int:
        """Bytes on the disk that are preserved for the open cut."""
        return self._cuts.preserved_bytes

    @property
    def open_backing_files(self) -> int:
        """Descriptors of backing files that are held open."""
        return len(self._backing.descriptors)

    # -- ends

    def hand_over(self) -> None:
        """Bring to the files what only memory holds of answered requests, for a process that takes over. Waits."""
        self._apply_pending_times()

    def check_invariants(self) -> None:
        """AssertionError if an invariant of a part is broken. Between changes."""
        self._content.check_invariants()
        self._intents.check_invariants()
        self._materializer.check_invariants()
        self._deletes.check_invariants()

    def close(self, clean: bool = True) -> None:
        """Release all files; `clean` makes everything durable first and marks the intent log CLEAN."""
        self._content.close()
        if clean:
            self._settle_all()
        self.is_open = False
        if self._content.cut is not None:  # its changes are in the intent logs
            self._content.cut.scratch.close()
        self._intents.close(clean and not self.health.is_suspect)
        self._backing.close()
        self.names.close()
        if self.health.life is not None:
            self.health.life.close()

    def _settle_all(self) -> None:
        self.tidy()
        self._apply_pending_times()
        self.reclaim()
        compare_files.remove_orphans(self.names, self._backing, self.names.orphans())
        if self.adopted:
            compare_files.clean_up(self.names, self._backing, self._strays)
        self._materializer.settle(set(self._materializer.partial), lambda: self._backing.sync_all("close:settle"))

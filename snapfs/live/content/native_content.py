"""The native data path: the hot steps of changes are in C (native/), and so may come from any thread.

`NativeContent` is `Content` with those steps replaced. The rest, beginning a file, cuts, truncates, what is partly
here, is Python's as before, with the native kinds of data in its hands.

Invariants:
1. The `Core` has exactly the states in `states`, and takes none out while a thread reads it.
2. The Core's epoch and log are the current ones whenever the latch is free.
3. What the Core counts as not durable of names includes all that `Backing.unsynced_names` and the namespace do.
4. The attributes that the Core caches, and its set of inodes without extended attributes, are those of the namespace
   (namespace_writer.py, invariant 6).
"""

from __future__ import annotations

import _sqlite3
import logging
from collections.abc import Callable, Iterable
from typing import Any

from snapfs.base.blocks import Ino
from snapfs.live.backing.host_health import READ, SYNC, WRITE
from snapfs.live.content._content import Core
from snapfs.live.content.content import Content, ServedNames
from snapfs.live.content.datapath import Need
from snapfs.live.content.file_states import CutFiles, FileState
from snapfs.live.content.open_counts import Opens
from snapfs.live.content.size_limit import NativeSizeLimit
from snapfs.live.intents.intent_log import Log

log = logging.getLogger(__name__)


def need_of(result: int) -> Need | None:
    return Need(-result - 65536) if result <= -65536 else None


class UnsyncedNames(set[Ino]):
    """Names of backing files that may not be durable, kept in the Core as well."""

    def __init__(self, core: Core, inos: Iterable[Ino]) -> None:
        super().__init__(inos)
        self._core = core
        for ino in self:
            core.set_name_unsynced(ino, True)

    def add(self, ino: Ino) -> None:
        self._core.set_name_unsynced(ino, True)
        super().add(ino)

    def discard(self, ino: Any) -> None:
        super().discard(ino)
        self._core.set_name_unsynced(ino, False)

    def difference_update(self, *others: Iterable[Any]) -> None:
        for ino in set().union(*others) & self:
            self.discard(ino)

    def copy(self) -> set[Ino]:
        return set(self)


class NativeOpens(Opens):
    """The Core's counts, which C callers change as well."""

    def __init__(self, core: Core) -> None:
        self._core = core

    def opened(self, ino: Ino, writing: bool) -> None:
        self._core.count_open(ino, writing, 1)

    def released(self, ino: Ino, writing: bool) -> bool:
        return not self._core.count_open(ino, writing, -1)

    def is_open(self, ino: Ino) -> bool:
        return self._core.opens(ino)[0] > 0

    def is_written(self, ino: Ino) -> bool:
        return self._core.opens(ino)[1] > 0

    def are_unknown(self) -> None:
        self._core.opens_are_unknown()

    def files(self) -> list[Ino]:
        flat = self._core.open_files()
        return sorted(Ino(ino) for ino, opens in zip(flat[::3], flat[1::3], strict=True) if opens)

    def writers(self) -> list[Ino]:
        flat = self._core.open_files()
        return sorted(Ino(ino) for ino, writers in zip(flat[::3], flat[2::3], strict=True) if writers)


class NativeContent(Content):
    """See the top."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        assert self.types.core is not None
        log = self.intents.current
        self.core: Core = self.types.core(
            self.descriptors, self.backing.disk, self.current.epoch, log.file, self.backing.flush_marks
        )
        self.backing.share_unsynced_names(lambda inos: UnsyncedNames(self.core, inos))
        self.core.set_limits(*self.limits)
        self.size_limit = NativeSizeLimit(self.core)
        for state in self.states.values():
            self.core.publish(state)

    def make_opens(self) -> Opens:
        return NativeOpens(self.core)

    def serve_names(self, names: ServedNames, changes: bool) -> None:
        names.watch(self.core)
        if self.core.open_names(names.path, self.backing.live_dir, getattr(_sqlite3, "__file__", "")):
            self.backing.register_births(self.core.take_made)
            if changes:
                names.share(self.core)
        else:
            log.warning("names are served in Python: the module _sqlite3 has a copy of SQLite of its own")

    def take_orphans(self) -> list[Ino]:
        return [Ino(ino) for ino in self.core.take_orphans()]

    def set_orphan(self, ino: Ino, is_orphan: bool) -> None:
        self.core.set_orphan(ino, is_orphan)

    def take_replaced(self) -> list[tuple[Ino, Ino]]:
        flat = [Ino(ino) for ino in self.core.take_replaced()]
        return list(zip(flat[::2], flat[1::2], strict=True))

    def take_left_over(self) -> list[Ino]:
        return [Ino(ino) for ino in self.core.take_left_over()]

    # -- the table

    def _keep(self, state: FileState) -> None:
        self.core.publish(state)
        super()._keep(state)

    def _let_go(self, ino: Ino) -> bool:
        return self.core.withdraw(ino) and super()._let_go(ino)

    def _discard(self, ino: Ino) -> bool:
        return self.core.withdraw(ino, True) and super()._discard(ino)

    def _set_pending(self, state: FileState, pending: bool) -> None:
        self.core.set_pending(state, pending)

    def _advance(self, cut: CutFiles, log: Log) -> None:
        cut.changed.chunks += self.core.advance(self.current.epoch, log.file, cut.scratch.file)

    def dirty_chunks(self) -> int:
        return self.current.chunks + self.core.chunks

    # -- changing

    def write(self, ino: Ino, offset: int, data: bytes | memoryview, taken: bool = False) -> int:
        with self.health.watching(WRITE):
            done = self._when_ready(ino, lambda: self.core.write(ino, offset, data, taken))
        return super().write(ino, offset, data, taken) if done is None else done

    def set_times(self, ino: Ino, mtime_ns: int | None, ctime_ns: int) -> None:
        held_mtime = None if mtime_ns is None else self.limits.clamp_time(mtime_ns)  # what C can be given
        held_ctime = self.limits.clamp_time(ctime_ns)
        if self._when_ready(ino, lambda: self.core.set_times(ino, held_mtime, held_ctime)) is None:
            super().set_times(ino, mtime_ns, ctime_ns)

    def fallocate(self, ino: Ino, mode: int, offset: int, length: int) -> None:
        with self.health.watching(WRITE):
            done = self._when_ready(ino, lambda: self.core.fallocate(ino, mode, offset, length))
        if done is None:
            super().fallocate(ino, mode, offset, length)

    def copy_range(self, source: Ino, source_offset: int, ino: Ino, offset: int, length: int) -> int:
        self.state(source)
        with self.health.watching(WRITE):
            done = self._when_ready(ino, lambda: self.core.copy_range(source, source_offset, ino, offset, length)[0])
        return super().copy_range(source, source_offset, ino, offset, length) if done is None else done

    def seek(self, ino: Ino, offset: int, whence: int) -> int:
        self.state(ino)
        found = self.core.lseek(ino, offset, whence)
        return super().seek(ino, offset, whence) if found < 0 else found

    def _when_ready(self, ino: Ino, call: Callable[[], int]) -> int | None:
        """What `call` gives once the file is begun; None if Python is to do it instead. Any thread."""
        while (need := need_of(result := call())) is not None:
            if need is not Need.BEGIN:
                return None
            self.begin_anywhere(ino)
        return result

    # -- reading, and making durable

    def read(self, ino: Ino, offset: int, size: int) -> bytes:
        with self.health.watching(READ):
            found = self.core.read(ino, offset, size)
        return super().read(ino, offset, size) if isinstance(found, int) else found

    def sync(self, ino: Ino, datasync: bool, flush: bool = False) -> None:
        if not flush:
            with self.health.watching(SYNC):
                need = need_of(self.core.fsync(ino, datasync))
            if need is None:
                return
        super().sync(ino, datasync)

    def attributes(self, ino: Ino) -> tuple[int, int, int, int] | None:
        return self.core.get_attr(ino)

    def pending_times(self) -> list[FileState]:
        return self.core.pending()

    def _apply_times(self, state: FileState, fd: int) -> bool:
        return bool(self.core.apply_times(state, fd))

    def close(self) -> None:
        self.core.close()

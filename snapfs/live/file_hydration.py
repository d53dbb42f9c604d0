"""Makes absent files of a live tree present: before they change, and in the background.

The materializer (lazy/materializer.py) moves the bytes; this part knows the states of the files, and so keeps their
times and clears `FileState.absent` when a file is whole.

Invariants:
1. Before a file changes, the chunks that the change needs are in its backing file, and the file is listed in the intent
   log (`prepare_write`, `prepare_truncate`).
2. Putting chunks in changes neither the times of the file nor its dirty map. A crash while chunks are put in leaves the
   times in the residency record, and opening the tree restores them.
"""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Callable, Iterable, Iterator

from snapfs.base.blocks import Ino
from snapfs.live.backing.backing import Backing
from snapfs.live.backing.host_health import WRITE
from snapfs.live.content.content import Content
from snapfs.live.content.file_states import FileState
from snapfs.live.content.preserve import preserve_tail
from snapfs.live.database.namespace_rows import AbsentFile
from snapfs.live.intents.intents import Intents
from snapfs.live.lazy.materializer import WHOLE_BYTES, Materializer
from snapfs.live.namespace.namespace import Namespace
from snapfs.live.residency.residency import Residency


class FileHydration:
    """All methods wait for the disk or the store, but for those marked otherwise. Any thread.

    ESTALE if there is no such file any more; OSError, CorruptionError of the store.
    """

    def __init__(
        self,
        names: Namespace,
        backing: Backing,
        materializer: Materializer,
        intents: Intents,
        make_content: Callable[[FileHydration], Content],
    ) -> None:
        """`make_content` builds the content, which calls back `prepare_write` and `fetch_chunks`."""
        self._names, self._backing, self._materializer, self._intents = names, backing, materializer, intents
        self.content = make_content(self)

    # -- before a change

    def prepare_write(self, ino: Ino, offset: int = 0, length: int = 0) -> None:
        """Make the file ready for a write of these bytes. A cut that comes meanwhile undoes it."""
        self._prepare(ino, empty=False)
        self.fetch_chunks(ino, self.content.lacking(ino, offset, length))

    def prepare_truncate(self, ino: Ino, size: int) -> None:
        """Make the file ready for a truncate to `size`, and preserve what the open cut needs beyond `size`."""
        self._prepare(ino, empty=size == 0)
        self.fetch_chunks(ino, self.content.lacking_to_truncate(ino, size))
        frozen = self.content.frozen_of(ino)
        if frozen is None or size == 0:
            return
        with self._backing.descriptors.borrow(ino) as fd:
            preserve_tail(frozen, fd, size)

    def _prepare(self, ino: Ino, empty: bool) -> None:
        state = self._state(ino)
        if isinstance(state.absent, AbsentFile):
            self._fetch(ino, state, empty)
        with self.content.latch:
            listed = self._intents.is_listed(ino)
        if not listed:
            with self._backing.health.watching(WRITE):
                self._intents.list_file(ino)
        with state.lock:  # waits for a change that is under way
            pass

    # -- in the background

    def hydrate(self, ino: Ino, max_chunks: int, chunks: Iterable[int] | None = None) -> bool:
        """Fetch up to `max_chunks` more chunks of a file, or just `chunks`; whether the file is whole now."""
        state = self._state(ino)
        if isinstance(state.absent, AbsentFile):
            self._fetch(ino, state)
        residency = self._materializer.partial.get(ino)
        if residency is None:
            self._backing.sync_name(ino)  # a process that was killed may have made the file and not synced its name
            self._materializer.arrived.append(ino)
            return True
        wanted = residency.absent_chunks(limit=max_chunks) if chunks is None else filter(residency.is_absent, chunks)
        self.fetch_chunks(ino, list(wanted), urgent=False)
        return self._completed(ino, residency)

    def hydrate_small(self, inos: Iterable[Ino], max_bytes: int) -> int:
        """Fetch the smaller ones of these files, up to `max_bytes` in all, with few flushes; how many are whole now.

        A file that is removed meanwhile is left out.
        """
        small: list[tuple[Ino, AbsentFile]] = []
        for ino in inos:
            absent = self._names.absent(ino)
            if absent is not None and absent.size <= WHOLE_BYTES and max_bytes > 0:
                small.append((ino, absent))
                max_bytes -= absent.size
        self._materializer.make_many(small)
        return sum(self._is_whole(ino) for ino, _ in small)

    def _is_whole(self, ino: Ino) -> bool:
        """Whether the file is whole; the backing file of an inode that was removed meanwhile is removed."""
        try:
            return self.hydrate(ino, 0)
        except OSError as error:
            if error.errno != errno.ESTALE:
                raise
            self._backing.remove(ino)
            return False

    def supply(self, ino: Ino, origin: bytes, pieces: list[tuple[int, bytes]]) -> None:
        """Put (chunk, content) pairs that are at hand into a large absent file; no effect where nothing is absent.

        `hydrate` fetches the other chunks and notices when the file is whole.
        """
        absent = self._names.absent(ino)
        if absent is None or absent.origin != origin or absent.size <= WHOLE_BYTES:
            return
        state = self._state(ino)
        if isinstance(state.absent, AbsentFile):
            self._fetch(ino, state)
        residency = self._materializer.partial.get(ino)
        if residency is not None and residency.origin == origin:
            with self._times_kept(ino, residency):
                self._materializer.supply(ino, residency, pieces)

    def fetch_chunks(self, ino: Ino, chunks: list[int], urgent: bool = True) -> None:
        """Fetch these chunks of a partly present file; `urgent` where an application waits."""
        residency = self._materializer.partial.get(ino)
        if residency is None or not chunks:
            return
        with self._times_kept(ino, residency):
            self._materializer.fetch_chunks(ino, residency, chunks, urgent)

    def _state(self, ino: Ino) -> FileState:
        return self.content.states.get(ino) or self.content.state(ino)

    def _fetch(self, ino: Ino, state: FileState, empty: bool = False) -> None:
        absent = state.absent
        if isinstance(absent, AbsentFile):
            self._materializer.fetch(ino, absent, empty)
        with self.content.latch:
            state.absent = self._materializer.partial.get(ino)

    @contextlib.contextmanager
    def _times_kept(self, ino: Ino, residency: Residency) -> Iterator[None]:
        """Restore the times of the file after chunks were put in, also after a crash (invariant 2)."""
        state = self.content.state(ino)
        with self._backing.changing(ino, True):
            residency.note_times((state.ctime_ns, state.mtime_ns))
            try:
                yield
            finally:
                self.content.put_back_times(state)
            residency.note_times(None)

    def _completed(self, ino: Ino, residency: Residency) -> bool:
        if not self._materializer.finish(ino, residency):
            return False
        self.content.arrived(ino, lambda: self._materializer.partial.pop(ino, None))
        self._materializer.remove(residency)
        self._materializer.arrived.append(ino)
        return True

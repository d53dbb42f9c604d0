"""The steps before the bytes of a file change: fetch, preserve, log the intent, mark dirty (see content.py)."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import AbstractContextManager

from snapfs.base.blocks import CHUNK_SIZE, Ino, chunk_count
from snapfs.live.backing.backing import Backing
from snapfs.live.content.datapath import PYTHON, DataPath
from snapfs.live.content.file_states import EpochFiles, FileState
from snapfs.live.content.file_times import FileTimes
from snapfs.live.content.known_files import FindAbsent, FindPartial
from snapfs.live.content.size_limit import SizeLimit
from snapfs.live.intents.dirty_map import growth
from snapfs.live.intents.intent_records import IntentKind, record
from snapfs.live.intents.intents import Intents
from snapfs.live.residency.residency import Residency


class ChangeSteps(FileTimes):
    """For the owner thread, but for what is marked "any thread". Errors are OSErrors with the errno of Linux."""

    def __init__(
        self,
        backing: Backing,
        intents: Intents,
        latch: threading.Lock,
        current: EpochFiles,
        *,
        find_absent: FindAbsent,
        find_partial: FindPartial = lambda ino: None,
        fetch_chunks: Callable[[Ino, list[int]], None] = lambda ino, chunks: None,
        prepare: Callable[[Ino], None],
        max_states: int,
        types: DataPath = PYTHON,
    ) -> None:
        super().__init__(
            backing, intents, latch, current,
            find_absent=find_absent, find_partial=find_partial, prepare=prepare, max_states=max_states, types=types,
        )  # fmt: skip
        self._fetch_chunks = fetch_chunks
        self.size_limit = SizeLimit()

    def marked(self, state: FileState) -> AbstractContextManager[None]:
        """What a change of the backing file runs in, with the state's lock held."""
        return self.backing.changing(state.ino, state.absent is not None)

    # -- what is absent

    def prepare(self, ino: Ino) -> None:
        """Let a file be listed, and present at least in part. Waits. Any thread."""
        self._prepare(ino)

    def fetch_chunks(self, ino: Ino, chunks: list[int]) -> None:
        """Fetch chunks of a partly present file. Waits. Any thread."""
        self._fetch_chunks(ino, chunks)

    def lacking(self, ino: Ino, offset: int, length: int) -> list[int]:
        """Chunks of a partly present file that must be fetched before these bytes change; beyond the end: it grows."""
        state = self.state(ino)
        if not isinstance(state.absent, Residency):
            return []
        needed = self.cut is not None and ino < self.cut.end_ino
        return state.absent.lacking(offset, length, state.size, even_whole=needed)

    def lacking_to_truncate(self, ino: Ino, size: int) -> list[int]:
        """The same for a truncate to `size`: the chunk it falls into, and those that the open cut needs."""
        state = self.state(ino)
        if not isinstance(state.absent, Residency):
            return []
        if size >= state.size:
            return state.absent.lacking(size, 0, state.size) if size > state.size else []
        frozen, tail = self.frozen_of(ino), size // CHUNK_SIZE if size % CHUNK_SIZE else -1
        return [
            chunk for chunk in state.absent.absent_chunks(size // CHUNK_SIZE)
            if chunk == tail or (frozen is not None and frozen.covers(chunk))
        ]  # fmt: skip

    def give_up(self, state: FileState, fd: int, offset: int, length: int) -> None:
        """Steps 2 to 4 for bytes that will change. With the state's lock held."""
        if state.frozen is not None:
            self._preserve(state, fd, offset, length)
        if offset + length > state.size:
            self.mark_growth(state, offset + length)
        if not state.dirty.has(offset, length):
            self._mark(state, offset, length)

    def _preserve(self, state: FileState, fd: int, offset: int, length: int) -> None:
        """Step 2."""
        assert state.frozen is not None
        if self.cut is None:
            state.frozen = None
        else:
            state.frozen.preserve(fd, offset, length)

    def _mark(self, state: FileState, offset: int, length: int) -> None:
        """Steps 3 and 4 for a range of bytes."""
        first, last = offset // 4096, (offset + length - 1) // 4096
        self.intents.append(record(IntentKind.BLOCKS, state.ino, first, last - first + 1))
        self.current.chunks += state.dirty.mark(offset, length)

    def mark_growth(self, state: FileState, new_size: int) -> None:
        """Steps 3 and 4 for what an extension makes dirty of itself."""
        floor, blocks = growth(state.dirty, state.size, new_size)
        records = []
        if floor < state.dirty.floor:
            records.append(record(IntentKind.FLOOR, state.ino, floor, 0))
        if blocks is not None:
            records.append(record(IntentKind.BLOCKS, state.ino, *blocks))
        if records:
            self.intents.append(*records)
        state.dirty.lower(floor)
        if blocks is not None:
            self.current.chunks += state.dirty.mark_blocks(*blocks)

    def _mark_shrink(self, state: FileState, size: int) -> None:
        """Steps 3 and 4 for what a truncate drops."""
        dirty = state.dirty
        floor, reach = min(size // CHUNK_SIZE, dirty.floor), max(chunk_count(state.size), dirty.reach)
        if not dirty.whole and (floor, reach) != (dirty.floor, dirty.reach):
            self.intents.append(record(IntentKind.FLOOR, state.ino, floor, reach))
            dirty.lower(floor, reach)

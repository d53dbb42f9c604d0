"""A cut: the instant that ends an epoch, and what the sealer sees of it.

Making one (`make`, from the owner thread of the live tree) takes three steps and no loop:

1. The next epoch's intent log gets its header. (A crash or failure after it: a log too many.)
2. `Namespace.cut`: the next epoch begins in the database, and a read transaction holds the names as they are.
3. `Content.freeze`: two references change hands. It cannot fail. This is the cut.

Invariants:
1. At most one cut is open at any time.
2. Until `finish`, `open_file` shows every file as it was at the cut, whatever is done to it meanwhile: its size, its
   times and each chunk that may differ from the last snapshot.
3. `finish(True)` comes after the snapshot is durable. Before anything is read for it, the names of the cut are durable:
   a snapshot must never be newer than the names a power cut leaves. For bytes the intents take care of that.
4. `finish(False)`, or a crash at any time, leaves every change of the cut to be part of the next.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from heapq import merge
from itertools import groupby

from snapfs.base.blocks import CHUNK_SIZE, FULL_MASK, ChunkIndex, Epoch, Ino, chunk_count
from snapfs.live.backing.backing_files import allocated_bytes, data_ranges
from snapfs.live.backing.descriptors import Descriptors
from snapfs.live.content.content import Content
from snapfs.live.content.file_states import CutFiles
from snapfs.live.content.preserve import Frozen
from snapfs.live.database.namespace_rows import AbsentFile
from snapfs.live.intents.dirty_map import DirtyMap, joined
from snapfs.live.namespace.frozen_namespace import FrozenNamespace
from snapfs.live.residency.residency import Residency

READERS = 32
"""Backing files the sealer's threads keep open, however many they have under way."""


class Cut:
    """For one sealer, in any threads; `names` as for FrozenNamespace."""

    def __init__(
        self,
        content: Content,
        names: FrozenNamespace,
        files: CutFiles,
        time_ns: int,
        sealed: Callable[[Epoch, int], None],
        copied: Callable[[int], None] = lambda size: None,
        max_readers: int = READERS,
    ) -> None:
        """`copied` is called at the end with the bytes that were preserved for this cut."""
        self.names, self.time_ns = names, time_ns
        self.epoch = names.epoch
        self._content, self._files, self._sealed, self._copied = content, files, sealed, copied
        self._finished = False
        self._readers = Descriptors(self._path_of, max_readers)
        self._opened: dict[int, Frozen] = {}

    def changed_files(self) -> list[Ino]:
        """Files whose bytes, size or times changed, ascending; new ones are those that `names` shows as changed."""
        return sorted(self._files.changed.files)

    def open_file(self, ino: Ino) -> FrozenFile | None:
        """A regular file as of the cut; None if there was none. To be closed. EIO if its bytes are lost."""
        inode = self.names.inode(ino)
        found = self._content.open_frozen(ino, self.names.absent) if inode is not None else None
        if inode is None or found is None:
            return None
        replaced = self._files.changed.replaced.get(ino)
        if not isinstance(found, AbsentFile):
            self._opened[ino] = found
        return FrozenFile(self, ino, found, inode.ctime_ns, replaced, self._content.residency_of(ino))

    def finish(self, sealed: bool, sealed_as: int = 0) -> None:
        """End the cut: it is in a durable snapshot, or it has failed. A second call does nothing.

        `sealed_as`: the store's number for that snapshot, larger for each later one.
        """
        if self._finished:
            return
        self._finished = True
        self.names.close()
        if sealed:
            self._sealed(self.epoch, sealed_as)
            self._content.end_cut()
        else:
            self._content.merge_back()
        self._readers.close()
        self._copied(allocated_bytes(self._files.scratch.path))
        self._files.scratch.close()

    # -- for its files, from any thread

    def _read(self, frozen: Frozen, chunk: ChunkIndex) -> bytes:
        while True:
            with self._readers.lend(frozen.ino) as opened:
                data = frozen.consume(opened.fd, opened.path, chunk)
            if data is not None:
                return data
            self._readers.drop(frozen.ino)

    def _data_ranges(self, frozen: Frozen, first: int, end: int) -> list[tuple[int, int]]:
        """(from, to) in chunks of what has data now."""
        while True:
            with self._readers.lend(frozen.ino) as opened:
                found = list(data_ranges(opened.fd, first * CHUNK_SIZE, end * CHUNK_SIZE))
                if frozen.is_at(opened.path):
                    return [(start // CHUNK_SIZE, chunk_count(stop)) for start, stop in found]
            self._readers.drop(frozen.ino)

    def _path_of(self, ino: int) -> str:
        return self._opened[ino].path

    def _close_file(self, frozen: Frozen) -> None:
        if frozen.readers == 1:
            self._readers.drop(frozen.ino)
        self._content.close_frozen(frozen)


class FrozenFile:
    """A file as of the cut. `read_chunk` from any thread, the rest from one at a time."""

    def __init__(
        self,
        cut: Cut,
        ino: Ino,
        found: Frozen | AbsentFile,
        ctime_ns: int,
        replaced: Ino | None,
        residency: Residency | None = None,
    ) -> None:
        self.ino, self.replaced = ino, replaced
        self._residency = residency
        self.origin = found.origin if isinstance(found, AbsentFile) else residency.origin if residency else None
        """Where the store has what is not here, in its own words; None if all of the file is here."""
        self.is_here = not isinstance(found, AbsentFile)
        self.size, self.mtime_ns = found.size, found.mtime_ns
        self.ctime_ns = max(found.ctime_ns, ctime_ns)
        self._cut = cut
        self._frozen = None if isinstance(found, AbsentFile) else found
        self._dirty = DirtyMap()
        if self._frozen is not None:
            self._dirty = joined(each for each in (self._frozen.dirty, self._frozen.inherited) if each is not None)
        self.whole = self._dirty.whole

    @property
    def dropped(self) -> range:
        """Chunks that a truncate may have made holes: what the last snapshot has there must be looked at.

        None if `whole`: then all that it has must be.
        """
        end = 0 if self.whole else chunk_count(self.size)
        return range(min(self._dirty.floor, end), min(max(self._dirty.floor, self._dirty.reach), end))

    def dirty_chunks(self, holes: bool = True) -> Iterator[tuple[ChunkIndex, int]]:
        """(chunk, mask of its dirty blocks) below the end of the file, ascending. If `whole`: all that have data.

        Without `holes`, of those that were `dropped` too only what has data: of a huge sparse file that is little.
        """
        end, floor = chunk_count(self.size), self._dirty.floor
        for chunk, mask in self._dirty.listed_chunks():
            if chunk >= end:
                return
            yield chunk, mask
        if floor >= end:
            return
        dropped = self.dropped if holes else range(0)
        for chunk in map(ChunkIndex, dropped):
            yield chunk, FULL_MASK
        for chunk in self._data_chunks(max(floor, dropped.stop), end):
            yield chunk, FULL_MASK

    def _data_chunks(self, first: int, end: int) -> Iterator[ChunkIndex]:
        """Chunks of [first, end) that had data at the cut, and maybe more.

        Data that was destroyed before the scan came by was kept before it was destroyed.
        """
        assert self._frozen is not None
        ranges = self._cut._data_ranges(self._frozen, first, end)
        kept = [chunk for chunk in self._frozen.kept_chunks(first) if chunk < end]
        scanned = (chunk for low, high in ranges for chunk in range(low, high))
        for chunk, _ in groupby(merge(scanned, kept)):
            yield ChunkIndex(chunk)

    def is_absent(self, chunk: int) -> bool:
        """Whether the bytes of `chunk` at the cut are those of the origin, and are still only there.

        What is absent now was absent at the cut. What has come meanwhile can be read.
        """
        return not self.is_here or (self._residency is not None and self._residency.is_absent(chunk))

    def read_chunk(self, chunk: ChunkIndex) -> bytes:
        """The bytes of `chunk` at the cut, clipped at the end of the file; once, as it may be overwritten afterwards.

        OSError if they cannot be read, or could not be kept.
        """
        assert self._frozen is not None, "an absent file has no dirty chunks"
        return self._cut._read(self._frozen, chunk)

    def close(self) -> None:
        """A second time does nothing."""
        frozen, self._frozen = self._frozen, None
        if frozen is not None:
            self._cut._close_file(frozen)

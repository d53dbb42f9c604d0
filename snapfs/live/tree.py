"""The live tree: the one place that knows the order of steps between names (SQLite) and bytes (backing files).

Invariants:
1. A file's bytes exist before its name can be seen: create makes the backing file, then the row. A crash between
   leaves a stray file, which recovery removes.
2. A file's bytes go after its row is gone for good: remove the row, sync the WAL, remove the file. A crash
   between leaves a stray file.
3. A file without links lives on while it is open or known to the kernel, and while the unsealed cut may need its bytes.
4. Whoever replaces a file without an fsync has the old or the new one after a power cut, as on ext4: a file that takes
   another one's name is made durable before names are (wal.py); one that was emptied, soon after it is closed.
5. `fsync` makes durable: bytes, then times, then the file's name on the host, then names and attributes. Its intent
   was durable before its bytes could be.
6. Changes come from the owner thread. From any thread may be called: `read` (without nowait), `prepare_write`,
   `prepare_truncate`, `fsync`, `fsyncdir`, `sync_soon`, and what `Cut` says.

Times of a regular file: mtime is the backing file's, ctime the later of the row's and the backing file's.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, NamedTuple

from snapfs.blocks import CHUNK_SIZE, Disk, Epoch, Ino
from snapfs.errors import BusyError
from snapfs.live import datapath, recovery
from snapfs.live.backing import FEW_FILES, Backing, allocated_bytes, stat_backing
from snapfs.live.content import Content
from snapfs.live.cut import Cut
from snapfs.live.datapath import DataPath, Need
from snapfs.live.hydration import WHOLE_BYTES, ContentSource, Hydrator
from snapfs.live.namespace import Namespace
from snapfs.live.presence import Presence
from snapfs.live.preserve import Scratch, preserve_tail
from snapfs.live.records import RENAME_EXCHANGE, AbsentFile, Inode, LoadedEntry
from snapfs.live.states import FileState

if TYPE_CHECKING:
    from snapfs.live._content import Core

MAX_STATES = 8192
"""Files whose size and times are kept in memory, beyond those that are dirty."""
ORPHANS_AT_ONCE = 256
MOST_EMPTIED = 512


def _content_of(types: DataPath) -> type[Content]:
    if types.core is None:
        return Content
    from snapfs.live.native import NativeContent

    return NativeContent


class Attr(NamedTuple):
    ino: Ino
    mode: int
    uid: int
    gid: int
    rdev: int
    nlink: int
    size: int
    blocks512: int
    atime_ns: int
    mtime_ns: int
    ctime_ns: int


class LiveTree:
    """Opens live/ at `live_dir`, recovering what the last life left; `recovered` has a line for each repair.

    `boot_id` tells a killed process from a power cut (/proc/sys/kernel/random/boot_id). `adopting`: under a living
    mount, whose open files and orphans are known to nobody but the kernel. The namespace is closed with the tree.
    """

    def __init__(
        self,
        live_dir: str,
        namespace: Namespace,
        disk: Disk,
        *,
        boot_id: str,
        max_open_files: int = 512,
        max_states: int = MAX_STATES,
        max_dirty_files: int = 100_000,
        max_dirty_chunks: int = 1_000_000,
        source: ContentSource | None = None,
        clock: Callable[[], int] = time.time_ns,
        adopting: bool = False,
        data_path: str = "",
    ) -> None:
        self.adopted = adopting
        self.live_dir, self.names, self._disk, self._clock = live_dir, namespace, disk, clock
        self.max_dirty_files, self.max_dirty_chunks = max_dirty_files, max_dirty_chunks
        latch = threading.Lock()
        self._types = types = datapath.choose(data_path)
        self._backing = Backing(live_dir, disk, max_open_files, types.descriptors)
        self._hydrator = Hydrator(self._backing, source, boot_id)
        self._hydrator.open(namespace.absent)
        self._intents, current, self.recovered = recovery.recover(
            live_dir, namespace, self._backing, disk, boot_id, latch, self._hydrator.partial, adopting, types
        )
        self._content = _content_of(types)(
            self._backing, self._intents, latch, current,
            find_absent=namespace.absent, find_partial=self._hydrator.partial.get, bring=self._bring,
            prepare=self.prepare_write, max_states=max_states, types=types,
        )  # fmt: skip
        self._opens = self._content.make_opens()
        if adopting:
            self._opens.are_unknown()
        self._content.watch_names(namespace.watch)
        namespace.settle_first(self._settle_heirs)
        self._emptied: set[Ino] = set()
        self._orphans: set[Ino] = set(namespace.orphans()) if adopting else set()
        self._forgotten: set[Ino] = set()
        self._condemned: deque[list[Ino]] = deque()
        self._sealed: tuple[Epoch, int] | None = None
        self.hydrated_files = self.copied_bytes = 0
        """Bytes that were copied aside for cuts that are finished."""
        self._retiring, self._reclaiming = threading.Lock(), threading.Lock()
        self._share_flushes = os.stat(self._backing.root).st_dev == os.stat(namespace.path).st_dev
        self.is_open = True

    # -- looking

    def lookup(self, parent: Ino, name: bytes) -> Attr:
        return self._attr(self.names.lookup(parent, name))

    def getattr(self, ino: Ino) -> Attr:
        return self._attr(self.names.inode(ino))

    def readlink(self, ino: Ino) -> bytes:
        inode = self.names.inode(ino)
        if not stat.S_ISLNK(inode.mode):
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        return inode.target

    def readdir(self, ino: Ino, after: int, limit: int) -> list[tuple[int, bytes, Attr]]:
        """Up to `limit` (cookie, name, attributes) with cookies above `after`."""
        return [(cookie, name, self._attr(inode)) for cookie, name, inode in self.names.readdir(ino, after, limit)]

    def parent_of(self, directory: Ino) -> Ino:
        self.names.must_be_loaded(directory)  # a listing that has begun is not begun again
        return self.names.parent_of(directory)

    def _attr(self, inode: Inode) -> Attr:
        ino, mode, uid, gid, rdev, nlink, atime_ns, mtime_ns, ctime_ns = inode[:9]
        if not stat.S_ISREG(mode):
            size = len(inode.target)
            return Attr(ino, mode, uid, gid, rdev, nlink, size, 0, atime_ns, mtime_ns, ctime_ns)
        size, mtime_ns, file_ctime_ns, blocks = self._file_attr(ino)
        return Attr(ino, mode, uid, gid, rdev, nlink, size, blocks, atime_ns, mtime_ns, max(ctime_ns, file_ctime_ns))

    def _file_attr(self, ino: Ino) -> tuple[int, int, int, int]:
        """Size, times and blocks of a regular file; a look alone loads no state. A lost file shows as empty."""
        known = self._content.attributes(ino)
        if known is not None:
            return known
        state = self._content.states.get(ino)
        try:
            size, mtime_ns, ctime_ns, blocks = stat_backing(self._backing.path(ino))
        except FileNotFoundError:
            absent = self.names.absent(ino)
            return (absent.size, absent.mtime_ns, absent.ctime_ns, -(-absent.size // 512)) if absent else (0, 0, 0, 0)
        if state is None:
            return size, mtime_ns, ctime_ns, blocks
        return state.size, state.mtime_ns, state.ctime_ns, blocks

    # -- names

    def mknod(
        self, parent: Ino, name: bytes, mode: int, rdev: int, uid: int, gid: int,
        xattrs: Sequence[tuple[bytes, bytes]] = (),
    ) -> Attr:  # fmt: skip
        """Make a file, directory, fifo, socket or device, as `mode` says; its extended attributes are there with it."""
        if not stat.S_ISREG(mode):
            return self._attr(self.names.create(parent, name, mode, uid, gid, rdev, xattrs=xattrs))
        ino = self.names.allocate_ino()
        self._content.create(ino, self._clock())
        try:
            inode = self.names.create(parent, name, mode, uid, gid, ino=ino, xattrs=xattrs)
        except BaseException:
            self._content.forget(ino)
            self._backing.remove(ino)
            raise
        return self._attr(inode)

    def symlink(self, parent: Ino, name: bytes, target: bytes, uid: int, gid: int) -> Attr:
        return self._attr(self.names.create(parent, name, stat.S_IFLNK | 0o777, uid, gid, target=target))

    def link(self, ino: Ino, parent: Ino, name: bytes) -> Attr:
        return self._attr(self.names.link(ino, parent, name))

    def unlink(self, parent: Ino, name: bytes) -> None:
        self._after_loss(self.names.unlink(parent, name))

    def rmdir(self, parent: Ino, name: bytes) -> None:
        self._after_loss(self.names.rmdir(parent, name))

    def rename(self, parent: Ino, name: bytes, new_parent: Ino, new_name: bytes, flags: int = 0) -> None:
        replaced = self.names.rename(parent, name, new_parent, new_name, flags)
        if replaced is None or flags & RENAME_EXCHANGE or replaced.nlink:
            return
        if stat.S_ISREG(replaced.mode):
            moved = self.names.lookup(new_parent, new_name)
            self._content.replaced_by(moved.ino, replaced.ino)
        self._after_loss(replaced)

    def _after_loss(self, inode: Inode) -> None:
        if not inode.nlink:
            self._orphans.add(inode.ino)

    # -- attributes

    def setattr(
        self,
        ino: Ino,
        *,
        mode: int | None = None,
        uid: int | None = None,
        gid: int | None = None,
        size: int | None = None,
        atime_ns: int | None = None,
        mtime_ns: int | None = None,
        ctime_ns: int | None = None,
    ) -> Attr:
        """Set what is given. Of a regular file, size and times wait for the disk unless `ready_to_write`."""
        inode = self.names.inode(ino)
        if stat.S_ISREG(inode.mode):
            now_ns = self._clock()
            if size is not None:
                self._content.truncate(ino, size)
                if not size:
                    self._note_emptied(ino)
                mtime_ns = now_ns if mtime_ns is None else mtime_ns
            if mtime_ns is not None or ctime_ns is not None:
                self._content.set_times(ino, mtime_ns, now_ns if ctime_ns is None else ctime_ns)
                mtime_ns = None
        elif size is not None:
            raise OSError(*((errno.EISDIR, "is a directory") if inode.is_directory else (errno.EINVAL, "not a file")))
        row = {"mode": mode, "uid": uid, "gid": gid, "atime_ns": atime_ns, "mtime_ns": mtime_ns}
        if any(value is not None for value in row.values()) or (ctime_ns is not None and not stat.S_ISREG(inode.mode)):
            inode = self.names.setattr(ino, **row, ctime_ns=ctime_ns)
        return self._attr(inode)

    def _note_emptied(self, ino: Ino) -> None:
        """What is written into it now counts from when it is closed (invariant 4)."""
        if len(self._emptied) >= MOST_EMPTIED:
            self.names.lean_on(self._emptied)
            self._emptied.clear()
        self._emptied.add(ino)

    def _note_refilled(self) -> None:
        for ino in [ino for ino in self._emptied if not self._opens.is_written(ino) and self._file_attr(ino)[0]]:
            self._emptied.discard(ino)
            self.names.lean_on([ino])

    def getxattr(self, ino: Ino, name: bytes) -> bytes:
        return self.names.getxattr(ino, name)

    def setxattr(self, ino: Ino, name: bytes, value: bytes, flags: int = 0) -> None:
        self.names.setxattr(ino, name, value, flags)

    def listxattr(self, ino: Ino) -> list[bytes]:
        return self.names.listxattr(ino)

    def removexattr(self, ino: Ino, name: bytes) -> None:
        self.names.removexattr(ino, name)

    # -- bytes

    def open(self, ino: Ino, writing: bool) -> None:
        """EIO if the bytes of the file are lost."""
        self._content.state(ino)
        self._opens.opened(ino, writing)

    def release(self, ino: Ino, writing: bool) -> None:
        if self._opens.released(ino, writing):
            state = self._content.states.get(ino)
            if state is not None and (state.times_pending or state.wrote):
                self._content.apply_times(state)

    def forget(self, ino: Ino) -> None:
        """The kernel does not know this inode any more."""
        if ino in self._orphans:
            self._forgotten.add(ino)

    def open_for_writing(self) -> list[Ino]:
        return self._opens.writers()

    def open_files(self) -> list[Ino]:
        return self._opens.files()

    def read(self, ino: Ino, offset: int, size: int, nowait: bool = False) -> bytes | None:
        """Bytes, fewer only at the end. With `nowait` None if that would wait: then ask again from another thread."""
        if nowait:
            return self._content.read_cached(ino, offset, size)
        state = self._content.states.get(ino) or self._content.state(ino)
        absent = state.absent
        if absent is not None:
            return self._hydrator.read(ino, absent, offset, size, state.size)
        return self._content.read(ino, offset, size)

    def ready_to_write(self, ino: Ino, offset: int = 0, length: int = 0) -> bool:
        """Whether `write` of these bytes, and `setattr` of the times, need not wait for the disk or the store."""
        if not self._content.is_ready(ino):
            return False
        return ino not in self._hydrator.partial or not self._content.lacking(ino, offset, length)

    def ready_to_truncate(self, ino: Ino, size: int) -> bool:
        """Whether `setattr` of the size need not wait, either, since no cut needs what lies beyond `size`."""
        if not self._content.is_ready(ino):
            return False
        quick = size == 0 or self._content.frozen_of(ino) is None
        return quick and self.has_to_truncate(ino, size)

    def has_to_truncate(self, ino: Ino, size: int) -> bool:
        """Whether all bytes are here that a truncate to `size` needs."""
        return not self._content.lacking_to_truncate(ino, size)

    def prepare_write(self, ino: Ino, offset: int = 0, length: int = 0) -> None:
        """Make `ready_to_write` true (if a cut comes meanwhile: again). Waits."""
        self._prepare(ino, empty=False)
        self._bring(ino, self._content.lacking(ino, offset, length))

    def prepare_truncate(self, ino: Ino, size: int) -> None:
        """As `prepare_write`, and keep aside what a truncate to `size` would have to. Waits."""
        self._prepare(ino, empty=size == 0)
        self._bring(ino, self._content.lacking_to_truncate(ino, size))
        frozen = self._content.frozen_of(ino)
        if frozen is None or size == 0:
            return
        with self._backing.descriptors.borrow(ino) as fd:
            preserve_tail(frozen, fd, size)

    def _prepare(self, ino: Ino, empty: bool) -> None:
        state = self._content.states.get(ino) or self._content.state(ino)
        if isinstance(state.absent, AbsentFile):
            self._fetch(ino, state, empty)
        with self._content.latch:
            listed = self._intents.is_listed(ino)
        if not listed:
            self._intents.list_file(ino)
        with state.lock:  # a change that is under way
            pass

    # -- directories whose names are still only in the store

    def fetch_names(self, listing: bytes, wanted: bool = False) -> list[LoadedEntry]:
        """What `load` takes; `wanted` by an application. Waits. OSError, CorruptionError. Any thread."""
        return self._hydrator.names(listing, wanted)

    def load(self, directory: Ino, entries: list[LoadedEntry]) -> None:
        """Take over all names of the directory, in one transaction; nothing counts as changed."""
        self.names.load(directory, entries, last=True)

    # -- absent files

    def hydrate(self, ino: Ino, max_chunks: int, chunks: Iterable[int] | None = None) -> bool:
        """Bring up to `max_chunks` more chunks of a file in, or just `chunks`; whether all of it is here now. Waits.

        Any thread. ESTALE if there is no such file any more; OSError, CorruptionError of the store.
        """
        state = self._content.states.get(ino) or self._content.state(ino)
        if isinstance(state.absent, AbsentFile):
            self._fetch(ino, state)
        presence = self._hydrator.partial.get(ino)
        if presence is None:
            self._backing.sync_name(ino)  # whoever made it may not have come so far: a life that was killed, too
            self._hydrator.arrived.append(ino)
            return True
        wanted = presence.absent_chunks(limit=max_chunks) if chunks is None else filter(presence.is_absent, chunks)
        self._bring(ino, list(wanted), urgent=False)
        return self._completed(ino, presence)

    def hydrate_small(self, inos: Iterable[Ino], max_bytes: int) -> int:
        """Bring the smaller ones of these files in, up to so many bytes, with few flushes; how many are whole now.

        As for `hydrate`. One that is removed meanwhile is left out.
        """
        small: list[tuple[Ino, AbsentFile]] = []
        for ino in inos:
            absent = self.names.absent(ino)
            if absent is not None and absent.size <= WHOLE_BYTES and max_bytes > 0:
                small.append((ino, absent))
                max_bytes -= absent.size
        self._hydrator.make_many(small)
        whole = 0
        for ino, _ in small:
            try:
                whole += self.hydrate(ino, 0)
            except OSError as error:
                if error.errno != errno.ESTALE:
                    raise
                self._backing.remove(ino)
        return whole

    def supply(self, ino: Ino, origin: bytes, pieces: list[tuple[int, bytes]]) -> None:
        """Put chunks of a large absent file in, whose contents are at hand; in vain where it is not absent any more.

        As for `hydrate`, which brings the others, and sees when all is here.
        """
        absent = self.names.absent(ino)
        if absent is None or absent.origin != origin or absent.size <= WHOLE_BYTES:
            return
        state = self._content.states.get(ino) or self._content.state(ino)
        if isinstance(state.absent, AbsentFile):
            self._fetch(ino, state)
        presence = self._hydrator.partial.get(ino)
        if presence is not None and presence.origin == origin:
            with self._times_kept(ino, presence):
                self._hydrator.supply(ino, presence, pieces)

    def _fetch(self, ino: Ino, state: FileState, empty: bool = False) -> None:
        absent = state.absent
        if isinstance(absent, AbsentFile):
            self._hydrator.fetch(ino, absent, empty)
        with self._content.latch:
            state.absent = self._hydrator.partial.get(ino)

    def _bring(self, ino: Ino, chunks: list[int], urgent: bool = True) -> None:
        presence = self._hydrator.partial.get(ino)
        if presence is None or not chunks:
            return
        with self._times_kept(ino, presence):
            self._hydrator.bring(ino, presence, chunks, urgent)

    @contextlib.contextmanager
    def _times_kept(self, ino: Ino, presence: Presence) -> Iterator[None]:
        """The file has the times that it had, whatever was put in, and whenever this is cut off."""
        state = self._content.state(ino)
        presence.note_times((state.ctime_ns, state.mtime_ns))
        try:
            yield
        finally:
            self._content.put_back_times(state)
        presence.note_times(None)

    def _completed(self, ino: Ino, presence: Presence) -> bool:
        if not self._hydrator.finish(ino, presence):
            return False
        self._content.arrived(ino, lambda: self._hydrator.partial.pop(ino, None))
        self._hydrator.remove(presence)
        self._hydrator.arrived.append(ino)
        return True

    @property
    def partly_present(self) -> list[Ino]:
        """Files that have begun to change, or to come in, and are not whole."""
        return list(self._hydrator.partial)

    @property
    def hydrated_bytes(self) -> int:
        """What was brought in in this life."""
        return self._hydrator.written_bytes

    def write(self, ino: Ino, offset: int, data: bytes) -> int:
        """Returns the bytes written, fewer only where the disk filled up; see content.py."""
        return self._content.write(ino, offset, data)

    def fallocate(self, ino: Ino, mode: int, offset: int, length: int) -> None:
        """As fallocate(2), but for what closes or opens gaps (EOPNOTSUPP). Waits. Any thread, as the next two."""
        self._content.fallocate(ino, mode, offset, length)

    def copy_range(self, source: Ino, source_offset: int, ino: Ino, offset: int, length: int) -> int:
        """Copy bytes within the host. Returns how many: fewer where that is as far as it goes at once, 0 at the end."""
        return self._content.copy_range(source, source_offset, ino, offset, length)

    def lseek(self, ino: Ino, offset: int, whence: int) -> int:
        """The next data (os.SEEK_DATA) or hole (os.SEEK_HOLE) from `offset` on; ENXIO beyond the end."""
        return self._content.seek(ino, offset, whence)

    # -- the native data path

    @property
    def data_path(self) -> str:
        """"native" or "python"."""
        return self._types.name

    @property
    def native(self) -> Core | None:
        """What C callers use (native/content_api.h); None on the Python path."""
        return self._content.core

    def prepare(self, ino: Ino, need: int) -> None:
        """Do what a native call asked for before it is tried again (content_api.h). Waits. Any thread."""
        if need == Need.LOAD:
            self._content.state(ino)
        elif need == Need.BEGIN:
            self._content.begin_anywhere(ino)
        else:
            raise OSError(errno.ENOTCONN, "the live tree is closed")

    # -- durability

    def fsync(self, ino: Ino, datasync: bool = False) -> None:
        state = self._content.states.get(ino) or self._content.state(ino)
        if not isinstance(state.absent, AbsentFile):
            written = self.names.write_out() if self._share_flushes and self.names.needs_sync(ino) else 0
            self._hydrator.settle({ino}, lambda: self._content.sync(ino, datasync))
            self.names.flushed(written)
        if self.names.needs_sync(ino):
            self.names.sync()

    def fsyncdir(self, ino: Ino) -> None:
        if self.names.needs_sync(ino):
            self.names.sync()

    def tidy(self) -> None:
        """The short part of housekeeping, for the owner thread: about every second, before `sync_soon`."""
        self._note_sealed()
        self._note_refilled()
        self._condemn()
        while self._hydrator.arrived:
            self.names.clear_absent(self._hydrator.arrived.popleft())
            self.hydrated_files += 1
        self._content.evict_surplus()

    def sync_soon(self) -> None:
        """The long part, for another thread: bounds what a power cut takes back, and gives space back."""
        self._settle_heirs()
        for state in self._content.pending_times():
            self._content.apply_times(state)
        self._reclaim()
        self._retire_intents()
        self.names.checkpoint()

    def _settle_heirs(self) -> None:
        """What fails is told to who asks for the bytes of that file."""
        heirs = self.names.take_heirs()
        for some in [{ino} for ino in heirs] if len(heirs) <= FEW_FILES else [heirs]:
            with contextlib.suppress(OSError):
                self._settle(some, Ino(0), Ino(0))

    def _reclaim(self) -> None:
        """Remove the files whose rows were removed before the call."""
        with self._reclaiming:
            batches = [self._condemned.popleft() for _ in range(len(self._condemned))]
            self.names.sync()
            for batch in batches:
                for ino in batch:
                    self._backing.remove(ino)
                    self._hydrator.drop(ino)

    def _note_sealed(self) -> None:
        sealed, self._sealed = self._sealed, None
        if sealed is not None:
            self.names.mark_sealed(*sealed)

    def _condemn(self) -> None:
        """Remove the rows of files that nobody can reach any more; their bytes follow in `sync_soon`."""
        cut = self._content.cut
        ready = [
            ino for ino in self._forgotten
            if not self._opens.is_open(ino) and (cut is None or ino >= cut.end_ino)
        ][:ORPHANS_AT_ONCE]  # fmt: skip
        if not ready:
            return
        self.names.remove_orphans(ready)
        for ino in ready:
            self._content.forget(ino)
        self._forgotten.difference_update(ready)
        self._orphans.difference_update(ready)
        self._emptied.difference_update(ready)
        self._condemned.append(ready)

    def _retire_intents(self) -> None:
        with self._retiring:
            self._intents.make_spare()
            old = self._intents.retirable()
            if old:
                self._intents.retire(old, self._is_hot, self._content.dirty_inos, self._settle)

    def _settle(self, inos: set[Ino], new_from: Ino, upto: Ino) -> None:
        self._hydrator.settle(inos, lambda: self._backing.settle(inos, new_from, upto))

    def _is_hot(self, ino: Ino) -> bool:
        return self._opens.is_written(ino)

    # -- bytes replaced from outside

    @property
    def staging(self) -> str:
        """Where files wait to take the place of a file's bytes, each called by its inode number in hex."""
        return self._backing.staging

    def borrow_backing(self, ino: Ino) -> AbstractContextManager[int]:
        """A descriptor of the file's bytes, to be read while nothing changes. OSError; ENODATA if not all are here."""
        if ino in self._hydrator.partial:
            raise OSError(errno.ENODATA, "the file is not all here")
        return self._backing.descriptors.borrow(ino)

    def distrust(self, inos: list[Ino]) -> None:
        """Compare these files in full for the next snapshot. Waits for the disk."""
        self._content.distrust(inos)

    def distrust_all(self) -> None:
        """Let the next snapshot have everything, as if there were none before. Waits for the disk."""
        if self.names.is_lazy:
            raise BusyError("directories are still being loaded from where the volume came from: try again later")
        here = self._hydrator.partial
        self.distrust([ino for ino in self.names.touch_all() if ino in here or self.names.absent(ino) is None])

    def swap_staged(self) -> None:
        """Put ``staging/<inode in hex>`` (complete and durable) in place for each pending swap of the namespace.

        After the bulk transaction that listed them and left inodes that are gone without links. The replaced files
        count as changed whole. Waits for the disk. BusyError while a cut is unsealed; what a crash leaves undone is
        done when the tree is opened.
        """
        if self._content.cut is not None:
            raise BusyError("a snapshot is being made")
        self._reclaim()  # a file that comes back must not be removed afterwards
        pending = self.names.pending_swaps()
        self._content.distrust([ino for ino in pending if os.path.exists(self._backing.path(ino))])
        for ino in pending:
            if self.names.absent(ino) is None:  # else it was for the times alone
                self._hydrator.drop(ino)
        recovery.swap(self.names, self._backing, pending)
        self._content.reload(pending)
        self._orphans = set(self.names.orphans())
        self._forgotten = self._orphans.copy()  # the kernel is told to forget; what is open stays

    # -- cuts

    def cut(self) -> Cut:
        """End the epoch. BusyError while another cut is unsealed; OSError if the disk fails: then nothing happened."""
        if self._content.cut is not None:
            raise BusyError("a snapshot is being made already")
        self._note_sealed()
        log = self._intents.new_log(Epoch(self.names.epoch + 1), self.names.allocate_ino())
        try:
            frozen_names = self.names.cut(self.names.epoch)
        except BaseException:
            self._intents.discard(log)
            raise
        time_ns = self._clock()
        folder = os.path.join(self.live_dir, "preserve")
        scratch = Scratch(folder, frozen_names.epoch, self._disk, self._types.slot_file)
        files = self._content.freeze(self.names.epoch, log, scratch)
        return Cut(self._content, frozen_names, files, time_ns, self._seal_done, self._note_copied)

    def _note_copied(self, size: int) -> None:
        self.copied_bytes += size

    def _seal_done(self, epoch: Epoch, sealed_as: int) -> None:
        self._intents.mark_sealed(epoch)
        self._sealed = epoch, sealed_as

    @property
    def dirty_files(self) -> int:
        """Files that have changed since the last cut, new ones included."""
        return len(self._content.current.files) + self.names.new_files(self._content.current.new_from)

    @property
    def dirty_bytes(self) -> int:
        """Roughly, an upper bound: what changed of files that are not new."""
        return self._content.dirty_chunks() * CHUNK_SIZE

    def has_changes(self) -> bool:
        """Whether a snapshot made now would differ from the last one."""
        self._note_sealed()
        return bool(self._content.current.files) or self.names.has_changes()

    def pressure(self) -> bool:
        """Whether memory for what is dirty runs out, so that a cut should be made soon."""
        changed = len(self._content.current.files)  # new ones take no memory
        return changed > self.max_dirty_files or self._content.dirty_chunks() > self.max_dirty_chunks

    @property
    def preserved_bytes(self) -> int:
        """What is kept aside on the disk for the cut that is being sealed."""
        with os.scandir(os.path.join(self.live_dir, "preserve")) as kept:
            return sum(allocated_bytes(entry.path) for entry in kept)

    @property
    def open_backing_files(self) -> int:
        """Descriptors of backing files that are held open."""
        return len(self._backing.descriptors)

    def statfs(self) -> os.statvfs_result:
        """Of the host filesystem that holds the bytes."""
        return os.statvfs(self.live_dir)

    # -- ends

    def hand_over(self) -> None:
        """Bring to the files what only memory holds of answered requests, for a process that takes over. Waits."""
        for state in self._content.pending_times():
            self._content.apply_times(state)

    def check_invariants(self) -> None:
        self._content.check_invariants()
        self._intents.check_invariants()
        self._hydrator.check_invariants()
        assert self._forgotten <= self._orphans

    def close(self, clean: bool = True) -> None:
        """Let go of everything; `clean` makes it all durable first, and says so in the intent log."""
        self._content.close()
        if clean:
            self.tidy()
            for state in self._content.pending_times():
                self._content.apply_times(state)
            self._reclaim()
            recovery.remove_orphans(self.names, self._backing, self.names.orphans())
            if self.adopted:
                recovery.clean_up(self.names, self._backing)
            self._hydrator.settle(set(self._hydrator.partial), lambda: self._backing.sync_all("close:settle"))
        self.is_open = False
        if self._content.cut is not None:  # its changes are in the intent logs
            self._content.cut.scratch.close()
        self._intents.close(clean)
        self._backing.close()
        self.names.close()

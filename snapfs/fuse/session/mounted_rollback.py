"""Rollback of a mounted volume: the steps of transfer/restore/rollback.py between the requests of the kernel.

The heavy part, keeping the present and staging the target, is done while the application goes on. If nothing has
changed by then, as it is when the application was stopped, the switch follows at once. Otherwise both are done again,
with less to keep; the last time no request is taken until the switch.

Invariants:
1. Between the check that nothing changed and the switch no other task runs: the switch is a plain call, and the router
   answers nothing meanwhile.
2. The kernel's dirty pages are flushed before the check; what an application writes during the switch counts as
   written after it.
3. The new generation is durable before the switch. After the switch the kernel is notified of all that is no longer so.
4. While requests are held nothing is done that needs one answered.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Awaitable, Callable, Iterator, Mapping
from typing import Any

import trio

from snapfs.base.blocks import Disk, Generation, Ino
from snapfs.base.errors import BusyError
from snapfs.fuse.handlers.no_suid_files import NoSuidFiles
from snapfs.fuse.kernel.notices import Kernel, about_entry, about_inode
from snapfs.fuse.kernel.openers import writers_of
from snapfs.fuse.kernel.request_reader import RequestReader
from snapfs.fuse.kernel.writeback import Unsettled
from snapfs.live.namespace.namespace import Namespace
from snapfs.live.tree import LiveTree
from snapfs.store.repository.repository import Repository, SnapshotRecord
from snapfs.transfer.restore.rollback import DIRECTORIES_AT_ONCE, Rollback
from snapfs.transfer.seal.snapshotter import Snapshotter

log = logging.getLogger(__name__)

_ATTEMPTS = 3
_TRIGGER = "rollback"


class MountedRollback:
    """Rolls the volume of this daemon back. The caller holds the snapshotter's lock."""

    def __init__(
        self,
        tree: LiveTree,
        repository: Repository,
        snapshotter: Snapshotter,
        reader: RequestReader,
        unsettled: Unsettled,
        no_suid_files: NoSuidFiles,
        disk: Disk,
        *,
        mountpoint: str,
        kernel: Kernel,
        unique: Callable[[], int],
        flush: Callable[[], Awaitable[None]],
        bump_generation: Callable[[], Generation],
        threads: int,
        source: Repository | None = None,
    ) -> None:
        """`source`: the store of the fork of which the target is a snapshot."""
        self._tree, self._source = tree, source
        self._repository = repository
        self._snapshotter = snapshotter
        self._reader, self._unsettled, self._no_suid_files = reader, unsettled, no_suid_files
        self._disk = disk
        self._unique, self._flush = unique, flush
        self._bump_generation = bump_generation
        self._threads = threads
        self._mountpoint = mountpoint
        self._kernel = kernel
        self._begun = False

    async def run(
        self, target: SnapshotRecord, *, force: bool, progress: Callable[[int, int], None]
    ) -> Mapping[str, Any]:
        """Roll back to `target`; what was done. Errors as `transfer.rollback.roll_back`."""
        await self._check_writers(force)
        await self._load_names()
        for _ in range(_ATTEMPTS):
            rollback = await self._try(target, progress, held=False)
            if rollback is not None:
                return await self._finish(rollback, target)
        async with self._reader.alone():
            self._reader.hold()
            try:
                rollback = await self._try(target, progress, held=True)
            finally:
                self._reader.resume()
        if rollback is None:
            raise BusyError("the application keeps changing files: stop it first")
        return await self._finish(rollback, target)

    async def _load_names(self) -> None:
        """Load those that are only in the store, as of a fork. OSError where the source does not deliver them."""
        while found := self._tree.names.unloaded(DIRECTORIES_AT_ONCE):
            for directory, listing in found:
                self._tree.load(directory, await trio.to_thread.run_sync(self._tree.fetch_names, listing))

    async def _check_writers(self, force: bool) -> None:
        count = len(self._tree.open_for_writing())
        if self._tree.adopted and not count and not force:
            unknown = await trio.to_thread.run_sync(writers_of, self._mountpoint)
            if unknown:
                raise BusyError(
                    f"{unknown} files may be open for writing, as far as /proc shows (this daemon took the mount "
                    "over from another): stop the application first, or force it"
                )
        if count and not force:
            raise BusyError(f"{count} files are open for writing: stop the application first, or force it")

    async def _try(
        self, target: SnapshotRecord, progress: Callable[[int, int], None], *, held: bool
    ) -> Rollback | None:
        """Keep, stage and switch; None if something changed meanwhile, and nothing else happened."""
        if held:
            await self._unsettled.settle()
        present = await self._snapshotter.snapshot_in_turn(None, _TRIGGER, flush=not held)
        rollback = Rollback(self._tree, self._repository, present, target, self._disk, source=self._source)
        try:
            await trio.to_thread.run_sync(rollback.stage, self._threads, progress)
            await self._begin_generation()
            if not held:
                await self._flush()
            async with self._reader.alone():
                return rollback if self._turn(rollback) else None
        finally:
            rollback.close()

    def _turn(self, rollback: Rollback) -> bool:
        """Whether nothing had changed, and the live tree is the target's now."""
        self._tree.tidy()
        if self._tree.has_changes():
            return False
        if self._unique():
            self._tree.names.reply_cache.mark_kernel_stale()
        rollback.turn()
        self._no_suid_files.clear()
        return True

    async def _begin_generation(self) -> None:
        if not self._begun:
            self._snapshotter.begin_generation(await trio.to_thread.run_sync(self._bump_generation))
            self._begun = True

    async def _finish(self, rollback: Rollback, target: SnapshotRecord) -> Mapping[str, Any]:
        log.warning("rolled back to snapshot %d; generation %d begins", target.number, self._snapshotter.generation)
        changed = await trio.to_thread.run_sync(forget, self._kernel, rollback, self._tree.names)
        await self._correct_open_files(changed)
        self._snapshotter.build_on(rollback.base)
        now = await self._snapshotter.snapshot_in_turn(None, _TRIGGER, flush=False)
        report = rollback.report(now)
        return {name: getattr(report, name) for name in report.__slots__}

    async def _correct_open_files(self, changed: list[tuple[Ino, Ino, bytes]]) -> None:
        """Give the kernel the size and mtime of files that are open, in the one way it takes them: by setting them."""
        still_open = set(self._tree.open_files())
        for ino, directory, name in changed:
            if ino in still_open or self._tree.adopted:  # then it is not known what is open
                attr = self._tree.getattr(ino)
                path = os.path.join(os.fsencode(self._mountpoint), self._tree.names.path_of(directory), name)
                await trio.to_thread.run_sync(_correct, path, attr.size, (attr.atime_ns, attr.mtime_ns))


def forget(kernel: Kernel, rollback: Rollback, names: Namespace) -> list[tuple[Ino, Ino, bytes]]:
    """Let the kernel forget what is no longer so; (inode, directory, name) of each changed file. In another thread.

    With the writeback cache the kernel trusts only itself about the size and mtime of a regular file for as long as it
    knows the inode. So it has to forget every name of the file, with which the inode goes unless it is open.
    """
    kernel.forget(_no_longer_so(rollback))
    return forget_files(kernel, set(rollback.invalid_files()), names)


def _no_longer_so(rollback: Rollback) -> Iterator[bytes]:
    for ino, entries in rollback.invalid():
        for name in entries:
            yield about_entry(ino, name)
        yield about_inode(ino)


def forget_files(kernel: Kernel, files: set[Ino], names: Namespace) -> list[tuple[Ino, Ino, bytes]]:
    """Let the kernel forget every name of these files; (inode, directory, name) of each. In another thread than trio's.

    Reads all names once. A file that is open stays known until it is closed. OSError: the mount is gone.
    """
    named = names.names_of(files)
    kernel.forget(about_entry(directory, name) for _, directory, name in named)
    return named


def _correct(path: bytes, size: int, times_ns: tuple[int, int]) -> None:
    with contextlib.suppress(OSError):  # changed once more, or not a regular file
        os.truncate(path, size)
        os.utime(path, ns=times_ns, follow_symlinks=False)

"""Rollback of a mounted volume: the steps of transfer/rollback.py between the requests of the kernel.

The heavy part, keeping the present and staging the target, is done while the application goes on. If nothing has
changed by then, as it is when the application was stopped, the turn follows at once. Otherwise both are done again,
with less to keep; the last time no request is taken until the turn.

Invariants:
1. Between the look that finds nothing changed and the turn nothing else runs: the turn is a plain call, and the router
   answers nothing meanwhile.
2. The kernel's dirty pages are flushed before the look; what an application writes during the turn counts as written
   after it.
3. The new generation is durable before the turn. After the turn the kernel is told to forget what is no longer so.
4. While requests are held nothing is done that needs one answered.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Callable, Mapping
from typing import Any

import trio

from snapfs.blocks import Disk, Generation, Ino
from snapfs.errors import BusyError
from snapfs.fuse import notices
from snapfs.fuse.openers import writers_of
from snapfs.fuse.operations import Operations
from snapfs.live.namespace import Namespace
from snapfs.live.tree import LiveTree
from snapfs.store.repository import Repository, SnapshotRecord
from snapfs.transfer.rollback import Rollback
from snapfs.transfer.snapshotter import Snapshotter

log = logging.getLogger(__name__)

_ATTEMPTS = 3
_TRIGGER = "rollback"


class MountedRollback:
    """Rolls the volume of this daemon back. The caller holds the snapshotter's turn."""

    def __init__(
        self,
        tree: LiveTree,
        repository: Repository,
        snapshotter: Snapshotter,
        operations: Operations,
        disk: Disk,
        *,
        mountpoint: str,
        device: int,
        bump_generation: Callable[[], Generation],
        threads: int,
    ) -> None:
        self._tree = tree
        self._repository = repository
        self._snapshotter = snapshotter
        self._operations = operations
        self._disk = disk
        self._bump_generation = bump_generation
        self._threads = threads
        self._mountpoint = mountpoint
        self._device = device
        self._begun = False

    async def run(
        self, target: SnapshotRecord, *, force: bool, flush: Callable[[], Any], progress: Callable[[int, int], None]
    ) -> Mapping[str, Any]:
        """Roll back to `target`; what was done. Errors as `transfer.rollback.roll_back`."""
        await self._check_writers(force)
        self._flush, self._progress = flush, progress
        for _ in range(_ATTEMPTS):
            rollback = await self._try(target, held=False)
            if rollback is not None:
                return await self._finish(rollback, target)
        reader = self._operations.reader
        async with reader.alone():
            reader.hold()
            try:
                rollback = await self._try(target, held=True)
            finally:
                reader.resume()
        if rollback is None:
            raise BusyError("the application keeps changing files: stop it first")
        return await self._finish(rollback, target)

    async def _check_writers(self, force: bool) -> None:
        count = len(self._tree.open_for_writing())
        if self._tree.adopted and not count and not force:
            unknown = await trio.to_thread.run_sync(writers_of, self._mountpoint)
            if unknown:
                raise BusyError(
                    f"{unknown} files may be open for writing, for all that /proc tells (this daemon took the mount "
                    "over from another): stop the application first, or force it"
                )
        if count and not force:
            raise BusyError(f"{count} files are open for writing: stop the application first, or force it")

    async def _try(self, target: SnapshotRecord, *, held: bool) -> Rollback | None:
        """Keep, stage and turn; None if something changed meanwhile, and nothing else happened."""
        if held:
            await self._operations.unsettled.settle()
        present = await self._snapshotter.snapshot_in_turn(None, _TRIGGER, flush=not held)
        rollback = Rollback(self._tree, self._repository, present, target, self._disk)
        try:
            await trio.to_thread.run_sync(rollback.stage, self._threads, self._progress)
            await self._begin_generation()
            if not held:
                await self._flush()
            async with self._operations.reader.alone():
                return rollback if self._turn(rollback) else None
        finally:
            rollback.close()

    def _turn(self, rollback: Rollback) -> bool:
        """Whether nothing had changed, and the live tree is the target's now."""
        self._tree.tidy()
        if self._tree.has_changes():
            return False
        if self._operations.unique():
            self._tree.names.answers.begin_turn()
        rollback.turn()
        self._operations.forget_modes()
        return True

    async def _begin_generation(self) -> None:
        if not self._begun:
            self._snapshotter.generation = await trio.to_thread.run_sync(self._bump_generation)
            self._begun = True

    async def _finish(self, rollback: Rollback, target: SnapshotRecord) -> Mapping[str, Any]:
        log.warning("rolled back to snapshot %d; generation %d begins", target.number, self._snapshotter.generation)
        changed = await trio.to_thread.run_sync(forget, self._device, rollback, self._tree.names)
        await self._correct_open_files(changed)
        self._snapshotter.parent = target
        now = await self._snapshotter.snapshot_in_turn(None, _TRIGGER, flush=False)
        report = rollback.report(now)
        return {name: getattr(report, name) for name in report.__slots__}

    async def _correct_open_files(self, changed: list[tuple[Ino, Ino, bytes]]) -> None:
        """Give the kernel the size and mtime of files that are open, in the one way it takes them: by setting them."""
        still_open = set(self._tree.open_files())
        for ino, directory, name in changed:
            if ino in still_open or self._tree.adopted:  # then nobody knows what is open
                attr = self._tree.getattr(ino)
                path = os.path.join(os.fsencode(self._mountpoint), self._tree.names.path_of(directory), name)
                await trio.to_thread.run_sync(_correct, path, attr.size, (attr.atime_ns, attr.mtime_ns))


def forget(device: int, rollback: Rollback, names: Namespace) -> list[tuple[Ino, Ino, bytes]]:
    """Let the kernel forget what is no longer so; (inode, directory, name) of each changed file. In another thread.

    With the writeback cache the kernel believes nobody but itself about the size and mtime of a regular file for as
    long as it knows the inode. So it has to forget every name of the file, with which the inode goes unless it is open.
    """
    for ino, entries in rollback.invalid():
        for name in entries:
            _ignoring_unknown(notices.invalidate_entry, device, ino, name)
        _ignoring_unknown(notices.invalidate_inode, device, ino)
    named = names.names_of(set(rollback.invalid_files()))
    for _, directory, name in named:
        _ignoring_unknown(notices.invalidate_entry, device, directory, name)
    return named


def _ignoring_unknown(what: Callable[..., None], device: int, ino: Ino, *arguments: bytes) -> None:
    with contextlib.suppress(FileNotFoundError):  # the kernel does not know it
        what(device, ino, *arguments)


def _correct(path: bytes, size: int, times_ns: tuple[int, int]) -> None:
    with contextlib.suppress(OSError):  # changed once more, or not a regular file
        os.truncate(path, size)
        os.utime(path, ns=times_ns, follow_symlinks=False)

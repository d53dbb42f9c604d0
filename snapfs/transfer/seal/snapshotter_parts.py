"""What the snapshotter needs of others: the live tree's part in a snapshot, and the function that seals a cut."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Protocol

from snapfs.base.blocks import Generation, Ino
from snapfs.live.cut import Cut
from snapfs.live.namespace.namespace import Namespace
from snapfs.store.log.snapshot_records import AskedBy, CutFacts, GroupCut
from snapfs.store.repository.repository import Repository, SnapshotRecord


class SnapshotterTree(Protocol):
    """The part of the live tree that the snapshotter needs."""

    def cut(self) -> Cut: ...
    def mark_all_suspect(self) -> None: ...
    def has_changes(self) -> bool: ...
    def pressure(self) -> bool: ...
    def take_lost(self) -> tuple[int, int]: ...
    def suspects(self) -> list[Ino]: ...
    def compare_suspects(self, inos: list[Ino]) -> list[Ino]: ...

    @property
    def names(self) -> Namespace: ...
    def mark_whole(self, inos: list[Ino]) -> None: ...


class SealFunction(Protocol):
    """Makes a snapshot of a cut; blocks until it is durable. On SnapshotError all changes are left to the next one."""

    def __call__(
        self,
        cut: Cut,
        repository: Repository,
        parent: SnapshotRecord | None,
        *,
        generation: Generation,
        name: str | None,
        trigger: str,
        progress: Callable[[int, int], None],
        facts: CutFacts = CutFacts(),
        by: AskedBy | None = None,
        exclude: tuple[str, ...] = (),
    ) -> SnapshotRecord: ...


class CutMoment(Protocol):
    """When a cut is made that others wait for, or that waits for others. For the trio thread."""

    @property
    def group(self) -> GroupCut:
        """What the record has of it, once the cut is made."""
        ...

    def make(self, cut: Callable[[float | None], Cut]) -> Awaitable[Cut]:
        """Call `cut` at the moment, with since when requests are held (`time.perf_counter`). SnapshotError: it does not
        come, and nothing was cut."""
        ...

    def may_seal(self) -> Awaitable[None]:
        """Return when the cut may become a snapshot. SnapshotError: it is to be given up."""
        ...

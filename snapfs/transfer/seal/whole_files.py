"""Files that come into the history as they are, because their names are not excluded any more.

Between two snapshots an excluded file counts as unchanged once the cut after its last change was sealed. Once it is
shown (renamed, linked, the patterns were changed), all of it has to be stored, as of the cut; but a cut keeps from
being overwritten only what counts as changed. So such a file is marked as wholly changed, durably, before the cut:

1. Before a cut a look at the names finds them (`mark_joined`).
2. The seal looks once more. What was renamed in between is a NotKeptError: nothing was sealed, it is marked, and
   another cut is made (`mark`). What is marked stays so until a snapshot has it, so this ends; the last time everything
   that the parent does not have is marked, and no rename can matter any more.

A crash between leaves files that are compared once more than needed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, Protocol

from snapfs.base.blocks import Ino
from snapfs.base.errors import EXIT_SNAPSHOT_FAILED, SnapfsError, SnapshotError
from snapfs.base.settings import exclusion
from snapfs.live.cut import Cut
from snapfs.live.namespace.frozen_namespace import FrozenNamespace
from snapfs.live.namespace.namespace import Namespace
from snapfs.store.repository.repository import Repository, SnapshotRecord
from snapfs.store.tables.snapshot import SnapshotTree
from snapfs.transfer.seal.shown_names import CutNames, ShownNames

ATTEMPTS: Final = 3
"""Cuts at most for one snapshot: as planned, with what came in meanwhile, with all that could."""


class MarkedTree(Protocol):
    """The part of the live tree that is needed here."""

    @property
    def names(self) -> Namespace: ...
    def mark_whole(self, inos: list[Ino]) -> None: ...


class NotKeptError(SnapfsError):
    """Files came into the snapshot of which the cut does not keep the bytes: `inos`."""

    exit_code = EXIT_SNAPSHOT_FAILED

    def __init__(self, inos: list[Ino]) -> None:
        super().__init__(f"{len(inos)} files that are not excluded any more came in with the cut: try again")
        self.inos = inos


def names_without(
    names: FrozenNamespace, parent: SnapshotTree | None, before: tuple[str, ...], wanted: tuple[str, ...]
) -> tuple[CutNames, tuple[str, ...]]:
    """The names without what is excluded, and the patterns in effect; `before`: those that the parent was made with.

    While there are directories whose names are only in the store, other patterns than the parent's wait.
    """
    in_effect = before if parent is not None and before != wanted and names.has_unloaded else wanted
    if not in_effect and (parent is None or not before):
        return names, ()
    return ShownNames(names, parent, exclusion.compiled(in_effect), anew=in_effect != before), in_effect


def check_kept(cut: Cut, names: CutNames) -> None:
    """NotKeptError if the cut does not keep all of a file that the snapshot must have as a whole."""
    lacking = [ino for ino in names.joined if not _is_kept(cut, ino)] if isinstance(names, ShownNames) else []
    if lacking:
        raise NotKeptError(lacking)


def _is_kept(cut: Cut, ino: Ino) -> bool:
    frozen = cut.open_file(ino)
    if frozen is None:
        return True  # its bytes are lost: the seal finds that
    try:
        return frozen.whole or not frozen.is_here
    finally:
        frozen.close()


def mark_joined(
    tree: MarkedTree, repository: Repository, parent: SnapshotRecord | None, exclude: tuple[str, ...]
) -> None:
    """Mark what a cut made now would take into the history. For any thread. OSError, SnapfsError."""
    if parent is None or not (exclude or parent.cut.exclude):
        return
    with tree.names.view() as names:
        shown, _ = names_without(names, SnapshotTree(repository, parent.root), parent.cut.exclude, exclude)
        joined = shown.joined if isinstance(shown, ShownNames) else []
    if joined:
        tree.mark_whole(joined)


def mark(
    tree: MarkedTree, repository: Repository, parent: SnapshotRecord | None, inos: list[Ino], attempt: int
) -> None:
    """Mark what a seal did not find kept; before the last attempt, all that the parent does not have. Any thread."""
    if attempt + 1 >= ATTEMPTS:
        before = SnapshotTree(repository, parent.root) if parent is not None else None
        with tree.names.view() as names:
            inos = [ino for ino in names.regular_inodes() if before is None or before.inode(ino) is None]
    tree.mark_whole(inos)


def not_kept(error: SnapshotError) -> list[Ino]:
    """The files because of which the snapshot needs another cut, none for any other failure."""
    return error.__cause__.inos if isinstance(error.__cause__, NotKeptError) else []


def sealed_whole(
    tree: MarkedTree, repository: Repository, parent: SnapshotRecord | None, exclude: tuple[str, ...],
    cut_and_seal: Callable[[], SnapshotRecord],
) -> SnapshotRecord:  # fmt: skip
    """What `cut_and_seal` makes, with the cuts that it takes. For a tree that nobody else changes. Errors as `seal`."""
    mark_joined(tree, repository, parent, exclude)
    for attempt in range(1, ATTEMPTS + 1):
        try:
            return cut_and_seal()
        except SnapshotError as error:
            inos = not_kept(error)
            if not inos or attempt == ATTEMPTS:
                raise
            mark(tree, repository, parent, inos, attempt)
    raise AssertionError("the last attempt returns or raises")

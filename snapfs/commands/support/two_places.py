"""The difference of two snapshots, also of two volumes that share a root: a fork and what it was forked from."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from typing import TYPE_CHECKING

from snapfs.base.errors import UserError
from snapfs.commands.support.locate import VolumeLocation

if TYPE_CHECKING:
    from collections.abc import Generator

    from snapfs.store.tables.diff import PathChange


def check_shared(one: VolumeLocation, other: VolumeLocation) -> None:
    """UserError unless the two volumes are forks of each other, or of one: else their contents have other hashes."""
    if one.volume().seed != other.volume().seed:
        raise UserError(
            f"{one.volume_path} and {other.volume_path} share no root: neither is a fork of the other. Name a "
            "fork, and what it is a fork of"
        )


def paths_between(
    where: VolumeLocation, older: str, newer: str, other: VolumeLocation | None = None
) -> Generator[PathChange, None, None]:
    """What changed from the snapshot `older` of one volume to `newer` of the other, if there is one."""
    from snapfs.store.tables.diff import diff_paths
    from snapfs.store.tables.snapshot import SnapshotTree

    if other is not None:
        check_shared(where, other)
    with ExitStack() as stack:
        one = stack.enter_context(where.repository())
        two = stack.enter_context(other.repository()) if other is not None else one
        trees = SnapshotTree(one, one.find(older).root), SnapshotTree(two, two.find(newer).root)
        changes: Iterator[PathChange] = diff_paths(*trees)
        yield from changes

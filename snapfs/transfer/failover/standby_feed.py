"""The sources of a standby as one: which snapshot is the newest of all, and its objects, from this host where it can
be.

Invariants:
1. A newest snapshot is only reported if the sources on other hosts answered: a source on this host may be an old copy.
2. An object that a source on this host has is not fetched from another host.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Final

from snapfs.base.blocks import Generation, Number, SnapshotNumber
from snapfs.base.errors import SnapfsError
from snapfs.store.log.snapshot_records import GOOD, SnapshotRecord
from snapfs.store.objects.format import Pointer
from snapfs.store.protocol.object_stream import Item
from snapfs.transfer.lazy.snapshot_choice import lineage_order
from snapfs.transfer.sources.late_source import LateSource
from snapfs.transfer.sources.sources import Origin, Source, no_answer

NOTHING: Final = (Generation(0), SnapshotNumber(0))
"""The place in the lineage of a standby that has no snapshot yet."""


class StandbyFeed:
    """Reads several sources of one volume. One thread. `close` it."""

    def __init__(self, sources: Sequence[LateSource]) -> None:
        self.sources = list(sources)
        self.fetched_bytes = 0
        """From other hosts, since it was last set to 0."""

    def origin(self) -> Origin:
        """The origin, from the first source that answers. Raises SnapfsError with all reasons if none does."""
        failures: list[tuple[Source, Exception]] = []
        for source in self.sources:
            try:
                return source.origin()
            except (OSError, SnapfsError) as error:
                failures.append((source, error))
        raise no_answer(failures)

    def newest(self, here: tuple[Generation, SnapshotNumber]) -> tuple[SnapshotRecord, LateSource] | None:
        """The newest good snapshot of all sources after `here`, and the source to read it from; None if there is none.

        It is one of the latest generation, since others may end in a dead branch. Raises what the sources on other
        hosts raise if none of them answers.
        """
        failures: list[Exception] = []
        found: list[tuple[SnapshotRecord, LateSource]] = []
        for source in self.sources:
            try:
                record = _newest_good(source, here)
                found += [(record, source)] if record is not None else []
            except (OSError, SnapfsError) as error:
                failures.append(error)
        far_failed = failures and all(source.is_near for _, source in found)
        if far_failed and not all(source.is_near for source in self.sources):
            raise failures[0]
        newest = max(found, key=lambda each: (lineage_order(each[0]), not each[1].is_near), default=None)
        return newest if newest is not None and lineage_order(newest[0]) > here else None

    def objects(self, source: LateSource, pointers: list[Pointer]) -> dict[Number, Item]:
        """Those of the objects that `source` or a source on this host has. Raises what `source` raises."""
        found: dict[Number, Item] = {}
        for near in () if source.is_near else (each for each in self.sources if each.is_near):
            with contextlib.suppress(OSError, SnapfsError):
                wanted = [each for each in pointers if each.content_hash and each.number not in found]
                found |= self._objects_of(near, wanted)
        return found | self._objects_of(source, [each for each in pointers if each.number not in found])

    def _objects_of(self, source: LateSource, pointers: list[Pointer]) -> dict[Number, Item]:
        items = source.objects(pointers, urgent=False) if pointers else ()
        received: dict[Number, Item] = {item.frame.number: item for item in items if not item.is_absent}
        if not source.is_near:
            self.fetched_bytes += sum(len(item.framed) for item in received.values())
        return received

    def close(self) -> None:
        """Close all sources."""
        for source in self.sources:
            source.close()


def _newest_good(source: LateSource, here: tuple[Generation, SnapshotNumber]) -> SnapshotRecord | None:
    """The newest good snapshot of one source. The list of all its snapshots is only read if one is newer than
    `here`."""
    if not source.is_near:
        last = source.origin().newest
        if last is not None and last.state == GOOD and lineage_order(last) <= here:
            return last
    return max((record for record in source.snapshots() if record.state == GOOD), key=lineage_order, default=None)

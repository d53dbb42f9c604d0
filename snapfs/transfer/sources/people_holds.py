"""What people decided to hold of a history, as its sources know it: it comes back with the history.

A takeover brings the newest snapshot alone, and all that is held: the rules of the new writer for its targets, and its
`release`, are about what is only there.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence

from snapfs.base.errors import SnapfsError
from snapfs.store.log.holds import HoldRecord, latest
from snapfs.transfer.sources.sources import Source

log = logging.getLogger(__name__)


def held_by_people(sources: Sequence[Source], through: int) -> list[HoldRecord]:
    """The records that count of the snapshots up to number `through`. A source that does not answer is passed over: it
    keeps what it holds by itself."""
    return [record for record in latest(_all(sources)).values() if record.snapshot <= through]


def _all(sources: Sequence[Source]) -> Iterable[HoldRecord]:
    for source in sources:
        try:
            yield from source.hold_records()
        except (OSError, SnapfsError) as error:
            log.warning("%s does not say what people hold there: %s", source.name, error)

"""What to keep: the rules of the table [retention], and of `retention` in a table [[replication.target]].

Each field is the home of its name, type, default and reason; what follows from them is in retention.py.
"""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

from snapfs.base.settings.units import Seconds


class RetentionSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Which snapshots are kept. A snapshot that any rule keeps stays; without a rule all do."""

    last: Annotated[
        int,
        Meta(
            ge=0,
            description="Keep so many of the newest. 0, as for all that follow: this rule keeps none. Without any "
            "rule everything is kept: history is only deleted for who chose what to keep.",
        ),
    ] = 0
    within: Annotated[
        Seconds,
        Meta(
            description="Keep those made within this time before the newest. Not before now: a volume at rest loses "
            "nothing by waiting."
        ),
    ] = Seconds(0)
    hourly: Annotated[
        int, Meta(ge=0, description="Keep the newest of each hour (UTC), of so many hours that have a snapshot.")
    ] = 0
    daily: Annotated[int, Meta(ge=0, description="The same for days (UTC).")] = 0
    weekly: Annotated[int, Meta(ge=0, description="The same for weeks (ISO 8601: from Monday on).")] = 0
    monthly: Annotated[int, Meta(ge=0, description="The same for months (UTC).")] = 0
    yearly: Annotated[int, Meta(ge=0, description="The same for years (UTC).")] = 0
    minimum_good: Annotated[
        int,
        Meta(
            ge=1,
            description="So many of the newest good snapshots stay whatever the rules say. 3: one may turn out to be "
            "damaged, and one to have the mistake in it that you want to undo.",
        ),
    ] = 3

    @property
    def is_on(self) -> bool:
        """Whether there is a rule, so that anything may go at all."""
        counts = (self.last, self.hourly, self.daily, self.weekly, self.monthly, self.yearly)
        return bool(self.within) or any(counts)

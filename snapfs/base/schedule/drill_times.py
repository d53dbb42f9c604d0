"""When the next drill is due, and how late it is: pure decisions from the settings and the time of the last one."""

from __future__ import annotations

import math
from datetime import datetime, tzinfo

from snapfs.base.settings import calendar_times
from snapfs.base.settings.proof_settings import DrillSettings

RETRY_S = 3600.0
"""A drill that could not be run (no verdict) is tried again so much later at most."""


def due_in_s(settings: DrillSettings, last_s: float, begun_s: float, now_s: float, zone: tzinfo) -> float:
    """Seconds until a drill is due, 0 or less: now; math.inf: never. Times are seconds since 1970.

    `last_s`: when the last one ended, 0: there was none; then `every` is due at once, and times of the calendar count
    from `begun_s` on, when somebody began to look. One that passed since the last drill is made up for, once.
    """
    spans = []
    if settings.every:
        spans.append(last_s + settings.every - now_s if last_s else 0.0)
    if settings.at:
        after = datetime.fromtimestamp(last_s or begun_s, zone)
        found = calendar_times.next_after(settings.at, after)
        spans.append(found.timestamp() - now_s if found is not None else math.inf)
    return min(spans, default=math.inf)


def drill_overdue_s(settings: DrillSettings, last_s: float, created_s: float, now_s: float, zone: tzinfo) -> float:
    """Seconds since a drill should have ended that has not, 0.0 if none is late. Times are seconds since 1970.

    `last_s`: when the last one ended, 0: there was none; then they count from `created_s`, when the volume was made.
    """
    begun_s = last_s or created_s
    return max(-due_in_s(settings, begun_s, begun_s, now_s, zone) - settings.timeout, 0.0)


def retry_s(settings: DrillSettings) -> float:
    """How long to wait after one that could not be run."""
    return min(max(float(settings.every) / 10, 60.0), RETRY_S) if settings.every else RETRY_S

"""Times in the syntax of cron, as `snapshots.calendar` has them. Pure, but `local_zone` reads the host's zone.

The library is cronsim: it follows Debian's cron where clocks change to and from daylight saving time, which needs
times with a real zone and not a fixed offset.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from datetime import UTC, datetime, tzinfo
from zoneinfo import ZoneInfo

from snapfs.base.errors import UserError

_LOCAL_TIME = "/etc/localtime"
_FIELDS = 5


def check(expression: str, before: str = "", after: str = "") -> None:
    """UserError, with `before` and `after` around its words, if this is no time of cron or one that never comes."""
    from cronsim import CronSim, CronSimError  # most volumes have no use for it

    why = f"write five fields, as in '0 3 * * *' (minute, hour, day, month, weekday): got '{expression}'"
    if len(expression.split()) != _FIELDS:
        raise UserError(f"{before}{why}{after}")
    try:
        next(CronSim(expression, datetime(2026, 1, 1, tzinfo=UTC)))
    except CronSimError as error:
        raise UserError(f"{before}{why} ({error}){after}") from None
    except StopIteration:
        raise UserError(f"{before}'{expression}' never comes{after}") from None


def next_after(expressions: Iterable[str], after: datetime) -> datetime | None:
    """The first time that one of them names after `after`, in the zone of `after`; None if there is none."""
    from cronsim import CronSim

    found = [when for expression in expressions for when in [next(CronSim(expression, after), None)] if when]
    return min(found, key=lambda when: when.timestamp(), default=None)


def local_zone() -> tzinfo:
    """The host's time zone: of TZ, else of /etc/localtime, else UTC."""
    try:
        if name := os.environ.get("TZ", "").lstrip(":"):
            return ZoneInfo(name)
        with open(_LOCAL_TIME, "rb") as file:
            return ZoneInfo.from_file(file)
    except (OSError, ValueError):  # ZoneInfoNotFoundError is a KeyError
        return UTC
    except KeyError:
        return UTC

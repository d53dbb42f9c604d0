"""How late the verification of a store is: a pure decision from the settings and the end of the last pass."""

from __future__ import annotations

from typing import Final

from snapfs.base.settings.proof_settings import VerifySettings

DAY_S: Final = 86400.0
PASSES_OF_PATIENCE: Final = 2.0
"""A pass takes longer than its share says while the host is down or the store grows; twice as long is late."""


def verify_overdue_s(settings: VerifySettings, last_s: float, created_s: float, now_s: float) -> float:
    """Seconds since a pass over all of the store should have ended that has not; 0.0 if none is late or none is due.

    `last_s`: when the last one ended, 0: there was none; then it counts from `created_s`, when the volume was made.
    Times are seconds since 1970.
    """
    if not settings.share_a_day:
        return 0.0
    return max(now_s - (last_s or created_s) - PASSES_OF_PATIENCE * DAY_S / settings.share_a_day, 0.0)

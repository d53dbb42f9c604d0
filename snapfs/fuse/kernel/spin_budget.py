"""Whether a reader may spin before it sleeps: spins that find nothing make the next ones rarer."""

from __future__ import annotations

_SPIN_BUDGET = 8  # spins in vain, in excess of the successful ones, after which spinning pauses
_PAUSE_REQUESTS = 64


class SpinBudget:
    """The spins of one reader. Lives in the trio thread."""

    def __init__(self) -> None:
        self._left = _SPIN_BUDGET
        self._pause = 0

    def may_spin(self) -> bool:
        """Whether to spin for this request; each call counts as one request."""
        if not self._pause:
            return True
        self._pause -= 1
        return False

    def note(self, found: bool) -> None:
        """A spin has ended; `found`: with a request."""
        self._left = min(self._left + 1, _SPIN_BUDGET) if found else self._left - 1
        if not self._left:
            self._pause, self._left = _PAUSE_REQUESTS, _SPIN_BUDGET

"""Which failures of a target are tried again, and after how long.

Invariants:
1. A wait is random, and its bound grows with the failures up to NOTICE_SECONDS: a target that comes back is noticed
   within 5 s. Only a refusal by the target, which a person has to change, is left alone for LONGEST_WAIT_SECONDS.
2. A part is sent again at once only after an error that may pass; after any other the target is opened again.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from tenacity import RetryCallState, wait_random_exponential

from snapfs.base.errors import UserError
from snapfs.store.protocol.refusals import FINAL_REFUSALS, Refusal, RefusedError

ATTEMPTS: Final = 5
"""For a part, and for a push with --once."""
FIRST_WAIT_SECONDS: Final = 0.25
NOTICE_SECONDS: Final = 4.0
"""The longest wait for a target that does not answer, or whose folder is missing."""
LONGEST_WAIT_SECONDS: Final = 30.0
"""After a refusal by the target."""
LINK_ERRORS: Final = (OSError, TimeoutError)


@dataclass(slots=True)
class RetryWaits:
    """Random waits between attempts, for tenacity. Seconds."""

    first_s: float
    longest_s: float = NOTICE_SECONDS

    def __call__(self, state: RetryCallState) -> float:
        """The wait after this attempt."""
        return wait_random_exponential(multiplier=self.first_s, max=self.longest_s)(state)


def default_waits() -> RetryWaits:
    """The waits of a target, from FIRST_WAIT_SECONDS up to NOTICE_SECONDS."""
    return RetryWaits(FIRST_WAIT_SECONDS)


def retry_wait_s(error: BaseException, failures: int) -> float:
    """How long to leave a target alone after so many failures, of which this was the last. Seconds."""
    if isinstance(error, RefusedError) and is_final(error):
        return LONGEST_WAIT_SECONDS
    state = RetryCallState(None, None, (), {})  # type: ignore[arg-type] # only its number is read
    state.attempt_number = failures
    return default_waits()(state)


def is_final(error: BaseException) -> bool:
    """Whether another attempt is of no use until a person changes something."""
    return isinstance(error, UserError) or (isinstance(error, RefusedError) and error.refusal in FINAL_REFUSALS)


def is_transient(error: BaseException) -> bool:
    """Whether a part is sent again right away."""
    if isinstance(error, RefusedError):
        return error.refusal in (Refusal.BUSY, Refusal.CORRUPT)
    return isinstance(error, LINK_ERRORS)

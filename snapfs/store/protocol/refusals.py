"""Refusals of a mirror: their kinds, HTTP statuses, and the exception that carries one at either end.

Every answer that is no success has a Problem as its body. A refusal in FINAL_REFUSALS is final: sending the same
request again cannot succeed. All others, and a broken connection, are worth a retry after a while.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Any, Final

import msgspec

from snapfs.base.errors import EXIT_CORRUPT, EXIT_ENVIRONMENT, EXIT_VERSION, SnapfsError


class Refusal(StrEnum):
    """Why a request failed: `error` of a Problem. Each has one HTTP status."""

    BAD_REQUEST = "bad_request"  # 400: malformed; sending it again will not help
    UNAUTHORIZED = "unauthorized"  # 401: no token, or one that is not known (any more)
    FORBIDDEN = "forbidden"  # 403: the token lacks the right
    NOT_FOUND = "not_found"  # 404: no such volume (or none that the token may know of), snapshot, object
    FENCED = "fenced"  # 409: a newer generation, or another writer of this one, has claimed; `generation`, `writer_id`
    UNCLAIMED = "unclaimed"  # 409: this generation has not been claimed here: claim it first
    DIVERGED = "diverged"  # 409: another object or snapshot has this number; `snapshot` or `number`
    INCOMPLETE = "incomplete"  # 409: the snapshot needs objects that are not there; `missing` (the first of them)
    EXISTS = "exists"  # 409: a volume of this name and another identity
    TOO_LARGE = "too_large"  # 413: more than a limit allows
    CORRUPT = "corrupt"  # 422: objects that fail their checksum or content hash; `number`. Send them again
    VERSION = "version"  # 426: a later protocol or format
    BUSY = "busy"  # 429: more than the window, the rate or the connections allow; wait `retry_after` seconds
    INTERNAL = "internal"  # 500: a bug or a failing disk of the mirror
    UNSUPPORTED = "unsupported"  # 501: known, and not done by this mirror
    STOPPING = "stopping"  # 503: shutting down, or starting
    DISK_FULL = "disk_full"  # 507: no room on the mirror. What it has acknowledged stays; go on when there is room


STATUS: Final = {
    Refusal.BAD_REQUEST: 400, Refusal.UNAUTHORIZED: 401, Refusal.FORBIDDEN: 403, Refusal.NOT_FOUND: 404,
    Refusal.FENCED: 409, Refusal.UNCLAIMED: 409, Refusal.DIVERGED: 409, Refusal.INCOMPLETE: 409, Refusal.EXISTS: 409,
    Refusal.TOO_LARGE: 413, Refusal.CORRUPT: 422, Refusal.VERSION: 426, Refusal.BUSY: 429, Refusal.INTERNAL: 500,
    Refusal.UNSUPPORTED: 501, Refusal.STOPPING: 503, Refusal.DISK_FULL: 507,
}  # fmt: skip

FINAL_REFUSALS: Final = frozenset(
    {Refusal.BAD_REQUEST, Refusal.UNAUTHORIZED, Refusal.FORBIDDEN, Refusal.FENCED, Refusal.EXISTS, Refusal.VERSION}
    | {Refusal.UNSUPPORTED}
)
"""Trying the same again is of no use; all others (and a broken connection) are worth it, after a while."""

_EXIT_CODES: Final = {Refusal.CORRUPT: EXIT_CORRUPT, Refusal.VERSION: EXIT_VERSION}


class Problem(msgspec.Struct, frozen=True, omit_defaults=True):
    """The body of every answer that is no success. `message` is one sentence for people."""

    error: str
    message: str
    generation: int = 0
    writer_id: str = msgspec.field(default="", name="holder")
    snapshot: int = 0
    number: int = 0
    missing: list[int] = []
    retry_after: float = 0.0
    went_on_from: int = 0


class RefusedError(SnapfsError):
    """A mirror's refusal, at either end. `problem.error` is a Refusal, or a later version's word."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem.message)
        self.problem = problem
        self.exit_code = _EXIT_CODES.get(self.refusal or Refusal.INTERNAL, EXIT_ENVIRONMENT)

    @property
    def refusal(self) -> Refusal | None:
        """What kind it is; None for one that this version does not know."""
        return next((known for known in Refusal if known == self.problem.error), None)

    @property
    def status(self) -> int:
        return STATUS[self.refusal or Refusal.INTERNAL]


def refuse(refusal: Refusal, message: str, **details: Any) -> RefusedError:
    """The exception for a refusal; `details` are fields of Problem."""
    return RefusedError(Problem(refusal, message, **details))

"""The three kinds of failure, and the exit code each one ends a command with.

1. ``UserError`` and its children: the user's or the environment's. One clear line that says what is
   wrong and what to do; never a traceback.
2. ``CorruptionError``: bytes on disk are not what they must be. It names the object; whoever catches it
   stops trusting that object and nothing else.
3. Anything else is a bug: an assertion or a traceback, exit code ``EXIT_BUG``.

Inside the live tree a failure that the application must see is a plain ``OSError`` with its errno; the
one place that turns it into a reply to the kernel is ``fuse/operations.py``.
"""

from __future__ import annotations

from errno import EIO, ENOSPC
from os import strerror

EXIT_OK = 0
EXIT_USAGE = 2  # click's own code for a wrong command line
EXIT_ENVIRONMENT = 3
EXIT_BUSY = 4
EXIT_CORRUPT = 5
EXIT_VERSION = 6
EXIT_SNAPSHOT_FAILED = 7
EXIT_BUG = 70  # EX_SOFTWARE of sysexits.h


class SnapfsError(Exception):
    """A failure that is reported as one line. `exit_code` is what the command line exits with."""

    exit_code = EXIT_ENVIRONMENT


class UserError(SnapfsError):
    """What was asked cannot be done here: a wrong path, no permission, no FUSE, a bad setting."""


class BusyError(SnapfsError):
    """Somebody else holds what is needed: a locked volume, a file open for writing, a mountpoint in use."""

    exit_code = EXIT_BUSY


class VersionError(SnapfsError):
    """A format written by a later version. It is refused, never guessed at."""

    exit_code = EXIT_VERSION


class SnapshotError(SnapfsError):
    """A snapshot could not be sealed. Nothing is lost: its changes are part of the next one."""

    exit_code = EXIT_SNAPSHOT_FAILED

    def __init__(self, message: str, errno: int) -> None:
        super().__init__(message)
        self.errno = errno

    @classmethod
    def because_of(cls, failure: Exception) -> SnapshotError:
        """What to tell of a snapshot that failed like this."""
        if isinstance(failure, SnapshotError):
            return failure
        if isinstance(failure, OSError) and failure.errno == ENOSPC:
            return cls("no snapshot was made: no space is left on the disk that holds the volume", ENOSPC)
        if isinstance(failure, OSError):
            return cls(f"no snapshot was made: {failure}", failure.errno or EIO)
        reason = str(failure) if isinstance(failure, SnapfsError) else f"{type(failure).__name__}: {failure}"
        return cls(f"no snapshot was made: {reason}", EIO)


class CorruptionError(SnapfsError):
    """Stored bytes fail their check. `what` names the object, `where` the file that holds it."""

    exit_code = EXIT_CORRUPT

    def __init__(self, what: str, where: str, why: str) -> None:
        super().__init__(f"{what} in {where} is damaged: {why}")
        self.what = what
        self.where = where
        self.why = why


def reason(error: BaseException) -> str:
    """Why a connection failed, in a few words: what the innermost of the errors says."""
    while (inner := error.__cause__ or error.__context__) is not None:
        error = inner
    certificate = getattr(error, "verify_message", None)  # of an ssl.SSLCertVerificationError
    if certificate:
        return f"its certificate is not to be trusted: {certificate}"
    if getattr(error, "reason", None) in _NO_TLS:
        return "it does not speak TLS: is it http:// there?"
    if type(error).__module__ == "builtins" and isinstance(error, OSError) and (error.errno or 0) > 0:
        return strerror(error.errno or 0)
    return getattr(error, "strerror", None) or str(error) or type(error).__name__  # also of ssl and socket


_NO_TLS = ("WRONG_VERSION_NUMBER", "HTTP_REQUEST", "PACKET_LENGTH_TOO_LONG")

"""The three kinds of failure, and the exit code each one ends a command with.

1. ``UserError`` and its children: the user's or the environment's. One clear line that states what is
   wrong and what to do; never a traceback.
2. ``CorruptionError``: bytes on disk are not what they must be. It names the object; its handler
   stops trusting that object and nothing else.
3. Anything else is a bug: an assertion or a traceback, exit code ``EXIT_BUG``.

Inside the live tree a failure that the application must see is a plain ``OSError`` with its errno; the
one place that turns it into a reply to the kernel is ``fuse/session/operations.py``.
"""

from __future__ import annotations

from errno import EACCES, EIO, ENOENT, ENOSPC, EROFS
from os import strerror

EXIT_OK = 0
EXIT_USAGE = 2  # click's own code for a wrong command line
EXIT_ENVIRONMENT = 3
EXIT_BUSY = 4
EXIT_CORRUPT = 5
EXIT_VERSION = 6
EXIT_SNAPSHOT_FAILED = 7
EXIT_ATTENTION = 8  # of commands for monitors: `volumes`, `audit --check`, `snapfs-replicator status`
EXIT_DAEMON_DIED = 9
EXIT_DRILL_FAILED = 10  # `drill`: the application does not recover from the snapshot
EXIT_BUG = 70  # EX_SOFTWARE of sysexits.h


class SnapfsError(Exception):
    """A failure that is reported as one line. `exit_code` is what the command line exits with."""

    exit_code = EXIT_ENVIRONMENT

    def __init__(self, *words: object, exit_code: int | None = None) -> None:
        """`exit_code`: of another process's failure that is passed on."""
        super().__init__(*words)
        if exit_code is not None:
            self.exit_code = exit_code


class UserError(SnapfsError):
    """The request cannot be carried out here: a wrong path, no permission, no FUSE, a bad setting."""


class BusyError(SnapfsError):
    """Another process holds what is needed: a locked volume, a file open for writing, a mountpoint in use."""

    exit_code = EXIT_BUSY


class VersionError(SnapfsError):
    """A format written by a later version. It is refused, never guessed at."""

    exit_code = EXIT_VERSION


class DaemonDiedError(SnapfsError):
    """A daemon was killed or died, and none follows it: the mount is over. What it answered is in the live tree."""

    exit_code = EXIT_DAEMON_DIED


class SnapshotError(SnapfsError):
    """A snapshot could not be sealed. Nothing is lost: its changes are part of the next one."""

    exit_code = EXIT_SNAPSHOT_FAILED

    def __init__(self, message: str, errno: int) -> None:
        super().__init__(message)
        self.errno = errno

    @classmethod
    def because_of(cls, failure: Exception) -> SnapshotError:
        """The message for a snapshot that failed like this."""
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
    """Why a connection failed, in a few words: what the innermost of the errors states."""
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


def readable(path: str, act: str, error: OSError) -> UserError:
    """Why no process can `act` on `path`, and what to do."""
    hint = {
        EACCES: ": become its owner or root",
        EROFS: ": mount that filesystem for writing",
        ENOENT: ": make the folder above it first",
        ENOSPC: ": make room on that filesystem",
    }.get(error.errno or 0, "")
    return UserError(f"{path}: cannot {act} ({strerror(error.errno or 0)}){hint}")


class explained:  # noqa: N801 - reads as a word of the sentence it stands in
    """Turn an OSError of the block into a UserError that states what could not be done to `path`."""

    def __init__(self, path: str, act: str) -> None:
        self._path, self._act = path, act

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, OSError):
            raise readable(self._path, self._act, error) from None


def printable(text: bytes | str) -> str:
    r"""A name, or a line with names, on one line of a terminal: what is not printable, as what reorders a line, or not
    UTF-8, as \xNN."""
    raw = text.encode(errors="surrogateescape") if isinstance(text, str) else text
    decoded = raw.decode("utf-8", "backslashreplace")
    return "".join(c if c.isprintable() else "".join(f"\\x{b:02x}" for b in c.encode()) for c in decoded)

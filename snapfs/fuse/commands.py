"""The language of `.snapfs/control`: one line, one command, one reply.

    VERB [ARGUMENT...] [WORD] [OPTION=VALUE...]

Words are split as a shell splits them, so a name with spaces is quoted. The reply is a JSON object on a line of
its own: `ok`, `command`, and what the command tells; or, if it failed, `error` (one line that says what to do),
`errno` (its symbol) and `exit_code` (what the command line exits with). `fenced` is there while another host writes
this volume (see status.py). Fields may be added; unknown ones are to be ignored.

Invariants:
1. Whatever a command raises becomes a reply; a bug becomes EIO and a traceback in the log.
2. What is not understood is EINVAL and does nothing.
"""

from __future__ import annotations

import errno
import logging
import shlex
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import msgspec

from snapfs.errors import (
    EXIT_BUG,
    EXIT_ENVIRONMENT,
    EXIT_USAGE,
    BusyError,
    CorruptionError,
    SnapfsError,
    SnapshotError,
    UserError,
)
from snapfs.fuse.control import Reply

log = logging.getLogger(__name__)


class UsageError(UserError):
    """A command that is not understood."""

    exit_code = EXIT_USAGE


@dataclass(frozen=True, slots=True)
class Command:
    """A line taken apart. `flags` are bare words that the verb knows, such as `force`."""

    verb: str
    arguments: list[str]
    flags: frozenset[str] = frozenset()
    options: Mapping[str, str] = field(default_factory=dict)
    since: int | None = None
    """Not None: an earlier daemon began this, and died over it, when the newest snapshot had this number."""

    def yes(self, option: str, default: bool) -> bool:
        """A yes-or-no option."""
        value = self.options.get(option)
        if value not in (None, "yes", "no"):
            raise UsageError(f"{option}={value}: say yes or no")
        return default if value is None else value == "yes"


Work = Callable[[Command], Awaitable[Mapping[str, Any]]]


@dataclass(frozen=True, slots=True)
class Verb:
    """What a verb takes, and what does it. `usage` is shown to whoever gets it wrong."""

    usage: str
    work: Work
    arguments: range  # how many there may be
    flags: frozenset[str] = frozenset()
    options: frozenset[str] = frozenset()


def parse(line: str, verbs: Mapping[str, Verb]) -> Command:
    """Take a line apart and check it against what its verb takes. Raises UsageError."""
    try:
        name, *words = shlex.split(line)
    except ValueError as error:
        raise UsageError(f"{line!r}: {error}") from None
    verb = verbs.get(name)
    if verb is None:
        raise UsageError(f"unknown command {name!r}: there are {', '.join(sorted(verbs))}")
    options = dict(word.split("=", 1) for word in words if word.partition("=")[0] in verb.options and "=" in word)
    rest = [word for word in words if not (word.partition("=")[0] in verb.options and "=" in word)]
    # The name of a snapshot may be that of a flag; the first word is an argument where one is needed.
    arguments, flags = rest[: verb.arguments.start], rest[verb.arguments.start :]
    arguments += [word for word in flags if word not in verb.flags]
    if len(arguments) not in verb.arguments:
        raise UsageError(f"usage: {verb.usage}")
    return Command(name, arguments, verb.flags & set(flags), options)


class Commands:
    """Runs commands. `failed(line, message, errno)` is told of each failure, `count(verb, result)` of everything."""

    def __init__(self, failed: Callable[[str, str, int], None], count: Callable[[str, str], None]) -> None:
        self._verbs: dict[str, Verb] = {}
        self._failed = failed
        self._count = count
        self.fenced: Callable[[], Mapping[str, Any] | None] = lambda: None
        """Who writes this volume in our place, to be told with every reply."""

    def add(self, name: str, verb: Verb) -> None:
        self._verbs[name] = verb

    async def run(self, line: str, since: int | None = None) -> Reply:
        """Do what `line` says; returns when it is done. `since`: see Command."""
        name = "unknown"
        try:
            command = replace(parse(line, self._verbs), since=since)
            name = command.verb
            told = await self._verbs[name].work(command)
        except Exception as error:
            self._count(name, "failed")
            return self._failure(line, name, error)
        self._count(name, "ok")
        return Reply(_line({"ok": True, "command": name, **told, **self._warning()}))

    def _warning(self) -> Mapping[str, Any]:
        fenced = self.fenced()
        return {"fenced": fenced} if fenced is not None else {}

    def _failure(self, line: str, name: str, error: Exception) -> Reply:
        number, message, exit_code = explain(error)
        if exit_code == EXIT_BUG:
            log.error("command %r: a bug", line, exc_info=error)
        else:
            log.warning("command %r: %s", line, message)
        self._failed(line, message, number)
        symbol = errno.errorcode.get(number, str(number))
        told = {"ok": False, "command": name, "error": message, "errno": symbol, "exit_code": exit_code}
        return Reply(_line({**told, **self._warning()}), number)


def explain(error: Exception) -> tuple[int, str, int]:
    """errno, one line, and exit code of what a command raised."""
    match error:
        case SnapshotError():
            return error.errno, str(error), error.exit_code
        case CorruptionError():
            return errno.EIO, str(error), error.exit_code
        case BusyError():
            return errno.EBUSY, str(error), error.exit_code
        case SnapfsError():
            return errno.EINVAL, str(error), error.exit_code
        case OSError():
            return error.errno or errno.EIO, error.strerror or str(error), EXIT_ENVIRONMENT
    return errno.EIO, f"{type(error).__name__}: {error}", EXIT_BUG


def _line(told: Mapping[str, Any]) -> bytes:
    return msgspec.json.encode(told) + b"\n"

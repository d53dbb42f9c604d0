"""The language of `.snapfs/control`: one line, one command, one reply.

    VERB [ARGUMENT...] [WORD] [OPTION=VALUE...]

Words are split as a shell splits them, so a name with spaces is quoted. Behind a word `--` all words are arguments,
so `snapshot flush=no -- wait=sealed` makes one that is called so; before it, a WORD=VALUE that the verb does not know
is refused, and never a name. The reply is a JSON object on a line of
its own: `ok`, `command`, and the facts that the command returns; or, if it failed, `error` (one line with what to do),
`errno` (its symbol) and `exit_code` (what the command line exits with). `fenced` is there while another host writes
this volume (see mount_status.py). Fields may be added; unknown ones are to be ignored.

Invariants:
1. Whatever a command raises becomes a reply; a bug becomes EIO and a traceback in the log.
2. What is not understood is EINVAL and does nothing.
"""

from __future__ import annotations

import errno
import logging
import re
import shlex
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import msgspec

from snapfs.base.errors import (
    EXIT_BUG,
    EXIT_ENVIRONMENT,
    EXIT_USAGE,
    BusyError,
    CorruptionError,
    SnapfsError,
    SnapshotError,
    UserError,
)
from snapfs.fuse.virtual.caller import Caller
from snapfs.fuse.virtual.control_nodes import Reply

log = logging.getLogger(__name__)
_OPTION = re.compile(r"[A-Za-z_-]+=")


class UsageError(UserError):
    """A command that is not understood."""

    exit_code = EXIT_USAGE


@dataclass(frozen=True, slots=True)
class Command:
    """A line taken apart. `flags` are words without a value that the verb knows, such as `force`."""

    verb: str
    arguments: list[str]
    flags: frozenset[str] = frozenset()
    options: Mapping[str, str] = field(default_factory=dict)
    since: int | None = None
    """Not None: an earlier daemon began this, and died over it, when the newest snapshot had this number."""
    caller: Caller | None = None
    """The process that gave it, None if it is unknown."""

    def yes(self, option: str, default: bool) -> bool:
        """A yes-or-no option."""
        value = self.options.get(option)
        if value not in (None, "yes", "no"):
            raise UsageError(f"{option}={value}: must be yes or no")
        return default if value is None else value == "yes"


Work = Callable[[Command], Awaitable[Mapping[str, Any]]]


@dataclass(frozen=True, slots=True)
class Verb:
    """What a verb takes, and what does it. `usage` is part of the error for a line that is not understood."""

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
    last = words.index("--") if "--" in words else len(words)
    words, plain = words[:last], words[last + 1 :]
    options = dict(word.split("=", 1) for word in words if word.partition("=")[0] in verb.options and "=" in word)
    rest = [word for word in words if not (word.partition("=")[0] in verb.options and "=" in word)]
    unknown = next((word.partition("=")[0] for word in rest if _OPTION.match(word)), None)
    if unknown is not None:
        raise UsageError(f"{name} has no option {unknown}=: usage: {verb.usage}; put -- before a name with = in it")
    # The name of a snapshot may be that of a flag; the first word is an argument where one is needed.
    needed = max(verb.arguments.start - len(plain), 0)
    arguments, flags = rest[:needed], rest[needed:]
    arguments += [word for word in flags if word not in verb.flags] + plain
    if len(arguments) not in verb.arguments:
        raise UsageError(f"usage: {verb.usage}")
    return Command(name, arguments, verb.flags & set(flags), options)


class Commands:
    """Runs commands."""

    def __init__(
        self,
        verbs: Mapping[str, Verb],
        failed: Callable[[str, str, int], None],
        count: Callable[[str, str], None],
        fenced: Callable[[], Mapping[str, Any] | None] = lambda: None,
        done: Callable[[Command, Mapping[str, Any]], Awaitable[None]] | None = None,
    ) -> None:
        """`failed(line, message, errno)` is called for each failure, `count(verb, result)` for every command.

        `fenced`: which host writes this volume in our place, if one does; it is part of every reply. `done(command,
        facts)` is awaited after each one that was carried out, before it is answered.
        """
        self._verbs = verbs
        self._failed = failed
        self._count = count
        self._fenced = fenced
        self._done = done

    async def run(self, line: str, since: int | None = None, caller: Caller | None = None) -> Reply:
        """Carry out the command `line`; return when it is done. `since`, `caller`: see Command."""
        name = "unknown"
        try:
            command = replace(parse(line, self._verbs), since=since, caller=caller)
            name = command.verb
            facts = await self._verbs[name].work(command)
            if self._done is not None:
                await self._done(command, facts)
        except Exception as error:
            self._count(name, "failed")
            return self._failure(line, name, error)
        self._count(name, "ok")
        return Reply(_line({"ok": True, "command": name, **facts, **self._warning()}))

    def refused(self, lines: Sequence[str], permits: Callable[[str], bool]) -> Reply | None:
        """The reply to the first line whose verb is not permitted; None if all are, or are not understood."""
        for line in lines:
            verb = _verb_of(line)
            if verb in self._verbs and not permits(verb):
                self._count(verb, "refused")
                return self._failure(
                    line, verb, PermissionError(errno.EPERM, f"you may not {verb} here: control.allow")
                )
        return None

    def _warning(self) -> Mapping[str, Any]:
        fenced = self._fenced()
        return {"fenced": fenced} if fenced is not None else {}

    def _failure(self, line: str, name: str, error: Exception) -> Reply:
        number, message, exit_code = explain(error)
        if exit_code == EXIT_BUG:
            log.error("command %r: a bug", line, exc_info=error)
        else:
            log.warning("command %r: %s", line, message)
        self._failed(line, message, number)
        symbol = errno.errorcode.get(number, str(number))
        facts = {"ok": False, "command": name, "error": message, "errno": symbol, "exit_code": exit_code}
        return Reply(_line({**facts, **self._warning()}), number)


def _verb_of(line: str) -> str:
    """As `parse` understands it; "" if it does not."""
    try:
        return next(iter(shlex.split(line)), "")
    except ValueError:
        return ""


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


def _line(facts: Mapping[str, Any]) -> bytes:
    return msgspec.json.encode(facts) + b"\n"

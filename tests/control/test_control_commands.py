"""The language of the control file: a table of lines, and the replies to failures."""

from __future__ import annotations

import errno
from collections.abc import Mapping
from typing import Any

import msgspec
import pytest
import trio

from snapfs.base.errors import BusyError, CorruptionError, SnapshotError, UserError
from snapfs.control.control_commands import Command, Commands, UsageError, Verb, parse


async def nothing(command: Command) -> Mapping[str, Any]:
    return {"arguments": command.arguments}


VERBS = {
    "snapshot": Verb("snapshot [NAME] [flush=yes|no]", nothing, range(0, 2), options=frozenset({"flush"})),
    "rollback": Verb("rollback REF [force]", nothing, range(1, 2), flags=frozenset({"force"})),
}


@pytest.mark.parametrize(
    ("line", "command"),
    [
        ("snapshot", Command("snapshot", [])),
        ("snapshot x", Command("snapshot", ["x"])),
        ("  snapshot   x  ", Command("snapshot", ["x"])),
        ("snapshot x flush=no", Command("snapshot", ["x"], options={"flush": "no"})),
        ("snapshot flush=no x", Command("snapshot", ["x"], options={"flush": "no"})),
        ("snapshot 'two words'", Command("snapshot", ["two words"])),
        ("snapshot größe", Command("snapshot", ["größe"])),
        ("rollback 7", Command("rollback", ["7"])),
        ("rollback 7 force", Command("rollback", ["7"], frozenset({"force"}))),
        ("rollback force", Command("rollback", ["force"])),
        ("rollback force force", Command("rollback", ["force"], frozenset({"force"}))),
        ("snapshot -- flush=no", Command("snapshot", ["flush=no"])),
        ("snapshot -- flsh=no", Command("snapshot", ["flsh=no"])),
        ("snapshot flush=no -- wiat=x", Command("snapshot", ["wiat=x"], options={"flush": "no"})),
        ("rollback -- a=b", Command("rollback", ["a=b"])),
        ("snapshot '2 + 2 = 4'", Command("snapshot", ["2 + 2 = 4"])),
    ],
)
def test_a_line_is_understood(line: str, command: Command) -> None:
    assert parse(line, VERBS) == command


@pytest.mark.parametrize(
    "line", ["frobnicate", "snapshot a b", "snapshot 'a", "rollback", "rollback 7 gently", "snapshot x slow=no"]
)
def test_a_line_is_refused(line: str) -> None:
    with pytest.raises(UsageError):
        parse(line, VERBS)


@pytest.mark.parametrize("line", ["snapshot wiat=replicated", "snapshot x flsh=no", "rollback a=b", "snapshot no= x"])
def test_an_option_that_is_mistyped_is_no_name(line: str) -> None:
    """`snapshot wiat=replicated` made a snapshot of that name, at once and without waiting."""
    with pytest.raises(UsageError, match=r"has no option \w+=: usage: .*; put -- before a name with ="):
        parse(line, VERBS)


@pytest.mark.parametrize(("text", "answer"), [("", True), ("flush=yes", True), ("flush=no", False)])
def test_yes_or_no(text: str, answer: bool) -> None:
    assert parse(f"snapshot x {text}", VERBS).yes("flush", True) is answer


def test_neither_yes_nor_no() -> None:
    with pytest.raises(UsageError, match="must be yes or no"):
        parse("snapshot x flush=maybe", VERBS).yes("flush", True)


FAILURES = [
    (UserError("no"), errno.EINVAL, 3),
    (UsageError("no"), errno.EINVAL, 2),
    (BusyError("no"), errno.EBUSY, 4),
    (SnapshotError("no", errno.ENOSPC), errno.ENOSPC, 7),
    (CorruptionError("object 1", "a.seg", "no"), errno.EIO, 5),
    (FileExistsError(errno.EEXIST, "no"), errno.EEXIST, 3),
    (ZeroDivisionError("no"), errno.EIO, 70),
]


@pytest.mark.parametrize(("error", "number", "exit_code"), FAILURES, ids=lambda value: type(value).__name__)
def test_a_failure_is_a_reply(error: Exception, number: int, exit_code: int) -> None:
    failures: list[tuple[str, str, int]] = []
    counted: list[tuple[str, str]] = []

    async def fail(command: Command) -> Mapping[str, Any]:
        raise error

    verbs = {"fail": Verb("fail", fail, range(0, 1))}
    commands = Commands(verbs, lambda *failure: failures.append(failure), lambda *count: counted.append(count))
    reply = trio.run(commands.run, "fail")
    facts = msgspec.json.decode(reply.line)
    assert (reply.errno, facts["ok"], facts["exit_code"]) == (number, False, exit_code)
    assert "no" in facts["error"]
    assert facts["errno"] == errno.errorcode[number]
    assert failures == [("fail", facts["error"], number)]
    assert counted == [("fail", "failed")]


def test_a_success_is_a_reply() -> None:
    commands = Commands(VERBS, lambda *failure: None, lambda *count: None)
    reply = trio.run(commands.run, "snapshot x")
    assert reply.errno == 0
    assert msgspec.json.decode(reply.line) == {"ok": True, "command": "snapshot", "arguments": ["x"]}
    assert reply.line.endswith(b"\n")

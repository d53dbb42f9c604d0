"""Commands that wait for the answers of one session of a group's cut."""

from __future__ import annotations

import trio
import trio.testing

from snapfs.base.errors import BusyError
from snapfs.control.groups.group_member import GroupSession
from snapfs.store.log.snapshot_records import GroupCut
from tests.fakes.patience import PATIENCE_S


class NoGate:
    """This session never comes to its gate."""

    def check(self) -> None: ...
    def make_ready(self) -> None: ...
    async def close(self) -> None: ...
    async def flush(self) -> bool:
        return True

    def open(self) -> None: ...


def test_a_command_is_answered_though_another_waits_too() -> None:
    """An abort while prepare waited: the latter was never woken."""
    group = GroupCut("g", "1" * 32, (("a", "a" * 32), ("b", "b" * 32)))
    session = GroupSession(group, None, True, NoGate(), lambda seconds: None)
    answered: list[str] = []

    async def ask(word: str) -> None:
        try:
            await session.ask(word)
            answered.append(word)
        except BusyError:
            answered.append("over")

    async def story() -> None:
        with trio.fail_after(PATIENCE_S):
            async with trio.open_nursery() as nursery:
                for word in ("", "abort"):
                    nursery.start_soon(ask, word)
                    await trio.testing.wait_all_tasks_blocked()
                session.answer({})
                session.end(BusyError("it was given up"))

    trio.run(story)
    assert len(answered) == 2
    assert "over" in answered

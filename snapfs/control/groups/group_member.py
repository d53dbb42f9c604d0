"""One mount as a member of a group whose cuts show one instant. Another process coordinates, by control commands, and
while gates are closed by a line of its own (group_line.py):

    prepare   hooks, flush, all that a cut needs; the snapshotter's lock is held from here on
    ready     it is about to be closed: the daemon's thread runs first (may be left out)
    close     the gate is closed (fuse/kernel/cut_gate.py)
    settle    the kernel's pages are received; EAGAIN: once more, on all members
    cut       the cut is made, and the gate opened
    seal      the cut becomes a snapshot; the answer is its record
    abort     in the place of any of them: nothing is made, all is as it was

The coordinator closes every gate before the first `settle`, has every `settle` succeed before the first `cut`, and
every `cut` before the first `seal`.

Invariants:
1. A closed gate is opened after LEASE_S, whatever becomes of the coordinator, and its cut fails then. If the daemon
   dies, the kernel sends the held requests to the next one, which has no gate.
2. Each step waits PATIENCE_S at most for the next; then everything of this member is given up.
3. A cut that was not followed by `seal` is no snapshot: its changes are in the next one.
4. One session at a time, in a task of its own: a command only passes its word on, and waits for the answer.
"""

from __future__ import annotations

import errno
import math
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

import trio

from snapfs.base.errors import BusyError, SnapfsError, SnapshotError
from snapfs.live.cut import Cut
from snapfs.store.log.snapshot_records import AskedBy, GroupCut, SnapshotRecord
from snapfs.transfer.seal.snapshotter import Snapshotter

LEASE_S: Final = 1.0
PATIENCE_S: Final = 30.0
AGAIN: Final = "again"
_LAST_ANSWER_S: Final = 1.0


class Gate(Protocol):
    """CutGate."""

    def check(self) -> None: ...
    def make_ready(self) -> None: ...
    async def close(self) -> None: ...
    async def flush(self) -> bool: ...
    def open(self) -> None: ...


@dataclass(slots=True)
class GroupSession:
    """One cut of the group on this member: words of the coordinator come in, answers go out. It is the `CutMoment`."""

    group: GroupCut
    name: str | None
    flush: bool
    gate: Gate
    closed: Callable[[float], None]
    by: AskedBy | None = None
    serve: Callable[[GroupSession], Awaitable[None]] | None = None
    """Brings words from elsewhere than commands, for as long as the session lasts (group_line.py)."""
    ended: bool = False
    asking: int = 0
    """How many words wait for their answer."""
    _words: list[str] = field(default_factory=list)
    _answers: list[Any] = field(default_factory=list)
    _word_came: trio.Event = field(default_factory=trio.Event)
    _answer_came: trio.Event = field(default_factory=trio.Event)

    async def ask(self, word: str) -> Any:
        """For commands: pass the word on and return the answer. Raises what the session failed with."""
        if word and not self.ended:
            self._words.append(word)
            self._word_came.set()
        self.asking += 1
        try:
            await self._answered()
        finally:
            self.asking -= 1
        answer = self._answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    async def _answered(self) -> None:
        while not self._answers:
            if self.ended:
                raise BusyError(f"the group's cut {self.group.cut} has ended here")
            if self._answer_came.is_set():  # another command may wait for the one that is not
                self._answer_came = trio.Event()
            await self._answer_came.wait()

    def answer(self, what: Any) -> None:
        self._answers.append(what)
        self._answer_came.set()

    def end(self, what: Any) -> None:
        """The last answer."""
        self.ended = True
        self.answer(what)

    async def _next(self, *expected: str, patience_s: float = PATIENCE_S) -> str:
        with trio.move_on_after(patience_s):
            while not self._words:
                self._word_came = trio.Event()
                await self._word_came.wait()
        if not self._words:
            raise SnapshotError(
                f"the cut of group {self.group.group} did not go on for {patience_s:g} s: hooks or a seal of another "
                "member take longer, or the command that cuts it has ended", errno.ETIMEDOUT,
            )  # fmt: skip
        word = self._words.pop(0)
        if word not in expected:
            raise SnapshotError(f"the cut of group {self.group.group} was given up: {word}", errno.ECANCELED)
        return word

    async def make(self, cut: Callable[[float | None], Cut]) -> Cut:
        """See CutMoment."""
        self.gate.check()
        self.answer({})
        try:
            if await self._next("ready", "close") == "ready":
                self.gate.make_ready()
                self.answer({})
                await self._next("close", patience_s=LEASE_S)
            return await self._made_behind_the_gate(cut)
        finally:
            self.gate.open()

    async def _made_behind_the_gate(self, cut: Callable[[float | None], Cut]) -> Cut:
        closed_s = time.perf_counter()
        try:
            with trio.move_on_after(LEASE_S):
                return await self._behind_the_gate(cut, closed_s)
        finally:
            pause_s = time.perf_counter() - closed_s  # before this thread waits behind others again
            self.gate.open()
            self.closed(pause_s)
        raise SnapshotError(f"the gate was open again after {LEASE_S:g} s, before all others were", errno.ETIMEDOUT)

    async def _behind_the_gate(self, cut: Callable[[float | None], Cut], closed_s: float) -> Cut:
        await self.gate.close()
        self.answer({})
        while await self._next("settle", "cut", patience_s=math.inf) == "settle":
            self.answer({} if await self.gate.flush() else AGAIN)
        return cut(closed_s)

    async def may_seal(self) -> None:
        """See CutMoment."""
        self.answer({})
        await self._next("seal")


class GroupMember:
    """Runs the sessions of one mount, one at a time. For the trio thread."""

    def __init__(self, snapshotter: Snapshotter, gate: Gate, closed: Callable[[float], None]) -> None:
        """`closed` is called with how long the gate was closed, in seconds."""
        self._snapshotter, self._gate, self._closed = snapshotter, gate, closed
        self._session: GroupSession | None = None
        self._begun = trio.Event()

    async def run(self) -> None:
        """The task of the sessions; for ever."""
        while True:
            await self._begun.wait()
            self._begun = trio.Event()
            session = self._session
            if session is not None:
                await self._run(session)

    async def _run(self, session: GroupSession) -> None:
        async with trio.open_nursery() as nursery:
            if session.serve is not None:
                nursery.start_soon(session.serve, session)
            session.end(await self._made(session))
            with trio.move_on_after(_LAST_ANSWER_S):
                while session.asking:
                    await trio.sleep(0.001)
            nursery.cancel_scope.cancel()
        self._session = None

    async def _made(self, session: GroupSession) -> SnapshotRecord | Exception:
        try:
            return await self._snapshotter.snapshot(
                session.name, "group", flush=session.flush, moment=session, by=session.by
            )
        except (SnapfsError, OSError) as error:
            return error

    def begin(
        self, group: GroupCut, name: str | None, flush: bool, by: AskedBy | None = None,
        serve: Callable[[GroupSession], Awaitable[None]] | None = None,
    ) -> GroupSession:  # fmt: skip
        """`by`: who asked for it; `serve`: see GroupSession. BusyError while another one is under way."""
        if self._session is not None:
            group, by = self._session.group, self._session.by
            who = f", by process {by.pid}" if by is not None else ""
            raise BusyError(f"a cut of group {group.group} is under way ({group.cut[:12]}{who})")
        self._session = GroupSession(group, name, flush, self._gate, self._closed, by, serve)
        self._begun.set()
        return self._session

    def session(self, cut: str) -> GroupSession:
        """The one under way. BusyError if it is another, or over."""
        session = self._session
        if session is None or session.group.cut != cut:
            raise BusyError(f"the group's cut {cut} is not under way here: its time is over, or the daemon died")
        return session

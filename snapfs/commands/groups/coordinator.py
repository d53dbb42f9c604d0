"""The coordinator of a group's cut: it takes all members through the steps of control/groups/group_member.py.

Invariants:
1. No gate is opened by us before all are closed; no cut becomes a snapshot before all are made.
2. It may die at any point: the members give up by themselves, and what was not sealed is in their next snapshot. What
   was sealed is a snapshot like others, of a cut that is not whole.
3. A failure before the cuts is tried again, a few times: members come back, and gates are open after a second whatever
   happens. After a failure of a seal what the others made of this cut is dropped: it was not reported to anybody.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import time
import uuid
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Final

import msgspec

from snapfs.base.errors import BusyError, DaemonDiedError, SnapfsError, SnapshotError
from snapfs.base.run_first import run_as_usual, run_first
from snapfs.commands.support.locate import VolumeLocation, control_line
from snapfs.control.groups.group_line import socket_name
from snapfs.store.log.snapshot_records import GroupCut

ATTEMPTS: Final = 8
_ROUNDS: Final = 50
_PAUSE_S: Final = 0.2
_REPLY_BYTES: Final = 1 << 20
_ANSWER_BYTES: Final = 4096
_LINE_S: Final = 5.0
"""For one answer by a line: a closed gate gives up by itself after a second."""
_TRANSIENT: Final = frozenset({
    errno.ETIMEDOUT, errno.EBUSY, errno.ECANCELED, errno.ENOTCONN, errno.ECONNABORTED, errno.EAGAIN, errno.EINTR,
})  # fmt: skip


class StepError(SnapshotError):
    """A member failed at a step of the cut."""


@dataclass(slots=True)
class Member:
    """A mounted member: one descriptor of its control file, for a thread at a time."""

    name: str
    place: VolumeLocation
    fd: int = -1
    line: socket.socket | None = None
    """For the steps at which gates are closed (control/groups/group_line.py); None: these, too, by the control file."""
    reply: dict[str, Any] = field(default_factory=dict)

    def open(self) -> None:
        self.place.status()  # raises what is wrong
        assert self.place.mountpoint is not None
        self.fd = os.open(os.path.join(self.place.mountpoint, ".snapfs/control"), os.O_RDWR | os.O_CLOEXEC)

    def close(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1
        if self.line is not None:
            self.line.close()
            self.line = None

    def send(self, line: str) -> None:
        """One step; the reply is left where it is. OSError."""
        os.write(self.fd, line.encode(errors="surrogateescape"))

    def read_reply(self) -> None:
        """Of the step that was sent last. OSError."""
        self.reply = msgspec.json.decode(os.read(self.fd, _REPLY_BYTES).splitlines()[-1])

    def say(self, step: str) -> None:
        """A step by the line; what fails is found by `heard`."""
        assert self.line is not None
        with contextlib.suppress(OSError):
            self.line.sendall(f"{step}\n".encode())

    def heard(self, step: str) -> StepError | None:
        """The answer to that: None if the step is done."""
        assert self.line is not None
        try:
            answer = self.line.recv(_ANSWER_BYTES).decode(errors="replace").strip()
        except OSError as error:  # a timeout, too
            return StepError(f"{self.name}: {step}: {error}", errno.ETIMEDOUT)
        if answer == "ok":
            return None
        if answer == "again":
            return StepError(f"{self.name}: {step}: truncations were in the way", errno.EAGAIN)
        _, number, words = (f"{answer}  " if answer else f"x {errno.ECONNABORTED} its daemon died").split(" ", 2)
        return StepError(f"{self.name}: {step}: {words.strip()}", int(number) if number.isdecimal() else errno.EIO)

    def failure(self, step: str, error: OSError) -> StepError:
        """In the daemon's own words, if it has some."""
        words = error.strerror
        with contextlib.suppress(OSError, msgspec.MsgspecError, IndexError):
            words = msgspec.json.decode(os.read(self.fd, _REPLY_BYTES).splitlines()[-1])["error"]
        return StepError(f"{self.name}: {step}: {words}", error.errno or errno.EIO)


@dataclass(frozen=True, slots=True)
class GroupCutMade:
    """What came of it: the replies of the members to `seal`, and how long any gate was closed."""

    group: GroupCut
    replies: dict[str, dict[str, Any]]
    pause_s: float
    attempts: int


class Coordinator:
    """For one thread. `with` closes what it opened."""

    def __init__(self, group: str, members: Sequence[Member], ids: Sequence[tuple[str, str]]) -> None:
        """`ids`: names and volume ids of all members."""
        self._group, self._members, self._ids = group, members, tuple(ids)
        self._threads = ThreadPoolExecutor(len(members), thread_name_prefix="member")

    def __enter__(self) -> Coordinator:
        return self

    def __exit__(self, *ignored: object) -> None:
        self._threads.shutdown()
        for member in self._members:
            member.close()

    def cut(self, name: str | None, flush: bool = True) -> GroupCutMade:
        """Cut and seal. SnapshotError: there is no whole cut; SnapfsError if a member is not mounted."""
        for attempt in range(1, ATTEMPTS + 1):
            group = GroupCut(self._group, uuid.uuid4().hex, self._ids)
            try:
                self._prepare(group, name, flush)
                pause_s = self._to_the_cut(group)
                return GroupCutMade(group, self._seal(group), pause_s, attempt)
            except (StepError, DaemonDiedError, BusyError) as error:
                self._give_up(group)
                number = error.errno if isinstance(error, StepError) else errno.EBUSY
                if attempt == ATTEMPTS or number not in _TRANSIENT:
                    raise
                time.sleep(_PAUSE_S * attempt)
        raise AssertionError

    def _prepare(self, group: GroupCut, name: str | None, flush: bool) -> None:
        options = [f"flush={'yes' if flush else 'no'}", *([f"name={name}"] if name else []), "line=yes"]
        line = control_line("group", ["prepare", msgspec.json.encode(group).decode()], options)

        def begin(member: Member) -> None:
            member.close()
            member.open()
            member.send(line)
            member.read_reply()

        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
            listener.bind(socket_name(group.cut))
            listener.listen(len(self._members))
            self._all("prepare", begin)
            self._accept(listener)

    def _accept(self, listener: socket.socket) -> None:
        """The lines of the members that could connect; they did so before they answered."""
        by_id = {dict(self._ids)[member.name]: member for member in self._members}
        listener.settimeout(_LINE_S)
        for _ in [member for member in self._members if member.reply.get("line")]:
            line, _ = listener.accept()
            line.settimeout(_LINE_S)
            member = by_id.get(line.recv(_ANSWER_BYTES).decode(errors="replace").strip())
            if member is None or member.line is not None:
                line.close()
                raise StepError("an unknown member has called", errno.EBUSY)
            member.line = line

    def _to_the_cut(self, group: GroupCut) -> float:
        """How long a gate was closed at most."""
        run_first()
        try:
            self._step("ready", group)
            return self._through_the_gates(group)
        finally:
            run_as_usual()

    def _through_the_gates(self, group: GroupCut) -> float:
        started = time.perf_counter()
        self._step("close", group)
        for _ in range(_ROUNDS):
            try:
                self._step("settle", group)
                break
            except StepError as error:
                if error.errno != errno.EAGAIN:
                    raise
        self._step("cut", group)
        return time.perf_counter() - started

    def _seal(self, group: GroupCut) -> dict[str, dict[str, Any]]:
        self._step("seal", group)
        for member in self._members:
            member.read_reply()
        return {member.name: member.reply for member in self._members}

    def _step(self, step: str, group: GroupCut) -> None:
        """Of all members at the same time: those with a line are all sent the step before any answer is waited for."""
        line = f"group {step} {group.cut}"
        near = [member for member in self._members if member.line is not None and step != "seal"]
        far = [member for member in self._members if member not in near]
        for member in near:
            member.say(step)
        failures: list[SnapfsError] = [failure for member in near if (failure := member.heard(step)) is not None]
        if far:
            failures += self._failures(step, lambda member: member.send(line), far)
        _raise_worst(failures)

    def _all(self, step: str, act: Callable[[Member], object]) -> None:
        """On all members at the same time; when all are through, the worst failure is raised."""
        _raise_worst(self._failures(step, act, self._members))

    def _failures(self, step: str, act: Callable[[Member], object], members: Sequence[Member]) -> list[SnapfsError]:
        def run(member: Member) -> SnapfsError | None:
            try:
                act(member)
            except OSError as error:
                return member.failure(step, error)
            except SnapfsError as error:
                return error
            return None

        return [each for each in self._threads.map(run, members) if each is not None]

    def _give_up(self, group: GroupCut) -> None:
        """Have all members forget this cut, and drop what some of them made of it."""

        def forget(member: Member) -> None:
            with contextlib.suppress(OSError, SnapfsError):
                member.close()
                member.open()
                with contextlib.suppress(OSError):
                    member.send(f"group abort {group.cut}")
                member.send(f"group forget {group.cut}")

        list(self._threads.map(forget, self._members))


def _raise_worst(failures: Sequence[SnapfsError]) -> None:
    again = [each for each in failures if isinstance(each, StepError) and each.errno == errno.EAGAIN]
    if failures:
        raise next((each for each in failures if each not in again), failures[0])

"""What the kernel's requests were answered, kept so that a request that is sent again is not done again.

A daemon can die after it has done what a request asks and before its answer has reached the kernel. The one that takes
the living mount over is sent the request once more, with bit 63 of its number (`unique`) set. Most requests may simply
be done twice. Those that change names may not: a file would exist already, a name be gone. So the transaction that
carries such a request out also notes its number and its outcome.

Invariants:
1. A note is committed with the change that it tells of, or neither is.
2. A failure leaves no note: the request changed nothing, and is done again.
3. The notes of the newest `SLOTS` changes are kept, in a ring of rows that never grows. What was noted earlier was
   answered long ago: the answers on their way when a daemon dies are those of processes that wait for them, and the
   socket between router and daemon holds fewer than that.
4. Numbers start anew with each mount of the kernel, so notes of an earlier mount are thrown away before a new one
   answers its first request.

Commands to the control file have rows of their own, by the handle they came through: the number of the newest snapshot
when the command began, from which a successor sees how far it came, and the reply once there is one. A row goes when
the kernel closes the handle.
"""

from __future__ import annotations

from typing import NamedTuple

from snapfs.live.writer import Writer

RESENT = 1 << 63
"""The bit of a request's number that says it was sent before."""
SLOTS = 8192
_HANDLE_MASK = (1 << 63) - 1
_TURN = -1
"""In place of a handle: a rollback is being told to the kernel."""

NOTE = "INSERT OR REPLACE INTO answer VALUES (?,?,?,?)"


class PastCommand(NamedTuple):
    """A command that came through an open handle of the control file. `reply` is None while it was under way."""

    request: int
    newest: int
    reply: bytes | None
    errno: int


class Answers:
    """The notes of one namespace. For the thread of the writer."""

    def __init__(self, writer: Writer) -> None:
        self._writer = writer
        (serial,) = writer.must("SELECT coalesce(max(serial), 0) FROM answer")
        self._serial: int = serial
        self._past: dict[int, int] = dict(writer.db.execute("SELECT request, value FROM answer").fetchall())
        self._asked = 0
        writer.note = self._note

    # -- changes of names

    def ask(self, request: int) -> None:
        """The next change that has an outcome answers this request. 0: it answers none that could come again."""
        self._asked = request & ~RESENT

    def past(self, request: int) -> int | None:
        """The outcome of a request that an earlier daemon has carried out: an inode number, or 0. Else None."""
        return self._past.get(request & ~RESENT) if request & RESENT else None

    def _note(self, value: int) -> None:
        """Within a change."""
        request, self._asked = self._asked, 0
        if request:
            self._serial += 1
            self._writer.db.execute(NOTE, (self._serial % SLOTS, self._serial, request, value))

    def forget(self) -> None:
        """A new mount begins."""
        self._past.clear()
        writer = self._writer
        if writer.row("SELECT 1 FROM answer") is not None or writer.row("SELECT 1 FROM command") is not None:
            with writer.change:
                writer.db.execute("DELETE FROM answer")
                writer.db.execute("DELETE FROM command")

    # -- commands

    def begin_command(self, handle: int, request: int, newest: int) -> None:
        """A command begins; `newest` is the number of the newest snapshot there is."""
        with self._writer.change:
            row = (handle & _HANDLE_MASK, request & ~RESENT, newest, None, 0)
            self._writer.db.execute("INSERT OR REPLACE INTO command VALUES (?,?,?,?,?)", row)

    def end_command(self, handle: int, reply: bytes, errno: int) -> None:
        """The command of this handle is done, and this is what its writer is told."""
        with self._writer.change:
            sql = "UPDATE command SET reply = ?, errno = ? WHERE handle = ?"
            self._writer.db.execute(sql, (reply, errno, handle & _HANDLE_MASK))
            self._writer.db.execute("DELETE FROM command WHERE handle = ?", (_TURN,))

    def begin_turn(self) -> None:
        """From here to the end of the command the kernel may believe what a rollback has made untrue."""
        with self._writer.change:
            self._writer.db.execute("INSERT OR REPLACE INTO command VALUES (?,0,0,NULL,0)", (_TURN,))

    @property
    def in_turn(self) -> bool:
        """Whether the last daemon died between a rollback's turn and the end of telling the kernel of it."""
        return self._writer.row("SELECT 1 FROM command WHERE handle = ?", (_TURN,)) is not None

    def command(self, handle: int) -> PastCommand | None:
        """The last command that came through this handle."""
        sql = "SELECT request, newest, reply, errno FROM command WHERE handle = ?"
        row = self._writer.row(sql, (handle & _HANDLE_MASK,))
        return None if row is None else PastCommand(*row)

    def forget_command(self, handle: int) -> None:
        """The handle is closed."""
        with self._writer.change:
            self._writer.db.execute("DELETE FROM command WHERE handle = ?", (handle & _HANDLE_MASK,))

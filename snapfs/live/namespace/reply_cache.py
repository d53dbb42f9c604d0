"""The replies to the kernel's requests, kept so that a request that is sent again is not done twice: they are
idempotent.

A daemon can die after it has executed a request and before its reply has reached the kernel. The one that takes the
living mount over is sent the request once more, with bit 63 of its number (`unique`) set. Most requests may simply
be done twice. Those that change names may not: a file would exist already, a name be gone. So the transaction that
carries such a request out also notes its number and its outcome.

Invariants:
1. A note is committed with its change, or neither is.
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

from snapfs.live.writer.namespace_writer import NamespaceWriter

RESENT = 1 << 63
"""The bit of a request's number that is set if it was sent before."""
SLOTS = 8192
_HANDLE_MASK = (1 << 63) - 1
_KERNEL_IS_STALE = -1
"""In place of a handle: the kernel still caches what a rollback has changed."""

NOTE = "INSERT OR REPLACE INTO answer VALUES (?,?,?,?)"


class PastCommand(NamedTuple):
    """A command that came through an open handle of the control file. `reply` is None while it was under way."""

    request: int
    newest: int
    reply: bytes | None
    errno: int


class ReplyCache:
    """The notes of one namespace. For the thread of the writer."""

    def __init__(self, writer: NamespaceWriter) -> None:
        self._writer = writer
        (serial,) = writer.must("SELECT coalesce(max(serial), 0) FROM answer")
        writer.begin_notes(serial)
        self._past: dict[int, int] = dict(writer.db.execute("SELECT request, value FROM answer").fetchall())
        self._request = 0
        writer.pass_outcomes_to(self._note)

    # -- changes of names

    def set_request(self, request: int) -> None:
        """The next change that has an outcome answers this request. 0: it answers none that could come again."""
        self._request = request & ~RESENT

    def past(self, request: int) -> int | None:
        """The outcome of a request that an earlier daemon has carried out: an inode number, or 0. Else None."""
        return self._past.get(request & ~RESENT) if request & RESENT else None

    def _note(self, value: int) -> None:
        """Within a change."""
        request, self._request = self._request, 0
        if request:
            serial = self._writer.next_note()
            self._writer.db.execute(NOTE, (serial % SLOTS, serial, request, value))

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
        """The command of this handle is done, and this is the reply to its writer."""
        with self._writer.change:
            sql = "UPDATE command SET reply = ?, errno = ? WHERE handle = ?"
            self._writer.db.execute(sql, (reply, errno, handle & _HANDLE_MASK))
            self._writer.db.execute("DELETE FROM command WHERE handle = ?", (_KERNEL_IS_STALE,))

    def mark_kernel_stale(self) -> None:
        """From here to the end of the command the kernel may cache what a rollback has changed."""
        with self._writer.change:
            self._writer.db.execute("INSERT OR REPLACE INTO command VALUES (?,0,0,NULL,0)", (_KERNEL_IS_STALE,))

    @property
    def is_kernel_stale(self) -> bool:
        """Whether the last daemon died between a rollback and the end of invalidating the kernel's caches."""
        return self._writer.row("SELECT 1 FROM command WHERE handle = ?", (_KERNEL_IS_STALE,)) is not None

    def command(self, handle: int) -> PastCommand | None:
        """The last command that came through this handle."""
        sql = "SELECT request, newest, reply, errno FROM command WHERE handle = ?"
        row = self._writer.row(sql, (handle & _HANDLE_MASK,))
        return None if row is None else PastCommand(*row)

    def forget_command(self, handle: int) -> None:
        """The handle is closed."""
        with self._writer.change:
            self._writer.db.execute("DELETE FROM command WHERE handle = ?", (handle & _HANDLE_MASK,))

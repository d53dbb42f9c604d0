"""What the filesystem under the live tree was seen to fail at, and whether bytes that it had taken may be lost.

Each thread that meets an error of the host notes it here. There are two conclusions:

- The host *refuses* to be written to: it shut down or made itself read-only. `look` finds that out, without a write.
- A *sync* failed: the host could not write bytes back that it had accepted. It reports that once (errseq), keeps the
  pages as clean ones, and may read the old bytes back from the disk later. The dirty maps and intents, which rest on
  the page cache, are then *suspect*: all files whose bytes are not known to be durable are compared in full for the
  next snapshot (`LiveTree.compare_suspects`), and no later daemon takes over what this one has in memory
  (host_life.py).

Invariants:
1. A failed sync is noted, and the host's life withdrawn, before any caller gets the error; from then on no file is
   taken for durable without a sync (flush_marks.py), nor once the host was found to refuse writing.
2. What is noted stays suspect until `take_suspicion`, whose caller lists the files or calls `suspect` again.
"""

from __future__ import annotations

import contextlib
import errno
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass

from snapfs.live.backing.flush_marks import FlushMarks
from snapfs.live.backing.host_life import HostLife

READ, WRITE, SYNC = "read", "write", "sync"
ACTS = (READ, WRITE, SYNC)
HOST_ERRORS = frozenset(
    {errno.EIO, errno.EROFS, errno.EUCLEAN, errno.EBADMSG, errno.ENODEV, errno.ENXIO, errno.ESHUTDOWN}
)
"""Errors of the host's disk or filesystem, as opposed to a full disk or a wrong request."""


_LOSSES = HOST_ERRORS | {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.ENOMEM}
"""Errors of a sync that could not write bytes back; ENOENT and the like are about the file, not its bytes."""


@dataclass(frozen=True, slots=True)
class HostFailure:
    """The last error of the host. `time_ns` since 1970."""

    act: str
    errno: int
    time_ns: int


class HostHealth:
    """All methods from any thread. `life`: None in tests that have no host to lose."""

    def __init__(self, life: HostLife | None = None, flush_marks: FlushMarks | None = None) -> None:
        self.life = life
        self._flush_marks = FlushMarks() if flush_marks is None else flush_marks
        self.failures = dict.fromkeys(ACTS, 0)
        self.last: HostFailure | None = None
        self.refusal = 0
        """The errno with which the host refuses to be written to; 0 while it does not."""
        self.refused_since_ns = 0
        self._suspect = False
        self._lock = threading.Lock()

    @contextlib.contextmanager
    def watching(self, act: str) -> Iterator[None]:
        """Note the OSError of a system call on the host's files, and pass it on."""
        try:
            yield
        except OSError as error:
            self.note(act, error.errno or errno.EIO)
            raise

    def note(self, act: str, number: int) -> None:
        """An `act` failed with this errno."""
        if number not in (_LOSSES if act == SYNC else HOST_ERRORS):
            return
        with self._lock:
            self.failures[act] += 1
            self.last = HostFailure(act, number, time.time_ns())
        if act == SYNC:
            self.suspect()

    def suspect(self) -> None:
        """Bytes that the host had taken may be lost."""
        self._suspect = True
        self._flush_marks.fail()
        if self.life is not None:
            self.life.withdraw()

    @property
    def is_suspect(self) -> bool:
        return self._suspect

    def take_suspicion(self) -> bool:
        """Whether anything was suspect until now."""
        with self._lock:
            suspect, self._suspect = self._suspect, False
        return suspect

    def look(self) -> bool:
        """Find out whether the host can be written to; true if that is another answer than before. May wait."""
        number = self.life.probe() if self.life is not None else 0
        number = number if number in HOST_ERRORS else 0
        if number:
            self._flush_marks.fail()
        changed = bool(number) != bool(self.refusal)
        if changed:
            self.refused_since_ns = time.time_ns() if number else 0
        self.refusal = number
        return changed

"""The report of a restore, and the lock under which threads add to it."""

from __future__ import annotations

import os
import threading
from dataclasses import dataclass, field

EXAMPLES = 3


@dataclass(slots=True)
class RestoreReport:
    """What a restore made, and what it could not (`not_restored`: kind -> count, `examples`: kind -> paths).

    The kinds: owner, mode, xattrs, device, times, links (a file that became several), and files, directories and others
    that are not there at all, whose inode numbers are in `left_out`.
    """

    files: int = 0
    directories: int = 0
    others: int = 0
    written_bytes: int = 0
    seconds: float = 0.0
    verified: bool = False
    not_restored: dict[str, int] = field(default_factory=dict)
    examples: dict[str, list[str]] = field(default_factory=dict)
    left_out: list[int] = field(default_factory=list)


class ReportTally:
    """Adds to a report. Any thread."""

    def __init__(self) -> None:
        self.report = RestoreReport()
        self._lock = threading.Lock()

    def made(self, *, files: int = 0, directories: int = 0, others: int = 0, written_bytes: int = 0) -> None:
        """Count what was made."""
        with self._lock:
            self.report.files += files
            self.report.directories += directories
            self.report.others += others
            self.report.written_bytes += written_bytes

    def missed(self, kind: str, name: bytes) -> None:
        """Count something that could not be restored, with `name` as an example."""
        with self._lock:
            self._missed(kind, name)

    def left_out(self, kind: str, name: bytes, ino: int) -> None:
        """Count an inode that is not there at all."""
        with self._lock:
            self._missed(kind, name)
            self.report.left_out.append(ino)

    def _missed(self, kind: str, name: bytes) -> None:
        report = self.report
        report.not_restored[kind] = report.not_restored.get(kind, 0) + 1
        examples = report.examples.setdefault(kind, [])
        if len(examples) < EXAMPLES:
            examples.append(os.fsdecode(name))

"""What commands that write files of a history report: what could not be restored, and a disk that is full."""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Iterator
from typing import TYPE_CHECKING

from snapfs.base.errors import UserError
from snapfs.commands.support import output

if TYPE_CHECKING:
    from snapfs.transfer.restore.restore_report import RestoreReport


def report_missed(report: RestoreReport) -> None:
    """A line for each kind of what could not be restored."""
    for kind, count in report.not_restored.items():
        examples = ", ".join(output.printable(path) for path in report.examples.get(kind, []))
        output.remark(f"not restored: {kind} of {count} ({examples})")


@contextlib.contextmanager
def needing_room(act: str, place: str) -> Iterator[None]:
    """A full disk under `place` is a line that states what to do."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise UserError(f"cannot {act} {place}: {error.strerror}: nothing of it is left, make room first") from None

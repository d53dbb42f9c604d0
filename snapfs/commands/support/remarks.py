"""Lines for people on stderr, for processes that have no use for the rest of a command line (and its memory)."""

from __future__ import annotations

import contextlib
import logging
import sys

from snapfs.base.errors import printable
from snapfs.base.logs import log_output


def remark(text: str) -> None:
    """A line for people, on stderr; of a process that logs JSON one of its lines. Names in it may be of any
    characters."""
    if log_output.is_json():
        return logging.getLogger("snapfs").info("%s", printable(text))
    with contextlib.suppress(BrokenPipeError):
        print(f"snapfs: {printable(text)}", file=sys.stderr, flush=True)
    return None

"""Lines for people on stderr, for processes that have no use for the rest of a command line (and its memory)."""

from __future__ import annotations

import contextlib
import sys

from snapfs.base.errors import printable


def remark(text: str) -> None:
    """A line for people, on stderr. Names in it may be of any characters."""
    with contextlib.suppress(BrokenPipeError):
        print(f"snapfs: {printable(text)}", file=sys.stderr, flush=True)

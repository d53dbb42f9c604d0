"""Work in a process of its own, for who forks later: threads that a library has begun do not come along in a fork."""

from __future__ import annotations

from collections.abc import Callable

from snapfs.base.errors import SnapfsError
from snapfs.commands.support.bounded_look import BoundedLook, ChildDiedError


def run_in_child(work: Callable[[], None]) -> None:
    """Do it in a child, which shares stderr with us. Raises what it raised, as a SnapfsError with its exit code."""
    try:
        BoundedLook(work).answer(None)
    except ChildDiedError:
        raise SnapfsError("the process that prepares the mount died") from None

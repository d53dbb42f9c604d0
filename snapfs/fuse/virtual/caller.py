"""The process that opened a node of `.snapfs`, as the kernel names it in the request."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass

import pyfuse3


@dataclass(frozen=True, slots=True)
class Caller:
    """`groups`: its own and the supplementary ones, as far as they are known."""

    uid: int
    gid: int
    pid: int
    groups: frozenset[int] = frozenset()


def caller_of(ctx: pyfuse3.RequestContext) -> Caller:
    """Who sent this request. A process that we cannot see has its own group only."""
    groups = {ctx.gid}
    with contextlib.suppress(Exception):  # of pyfuse3: a process that ended, or is in a namespace of its own
        groups |= set(pyfuse3.get_sup_groups(ctx.pid))
    return Caller(ctx.uid, ctx.gid, ctx.pid, frozenset(groups))

"""Paths and patterns of paths, as automata that are led along the names of a tree.

A path is what lies between its slashes; those at its beginning and end, and `.`, mean nothing. In a pattern `*`, `?`
and `[...]` are as in a shell, but for a dot at the beginning of a name, which is nothing special here; `**` between
slashes is any number of folders, and at the end all that is below. Names are bytes.

Invariants:
1. A walk along a tree keeps a set of states for each folder; the empty set means that nothing below can match.
2. `names` is all that can match in a folder where that is known, so that a path is looked up and no folder listed.
"""

from __future__ import annotations

import fnmatch
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from snapfs.base.errors import UserError

_SPECIAL: Final = re.compile(rb"[*?\[]")
_DEEP: Final = b"**"

Part = bytes | re.Pattern[bytes] | None
"""A name, a pattern of names, or None for `**`."""
States = frozenset[tuple[int, int]]
"""(pattern, how many of its parts are behind us)."""


def split_path(path: bytes) -> list[bytes]:
    """The names of a path. Raises UserError for one that leads upwards or has a NUL."""
    names = [name for name in path.split(b"/") if name not in (b"", b".")]
    if b".." in names or b"\0" in path:
        raise UserError(f"{os.fsdecode(path)!r} is no path in a snapshot: write it from its top folder, without ..")
    return names


def is_pattern(path: bytes) -> bool:
    """Whether it has any of the characters that make a pattern."""
    return _SPECIAL.search(path) is not None


@dataclass(frozen=True, slots=True)
class PathPatterns:
    """Some patterns together. The states of the top folder are `start`."""

    patterns: tuple[tuple[Part, ...], ...]

    @classmethod
    def of(cls, paths: Sequence[bytes], *, exact: bool = False) -> PathPatterns:
        """`exact`: they are paths, whatever characters they have. Raises UserError."""
        return cls(tuple(tuple(_part(name, exact) for name in split_path(path)) for path in paths))

    @property
    def start(self) -> States:
        return self._closed({(at, 0) for at in range(len(self.patterns))})

    def step(self, states: States, name: bytes) -> States:
        """Where `name` leads."""
        found = set[tuple[int, int]]()
        for at, done in states:
            parts = self.patterns[at]
            if done == len(parts):
                continue
            part = parts[done]
            if part is None:
                found.add((at, done))
                if done == len(parts) - 1:
                    found.add((at, done + 1))
            elif part == name if isinstance(part, bytes) else part.match(name) is not None:
                found.add((at, done + 1))
        return self._closed(found)

    def matched(self, states: States) -> set[int]:
        """Which of the patterns match what leads to these states."""
        return {at for at, done in states if done == len(self.patterns[at])}

    def goes_on(self, states: States) -> bool:
        """Whether anything below can match."""
        return any(done < len(self.patterns[at]) for at, done in states)

    def names(self, states: States) -> list[bytes] | None:
        """The names that can match next, ascending; None if that is not known."""
        parts = [self.patterns[at][done] for at, done in states if done < len(self.patterns[at])]
        names = {part for part in parts if isinstance(part, bytes)}
        return sorted(names) if all(isinstance(part, bytes) for part in parts) else None

    def _closed(self, states: set[tuple[int, int]]) -> States:
        """With what is reached without a name: `**` may be no folder at all."""
        pending = list(states)
        while pending:
            at, done = pending.pop()
            parts = self.patterns[at]
            if done < len(parts) - 1 and parts[done] is None and (at, done + 1) not in states:
                states.add((at, done + 1))
                pending.append((at, done + 1))
        return frozenset(states)


def _part(name: bytes, exact: bool) -> Part:
    if exact or not is_pattern(name):
        return name
    if name == _DEEP:
        return None
    # Latin-1 gives each byte a character of its own: a name need not be UTF-8.
    return re.compile(fnmatch.translate(name.decode("latin-1")).encode("latin-1"), re.DOTALL)

"""Which paths of a volume are in no snapshot: patterns in the syntax of gitignore.

A path is left out with all that is below it, so a pattern is only asked about what no directory above is left out by.
As in git, the last pattern that matches decides, and `!` brings back only what is in a directory that is not left out.
Names are bytes; a pattern is text, and stands for its UTF-8.

The patterns are translated here, and `tests/base/test_exclusion.py` holds the answers against git's own. The library
for it, pathspec, asks whether a path or any directory above matches: `!keep` then brings back directories below `keep`,
but not the files there.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

from snapfs.base.errors import UserError

MOST_PATTERNS: Final = 100
MOST_CHARACTERS: Final = 250
_CLASSES: Final = {
    "alnum": "a-zA-Z0-9", "alpha": "a-zA-Z", "digit": "0-9", "lower": "a-z", "upper": "A-Z", "space": r"\s",
    "xdigit": "0-9a-fA-F", "blank": " \t", "punct": r"!-/:-@\[-`{-~",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class _Pattern:
    regex: re.Pattern[str]  # of a whole path without a slash at its end
    brings_back: bool
    of_directories: bool


class Exclusion:
    """The patterns, compiled. Immutable; any thread."""

    def __init__(self, patterns: Iterable[str]) -> None:
        """UserError for a pattern that is none."""
        self.patterns = tuple(patterns)
        self._last_first = [_compile(pattern) for pattern in reversed(self.patterns)]
        self.depends_on_place = any("/" in pattern.rstrip("/") for pattern in self.patterns)
        """Whether one name may be left out in one directory and not in another (beside directories left out)."""

    def leaves_out(self, path: bytes, *, is_directory: bool) -> bool:
        """Whether what is at `path` is left out. `path` is relative to the root and no directory above is left out."""
        text = os.fsdecode(path)
        for pattern in self._last_first:
            if (is_directory or not pattern.of_directories) and pattern.regex.fullmatch(text):
                return not pattern.brings_back
        return False


def _compile(pattern: str) -> _Pattern:
    if len(pattern) > MOST_CHARACTERS or any(ord(character) < 32 for character in pattern):
        raise UserError(f"a pattern has at most {MOST_CHARACTERS} characters, and none that controls: {pattern[:40]!r}")
    body = pattern.removeprefix("!")
    while body.endswith(" ") and not body.endswith("\\ "):
        body = body[:-1]
    of_directories, body = body.endswith("/"), body.rstrip("/")
    if not body or pattern.startswith("#"):
        raise UserError(f"{pattern!r} leaves nothing out: write a name or a pattern, such as cache/ or *.tmp")
    try:
        return _Pattern(re.compile(_regex(body), re.DOTALL), pattern.startswith("!"), of_directories)
    except re.error as error:
        raise UserError(f"not a pattern: {pattern!r}: {error}") from None


def _regex(body: str) -> str:
    parts = body.removeprefix("/").split("/")
    regex, last = "" if "/" in body else "(?:.*/)?", len(parts) - 1
    for at, part in enumerate(parts):
        if part == "**" and len(parts) > 1:
            regex += ".+" if at == last else "(?:.*/)?"
        else:
            regex += _of_name(part) + ("/" if at < last else "")
    return regex


def _of_name(part: str) -> str:
    """The regular expression of one component."""
    regex, at = "", 0
    while at < len(part):
        character = part[at]
        at += 1
        if character == "*":
            regex += "[^/]*"
        elif character == "?":
            regex += "[^/]"
        elif character == "[":
            inside, at = _of_class(part, at)
            regex += inside
        elif character == "\\" and at < len(part):
            regex += re.escape(part[at])
            at += 1
        else:
            regex += re.escape(character)
    return regex


def _of_class(part: str, at: int) -> tuple[str, int]:
    """The class that begins after the bracket at `at` - 1, and where it ends."""
    is_not = part[at : at + 1] in ("!", "^")
    at += is_not
    inside, begun = "", at
    while at < len(part):
        character = part[at]
        at += 1
        named = re.match(r"\[:(\w+):\]", part[at - 1 :])
        if character == "]" and at - 1 > begun:
            return f"(?!/)[{'^' if is_not else ''}{inside}]", at
        if named and named[1] in _CLASSES:
            inside, at = inside + _CLASSES[named[1]], at - 1 + named.end()
        elif character == "\\" and at < len(part):
            inside, at = inside + re.escape(part[at]), at + 1
        else:
            inside += character if character == "-" else re.escape(character)
    raise UserError(f"not a pattern: {part!r} has a bracket that is not closed")


@lru_cache(8)
def compiled(patterns: tuple[str, ...]) -> Exclusion:
    """`Exclusion(patterns)`, made once. UserError."""
    return Exclusion(patterns)


def words(patterns: tuple[str, ...]) -> str:
    """The patterns for a line to a person."""
    return ", ".join(patterns)


def remarks(patterns: tuple[str, ...], snapshot: int | str) -> list[str]:
    """What is said where a snapshot that was made without something takes effect; nothing of one with everything."""
    if not patterns:
        return []
    return [f"snapshot {snapshot} was made without what is excluded, and these paths are not there: {words(patterns)}"]

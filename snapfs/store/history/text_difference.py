"""Differences of lines between two contents, as a patch has them: pure functions on bytes.

A line ends with its newline; the last one may have none. Any result is a right one, if not the shortest: what would
take long to match is given as removed and added.
"""

from __future__ import annotations

from collections.abc import Iterator
from difflib import SequenceMatcher
from typing import Final, NamedTuple

TEXT_BYTES: Final = 1 << 20
"""Of a longer content no lines are compared."""
_LOOKED_AT: Final = 8000
_CONTEXT: Final = 3
_MOST_PAIRS: Final = 25_000_000
_NO_NEWLINE: Final = b"\n\\ No newline at end of file\n"


class LineStep(NamedTuple):
    """Lines [a, a_end) of the one become lines [b, b_end) of the other; `same`: they are equal."""

    same: bool
    a: int
    a_end: int
    b: int
    b_end: int


def is_text(content: bytes) -> bool:
    """As git and diff(1) decide: no NUL at its beginning."""
    return len(content) <= TEXT_BYTES and b"\0" not in content[:_LOOKED_AT]


def lines_of(content: bytes) -> list[bytes]:
    """The lines, each with its newline."""
    lines = [line + b"\n" for line in content.split(b"\n")]
    last = lines.pop()[:-1]
    return [*lines, last] if last else lines


def steps(a: list[bytes], b: list[bytes]) -> list[LineStep]:
    """How `a` becomes `b`: equal and other runs in turn, over all lines."""
    head = _common(a, b)
    tail = _common(a[head:][::-1], b[head:][::-1])
    a_end, b_end = len(a) - tail, len(b) - tail
    found = [LineStep(True, 0, head, 0, head)] if head else []
    if (a_end - head) * (b_end - head) > _MOST_PAIRS:
        found.append(LineStep(False, head, a_end, head, b_end))
    else:
        matcher = SequenceMatcher(None, a[head:a_end], b[head:b_end])
        for tag, low, high, first, last in matcher.get_opcodes():
            found.append(LineStep(tag == "equal", head + low, head + high, head + first, head + last))
    if tail:
        found.append(LineStep(True, a_end, len(a), b_end, len(b)))
    return found


def _common(a: list[bytes], b: list[bytes]) -> int:
    count = 0
    for one, other in zip(a, b, strict=False):
        if one != other:
            break
        count += 1
    return count


def counted(found: list[LineStep]) -> tuple[int, int]:
    """(lines added, lines removed)."""
    changes = [step for step in found if not step.same]
    return sum(step.b_end - step.b for step in changes), sum(step.a_end - step.a for step in changes)


def hunks(a: list[bytes], b: list[bytes], found: list[LineStep]) -> Iterator[bytes]:
    """The hunks of a unified diff, with three lines of context."""
    for group in _groups(found):
        first, last = group[0], group[-1]
        old, new = _range(first.a, last.a_end), _range(first.b, last.b_end)
        parts = [b"@@ -%s +%s @@\n" % (old, new)]
        for step in group:
            if step.same:
                parts += [b" " + line for line in a[step.a : step.a_end]]
            else:
                parts += [b"-" + _ended(line) for line in a[step.a : step.a_end]]
                parts += [b"+" + _ended(line) for line in b[step.b : step.b_end]]
        parts[-1] = _ended(parts[-1])
        yield b"".join(parts)


def _ended(line: bytes) -> bytes:
    return line if line.endswith(b"\n") else line + _NO_NEWLINE


def _range(first: int, end: int) -> bytes:
    """As unified diffs count: from 1, and before nothing the line that it comes after."""
    count = end - first
    if count == 1:
        return b"%d" % (first + 1)
    return b"%d,%d" % (first + 1 if count else first, count)


def _groups(found: list[LineStep]) -> Iterator[list[LineStep]]:
    """Changes with what is between those that are near, and their context."""
    group: list[LineStep] = []
    for at, step in enumerate(found):
        if not step.same:
            group.append(step)
            continue
        size, is_last = step.a_end - step.a, at == len(found) - 1
        if group and (size > 2 * _CONTEXT or is_last):
            keep = min(size, _CONTEXT)
            yield [*group, LineStep(True, step.a, step.a + keep, step.b, step.b + keep)]
            group = []
        if not is_last:
            keep = size if group else min(size, _CONTEXT)
            group.append(LineStep(True, step.a_end - keep, step.a_end, step.b_end - keep, step.b_end))
    if any(not step.same for step in group):
        yield group

"""Time spans and sizes as settings write them: ``10s``, ``64MiB``.

Invariant: what `format_seconds` and `format_bytes` write, `parse_seconds` and `parse_bytes` read back as the same value
(times to the millisecond).
"""

from __future__ import annotations

import re
from typing import cast


class Seconds(float):
    """A time span. In text: ``500ms``, ``10s``, ``5m``, ``1h30m``, ``2d``; ``off`` is 0, which is false."""


class Bytes(int):
    """A size. In text: ``4096B``, ``64KiB``, ``1.5GiB`` (1024), ``1MB`` (1000)."""


_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_BYTES = {"B": 1} | {
    f"{prefix}{suffix}": base**power
    for suffix, base in (("iB", 1024), ("B", 1000))
    for power, prefix in enumerate("KMGT", 1)
}


def parse_seconds(text: str) -> Seconds:
    """The seconds that `text` names; ValueError with the reason if it names none."""
    if text == "off":
        return Seconds(0)
    parts = re.findall(r"(\d+(?:\.\d+)?)\s*(ms|[smhd])\s*", text)
    if not parts or "".join(map("".join, parts)) != re.sub(r"\s", "", text):
        raise ValueError(f"`{text}` is not a time: write 500ms, 10s, 5m, 1h30m, 2d or off")
    return Seconds(sum(float(number) * _SECONDS[unit] for number, unit in parts))


def parse_bytes(text: str) -> Bytes:
    """The bytes that `text` names; ValueError with the reason if it names none."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?i?B)", text)
    if match is None or match[2] not in _BYTES:
        raise ValueError(f"`{text}` is not a size: write 4096B, 64KiB, 32MiB or 1.5GiB")
    return Bytes(float(match[1]) * _BYTES[match[2]])


def format_seconds(span: float) -> str:
    """The shortest text that `parse_seconds` reads back as `span` (to the millisecond)."""
    if not span:
        return "off"
    for unit, size in reversed(_SECONDS.items()):
        if span >= size and round(span * 1000) % round(size * 1000) == 0:
            return f"{round(span * 1000) // round(size * 1000)}{unit}"
    return f"{span:g}s"


def format_bytes(size: int) -> str:
    """The shortest exact text that `parse_bytes` reads back as `size`."""
    for unit in ("TiB", "GiB", "MiB", "KiB"):
        if size and size % _BYTES[unit] == 0:
            return f"{size // _BYTES[unit]}{unit}"
    return f"{size}B"


def from_text(kind: type, value: object) -> object:
    if kind is Seconds or kind is Bytes:
        if not isinstance(value, str):
            raise ValueError(f"{value!r} has no unit: write it as in {'10s' if kind is Seconds else '64MiB'!r}")
        return parse_seconds(value) if kind is Seconds else parse_bytes(value)
    raise NotImplementedError(kind)


def to_text(value: object) -> object:
    return format_seconds(value) if isinstance(value, Seconds) else format_bytes(cast(Bytes, value))

"""Facts as words of a page: sizes, times, and names that others chose. Pure.

Invariant: what `clean` returns has no character that controls or hides anything: the bytes of a name cannot change the
order, the lines or the length of what stands around it. HTML is escaped by the templates.
"""

from __future__ import annotations

import unicodedata
from datetime import UTC, datetime
from typing import Final

NAME_LENGTH: Final = 80
_HIDDEN: Final = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})
_UNITS: Final = ("B", "KiB", "MiB", "GiB", "TiB")
_SPANS: Final = ((86400, "d"), (3600, "h"), (60, "min"), (1, "s"))


def clean(text: object, length: int = NAME_LENGTH) -> str:
    """A text from elsewhere: hidden characters as \\u…, cut where it is too long."""
    given = str(text)
    shown = "".join(_visible(char) for char in given[:length])
    return shown if len(given) <= length else f"{shown}…"


def _visible(char: str) -> str:
    return f"\\u{ord(char):04x}" if unicodedata.category(char) in _HIDDEN else char


def size(count: float) -> str:
    """Bytes: 0 B, 512 B, 1.4 GiB."""
    value = float(count)
    for unit in _UNITS:
        if abs(value) < 1024 or unit == _UNITS[-1]:
            break
        value /= 1024
    return f"{value:.0f} {unit}" if unit == "B" or abs(value) >= 100 else f"{value:.1f} {unit}"


def span(seconds: float) -> str:
    """A length of time in its two largest units: 40 ms, 4.2 s, 3 min 5 s, 2 d 4 h."""
    if seconds < 1:
        return f"{max(seconds, 0) * 1000:.0f} ms"
    if seconds < 10:
        return f"{seconds:.1f} s"
    left, words = round(seconds), list[str]()
    for unit_s, unit in _SPANS:
        count, left = divmod(left, unit_s)
        if count or words:
            words.append(f"{count} {unit}" if count else "")
        if len(words) == 2:
            break
    return " ".join(word for word in words if word)


def ago(then_ns: int, now_ns: int) -> str:
    """How long ago, in one unit: what changes every second is of no use in a page."""
    seconds = (now_ns - then_ns) / 1e9
    if seconds < 0:
        return f"in {span(-seconds)}"
    if seconds < 5:
        return "just now"
    unit_s, unit = next((unit_s, unit) for unit_s, unit in _SPANS if seconds >= unit_s)
    return f"{seconds // unit_s:.0f} {unit} ago"


def utc(time_ns: int) -> str:
    """2026-11-30 02:10:33, in UTC."""
    return _moment(time_ns).strftime("%Y-%m-%d %H:%M:%S")


def utc_date(time_ns: int) -> str:
    return _moment(time_ns).strftime("%Y-%m-%d")


def utc_iso(time_ns: int) -> str:
    """For the attribute `datetime`."""
    return _moment(time_ns).strftime("%Y-%m-%dT%H:%M:%SZ")


def _moment(time_ns: int) -> datetime:
    """A peer can send any 64 bits as a time."""
    bounded_s = min(max(time_ns // 10**9, -62_135_596_800), 253_402_300_799)
    return datetime.fromtimestamp(bounded_s, UTC)

"""Lines of a volume's log as acts: when, what, who asked, and what else the line says. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from replicator.console.views import display_text as text
from snapfs.store.log.drops import PERSON
from snapfs.store.log.log_lines import Event

_ACTS: Final = {
    "created": "volume created", "dropped": "drop", "aside": "moved to a branch", "claimed": "claim", "held": "hold",
    "released": "release", "drilled": "drill", "damaged": "found damaged", "repaired": "good again",
    "replicated": "replicated", "verified": "verified", "checkpoint": "checkpoint",
}  # fmt: skip
_BY: Final = "by "
_BY_TOKEN: Final = "by token "
IN_CONSOLE: Final = ", in the console"
_SHOWN_APART: Final = frozenset(
    {"by", "why", "holder", "snapshot", "command", "record", "note", "name", "signature", "head"}
)
_WORDS: Final = 8


@dataclass(frozen=True, slots=True)
class AuditLine:
    """`snapshot`: 0 for an act of no single one."""

    time: str
    time_iso: str
    act: str
    who: str
    snapshot: int
    details: str


def audit_line(event: Event) -> AuditLine:
    fields = event.fields
    number = fields.get("snapshot")
    return AuditLine(
        text.utc(event.time_ns), text.utc_iso(event.time_ns),
        text.clean(_act(event), 40), text.clean(_who(event), 120),
        number if type(number) is int else 0, text.clean("; ".join(_details(fields)), 400),
    )  # fmt: skip


def _act(event: Event) -> str:
    if event.kind == "command":
        return str(event.fields.get("command", "command"))
    if event.kind == "claimed" and event.fields.get("by"):
        return "promote"
    return _ACTS.get(event.kind, event.kind)


def _who(event: Event) -> str:
    """As far as the line says. What others may write at will, a note or a rule, is no statement of who asked.

    A drop by a person has the token in its reason, as this mirror wrote it.
    """
    fields, by, why = event.fields, event.fields.get("by"), str(event.fields.get("why"))
    if event.kind == "dropped" and by == PERSON and why.startswith(_BY_TOKEN):
        return why.removeprefix(_BY).removesuffix(IN_CONSOLE)
    if isinstance(by, Mapping):
        return f"uid {by.get('uid', '?')}"
    return str(by or fields.get("holder") or "")


def _details(fields: Mapping[str, Any]) -> Iterator[str]:
    if fields.get("name"):
        yield f"“{fields['name']}”"
    if fields.get("holder") and fields.get("by"):
        yield f"holder {fields['holder']}"
    yield from (str(fields[name]) for name in ("note", "why") if fields.get(name))
    plain = ((name, value) for name, value in fields.items() if name not in _SHOWN_APART)
    shown = [
        f"{name.removesuffix('_ns').removesuffix('_s').replace('_', ' ')} {_value(name, value)}"
        for name, value in plain if isinstance(value, str | int | float) and value != ""
    ]  # fmt: skip
    yield from shown[:_WORDS]


def _value(name: str, value: object) -> str:
    if name.endswith("_ns") and type(value) is int:
        return text.utc(value)
    if isinstance(value, bool):
        return "yes" if value else "no"
    if name.endswith("_s") and isinstance(value, int | float):
        return text.span(value)
    return str(value)

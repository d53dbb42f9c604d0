"""What to keep: a pure decision. The caller acts on the answer; nothing here reads a clock or a disk.

Invariants:
1. The same situation gives the same answer.
2. A snapshot that has a name, or that was requested, is never expired; nor is the newest one.

When to cut is in base/schedule/.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, Protocol

from snapfs.base.blocks import SnapshotNumber

POLICY_TRIGGERS: Final = ("interval", "dirty", "lull", "calendar", "objective", "at_most")
"""The triggers of snapshots that a rule asked for (base/schedule/rules.py)."""


class Expirable(Protocol):
    """The part of a snapshot record that expiry looks at."""

    @property
    def number(self) -> SnapshotNumber: ...
    @property
    def name(self) -> str | None: ...
    @property
    def trigger(self) -> str: ...


def expired(snapshots: Iterable[Expirable], keep: int) -> list[SnapshotNumber]:
    """The snapshots made by rules that are more than the newest `keep` of them, oldest first. 0 keeps all."""
    ordered = sorted(snapshots, key=lambda snapshot: snapshot.number)
    own = [s.number for s in ordered if s.trigger in POLICY_TRIGGERS and s.name is None]
    newest = ordered[-1].number if ordered else None
    return [number for number in own[: max(len(own) - keep, 0)] if number != newest] if keep else []

"""The gates that a snapshot has passed, as lines of snapshots.log have them.

A snapshot is sealed when it exists. What it passed after that is never written into its record, which is not changed:
each is a line of its own.

| gate | line, and its fields |
| --- | --- |
| verified | `verified`: `snapshots` (runs of numbers), `how`, `whole` |
| replicated | `replicated`: `target`, `snapshot`, `there`, `gone` |
| drilled | `drilled`: `snapshot`, `passed`, `check`, `recovery_s`, `rto_s`, and more for people |

Verified: all that the snapshots need was read back from the disk, past the page cache (`how`), and checked. Replicated:
a target has these snapshots, each verified and durable there before it was acknowledged. A line says what changed since
the one before: the runs of numbers that are `there`, and those that are `gone` from there.
Drilled: it was mounted elsewhere, and a check of the application passed on it, or failed.

Invariants:
1. A gate belongs to one snapshot: it ends with it, and is not inherited by another one that gets its number.
2. A snapshot that is found damaged is not verified any more, until it is verified again.
3. The last drill of a snapshot counts. One whose check failed is bad for recovery: no requirement lets it through.
4. A line of a later version, with other fields, is passed over.
5. A copy counts only where it was seen. A `replicated` line of the time before `there` says so of its `snapshot` alone:
   up to its `complete` the target had had everything, which says nothing of what it kept.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Final, Literal

import msgspec

from snapfs.base.blocks import SnapshotNumber
from snapfs.store.gates.number_ranges import NumberRanges

VERIFIED: Final = "verified"
REPLICATED: Final = "replicated"
DRILLED: Final = "drilled"
KINDS: Final = frozenset({VERIFIED, REPLICATED, DRILLED})
PAST_THE_CACHE: Final = "POSIX_FADV_DONTNEED"
"""How a verification gets its bytes from the disk: the kernel is asked to forget its pages of a segment before."""

Requirement = Literal["verified", "drilled"]
NumbersBetween = Callable[[int, int], Iterable[SnapshotNumber]]


class Gates(msgspec.Struct, frozen=True, omit_defaults=True):
    """What one snapshot has passed. Times are ns since 1970, UTC, 0: never. `recovery_s`: of its last drill. `rto_s`:
    the objective at that time, 0: none."""

    verified_ns: int = 0
    how: str = ""
    drilled_ns: int = 0
    passed: bool = False
    check: str = ""
    recovery_s: float = 0.0
    rto_s: float = 0.0

    @property
    def is_drilled(self) -> bool:
        return bool(self.drilled_ns) and self.passed

    @property
    def is_bad(self) -> bool:
        """Whether a check of the application failed on it."""
        return bool(self.drilled_ns) and not self.passed

    def why_not(self, requirement: Requirement) -> str:
        """Why a recovery that requires this does not take the snapshot; "" if it does."""
        if self.is_bad:
            return f"its drill failed{f' ({self.check})' if self.check else ''}"
        met = self.verified_ns if requirement == VERIFIED else self.drilled_ns
        return "" if met else f"it is not {requirement}"


NO_GATES: Final = Gates()


class _Verified(msgspec.Struct, frozen=True):
    snapshots: list[tuple[int, int]]
    how: str = ""
    verified_ns: int = 0
    whole: bool = False


class _Replicated(msgspec.Struct, frozen=True):
    target: str
    snapshot: int
    there: list[tuple[int, int]] | None = None
    gone: list[tuple[int, int]] = []


class _Drilled(msgspec.Struct, frozen=True):
    snapshot: int
    passed: bool
    check: str = ""
    recovery_s: float = 0.0
    drilled_ns: int = 0
    rto_s: float | None = None


class GateTable:
    """The gates of all snapshots of a log. Not thread-safe: the catalog's lock guards it."""

    def __init__(self) -> None:
        self._verified: dict[SnapshotNumber, tuple[int, str]] = {}
        self._drilled: dict[SnapshotNumber, _Drilled] = {}
        self._replicated: dict[str, NumberRanges] = {}
        self.whole_pass_ns = 0
        """When everything that the store has was verified last; 0: never."""
        self.changes = 0
        """How many times something here changed; it only grows."""

    def apply(self, kind: str, time_ns: int, fields: Mapping[str, Any], between: NumbersBetween) -> None:
        """Take in a line. `between(first, last)`: the numbers of the snapshots that exist in this range."""
        try:
            if kind == VERIFIED:
                self._take_verified(msgspec.convert(fields, _Verified), time_ns, between)
            elif kind == DRILLED:
                self._take_drilled(msgspec.convert(fields, _Drilled), time_ns, between)
            elif kind == REPLICATED:
                self._take_replicated(msgspec.convert(fields, _Replicated), between)
        except msgspec.ValidationError:
            return  # a later version wrote something else there
        self.changes += 1

    def of(self, number: SnapshotNumber) -> Gates:
        """What the snapshot has passed."""
        (verified_ns, how), drill = self._verified.get(number, (0, "")), self._drilled.get(number)
        if drill is None:
            return Gates(verified_ns, how) if verified_ns else NO_GATES
        rto_s = drill.rto_s or 0.0
        return Gates(verified_ns, how, drill.drilled_ns, drill.passed, drill.check, drill.recovery_s, rto_s)

    def put(self, number: SnapshotNumber, gates: Gates) -> None:
        """Take in what a target reports of a snapshot."""
        if gates.verified_ns:
            self._verified[number] = gates.verified_ns, gates.how
        if gates.drilled_ns:
            self._drilled[number] = _Drilled(
                number, gates.passed, gates.check, gates.recovery_s, gates.drilled_ns, gates.rto_s or None
            )
        self.changes += 1

    def copies(self, number: SnapshotNumber) -> frozenset[str]:
        """The targets that had the snapshot by the last line about each, by name."""
        return frozenset(name for name, there in self._replicated.items() if number in there)

    def on_target(self, name: str) -> NumberRanges:
        """What a target had by the last line about it, of the snapshots that there are; a copy."""
        known = self._replicated.get(name)
        return NumberRanges(known.runs() if known is not None else ())

    def passed(self) -> Iterator[tuple[SnapshotNumber, Gates]]:
        """All snapshots that have passed some gate but replication, ascending."""
        for number in sorted(self._verified.keys() | self._drilled.keys()):
            yield number, self.of(number)

    def remove(self, number: SnapshotNumber) -> None:
        """The snapshot is gone, or another one has its number now."""
        for there in self._replicated.values():
            there.discard(number)
        if self._verified.pop(number, None) or self._drilled.pop(number, None):
            self._drilled.pop(number, None)
            self.changes += 1

    def damaged(self, number: SnapshotNumber) -> None:
        """The snapshot was found to lack something."""
        if self._verified.pop(number, None):
            self.changes += 1

    def clear(self) -> None:
        self._verified.clear()
        self._drilled.clear()
        self._replicated.clear()
        self.whole_pass_ns = 0
        self.changes += 1

    def _take_verified(self, line: _Verified, time_ns: int, between: NumbersBetween) -> None:
        for first, last in line.snapshots:
            for number in between(first, last):
                self._verified[number] = line.verified_ns or time_ns, line.how
        if line.whole:
            self.whole_pass_ns = time_ns

    def _take_replicated(self, line: _Replicated, between: NumbersBetween) -> None:
        if line.there is None:
            self._replicated[line.target] = NumberRanges.of(between(line.snapshot, line.snapshot))
            return
        there = self._replicated.setdefault(line.target, NumberRanges())
        for runs, change in ((line.gone, there.discard), (line.there, there.add)):
            for first, last in runs:
                for number in between(first, last):
                    change(number)

    def _take_drilled(self, line: _Drilled, time_ns: int, between: NumbersBetween) -> None:
        for number in between(line.snapshot, line.snapshot):
            self._drilled[number] = msgspec.structs.replace(line, drilled_ns=line.drilled_ns or time_ns)


def drill_time_ns(time_ns: int, fields: Mapping[str, Any]) -> int:
    """When a drill was, by its line, which is of `time_ns`: another log may have had it first."""
    found = fields.get("drilled_ns")
    return found if type(found) is int and found > 0 else time_ns


def drill_facts(time_ns: int, fields: Mapping[str, Any]) -> dict[str, Any]:
    """The last drill, as JSON; None for each field that its line, of whatever version, does not have in our form."""
    recovery_s = fields.get("recovery_s")
    return {
        "time_ns": drill_time_ns(time_ns, fields), "snapshot": fields.get("snapshot"),
        "passed": fields.get("passed") is True, "check": fields.get("check"), "place": fields.get("place"),
        "why": fields.get("why"),
        "recovery_s": recovery_s if isinstance(recovery_s, int | float) else None,
    }  # fmt: skip


def words_of(gates: Gates, copies: int, targets: int) -> str:
    """The gates in words, the last one that a snapshot climbs to at the end. `copies` of `targets` have it."""
    words = ["verified"] if gates.verified_ns else []
    if copies:
        words.append(f"replicated {copies}/{max(targets, copies)}")
    if gates.drilled_ns:
        words.append("drilled" if gates.passed else "drill failed")
    return ", ".join(words) or "sealed"


def facts_of(gates: Gates, copies: Iterable[str], targets: int) -> dict[str, Any]:
    """The gates as JSON."""
    names = sorted(copies)
    drill = {
        "time_ns": gates.drilled_ns, "passed": gates.passed, "check": gates.check, "recovery_s": gates.recovery_s,
    }  # fmt: skip
    return {
        "sealed": True,
        "verified": {"time_ns": gates.verified_ns, "how": gates.how} if gates.verified_ns else None,
        "replicated": {"copies": len(names), "targets": max(targets, len(names)), "on": names},
        "drilled": drill if gates.drilled_ns else None,
    }

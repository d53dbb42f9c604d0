"""What a drill found: for people, as JSON, and as a line of the log."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from snapfs.base.errors import EXIT_ATTENTION, EXIT_DRILL_FAILED, EXIT_OK
from snapfs.base.settings.replication_settings import plain_url
from snapfs.commands.support import output
from snapfs.store.log.branches import reference
from snapfs.store.log.snapshot_records import SnapshotRecord


@dataclass(slots=True)
class DrillResult:
    """One snapshot's drill. Spans are seconds from its beginning, None for what was not reached.

    `mount_s`: until the mount answered; `ready_s`: until the application did; `ended_s`: until the check ended;
    `whole_s`: until all of it was here. `age_s`: what would be lost now, as time. `rto_s`: the objective, 0: off.
    """

    place: str
    record: SnapshotRecord
    check: str
    age_s: float
    rto_s: float = 0.0
    passed: bool = False
    why: str = ""
    mount_s: float | None = None
    ready_s: float | None = None
    ended_s: float | None = None
    whole_s: float | None = None
    fetched_bytes: int = 0
    lines: list[str] = field(default_factory=list)
    instead_of: int = 0
    """The newer snapshot that failed, for which recovery falls back to this one; 0: it is the one that was meant."""

    @property
    def recovery_s(self) -> float | None:
        """Until the check had passed; None if it did not."""
        return self.ended_s if self.passed else None

    @property
    def is_late(self) -> bool:
        """Whether it misses the rto."""
        return bool(self.rto_s) and self.recovery_s is not None and self.recovery_s > self.rto_s

    def log_fields(self) -> dict[str, Any]:
        """Of the line `drilled`."""
        optional = {"why": self.why[:400], "instead_of": self.instead_of}
        return {
            "snapshot": self.record.number, "root": self.record.root.number, "passed": self.passed,
            "check": self.check[:200], "place": plain_url(self.place), "fetched_bytes": self.fetched_bytes,
            **{name: span for name, span in self._spans().items() if span is not None},
            **{name: value for name, value in optional.items() if value},
        }  # fmt: skip

    def _spans(self) -> dict[str, float | None]:
        spans = {
            "mount_s": self.mount_s, "ready_s": self.ready_s, "ended_s": self.ended_s, "recovery_s": self.recovery_s,
            "whole_s": self.whole_s, "age_s": self.age_s, "rto_s": self.rto_s or None,
        }  # fmt: skip
        return {name: None if span is None else round(span, 3) for name, span in spans.items()}

    def facts(self) -> dict[str, Any]:
        """As JSON."""
        record = self.record
        return {
            "snapshot": record.number, "name": record.name, "cut_time": output.utc(record.cut_time_ns),
            **({"branch": record.branch} if record.branch else {}),
            "place": plain_url(self.place), "check": self.check, "passed": self.passed, "why": self.why,
            **self._spans(),
            "rto_met": not self.is_late if self.rto_s and self.recovery_s is not None else None,
            "fetched_bytes": self.fetched_bytes, "found": self.lines,
        }  # fmt: skip

    def text(self) -> list[str]:
        """Line by line, for people."""
        verdict = "passed" if self.passed else f"FAILED: {output.printable(self.why)}"
        name = f" ({output.printable(self.record.name)})" if self.record.name else ""
        return [
            f"snapshot {output.printable(reference(self.record))}{name} of {output.printable(plain_url(self.place))}, "
            f"cut {output.utc(self.record.cut_time_ns)}",
            f"  check {output.printable(self.check)}: {verdict}",
            *(f"  {output.printable(line)}" for line in self.lines),
            *(f"  {label:<28}{words}" for label, words in self._measured()),
        ]

    def _measured(self) -> list[tuple[str, str]]:
        labels = {
            "mounted after": self.mount_s, "application answered after": self.ready_s,
            "check ended after": self.ended_s, "all of the state here after": self.whole_s,
        }  # fmt: skip
        found = [(label, output.seconds(span)) for label, span in labels.items() if span is not None]
        if self.rto_s and self.recovery_s is not None:
            met = "MISSED" if self.is_late else "met"
            found.append(("objectives.rto", f"{output.seconds(self.rto_s)}: {met}"))
        found.append(("fetched", output.size(self.fetched_bytes)))
        found.append(("would be lost now", f"what came in the last {output.seconds(self.age_s)}"))
        return found


def exit_code_of(results: list[DrillResult]) -> int:
    """Of a drill: the first result is the one that was asked for, later ones are what recovery falls back to."""
    if not results[0].passed:
        return EXIT_DRILL_FAILED
    return EXIT_ATTENTION if results[0].is_late else EXIT_OK


def verdict(results: list[DrillResult]) -> str:
    """The last line for people."""
    first, last = results[0], results[-1]
    if first.passed:
        late = ", but too late for objectives.rto" if first.is_late else ""
        return f"snapshot {output.printable(reference(first.record))} recovers{late}"
    bad = ", ".join(output.printable(reference(each.record)) for each in results if not each.passed)
    if last.passed:
        return f"snapshot {bad} is bad for recovery; the newest that recovers is {last.record.number}"
    return f"snapshot {bad} is bad for recovery, and no older one was found that recovers"

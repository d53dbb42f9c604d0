"""What a feeder reports of its target: the status for VOLUME/replication.json, the counters for metrics, log lines.

Invariants:
1. Each change of the status calls `changed`, with True if the file is to be written at once.
2. An error that repeats is logged as a warning once, until a snapshot arrives or another error comes.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from tenacity import RetryCallState

from replicator.agent.agent_status import Link, TargetStatus
from replicator.agent.push_plan import StepKind
from replicator.agent.retry_rules import is_final
from replicator.source.selection import Part
from snapfs.base.blocks import SnapshotNumber
from snapfs.store.log.replica_state import FencedFacts
from snapfs.store.log.snapshot_records import SnapshotRecord
from snapfs.store.protocol.refusals import Refusal, RefusedError

log = logging.getLogger(__name__)


@dataclass(slots=True)
class Counters:
    """Events of a feeder that metrics count. Each does nothing unless it is replaced."""

    arrived: Callable[[SnapshotRecord, float], None] = field(default=lambda record, delay_s: None)
    sent: Callable[[int], None] = field(default=lambda amount: None)
    retried: Callable[[], None] = field(default=lambda: None)


class LinkReport:
    """The reports of one feeder. Used in the loop's thread."""

    def __init__(self, status: TargetStatus, changed: Callable[[bool], None], counters: Counters) -> None:
        self.status, self.changed, self._counters = status, changed, counters
        self._logged_error = ""  # since a snapshot arrived last

    def set_link(self, link: Link) -> None:
        if self.status.link is not link:
            self.status.link = link
            if link is Link.IDLE:
                self.status.sending = None
            self.changed(link is Link.IDLE)

    def note_for_people(self, note: str) -> None:
        """Something that the users should know, though the target works."""
        self.status.note = note
        log.warning("%s: %s", self.status.name, note)

    def failed(self, error: Exception) -> None:
        """The link failed and is going to be tried again."""
        status = self.status
        link = Link.REFUSED if is_final(error) else Link.WAITING
        if isinstance(error, RefusedError) and error.refusal is Refusal.FENCED:
            link, problem = Link.FENCED, error.problem
            status.fenced_by = FencedFacts(problem.generation, problem.writer_id, problem.went_on_from)
        status.failed(error)
        is_repeated, self._logged_error = status.last_error == self._logged_error, status.last_error or ""
        status.retries += 1
        self._counters.retried()
        level = logging.DEBUG if is_repeated else logging.WARNING
        log.log(level, "%s: %s: %s", status.name, link.value, status.last_error)
        self.set_link(link)

    def begin_sending(self, snapshot: SnapshotNumber, planned_bytes: int) -> None:
        status = self.status
        status.sending = snapshot
        status.sent_bytes, status.planned_bytes = 0, planned_bytes
        self.set_link(Link.SENDING)

    def part_sent(self, now_s: float, part: Part, wire_bytes: int) -> None:
        """`wire_bytes`: as they went over the link, which is less than the part where the target had some."""
        self.status.sent_bytes += part.bytes
        self.status.total_bytes += wire_bytes
        self.status.rate.add(now_s, wire_bytes)
        self._counters.sent(wire_bytes)
        self.changed(False)

    def part_failed(self, state: RetryCallState) -> None:
        """tenacity calls it before it waits."""
        self.status.retries += 1
        self._counters.retried()
        error = state.outcome.exception() if state.outcome is not None else None
        log.debug("%s: a part is sent again: %s", self.status.name, error)

    def arrived(self, kind: StepKind, records: list[SnapshotRecord], started_ns: int) -> None:
        """The target has acknowledged these. Times are ns since 1970."""
        status, newest, now_ns = self.status, records[-1], time.time_ns()
        delay_s = (now_ns - newest.cut_time_ns) / 1e9
        if kind is not StepKind.HISTORY:
            status.last_delay_s = round(delay_s, 3)
        self._logged_error = ""
        status.newest_there = max(status.newest_there, newest.number)
        status.total_snapshots += len(records)
        status.sending, status.sent_bytes, status.planned_bytes = None, 0, 0
        status.seen_ns = now_ns
        self._counters.arrived(newest, delay_s)
        log.log(
            logging.DEBUG if kind is StepKind.NEXT else logging.INFO,
            "%s has snapshot %d (%s, %d snapshots in %.3f s, %.3f s after its cut)", status.name, newest.number,
            kind.value, len(records), (now_ns - started_ns) / 1e9, delay_s,
        )  # fmt: skip

"""Whether a volume's log is the one that its targets have witnessed: the rules, on lines and records. Pure.

Each line of snapshots.log has the SHA-256 of the line before, so a change anywhere changes all that follows. But who
can write the file can make all of it anew. So each record of a snapshot has, and takes with it to every target, what
its writer's log was before it (`log_head`): a target that has snapshot n is a witness of every line up to n, of acts of
persons and drops as well. What came after the newest snapshot that a target has, no one has witnessed yet.

Invariants:
1. A target's record proves nothing about times before this log began (a takeover, a clone), and nothing where its
   writer did not state a head (an earlier version).
2. A finding is one line; no finding means that nothing contradicts the log.
3. A takeover ends what can be compared, so who can write the file could hide a past behind a line that says there was
   one. It is proven where a target knows of it (its writer's claim named generation and snapshot), or where a signed
   checkpoint follows. Any other is reported as not proven (`unproven`): no finding, and no proof.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from snapfs.base.blocks import Generation, SnapshotNumber
from snapfs.store.log.claims import TAKEOVERS, Succession, Takeover, takeovers_in
from snapfs.store.log.log_lines import Event, Line
from snapfs.store.log.snapshot_records import LOG_HEAD_BYTES, SnapshotRecord

REBUILT = "rebuilt"


@dataclass(frozen=True, slots=True)
class Recorded:
    """A snapshot's line: which one it is, the head of the log before it, and the head that the record states."""

    line: int
    root: str
    head: str
    stated: str


@dataclass(slots=True)
class Trail:
    """A log that was read from its beginning to its end."""

    lines: int = 0
    snapshots: dict[int, list[Recorded]] = field(default_factory=dict)
    began: int = 0
    """The line by which this host became the writer on purpose, 0: it has been from the beginning."""
    takeovers: tuple[Takeover, ...] = ()
    takeover_lines: tuple[int, ...] = ()
    rebuilt_ns: list[int] = field(default_factory=list)

    @property
    def newest(self) -> int:
        return max(self.snapshots, default=0)

    @property
    def oldest(self) -> int:
        return min(self.snapshots, default=0)


def trail_of(lines: Iterable[Line]) -> Trail:
    """Of all lines of a log, checked and in their order."""
    found, takeovers, their_lines = Trail(), list[Event](), list[int]()
    for number, line in enumerate(lines, 1):
        found.lines = number
        if line.record_fields is not None:
            fields = line.record_fields
            recorded = Recorded(number, fields.root[1], line.prev[: 2 * LOG_HEAD_BYTES], fields.log_head)
            found.snapshots.setdefault(fields.number, []).append(recorded)
        elif line.kind in TAKEOVERS:
            takeovers.append(line.event)
            their_lines.append(number)
            found.began = number
        elif line.kind == REBUILT:
            found.rebuilt_ns.append(line.time_ns)
    found.takeovers, found.takeover_lines = takeovers_in(takeovers), tuple(their_lines)
    return found


def own_findings(trail: Trail) -> Iterator[str]:
    """What contradicts itself: a record that was made here states another past than the one before it."""
    if trail.rebuilt_ns:
        yield f"the log was made anew from segments ({len(trail.rebuilt_ns)} times): what it had before is not proven"
    for number, recorded in sorted(trail.snapshots.items()):
        for each in recorded:
            if each.line > trail.began and each.stated and each.stated != each.head:
                yield f"line {each.line}: the log before snapshot {number} is not what it was when that was made"


def unproven(trail: Trail, successions: Iterable[Succession], signed_through: int) -> Iterator[str]:
    """The takeovers that neither a target knows of nor a checkpoint covers, which is valid up to line
    `signed_through`."""
    known = {(each.generation, each.snapshot) for each in successions}
    for line, each in zip(trail.takeover_lines, trail.takeovers, strict=True):
        if line > signed_through and (each.generation, each.snapshot) not in known:
            yield (
                f"line {line}: no target knows of a takeover in generation {each.generation} from snapshot "
                f"{each.snapshot}: what was before it cannot be compared"
            )


def witnessed(
    trail: Trail, target: str, records: Sequence[SnapshotRecord], generation: Generation
) -> tuple[int, list[str]]:
    """The newest snapshot up to which `target` has witnessed this very log, and what contradicts it.

    `records`: the snapshots that are there; `generation`: the one that writes here.
    """
    through, findings = 0, list[str]()
    for record in records:
        why = _contradiction(trail, record, generation)
        if why:
            findings.append(f"{target}: {why}")
        elif record.log_head and _same(trail, record) is not None:
            through = max(through, record.number)
    return through, findings


def _contradiction(trail: Trail, record: SnapshotRecord, generation: Generation) -> str:
    """ "" if there is none."""
    same = _same(trail, record)
    if same is not None:
        agrees = record.log_head in ("", same.head) or (same.line <= trail.began and record.log_head == same.stated)
        another = f"it has witnessed another log before snapshot {record.number} than there is before line {same.line}"
        return "" if agrees else another
    if record.generation > generation or any(
        each.left_behind(record.generation, record.number) or record.number <= each.snapshot for each in trail.takeovers
    ):
        return ""  # of another writer, or of the time before this log
    if record.number > trail.newest:
        return f"it has snapshot {record.number}, and the log ends with {trail.newest}: its end is missing"
    if record.number in trail.snapshots:
        return f"snapshot {record.number} is another one there than the log has"
    if record.number > trail.oldest:
        return f"it has snapshot {record.number}, which the log does not have"
    return ""


def _same(trail: Trail, record: SnapshotRecord) -> Recorded | None:
    root = record.root.content_hash.hex()
    found = (each for each in trail.snapshots.get(SnapshotNumber(record.number), ()) if each.root == root)
    return next(found, None)

"""Choosing the snapshot that a remount begins with, out of what the sources have.

Invariants:
1. The snapshot is the newest one whose root, root inode and root listing could be read and checked. Each newer one that
   was passed over is reported with the reason.
2. Sources of different volumes are never mixed.
"""

from __future__ import annotations

import contextlib
import stat
from collections.abc import Mapping
from itertools import groupby

from snapfs.base.blocks import ROOT_INO, Generation, SnapshotNumber
from snapfs.base.errors import CorruptionError, SnapfsError, UserError
from snapfs.store.gates.gate_entries import GateEntry, newest_of
from snapfs.store.gates.gates import NO_GATES, Gates, Requirement
from snapfs.store.log import branches
from snapfs.store.log.snapshot_records import GOOD, SnapshotRecord
from snapfs.store.repository.repository import Repository
from snapfs.store.tables.snapshot import SnapshotTree
from snapfs.transfer.common.store_source import StoreSource, listing_of
from snapfs.transfer.sources.fetcher import Fetcher
from snapfs.transfer.sources.sources import Origin, Source, no_answer

FIRST_BYTES = 256 << 10
"""How much of a snapshot's tables the first round trip fetches. The mount waits for all of it: with 1 MiB a large state
took 0.2 s longer to mount than a small one."""
NOTHING_MADE = "nothing was made; try again, or name another source"


def snapshots_of(sources: list[Source]) -> tuple[Origin, list[SnapshotRecord]]:
    """The origin that the sources agree on, and every snapshot that any of them has, in the order of the lineage.

    Raises UserError where sources are of different volumes, and where none answers; then with the exit code that all
    failures share.
    """
    found: list[tuple[Source, Origin]] = []
    snapshots: dict[SnapshotNumber, SnapshotRecord] = {}
    failures: list[tuple[Source, Exception]] = []
    for source in sources:
        try:
            found.append((source, source.origin()))
            for record in source.snapshots():
                known = snapshots.get(record.number)
                if known is None or known.state != GOOD or record.generation > known.generation:
                    snapshots[record.number] = record
        except (OSError, SnapfsError) as error:
            failures.append((source, error))
    if not found:
        raise no_answer(failures, NOTHING_MADE)
    first, origin = found[0]
    for source, other in found[1:]:
        if other.identity != origin.identity:
            raise UserError(f"{first.name} and {source.name} are not the same volume; {NOTHING_MADE}")
    generation = max(other.generation for _, other in found)
    return Origin(origin.identity, generation), sorted(snapshots.values(), key=lineage_order)


def requiring(
    sources: list[Source], snapshots: list[SnapshotRecord], requirement: Requirement | None
) -> tuple[list[SnapshotRecord], list[str]]:
    """The snapshots up to the newest that has passed the gate, and what is said of newer ones; all without one.

    Raises UserError if none has; then with why the newest has not.
    """
    if requirement is None:
        return snapshots, []
    gates = gates_of(sources)
    why = {record.number: gates_in(gates, record).why_not(requirement) for record in snapshots}
    taken = [record for record in snapshots if not why[record.number]]
    if not taken:
        newest = f"; of the newest, {snapshots[-1].number}, {why[snapshots[-1].number]}" if snapshots else ""
        raise UserError(f"no snapshot there is {requirement}{newest}; {NOTHING_MADE}")
    newer = [record for record in snapshots if lineage_order(record) > lineage_order(taken[-1])]
    return taken, [_newer_line(numbers, words) for numbers, words in _by_reason(newer, why)]


def gates_of(sources: list[Source]) -> dict[tuple[int, int], Gates]:
    """What the snapshots have passed, by number and root, as far as the sources can be asked."""
    found: list[GateEntry] = []
    for source in sources:
        with contextlib.suppress(OSError, SnapfsError):
            found += source.gates()
    return newest_of(found)


def gates_in(gates: Mapping[tuple[int, int], Gates], record: SnapshotRecord) -> Gates:
    return gates.get((record.number, record.root.number), NO_GATES)


def _by_reason(
    records: list[SnapshotRecord], why: Mapping[SnapshotNumber, str]
) -> list[tuple[list[SnapshotNumber], str]]:
    """Neighbours with the same reason together."""
    return [
        ([record.number for record in group], words)
        for words, group in groupby(records, key=lambda record: why[record.number])
    ]


def _newer_line(numbers: list[SnapshotNumber], why: str) -> str:
    if len(numbers) == 1:
        return f"snapshot {numbers[0]} is newer and is not taken: {why}"
    return f"snapshots {numbers[0]} to {numbers[-1]} are newer and are not taken: of each, {why}"


def branch_of(sources: list[Source], ref: str) -> list[SnapshotRecord]:
    """The branch snapshot that `ref` names, as a list of one; empty if no source has it. Branches are only read."""
    found: list[SnapshotRecord] = []
    for source in sources:
        with contextlib.suppress(OSError, SnapfsError):
            found += source.branches()
    one = branches.find(found, ref)
    return [] if one is None else [one]


def is_meant(record: SnapshotRecord, ref: str) -> bool:
    """Whether `ref` (a number, a name, or BRANCH/NUMBER) names this snapshot."""
    return branches.find([record], ref) is not None if record.branch else ref in (str(record.number), record.name)


def newest_usable(
    repository: Repository, fetcher: Fetcher, snapshots: list[SnapshotRecord], wanted: str | None
) -> tuple[SnapshotRecord, SnapshotTree, list[str]]:
    """The newest of `snapshots` that can be mounted (or `wanted`), its tree, and why newer ones were passed over.

    Raises UserError if there is none.
    """
    passed_over: list[str] = []
    chosen = [record for record in snapshots if wanted is None or is_meant(record, wanted)]
    for record in reversed(chosen):
        if record.state != GOOD:
            passed_over.append(f"snapshot {record.number} is known to be damaged; an older one is used")
            continue
        try:
            return record, _mountable_tree(repository, fetcher, record), passed_over
        except (CorruptionError, OSError) as error:
            passed_over.append(f"snapshot {record.number} cannot be used: {error}; an older one is")
    if wanted is not None and not chosen:
        raise UserError(f"no source has a snapshot {wanted}; {NOTHING_MADE}")
    raise UserError("; ".join(passed_over) or f"no source has a snapshot yet; {NOTHING_MADE}")


def _mountable_tree(repository: Repository, fetcher: Fetcher, record: SnapshotRecord) -> SnapshotTree:
    """The snapshot's tree, its root directory read and checked. Raises CorruptionError, OSError."""
    _fetch_first_tables(fetcher, record)
    tree = SnapshotTree(repository, record.root)
    root = tree.inode(ROOT_INO)
    if root is None or not stat.S_ISDIR(root.mode):
        raise CorruptionError(f"snapshot {record.number}", "the source", "it has no root directory")
    StoreSource(repository, tree).names(listing_of(root))
    return tree


def _fetch_first_tables(fetcher: Fetcher, record: SnapshotRecord) -> None:
    """Fetch in one round trip the pages that a mount reads first. If no source can, they are fetched one by one."""
    for source in fetcher.sources:
        with contextlib.suppress(OSError, SnapfsError):
            fetcher.take(source.tables(record, FIRST_BYTES), source.name)
            return


def lineage_order(record: SnapshotRecord) -> tuple[Generation, SnapshotNumber]:
    """Sort key of a volume's snapshots: a later generation went on from some snapshot of the one before."""
    return record.generation, record.number

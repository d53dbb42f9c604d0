"""`.snapfs/status`: what the daemon says of itself, as JSON.

Fields may be added; a reader ignores those it does not know. Sizes are bytes, `_ns` are nanoseconds since 1970 in UTC,
`_s` seconds. The fields:

    version, pid, start_time_ns   of the daemon
    supervisor, daemons_before    its supervisor's process, null if the mount ends with this daemon; and how many
                                  served this mount before
    volume, volume_id, mountpoint, generation, epoch
    data_path                     {active, why, routed}: who serves the bytes of files, "native" or "python"; why
                                  Python, or null; whether the router passes on what Python serves
    dirty                         {files, bytes}: what changed since the last cut; the bytes are an estimate of the
                                  blocks that changed in files that are not new
    snapshots                     how many exist
    last_snapshot                 the newest one's facts (see `record_facts`) with its age_s, or null
    sealing                       the snapshot on its way, or null: {name, trigger, phase, done_bytes, total_bytes,
                                  seconds_s}; the bytes are of changed chunks, the total known of so far
    busy                          what else is under way, or null: {what, done_bytes, total_bytes}
    cut_pause_s                   {count, last, p50, p99, max} of the last cuts
    last_error                    what failed last, or null: {what, message, errno, time_ns}
    recovered                     what the start had to put right, one line each
    hydration                     {absent_files, files, bytes}: files whose bytes are still elsewhere, and what came in
    fenced                        null while this host is the writer; else {generation, by_generation, by_holder,
                                  target, since_ns, read_only, last_replicated, branch, branch_kept}: who writes in
                                  our place, as which target says; the newest snapshot that a target has of ours; the
                                  name that what came after it is kept under, null if there is nothing
    settings                      the configuration in force
"""

from __future__ import annotations

import errno
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from snapfs.store.repository import SnapshotRecord
from snapfs.transfer.snapshotter import Failure, Running


def record_facts(record: SnapshotRecord) -> dict[str, Any]:
    """A snapshot as JSON tells it."""
    return {
        "number": record.number,
        "name": record.name,
        "state": record.state,
        "trigger": record.trigger,
        "cut_time_ns": record.cut_time_ns,
        "seal_time_ns": record.seal_time_ns,
        "generation": record.generation,
        "parent": record.parent,
        "root": {"number": record.root.number, "proof": record.root.proof.hex()},
        "stats": asdict(record.stats),
    }


def last_snapshot(record: SnapshotRecord | None, now_ns: int) -> dict[str, Any] | None:
    return None if record is None else record_facts(record) | {"age_s": (now_ns - record.cut_time_ns) / 1e9}


def sealing(running: Running | None, now_s: float) -> dict[str, Any] | None:
    if running is None:
        return None
    return {
        "name": running.name,
        "trigger": running.trigger,
        "phase": running.phase.value,
        "done_bytes": running.done_bytes,
        "total_bytes": running.planned_bytes,
        "seconds_s": now_s - running.started_s,
    }


def busy(what: str | None, progress_bytes: tuple[int, int]) -> dict[str, Any] | None:
    done, total = progress_bytes
    return None if what is None else {"what": what, "done_bytes": done, "total_bytes": total}


def failure(last: Failure | None) -> dict[str, Any] | None:
    if last is None:
        return None
    symbol = errno.errorcode.get(last.errno, str(last.errno))
    return {"what": last.what, "message": last.message, "errno": symbol, "time_ns": last.time_ns}


def pauses(seconds: Sequence[float]) -> dict[str, Any]:
    """The distribution of the last cut pauses."""
    ordered = sorted(seconds)
    if not ordered:
        return {"count": 0, "last": None, "p50": None, "p99": None, "max": None}
    return {
        "count": len(ordered),
        "last": seconds[-1],
        "p50": quantile(ordered, 0.5),
        "p99": quantile(ordered, 0.99),
        "max": ordered[-1],
    }


def quantile(ordered: Sequence[float], part: float) -> float:
    """The value below which `part` of the ordered values lie (nearest rank)."""
    return ordered[min(int(len(ordered) * part), len(ordered) - 1)]

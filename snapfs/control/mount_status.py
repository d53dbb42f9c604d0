"""`.snapfs/status`: the state of a mounted volume, as JSON.

Fields may be added; a reader ignores those it does not know. Sizes are bytes, `_ns` are nanoseconds since 1970 in UTC,
`_s` seconds. The fields:

    version, pid, start_time_ns   of the daemon
    supervisor, daemons_before    its supervisor's process, null if the mount ends with this daemon; and how many
                                  served this mount before
    volume, volume_id, mountpoint, generation, epoch
    fork                          null, or of a fork {origin, origin_id, snapshot, name, made_ns}: the folder and id of
                                  the volume that was forked, and which of its snapshots
    data_path                     {active, why, routed, realtime}: who serves the bytes of files, "native" or "python";
                                  why Python, or null; whether the router passes on what Python serves, and
                                  whether its threads run before all that computes (mount.priority)
    dirty                         {files, bytes}: what changed since the last cut; the bytes are an estimate of the
                                  blocks that changed in files that are not new
    snapshots                     how many exist
    damaged_snapshots             how many of them lack something
    last_snapshot                 the newest one's facts (see `record_facts`) with its age_s, or null
    overdue_s                     how long a snapshot is due (snapshots.every) that was not made, though something
                                  changed: 0 up to three intervals (or of at_most, or of objectives.rpo)
    policy                        {rule, why, next_s, last, written_bytes, seal_share, seal_budget}: which rule decides
                                  when the next snapshot is due, in words, and in how many seconds (null: only when
                                  something else happens); the {rule, why} of the last one that a rule made, or null;
                                  bytes written since the last cut; the share of the last minute in which a seal ran
    objectives                    {rpo_s, rpo_state, rpo_why, age_s, expected_age_s, rto_s}: objectives.rpo, null if it
                                  is off; "none", "met", "at risk" or "missed", and why; the age of the newest cut
                                  that enough targets have, 0 if nothing changed since; how old it will be at most
                                  before the next one is there, null without an rpo; objectives.rto
    snapshot_failing              {since_ns, what, message} of the first snapshot that failed, or over which the daemon
                                  died, where none was made since, in the words of the last; else null. With or
                                  without snapshots.every, over restarts and mounts
    sealing                       the snapshot on its way, or null: {name, trigger, phase, done_bytes, total_bytes,
                                  seconds_s}; the bytes are of changed chunks, the total known of so far
    busy                          what else is under way, or null: {what, done_bytes, total_bytes}
    hooks                         {failures, last}: null without hooks. last: {held_s, consistency, error, time_ns}: how
                                  long the last one held the application, and what came of it, or null
    drill                         the last drill, or null: {time_ns, snapshot, passed, check, place, why, recovery_s}
    verify                        {share, last_whole_pass_ns, pass}: how much of the store is verified a day; when all
                                  of it was read back and checked last, in the background or by `snapfs verify`, null:
                                  never; the pass in the background, null before its first step: {begun_ns, read_bytes,
                                  store_bytes, bad, repaired}
    cut_pause_s                   {count, last, p50, p99, max} of the last cuts
    last_error                    what failed last, or null: {what, message, errno, time_ns}
    host                          {refuses, since_ns, errors, last}: the filesystem that holds the volume. refuses: the
                                  errno with which it cannot be written to, since when, null while it can; errors: how
                                  many of each act (read, write, sync) it failed at; last: {act, errno, time_ns} or null
    recovered                     what the start had to put right, one line each
    stray_files                   [{folder, files, bytes, damage}]: files that no inode has, which recovery did not
                                  dare to delete; with damage because transactions that were answered are lost.
                                  Also as `aside`, the name until 0.1
    hydration                     {absent_files, files, bytes}: files whose bytes are still elsewhere, and what came in
    replication                   {mode, lifted, exposed_s, held_fsyncs, write_delay_s, budget_bytes, exposed_bytes,
                                  agent, state, targets}: in mode bounded how much may be on this host alone for an
                                  fsync to be answered, by the measured rate, and how much is; else null; whether
                                  an agent lives and reports; the worst state of the targets, "none" without any; of
                                  each what replication.json has, with state, why, missing, lag_s and behind_bytes as
                                  compared with the snapshots that exist here (store/log/target_standing.py)
    fenced                        null while this host is the writer; else {generation, by_generation, by_holder,
                                  target, since_ns, read_only, last_replicated, went_on_from, branch, branch_kept}: who
                                  writes in our place, as which target reports; the newest snapshot of ours that they
                                  have, as they reported (went_on_from) or as far as it is known; the name that what
                                  came after it is kept under, null if there is nothing
    taken_over                    null while this host has been the writer from the beginning; else {generation,
                                  snapshot, not_asked}: what its last takeover went on from (0: not written down), and
                                  the targets that may have newer snapshots and were not queried then: [{url, name, id,
                                  by, copies, why}], fields that are empty left out (store/log/peers.py)
    settings                      the configuration in force
"""

from __future__ import annotations

import errno
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import Any

from snapfs.base.volumes.fork_file import ForkFile
from snapfs.live.backing.host_health import HostHealth
from snapfs.store.log.claims import TAKEOVERS, ClaimEvent
from snapfs.store.log.snapshot_records import CutFacts, cut_fields
from snapfs.store.repository.repository import SnapshotRecord
from snapfs.transfer.seal.running_snapshot import RunningSnapshot, SnapshotFailure


def taken_over(events: Iterable[ClaimEvent]) -> dict[str, Any] | None:
    """How this host became the writer, as the log has it. Other threads must not append meanwhile."""
    last = max((e for e in events if e.kind in TAKEOVERS), key=lambda e: int(e.fields["generation"]), default=None)
    if last is None:
        return None
    fields = last.fields
    not_queried = fields.get("not_asked", [])
    return {
        "generation": fields["generation"], "snapshot": fields.get("snapshot", 0), "not_queried": not_queried,
        "not_asked": not_queried,  # the name until 0.1; goes with 0.3
    }  # fmt: skip


def fork_facts(fork: ForkFile | None) -> dict[str, Any] | None:
    """What a volume is a fork of, as JSON; None if it is no fork."""
    if fork is None:
        return None
    return {
        "origin": fork.origin, "origin_id": fork.origin_id, "snapshot": fork.snapshot, "name": fork.name,
        "made_ns": fork.made_ns,
    }  # fmt: skip


def record_facts(record: SnapshotRecord) -> dict[str, Any]:
    """A snapshot as JSON."""
    return {
        "number": record.number,
        "name": record.name,
        "state": record.state,
        "trigger": record.trigger,
        "cut_time_ns": record.cut_time_ns,
        "seal_time_ns": record.seal_time_ns,
        "generation": record.generation,
        "parent": record.parent,
        "root": {
            "number": record.root.number,
            "content_hash": record.root.content_hash.hex(),
            "proof": record.root.content_hash.hex(),  # the name until 0.1; goes with 0.3
        },
        "stats": asdict(record.stats),
    } | ({"cut": cut_fields(record.cut)} if record.cut != CutFacts() else {})


def last_snapshot(record: SnapshotRecord | None, now_ns: int) -> dict[str, Any] | None:
    return None if record is None else record_facts(record) | {"age_s": (now_ns - record.cut_time_ns) / 1e9}


def sealing(running: RunningSnapshot | None, now_s: float) -> dict[str, Any] | None:
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


def failure(last: SnapshotFailure | None) -> dict[str, Any] | None:
    if last is None:
        return None
    return {"what": last.what, "message": last.message, "errno": _symbol(last.errno), "time_ns": last.time_ns}


def host(health: HostHealth) -> dict[str, Any]:
    last = health.last
    return {
        "refuses": _symbol(health.refusal) if health.refusal else None,
        "since_ns": health.refused_since_ns or None,
        "errors": dict(health.failures),
        "last": {"act": last.act, "errno": _symbol(last.errno), "time_ns": last.time_ns} if last else None,
    }


def _symbol(number: int) -> str:
    return errno.errorcode.get(number, str(number))


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

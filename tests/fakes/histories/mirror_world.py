"""Volumes of a mirror with a long past that nobody had to push: one real snapshot, and a log that lists many."""

from __future__ import annotations

import random
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from replicator.volumes.mirror_volume import MirrorVolume
from snapfs.base.blocks import Disk, Generation, SnapshotNumber
from snapfs.store.log import snapshot_records
from snapfs.store.log.log_lines import Event
from snapfs.store.log.snapshot_log import SnapshotLog
from snapfs.store.log.snapshot_records import CutFacts, SealStats, SnapshotRecord, StoreIdentity
from snapfs.store.protocol.messages import CreateVolume
from tests.fakes.histories.history import History

SEED = 4711


def make_volume(
    root: Path, name: str, snapshots: int, now_ns: int, *, apart_s: float = 60.0, seed: int = 1, drills: bool = True
) -> None:
    """A volume in a mirror's folder with so many snapshots, `apart_s` apart, the newest a little before `now_ns`.

    All have the content of one real snapshot.
    """
    identity = StoreIdentity(f"{seed:032x}", SEED)
    MirrorVolume.create(str(root / name), CreateVolume(identity.volume_id, f"{SEED:016x}"), Disk()).close()
    store = root / name / "store"
    shutil.rmtree(store)
    history = History(store, seed, identity)
    history.grow(1, steps=3)
    (record,) = history.records
    history.close()
    rng = random.Random(seed)
    events = events_of(record, snapshots, now_ns, apart_s, rng, drills=drills)
    SnapshotLog.create(str(store / "snapshots.log"), Disk(), identity.volume_id, then=events)


def events_of(
    record: SnapshotRecord, snapshots: int, now_ns: int, apart_s: float, rng: random.Random, *, drills: bool
) -> Iterator[Event]:
    """Snapshots as they arrive, with a claim before them, and a drill after each fiftieth."""
    start_ns = now_ns - int(snapshots * apart_s * 1e9)
    yield Event("claimed", start_ns, {"generation": 1, "holder": "db-1:/srv/pg", "note": "", "snapshot": 0})
    for number in range(1, snapshots + 1):
        cut_ns = start_ns + int((number - 1 + rng.uniform(0, 0.2)) * apart_s * 1e9)
        seal_ns = cut_ns + int(rng.uniform(0.05, 0.4) * 1e9)
        received_ns = seal_ns + int(rng.lognormvariate(-0.5, 0.9) * 1e9)
        changed = int(rng.lognormvariate(14.5, 1.0))
        made = replace(
            record,
            number=SnapshotNumber(number),
            name=f"release-{number // 10}" if number % 10 == 0 else None,
            generation=Generation(1),
            parent=SnapshotNumber(number - 1) if number > 1 else None,
            cut_time_ns=cut_ns,
            seal_time_ns=seal_ns,
            trigger="control" if number % 10 == 0 else "interval",
            stats=SealStats(rng.randrange(1, 40), 2, 30, changed, 120, changed // rng.randrange(3, 9), 0.12),
            cut=CutFacts("application" if number % 3 == 0 else "crash"),
        )
        yield Event("snapshot", received_ns, snapshot_records.to_fields(made))
        if drills and number % 50 == 25:
            passed, took_s = number % 100 != 75, rng.uniform(6, 40)
            facts = {"snapshot": number, "passed": passed, "recovery_s": round(took_s, 1), "rto_s": 30.0}
            yield Event("drilled", received_ns + 10**9, facts)

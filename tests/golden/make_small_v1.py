"""Writes tests/golden/small-v1: run once, by the last snapfs whose small files had no checksum.

    python tests/golden/make_small_v1.py DIRECTORY

Later versions of snapfs must read these files for ever, so they are never made anew. The wrapped keys open with the
passphrase below.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import msgspec

from snapfs.base.blocks import Disk, Generation, Number, SnapshotNumber
from snapfs.base.volumes.volume import Volume
from snapfs.store.crypto.keys import Keyring, OwnersKey, write_keys
from snapfs.store.log import replica_state, snapshot_records
from snapfs.store.log.holds import Holds
from snapfs.store.log.snapshot_records import SealStats, SnapshotRecord
from snapfs.store.objects.format import Pointer
from snapfs.transfer.failover.fence_file import Fenced, write_fenced
from snapfs.transfer.failover.standby_file import StandbyFile
from snapfs.transfer.lazy.origin_file import OriginFile, write_origin
from snapfs.transfer.sources.source_access import Access

VOLUME_ID = "0123456789abcdef0123456789abcdef"
SEED = 0xFEDC_BA98_7654_3210
OWNER = OwnersKey(b"a passphrase of the golden files", "the golden key")
RECORD = SnapshotRecord(
    SnapshotNumber(7), "seven", Generation(2), SnapshotNumber(6), 10**18, 10**18 + 5, "control",
    Pointer(Number(99), bytes(range(16))), Number(100), SealStats(1, 2, 3, 4, 5, 6, 0.5),
)  # fmt: skip
FENCED = Fenced(3, 4, "host-b", "mirror", 10**18, base=6, tail=9, kept=True)
ORIGIN = OriginFile(
    ["https://mirror/pg"], snapshot_records.to_fields(RECORD), "host-a", Access(token_file="/etc/token")
)  # fmt: skip
STANDBY = StandbyFile(["https://mirror/pg", "/srv/pg"], Access(ca="/etc/ca"))
STATUS: dict[str, Any] = {
    "state": "serving", "supervisor": 100, "daemon": 101, "mountpoint": "/mnt", "lives": 1, "restarts": 2,
    "upgrades": 3, "gap_s": None, "words": "", "time_ns": 10**18,
}  # fmt: skip
STATE: dict[str, Any] = {
    "mountpoint": "/mnt", "init": "00ff", "flags": 5, "lives": 1, "restarts": 2, "upgrades": 3
}  # fmt: skip
REPLICATION = replica_state.Replication(
    VOLUME_ID, 55, 10**18, 2, [replica_state.TargetFacts("mirror", "https://mirror/pg", "idle", 7, 10**18)]
)


def make(folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    os.umask(0o022)
    write_fenced(str(folder), FENCED, Disk())
    write_origin(str(folder), ORIGIN, Disk())
    (folder / "standby.json").write_bytes(msgspec.json.encode(STANDBY))
    (folder / "supervisor.json").write_text(json.dumps(STATUS))
    (folder / "supervisor.state").write_text(json.dumps(STATE))
    (folder / "replication.json").write_bytes(msgspec.json.encode(REPLICATION) + b"\n")
    (folder / "suspects").write_bytes(b"1000000000007\n1000000000009\n")
    Holds(str(folder), Disk()).take("host-b", [SnapshotNumber(3), SnapshotNumber(5)], 1e9, "for ever")
    write_keys(str(folder), OWNER.wrap(Keyring.create(VOLUME_ID, SEED)), Disk())
    Volume.create(str(folder / "volume"), Disk(), seed=SEED, volume_id=VOLUME_ID, generation=3)


if __name__ == "__main__":
    make(Path(sys.argv[1]))

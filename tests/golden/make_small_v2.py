"""Writes tests/golden/small-v2: the small files as they were when each of them had got a format and a checksum.

    python tests/golden/make_small_v2.py DIRECTORY

Later versions of snapfs must read these files for ever, so they are never made anew; what a later form changes gets a
directory of its own beside it. `before/` has what the kinds looked like that carried no version until then.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from replicator.mirror.tokens import TOKENS, Token
from replicator.mirror.tokens import _File as TokensFile
from replicator.source.known_targets import TARGETS, KnownTarget, KnownTargets
from replicator.volumes.mirror_lives import Lives
from snapfs.base.blocks import ChunkIndex, Disk, Ino, SnapshotNumber
from snapfs.base.volumes.volume import Volume
from snapfs.daemon.supervision import supervisor_state, supervisor_status
from snapfs.store.bucket import catalog_pages, head_object, tombstones
from snapfs.store.crypto.keys import Keyring, write_keys
from snapfs.store.log import log_end
from snapfs.store.log.holds import Holds
from snapfs.store.log.locks import LOCK, Lock
from snapfs.store.log.log_end import LogEnd
from snapfs.store.log.replica_state import REPLICATION as REPLICATION_FILE
from snapfs.store.log.target_id import TARGET, TargetFile
from snapfs.store.objects.number_set import NumberSet
from snapfs.store.objects.segment_list import MANIFEST, SegmentEntry, _Segments
from snapfs.store.protocol.hint_files import FIRST, HOT
from snapfs.store.protocol.hot_codec import Hot, pack_hot
from snapfs.store.repair.scrub import SCRUB, ScrubState
from snapfs.store.repair.suspects import write_suspects
from snapfs.store.repository.required_objects import RequiredObjects
from snapfs.transfer.failover.fence_file import write_fenced
from snapfs.transfer.failover.standby_file import STANDBY as STANDBY_FILE
from snapfs.transfer.lazy.origin_file import write_origin
from snapfs.transfer.move_in.adoption_file import ADOPTION, AdoptionFile
from snapfs.transfer.seal.seal_attempts import NOTE, Note
from snapfs.transfer.seal.snapshot_failures import FAILED, Failed
from tests.golden.make_small_v1 import (
    FENCED,
    ORIGIN,
    OWNER,
    REPLICATION,
    SEED,
    STANDBY,
    STATE,
    STATUS,
    VOLUME_ID,
)

TOKEN = Token("0123abcd", "ab" * 32, {"pg": "push", "*": "read"}, "of host a", 1_700_000_000, 0)
KNOWN = KnownTargets(
    [KnownTarget("mirror", "https://mirror/pg", "cd" * 16), KnownTarget("disk", "file:///mnt", new=True)]
)
LOCKED = Lock(86400.0, 10**18)
SCRUBBED = ScrubState(1_000, 0x1000000000063, 0x1000000000007, 2_000, 7, 70_000, 1)
SEGMENT_LIST = _Segments([SegmentEntry(1, 9, 9, 4096, "ef" * 32), SegmentEntry(10, 12, 3, 1024, "01" * 32)])
ADOPTED = AdoptionFile("adopted", "/var/lib/db", "/var/lib/db.original", 1234)
SEAL_ATTEMPT = Note("00000000-0000-0000-0000-000000000001", 2, 1 << 20)
SNAPSHOT_FAILED = Failed(10**18, "a snapshot", "no space is left on the disk that holds the volume")
END = LogEnd(1234, 5, bytes(range(32)), bytes(range(24)))
HOT_LIST: list[Hot] = [(Ino(7), ChunkIndex(3), 5), (Ino(9), ChunkIndex(0), 1)]
FIRST_NUMBERS = [1 << 48 | 5, 1 << 48 | 9]
NEEDED = [(1, (5, 6, 7, 20)), (2, (30, 31))]
LIVE = (5, 6, 31)
HEAD = head_object.Head(
    format=2, volume=VOLUME_ID, seed=f"{SEED:016x}", generation=3, writer_id="host-a", revision=17,
    pages=["catalog/" + "ab" * 32 + ".zst"], segments=["0000000000000001-0000000000000004-4-821-49a1e105c47467b7-s1"],
    target="cd" * 16,
)  # fmt: skip
TOMBSTONE = tombstones.Tombstone(1_700_000_000.5, ["catalog/" + "01" * 32 + ".zst"])
PAGE = catalog_pages.Page([], ["0000000000000001-0000000000000004-4-821-49a1e105c47467b7-s1"], "salt")


def make(folder: Path) -> None:
    disk, place = Disk(), str(folder)
    os.umask(0o022)
    for name in ("store", "bucket", "before"):
        (folder / name).mkdir(parents=True)
    store = f"{place}/store"
    write_fenced(place, FENCED, disk)
    write_origin(place, ORIGIN, disk)
    ADOPTION.write("golden", f"{place}/adoption.json", ADOPTED, disk)
    STANDBY_FILE.write("golden", f"{place}/standby.json", STANDBY, disk)
    write_keys(place, OWNER.wrap(Keyring.create(VOLUME_ID, SEED)), disk)
    REPLICATION_FILE.write("golden", f"{place}/replication.json", REPLICATION, disk)
    TARGETS.write("golden", f"{place}/targets.json", KNOWN, disk)
    TARGET.write("golden", f"{place}/target.json", TargetFile("cd" * 16), disk)
    LOCK.write("golden", f"{place}/lock.json", LOCKED, disk)
    TOKENS.write("golden", f"{place}/tokens.json", TokensFile([TOKEN]), disk)
    supervisor_status.STATUS.write("golden", f"{place}/supervisor.json", STATUS, disk)
    supervisor_state.STATE.write("golden", f"{place}/supervisor.state", STATE, disk)
    NOTE.write("golden", f"{place}/seal-attempt.json", SEAL_ATTEMPT, disk)
    FAILED.write("golden", f"{place}/snapshot-failed.json", SNAPSHOT_FAILED, disk)
    write_suspects(store, [0x1000000000007, 0x1000000000009], disk)
    SCRUB.write("golden", f"{store}/scrub.json", SCRUBBED, disk)
    MANIFEST.write("golden", f"{store}/segments.list", SEGMENT_LIST, disk)
    holds = Holds(store, disk, lambda: 10**18)
    holds.take("host-b", [SnapshotNumber(3), SnapshotNumber(5)], 1e9, "for ever")
    holds.take("host-c", [SnapshotNumber(6)], 1e9, "while it is sent", durable=False)
    log_end.write(f"{store}/snapshots.log", END, disk)
    needed = RequiredObjects(store, disk)
    for snapshot, numbers in NEEDED:
        needed.append(snapshot, numbers)
    live = NumberSet()
    for number in LIVE:
        live.add(number)
    Lives(store, disk).record(live, 86400.0, 10**18)
    first = b"".join(number.to_bytes(8, "little") for number in FIRST_NUMBERS)
    (folder / "hot").write_bytes(HOT.encode(pack_hot(HOT_LIST)))
    (folder / "store" / "first").write_bytes(FIRST.encode(first))
    (folder / "before" / "hot").write_bytes(pack_hot(HOT_LIST))
    (folder / "before" / "first").write_bytes(first)
    (folder / "bucket" / "head.json").write_bytes(head_object.encode_head(HEAD))
    (folder / "bucket" / "tombstone").write_bytes(tombstones.encode_tombstone(TOMBSTONE))
    (folder / "bucket" / "page.zst").write_bytes(catalog_pages.encode_page(PAGE)[1])
    Volume.create(f"{place}/volume", disk, seed=SEED, volume_id=VOLUME_ID, generation=3)
    Volume.create(f"{place}/opaque", disk, seed=0, volume_id=VOLUME_ID, holds_ciphertext=True)


def tokens_before() -> bytes:
    """What the mirror wrote until then: a token a line, and no checksum. Made with the code of that time."""
    import msgspec

    return b'{"format": 1, "tokens": [\n  ' + msgspec.json.encode(TOKEN) + b"\n]}\n"


if __name__ == "__main__":
    make(Path(sys.argv[1]))
    (Path(sys.argv[1]) / "before" / "tokens.json").write_bytes(tokens_before())

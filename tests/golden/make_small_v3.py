"""Writes tests/golden/small-v3: the small files whose form grew since small-v2 was made.

    python tests/golden/make_small_v3.py DIRECTORY

`replication.json`: what each target has, by number (`there`), and what it never had (`owed`).
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import msgspec

from snapfs.base.blocks import Disk
from snapfs.store.log.replica_state import REPLICATION as REPLICATION_FILE
from snapfs.store.log.replica_state import TargetFacts
from tests.golden import make_small_v1

_FACTS = TargetFacts(
    "mirror", "https://mirror/pg", "idle", 9, 10**18, complete_through=9, seen_ns=10**18, revision=17,
    there=[(1, 3), (7, 7), (9, 9)], owed=[(5, 6)],
)  # fmt: skip
REPLICATION = msgspec.structs.replace(make_small_v1.REPLICATION, targets=[_FACTS])


def make(folder: Path) -> None:
    os.umask(0o022)
    folder.mkdir()
    REPLICATION_FILE.write("golden", f"{folder}/replication.json", REPLICATION, Disk())


if __name__ == "__main__":
    make(Path(sys.argv[1]))

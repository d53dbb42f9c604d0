"""Makes live-v3.tar.gz: the tree of make_live_v1.py in the formats of the versions after it, run once.

namespace.db 3 with its sums and mark, presence 2, intent logs that live/intents-mark counts, and `life` 1. Later
versions read it (tests/live/test_live_golden.py); it is never made anew.
"""

from __future__ import annotations

import os
import shutil
import sys
import tarfile
import tempfile
from pathlib import Path

from snapfs.base.blocks import Disk
from snapfs.live.backing.host_life import HostLife
from tests.golden.make_live_v1 import make

BOOT = "boot-golden"


def main() -> None:
    with tempfile.TemporaryDirectory() as work:
        live = Path(work, "live")
        live.mkdir()
        child = os.fork()
        if not child:
            make(live)
        os.waitpid(child, 0)
        HostLife(str(live), Disk(), BOOT).close()
        for name in ("namespace.db-shm", "namespace.db-reserve"):
            (live / name).unlink()
        shutil.rmtree(live / "preserve")
        with tarfile.open(sys.argv[1], "w:gz") as archive:
            archive.add(live, "live")


if __name__ == "__main__":
    main()

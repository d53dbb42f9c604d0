"""The measurement of moving in: `snapfs import` against `cp -a` of the same tree on the same disk."""

from __future__ import annotations

import os
import random
import shutil
import statistics
import subprocess
import time
from pathlib import Path

from mounts import snapfs

FILE_BYTES, FILES_A_FOLDER = 4096, 100
ROUNDS = 3


def imports(base: Path, quick: bool) -> dict[str, dict[str, float]]:
    """Files of 4 KiB a second, durable, from a cold cache where this is root; ratios above 1 are faster than `cp -a`
    and sync(1). With its copies read back and without. 20,000 files, or 2,000 if it is to be quick."""
    files = 2000 if quick else 20_000
    source, copy, volume = base / "source", base / "copy", base / "volume"
    write_tree(source, files)
    ways = {
        "cp": lambda: subprocess.run(["cp", "-a", "--reflink=never", str(source), str(copy)], check=True),
        "import": lambda: snapfs("import", "--no-reflink", str(source), str(volume)),
        "import_unread": lambda: snapfs("import", "--no-reflink", "--no-verify", str(source), str(volume)),
    }
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    for turn in range(ROUNDS):
        for way in (*list(ways)[turn:], *list(ways)[:turn]):
            drop_caches()
            start = time.perf_counter()
            ways[way]()
            os.sync()
            seconds[way].append(time.perf_counter() - start)
            for made in (copy, volume):
                shutil.rmtree(made, ignore_errors=True)
    shutil.rmtree(source)
    taken = {way: statistics.median(each) for way, each in seconds.items()}
    figures = {"cp_files_per_second": files / taken["cp"]}
    figures |= {f"{way}_ratio_to_cp": taken["cp"] / taken[way] for way in ways if way != "cp"}
    return {f"{files:,} files of 4 KiB": figures}


def write_tree(folder: Path, files: int) -> None:
    """Files of random bytes in folders of 100, on the disk, and older than what an import reads twice to be sure."""
    chance = random.Random(1)
    for number in range(files):
        place = folder / str(number // FILES_A_FOLDER)
        if number % FILES_A_FOLDER == 0:
            place.mkdir(parents=True)
        (place / str(number)).write_bytes(chance.randbytes(FILE_BYTES))
    os.sync()
    time.sleep(0.1)


def drop_caches() -> None:
    os.sync()
    if os.geteuid() == 0:
        Path("/proc/sys/vm/drop_caches").write_text("3")

"""The measurements that have no counterpart on a plain directory: cuts, seals, restores, memory.

`restore` does have one, a plain copy of the same tree, and is given as a ratio to it.
"""

from __future__ import annotations

import os
import random
import shutil
import sqlite3
import subprocess
import time
from pathlib import Path
from typing import Any

from mounts import control, mounted, plain, resident_bytes, snapfs, status

MIB = 1 << 20


def write_file(path: Path, size: int, seed: int) -> None:
    """Half-compressible content that no two seeds share."""
    chance = random.Random(seed)
    with open(path, "wb") as file:
        for _ in range(size // MIB):
            file.write(chance.randbytes(MIB // 2) + bytes(MIB // 2))


def percentiles(samples: list[float]) -> dict[str, float]:
    ordered = sorted(samples)
    return {
        "p50_ms": ordered[len(ordered) // 2],
        "p99_ms": ordered[min(len(ordered) - 1, int(len(ordered) * 0.99))],
        "max_ms": ordered[-1],
        "cuts": len(ordered),
    }


def dirty_blocks(path: Path, count: int, seed: int) -> None:
    """Overwrite one byte in each of `count` blocks of 4 KiB, and put it on the filesystem's side of the cache."""
    descriptor = os.open(path, os.O_WRONLY)
    blocks = os.fstat(descriptor).st_size // 4096
    for block in random.Random(seed).sample(range(blocks), min(count, blocks)):
        os.pwrite(descriptor, b"!", block * 4096)
    os.fdatasync(descriptor)
    os.close(descriptor)


def cut_pauses(base: Path, quick: bool) -> dict[str, dict[str, float]]:
    """Pause of a cut in milliseconds: with one dirty file, with 10,000, and with 1 GiB dirty.

    Each cut is requested through the control file and its reply reports how long the gate was closed.
    """
    results = {}

    def pause(mountpoint: Path) -> float:
        return float(control(mountpoint, "snapshot")["cut_pause_s"]) * 1e3

    with mounted(base, "off") as mountpoint:
        write_file(mountpoint / "one", 4 * MIB, 1)
        samples = []
        for cut in range(50 if quick else 300):
            dirty_blocks(mountpoint / "one", 8, cut)
            samples.append(pause(mountpoint))
        results["1 file"] = percentiles(samples)
    with mounted(base, "off") as mountpoint:
        folder = mountpoint / "many"
        folder.mkdir()
        samples = []
        for cut in range(2 if quick else 12):
            for number in range(10_000):
                (folder / str(number)).write_bytes(b"%d" % cut)
            samples.append(pause(mountpoint))
        results["10,000 dirty files"] = percentiles(samples)
    with mounted(base, "off") as mountpoint:
        size = (128 if quick else 1024) * MIB
        samples = []
        for cut in range(2 if quick else 6):
            write_file(mountpoint / "large", size, cut)
            samples.append(pause(mountpoint))
        results[f"{size // MIB} MiB dirty"] = percentiles(samples)
    return results


def seal_and_restore(base: Path, quick: bool) -> dict[str, Any]:
    """Seal throughput of fresh data, and restore throughput against `cp -a` of the same tree."""
    size = (256 if quick else 1024) * MIB
    with mounted(base, "off") as mountpoint:
        for number in range(4):
            write_file(mountpoint / f"data-{number}", size // 4, number)
        pid = int(status(mountpoint)["pid"])
        before = cpu_seconds(pid)
        record = control(mountpoint, "snapshot full")
        cpu = cpu_seconds(pid) - before
        with plain(base) as directory:
            volume = str(base / "volume")
            start = time.perf_counter()
            snapfs("restore", volume, "full", str(directory / "restored"))
            os.sync()
            restored = time.perf_counter() - start
            subprocess.run(["sync"], check=True)
            start = time.perf_counter()
            shutil.copytree(directory / "restored", directory / "copied", copy_function=shutil.copy2)
            os.sync()
            copied = time.perf_counter() - start
    seal_seconds = record["snapshot"]["stats"]["seal_seconds"]
    return {
        "sealed_mb_per_second": size / 1e6 / seal_seconds,
        "sealed_mb_per_cpu_second": size / 1e6 / cpu,
        "stored_per_byte": record["snapshot"]["stats"]["stored_bytes"] / size,
        "restore_mb_per_second": size / 1e6 / restored,
        "restore_ratio_to_copy": copied / restored,
    }


def stored(base: Path, quick: bool) -> dict[str, dict[str, float]]:
    """Bytes that a snapshot adds, tables included, against the bytes that really differ from the one before."""
    results = {}
    with mounted(base, "off") as mountpoint:
        path = mountpoint / "app.db"
        database = sqlite3.connect(path, isolation_level=None)
        database.execute("CREATE TABLE account(id INTEGER PRIMARY KEY, balance INTEGER, filler BLOB)")
        rows = ((n, n, random.Random(n).randbytes(100)) for n in range(50_000 if quick else 500_000))
        with database:
            database.execute("BEGIN")
            database.executemany("INSERT INTO account VALUES(?, ?, ?)", rows)
        log, noise = mountpoint / "log", mountpoint / "noise"

        def update() -> None:
            chance = random.Random(1)
            for _ in range(1000):
                database.execute("UPDATE account SET balance = balance + 1 WHERE id = ?", (chance.randrange(50_000),))

        def append() -> None:
            with open(log, "ab") as file:
                file.writelines(b"%d: a line of a log\n" % number for number in range(4000))

        loads = {
            "1,000 SQLite updates": (path, update),
            "a log appended to": (log, append),
            "1 MiB of random bytes": (noise, lambda: noise.write_bytes(os.urandom(MIB))),
        }
        control(mountpoint, "snapshot")
        for name, (file, load) in loads.items():
            before = file.read_bytes() if file.exists() else b""
            load()
            record = control(mountpoint, "snapshot")["snapshot"]
            changed = differing_bytes(before, file.read_bytes())
            stored_bytes = float(record["stats"]["stored_bytes"])
            results[name] = {"changed": changed, "stored": stored_bytes, "ratio": stored_bytes / changed}
        database.close()
    return results


def differing_bytes(before: bytes, after: bytes) -> int:
    """How many bytes of `after` are not the same in `before`."""
    count = max(0, len(after) - len(before))
    for start in range(0, min(len(before), len(after)), 4096):
        old, new = before[start : start + 4096], after[start : start + 4096]
        if old != new:
            count += sum(a != b for a, b in zip(old, new, strict=False))
    return count


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def memory(base: Path, quick: bool) -> dict[str, dict[str, float]]:
    """Resident MiB of the daemon after sealing a state of 100 MB and of 10 GB, and under changes to it."""
    results = {}
    for label, size in (("100 MB", 100 * MIB), ("1 GB", 1024 * MIB) if quick else ("10 GB", 10 * 1024 * MIB)):
        with mounted(base, "1s") as mountpoint:
            for number in range(10):
                write_file(mountpoint / f"data-{number}", size // 10, number)
            control(mountpoint, "snapshot")
            for turn in range(5):
                dirty_blocks(mountpoint / "data-0", 500, turn)
                time.sleep(1)
            now, highest = resident_bytes(int(status(mountpoint)["pid"]))
            results[label] = {"now": now / MIB, "highest": highest / MIB}
    return results

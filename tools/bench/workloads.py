"""The loads of the benchmark. Each runs in a directory it is given and returns figures.

A figure is (value, unit, higher is better). The same code runs on a plain directory and on a mount, one
after the other in one run, so that a ratio holds although the machine's speed drifts.
"""

from __future__ import annotations

import glob
import json
import os
import pwd
import random
import shutil
import socket
import sqlite3
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

POSTGRES = next(iter(sorted(glob.glob("/usr/lib/postgresql/*/bin"), reverse=True)), "")


@dataclass(frozen=True)
class Figure:
    value: float
    unit: str
    higher_is_better: bool = True


Figures = dict[str, Figure]
Workload = Callable[[Path, float], Figures]


def run(*command: str, user: str | None = None) -> str:
    """Output of a command that must succeed; as `user` if given."""
    identity = {}
    if user:
        entry = pwd.getpwnam(user)
        identity = {"user": entry.pw_uid, "group": entry.pw_gid, "extra_groups": []}
    done = subprocess.run(command, capture_output=True, text=True, cwd="/", check=False, **identity)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: {done.stdout}{done.stderr}")
    return done.stdout


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def pgbench(directory: Path, seconds: float) -> Figures:
    """TPC-B of pgbench at scale 10 with 1 and 4 clients, everything durable."""
    data, port = directory / "pg", free_port()
    data.mkdir(mode=0o700)
    shutil.chown(data, "postgres", "postgres")
    run(f"{POSTGRES}/initdb", "-D", str(data), "-A", "trust", "-U", "postgres", "--no-sync", user="postgres")
    options = f"-p {port} -c listen_addresses=127.0.0.1 -c unix_socket_directories= -c shared_buffers=64MB"
    log = f"/tmp/snapfs-bench-{port}.log"
    run(f"{POSTGRES}/pg_ctl", "-D", str(data), "-o", options, "-l", log, "-w", "start", user="postgres")
    try:
        client = [f"{POSTGRES}/pgbench", "-h", "127.0.0.1", "-p", str(port), "-U", "postgres"]
        run(*client, "-i", "-s", "10", "-q", "postgres")
        figures = {}
        for clients in (1, 4):
            output = run(*client, "-n", "-c", str(clients), "-j", "2", "-T", str(int(seconds)), "postgres")
            tps = next(float(line.split()[2]) for line in output.splitlines() if line.startswith("tps"))
            figures[f"pgbench, {clients} client{'s' * (clients > 1)}"] = Figure(tps, "tx/s")
        return figures
    finally:
        run(f"{POSTGRES}/pg_ctl", "-D", str(data), "-m", "fast", "-w", "stop", user="postgres")
        os.unlink(log)


def sqlite(directory: Path, seconds: float) -> Figures:
    """Small update transactions, synchronous=FULL, in both journal modes."""
    figures = {}
    for mode in ("wal", "delete"):
        database = sqlite3.connect(directory / f"{mode}.db", isolation_level=None)
        database.execute(f"PRAGMA journal_mode={mode}")
        database.execute("PRAGMA synchronous=FULL")
        database.execute("CREATE TABLE account(id INTEGER PRIMARY KEY, balance INTEGER, filler BLOB)")
        with database:
            database.execute("BEGIN")
            database.executemany("INSERT INTO account VALUES(?, 0, ?)", ((n, bytes(100)) for n in range(100_000)))
        chance, done, end = random.Random(1), 0, time.perf_counter() + seconds
        start = time.perf_counter()
        while time.perf_counter() < end:
            database.execute("UPDATE account SET balance = balance + 1 WHERE id = ?", (chance.randrange(100_000),))
            done += 1
        figures[f"SQLite {mode}, FULL"] = Figure(done / (time.perf_counter() - start), "tx/s")
        database.close()
    return figures


def redis_aof(directory: Path, seconds: float) -> Figures:
    """SET with appendfsync always, one client."""
    port = free_port()
    server = subprocess.Popen(
        ["redis-server", "--port", str(port), "--bind", "127.0.0.1", "--dir", str(directory), "--appendonly", "yes",
         "--appendfsync", "always", "--save", ""],
        stdout=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        while subprocess.run(["redis-cli", "-p", str(port), "ping"], capture_output=True, check=False).returncode:
            time.sleep(0.05)
        count, elapsed = 500, 0.0
        while elapsed < seconds / 2:  # grow the run until it is long enough to mean something
            start = time.perf_counter()
            run("redis-benchmark", "-p", str(port), "-t", "set", "-n", str(count), "-c", "1", "-d", "100", "-q")
            elapsed = time.perf_counter() - start
            rate, count = count / elapsed, int(count * max(1.5, min(10, seconds / elapsed)))
        return {"Redis AOF always": Figure(rate, "op/s")}
    finally:
        server.terminate()
        server.wait()


def fio(directory: Path, name: str, *options: str) -> dict[str, dict[str, float]]:
    output = run("fio", "--name", name, f"--directory={directory}", "--output-format=json", *options)
    job: dict[str, dict[str, float]] = json.loads(output[output.index("{") :])["jobs"][0]
    return job


def raw_files(directory: Path, seconds: float) -> Figures:
    """fio: random write with fsync, sequential write and read of 1 MiB, cached random read; and dd appends."""
    timed = ("--time_based", f"--runtime={seconds:.0f}")
    randwrite = fio(directory, "randwrite", "--rw=randwrite", "--bs=4k", "--size=64m", "--fsync=1", *timed)
    write = fio(directory, "seq", "--rw=write", "--bs=1m", "--size=512m", "--end_fsync=1")
    if os.getuid() == 0:
        Path("/proc/sys/vm/drop_caches").write_text("3")
    read = fio(directory, "seq", "--rw=read", "--bs=1m", "--size=512m", "--invalidate=0")
    options = ("--rw=randread", "--bs=4k", "--size=64m", "--invalidate=0")
    fio(directory, "randwrite", "--rw=read", "--bs=1m", "--size=64m", "--invalidate=0")
    cached = fio(directory, "randwrite", *options, *timed)
    count = 300_000
    start = time.perf_counter()
    run("dd", "if=/dev/zero", f"of={directory}/appended", "bs=128", f"count={count}", "oflag=append", "conv=notrunc")
    appends = count / (time.perf_counter() - start)
    return {
        "4 KiB random write + fsync": Figure(randwrite["write"]["iops"], "op/s"),
        "sequential write, 1 MiB": Figure(write["write"]["bw_bytes"] / 1e6, "MB/s"),
        "sequential read, 1 MiB, cold": Figure(read["read"]["bw_bytes"] / 1e6, "MB/s"),
        "cached random read, 4 KiB": Figure(cached["read"]["iops"], "op/s"),
        "128-byte appends": Figure(appends, "op/s"),
    }


def small_files(directory: Path, seconds: float) -> Figures:
    """Create, stat (after the kernel forgot them), list, rename and unlink 10,000 files of one directory."""
    count, folder = 10_000, directory / "many"
    folder.mkdir()
    paths = [str(folder / f"file-{n:05d}") for n in range(count)]

    def timed(act: Callable[[], object]) -> Figure:
        start = time.perf_counter()
        act()
        return Figure(count / (time.perf_counter() - start), "op/s")

    def create() -> None:
        for path in paths:
            os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644))

    figures = {"create": timed(create)}
    if os.getuid() == 0:
        Path("/proc/sys/vm/drop_caches").write_text("2")
    figures["stat, cold"] = timed(lambda: [os.stat(path) for path in paths])
    figures["list"] = timed(lambda: list(os.scandir(folder)))
    figures["rename"] = timed(lambda: [os.rename(path, path + "x") for path in paths])
    figures["unlink"] = timed(lambda: [os.unlink(path + "x") for path in paths])
    return {f"{name}, 10,000 files": figure for name, figure in figures.items()}


WORKLOADS: dict[str, Workload] = {
    "pgbench": pgbench,
    "sqlite": sqlite,
    "redis": redis_aof,
    "files": raw_files,
    "names": small_files,
}


def missing(name: str) -> str | None:
    """What a workload needs and this machine lacks, or None."""
    if name == "pgbench" and (not POSTGRES or os.getuid() != 0):
        return "PostgreSQL, and root to start it as its own user"
    for workload, command in (("redis", "redis-benchmark"), ("files", "fio")):
        if name == workload and not shutil.which(command):
            return command
    return None

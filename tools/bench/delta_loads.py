"""The changes whose snapshot is weighed by delta_size.py, each recorded as two states of a plain directory.

A state is a copy of the application's directory at one instant: its processes are stopped (SIGSTOP) while it is
taken, so no state is torn. With the copy goes the identity of each file (inode and birth time), so that a rename
over another file is replayed as one.
"""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import socket
import sqlite3
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

PGBENCH_SAMPLES = int(os.environ.get("SNAPFS_BENCH_SAMPLES", "7"))
PGBENCH_WARMUP_S = float(os.environ.get("SNAPFS_BENCH_WARMUP", "60"))
PGBENCH_GAP_S = float(os.environ.get("SNAPFS_BENCH_GAP", "12"))
"""The samples are spread over a checkpoint cycle, which takes one to two minutes with PostgreSQL's own settings. Right
after a checkpoint each page's first change writes the whole page to the WAL; later ones do not. The median counts."""
PGBENCH_SETTINGS = os.environ.get("SNAPFS_BENCH_POSTGRES", "").split()
"""More arguments for the server."""
PGBENCH_CLIENTS = os.environ.get("SNAPFS_BENCH_CLIENTS", "1")
POSTGRES_BIN = next(iter(sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)), Path("/nonexistent"))


@dataclass(frozen=True)
class State:
    """A directory as it was, and which file each path (relative) was."""

    directory: Path
    identity: dict[bytes, tuple[bytes, bytes]]


def take_state(source: Path, directory: Path) -> State:
    subprocess.run(["cp", "-a", "--sparse=always", str(source), str(directory)], check=True)
    listing = subprocess.run(
        ["find", str(source), "-mindepth", "1", "-printf", r"%i\t%B@\t%P\0"], check=True, capture_output=True
    ).stdout
    fields = (line.split(b"\t", 2) for line in listing.split(b"\0") if line)
    return State(directory, {path: (ino, birth) for ino, birth, path in fields})


def processes_of(leader: int) -> list[int]:
    """The process and all below it, parents first."""
    children: dict[int, list[int]] = {}
    for entry in os.listdir("/proc"):
        if entry.isdecimal():
            with contextlib.suppress(OSError):
                stat = Path(f"/proc/{entry}/stat").read_text()
                children.setdefault(int(stat.rpartition(")")[2].split()[1]), []).append(int(entry))
    found = [leader]
    for process in found:
        found += children.get(process, [])
    return found


@contextlib.contextmanager
def stopped(*leaders: int) -> Iterator[None]:
    """Every process of these trees stands still."""
    processes = [process for leader in leaders for process in processes_of(leader)]
    for process in processes:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, signal.SIGSTOP)
    time.sleep(0.05)
    try:
        yield
    finally:
        for process in reversed(processes):
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGCONT)


def sqlite(scratch: Path, seconds: float) -> Iterator[tuple[State, State]]:
    """Updates of random rows of a 200 MB table in WAL mode for a while, then a checkpoint."""
    place = scratch / "app"
    place.mkdir()
    db = sqlite3.connect(place / "app.db", isolation_level=None)
    db.execute("PRAGMA journal_mode=WAL")
    db.execute("PRAGMA synchronous=NORMAL")
    db.execute("CREATE TABLE account (id INTEGER PRIMARY KEY, balance INTEGER, filler BLOB)")
    chance, rows = random.Random(1), 800_000
    db.execute("BEGIN")
    db.executemany("INSERT INTO account VALUES (?,0,?)", ((row, chance.randbytes(200)) for row in range(rows)))
    db.execute("COMMIT")
    db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    before = take_state(place, scratch / "before")
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        db.execute("UPDATE account SET balance = balance + 1 WHERE id = ?", (chance.randrange(rows),))
    db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    after = take_state(place, scratch / "after")
    db.close()
    yield before, after


def redis(scratch: Path, seconds: float) -> Iterator[tuple[State, State]]:
    """Values of random length set by one client for a while, then a SAVE over the old dump of 280 MB."""
    place, port = scratch / "app", _free_port()
    place.mkdir()
    command = ["redis-server", "--port", str(port), "--dir", str(place), "--save", "", "--appendonly", "no"]
    with running(command) as server, _redis_client(port, server) as send:
        chance, keys = random.Random(1), 1_000_000
        for first in range(0, keys, 1000):
            send([_set(key, chance) for key in range(first, first + 1000)])
        send([b"SAVE\r\n"])
        before = take_state(place, scratch / "before")
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            send([_set(chance.randrange(keys), chance)])
        send([b"SAVE\r\n"])
        after = take_state(place, scratch / "after")
        with contextlib.suppress(ConnectionError, IndexError):
            send([b"SHUTDOWN NOSAVE\r\n"])
    yield before, after


def _set(key: int, chance: random.Random) -> bytes:
    name, value = b"key:%012d" % key, chance.randbytes(chance.randrange(200, 300))
    return b"*3\r\n$3\r\nSET\r\n$%d\r\n%s\r\n$%d\r\n%s\r\n" % (len(name), name, len(value), value)


@contextlib.contextmanager
def _redis_client(port: int, server: subprocess.Popen[bytes]) -> Iterator[Callable[[list[bytes]], None]]:
    connection = _connect(port, server)

    def send(commands: list[bytes]) -> None:
        connection.sendall(b"".join(commands))
        waiting = len(commands)
        while waiting:
            reply = connection.recv(65536)
            if not reply:
                raise ConnectionError
            if b"-" in reply[:1]:
                raise RuntimeError(reply.decode())
            waiting -= reply.count(b"\r\n")

    with connection:
        yield send


def _connect(port: int, server: subprocess.Popen[bytes]) -> socket.socket:
    while True:
        try:
            return socket.create_connection(("127.0.0.1", port))
        except ConnectionRefusedError:
            if server.poll() is not None:
                raise RuntimeError("the server did not start") from None
            time.sleep(0.05)


def pgbench(scratch: Path, seconds: float) -> Iterator[tuple[State, State]]:
    """TPC-B at scale 40 (`PGBENCH_CLIENTS` clients); the two states of each sample are `seconds` of load apart.

    While a sample is weighed everything stands still.
    """
    place, port = scratch / "app", _free_port()
    place.mkdir()
    as_postgres = ["setpriv", "--reuid=postgres", "--regid=postgres", "--init-groups"] if os.geteuid() == 0 else []
    if as_postgres:
        shutil.chown(place, "postgres", "postgres")
    address = ["-h", str(place), "-p", str(port)]

    def run(program: str, *arguments: str) -> list[str]:
        return [*as_postgres, str(POSTGRES_BIN / program), *arguments]

    subprocess.run(run("initdb", "-D", str(place / "db"), "-U", "postgres", "-A", "trust"), check=True, cwd="/",
                   stdout=subprocess.DEVNULL)  # fmt: skip
    server_command = run("postgres", "-D", str(place / "db"), "-k", str(place), "-p", str(port), "-h", "")
    with running(server_command + PGBENCH_SETTINGS) as server:
        _wait_ready(run("pg_isready", *address), server)
        bench = run("pgbench", *address, "-U", "postgres", "postgres")
        subprocess.run([*bench, "-i", "-s", "40", "-q"], check=True, cwd="/", capture_output=True)
        subprocess.run(run("psql", *address, "-U", "postgres", "-qc", "CHECKPOINT"), check=True, cwd="/")
        with running([*bench, "-c", PGBENCH_CLIENTS, "-T", "600"]) as load:
            time.sleep(PGBENCH_WARMUP_S)
            for sample in range(PGBENCH_SAMPLES):
                with stopped(server.pid, load.pid):
                    before = take_state(place / "db", scratch / f"before{sample}")
                time.sleep(seconds)
                with stopped(server.pid, load.pid):
                    yield before, take_state(place / "db", scratch / f"after{sample}")
                time.sleep(PGBENCH_GAP_S)


def _wait_ready(command: list[str], server: subprocess.Popen[bytes]) -> None:
    while subprocess.run(command, check=False, capture_output=True, cwd="/").returncode:
        if server.poll() is not None:
            raise RuntimeError("PostgreSQL did not start")
        time.sleep(0.1)


@contextlib.contextmanager
def running(command: list[str]) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd="/")
    try:
        yield process
    finally:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


Load = Callable[[Path, float], Iterator[tuple[State, State]]]
LOADS: dict[str, Load] = {"pgbench": pgbench, "sqlite": sqlite, "redis": redis}
"""Each takes a scratch folder and seconds of load, and gives one or more samples: the states before and after."""
BARS = {"pgbench": 0.7, "sqlite": 0.1, "redis": 0.05}
"""At most so much of what `btrfs send -p | zstd -1` takes."""

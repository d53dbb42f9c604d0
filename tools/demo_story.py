"""What tools/demo shows, in three parts. Every claim that is printed was checked; the exit code is 0 only if all held.

One host:

Two databases that know nothing of snapfs work on a mount: SQLite, and PostgreSQL under pgbench where it is installed.
While they work, snapshots are made by writing to a file. Then everything is destroyed, and comes back: once into a
plain directory, once in place. A database is right if its own integrity check passes, if what it must conserve is
conserved, and if it has every transaction that was acknowledged before the cut. A snapshot is right if what came back
has the hash of what the snapshot shows.

Two hosts and a mirror (demo_failover.py): a host is killed in the middle of its work, another takes over from the
mirror, the first comes back and can do no harm, and is given the work back.

Promises kept (demo_promises.py): an objective, two databases cut at one instant, a drill against the rto, and a dry run
of a retention rule.
"""

from __future__ import annotations

import argparse
import contextlib
import glob
import hashlib
import json
import os
import pwd
import shutil
import sqlite3
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))
import demo_failover
import demo_promises

SNAPFS = [sys.executable, "-P", "-m", "snapfs"]
ACCOUNTS = 1000
TOTAL = ACCOUNTS * 100


class ClaimError(Exception):
    """Something did not hold."""


def claim(holds: bool, words: str) -> None:
    if not holds:
        raise ClaimError(words)
    print(f"    ok  {words}", flush=True)


@contextlib.contextmanager
def timed(words: str) -> Iterator[None]:
    """Print `words` and how long the block took."""
    started = time.perf_counter()
    yield
    print(f"{(time.perf_counter() - started) * 1000:9.1f} ms  {words}", flush=True)


def snapfs(*arguments: str | Path, check: bool = True) -> subprocess.CompletedProcess[str]:
    done = subprocess.run([*SNAPFS, *map(str, arguments)], capture_output=True, text=True, check=False)
    if check and done.returncode:
        raise ClaimError(f"snapfs {' '.join(map(str, arguments))}: {done.stderr.strip()}")
    return done


def snapshot(mnt: Path, name: str) -> dict[str, Any]:
    """What `echo 'snapshot NAME' > .snapfs/control` does, with the reply read back."""
    fd = os.open(mnt / ".snapfs" / "control", os.O_RDWR)
    try:
        os.write(fd, f"snapshot {name}\n".encode())
        reply: dict[str, Any] = json.loads(os.read(fd, 1 << 20))
    finally:
        os.close(fd)
    stats = reply["snapshot"]["stats"]
    times = f"cut in {reply['cut_pause_s'] * 1000:.2f} ms, sealed in {stats['seal_seconds'] * 1000:.0f} ms"
    sizes = f"{stats['dirty_bytes'] / 1e6:.1f} MB of dirty blocks, {stats['stored_bytes'] / 1e6:.2f} MB stored"
    print(f"    snapshot {name}: {times}, {sizes}", flush=True)
    return reply


def content_hash(root: Path) -> str:
    """SHA-256 over every name below `root`, with its type, mode, owner, mtime, size, link target and content."""
    digest = hashlib.sha256()
    for folder, folders, files in os.walk(root):
        folders.sort()
        for name in sorted([*files, *folders]):
            path = os.path.join(folder, name)
            facts = os.lstat(path)
            size = facts.st_size if stat.S_ISREG(facts.st_mode) else 0
            digest.update(repr((os.path.relpath(path, root), facts.st_mode, facts.st_uid, facts.st_gid)).encode())
            digest.update(repr((facts.st_mtime_ns, size)).encode())
            if stat.S_ISLNK(facts.st_mode):
                digest.update(os.readlink(path).encode())
            elif stat.S_ISREG(facts.st_mode):
                with open(path, "rb") as file:
                    while block := file.read(1 << 20):
                        digest.update(block)
    return digest.hexdigest()


class Sqlite:
    """Accounts, and transfers between them: the sum never changes, and each transfer has a number."""

    name = "SQLite"

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.acknowledged = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._work)
        self._error: Exception | None = None

    @staticmethod
    def connect(folder: Path) -> sqlite3.Connection:
        database = sqlite3.connect(folder / "accounts.db", isolation_level=None)
        try:
            database.execute("PRAGMA synchronous = FULL")
        except sqlite3.DatabaseError:
            database.close()
            raise
        return database

    def create(self) -> None:
        self.folder.mkdir()
        with contextlib.closing(self.connect(self.folder)) as database:
            database.execute("PRAGMA journal_mode = WAL")
            database.execute("CREATE TABLE account (id INTEGER PRIMARY KEY, balance INTEGER)")
            database.execute("CREATE TABLE transfer (id INTEGER PRIMARY KEY)")
            database.execute("BEGIN")
            database.executemany("INSERT INTO account VALUES (?, 100)", [(n,) for n in range(ACCOUNTS)])
            database.execute("COMMIT")

    def start(self) -> None:
        self._thread.start()

    def _work(self) -> None:
        try:
            with contextlib.closing(self.connect(self.folder)) as database:
                while not self._stop.is_set():
                    number = self.acknowledged + 1
                    database.execute("BEGIN IMMEDIATE")
                    database.execute("UPDATE account SET balance = balance - 1 WHERE id = ?", (number * 7 % ACCOUNTS,))
                    database.execute("UPDATE account SET balance = balance + 1 WHERE id = ?", (number * 13 % ACCOUNTS,))
                    database.execute("INSERT INTO transfer VALUES (?)", (number,))
                    database.execute("COMMIT")
                    self.acknowledged = number
        except Exception as error:
            self._error = error

    def stop(self) -> None:
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()
        if self._error is not None:
            raise ClaimError(f"SQLite under load: {self._error}")

    def prove(self, folder: Path, at_least: int) -> None:
        with contextlib.closing(self.connect(folder)) as database:
            verdict = database.execute("PRAGMA integrity_check").fetchone()[0]
            total = database.execute("SELECT sum(balance) FROM account").fetchone()[0]
            count, newest = database.execute("SELECT count(*), max(id) FROM transfer").fetchone()
        claim(verdict == "ok", "SQLite: PRAGMA integrity_check answers ok")
        claim(total == TOTAL, f"SQLite: the balances add up to {total}")
        claim(
            count == newest >= at_least,
            f"SQLite: {count} transfers without a gap, at least the {at_least} acknowledged",
        )

    def damage(self) -> None:
        for path in self.folder.glob("accounts.db*"):
            with open(path, "r+b") as file:
                file.write(os.urandom(16384))

    def is_broken(self, folder: Path) -> bool:
        try:
            with contextlib.closing(self.connect(folder)) as database:
                return bool(database.execute("PRAGMA integrity_check").fetchone()[0] != "ok")
        except sqlite3.DatabaseError:
            return True


class Postgres:
    """A cluster of its own, under pgbench: tellers, branches and accounts must add up to the same."""

    name = "PostgreSQL"

    def __init__(self, folder: Path, sockets: Path, binaries: Path) -> None:
        self.folder, self._sockets, self._binaries = folder, sockets, binaries
        self.acknowledged = 0
        self._bench: subprocess.Popen[str] | None = None
        self._user = pwd.getpwnam("postgres") if os.geteuid() == 0 else None

    def _command(self, program: str, *arguments: str | Path) -> dict[str, Any]:
        identity = {"user": self._user.pw_uid, "group": self._user.pw_gid, "extra_groups": []} if self._user else {}
        environment = {**os.environ, "PGHOST": str(self._sockets), "PGDATABASE": "postgres", "LC_ALL": "C"}
        return {
            "args": [str(self._binaries / program), *map(str, arguments)],
            "cwd": "/",
            "env": environment,
            **identity,
        }

    def _run(self, program: str, *arguments: str | Path, check: bool = True) -> subprocess.CompletedProcess[str]:
        command = self._command(program, *arguments)
        done = subprocess.run(**command, capture_output=True, text=True, check=False)
        if check and done.returncode:
            raise ClaimError(f"{program}: {done.stderr.strip() or done.stdout.strip()}")
        return done

    def _own(self, path: Path) -> None:
        if self._user:
            os.chown(path, self._user.pw_uid, self._user.pw_gid)

    def create(self) -> None:
        for folder in (self.folder, self._sockets):
            folder.mkdir()
            self._own(folder)
        self._run("initdb", "-D", self.folder, "-A", "trust", "-E", "UTF8", "--no-sync", "--data-checksums")
        self._up(self.folder)
        self._run("pgbench", "-i", "-q", "-s", "5")

    def _up(self, folder: Path) -> None:
        options = f"-c listen_addresses='' -c unix_socket_directories='{self._sockets}'"
        log = self._sockets / "server.log"
        self._run("pg_ctl", "-D", folder, "-l", log, "-o", options, "-w", "-t", "60", "start")

    def _down(self, folder: Path, mode: str = "fast") -> None:
        self._run("pg_ctl", "-D", folder, "-m", mode, "-w", "stop", check=False)

    def start(self) -> None:
        command = self._command("pgbench", "-c", "4", "-j", "2", "-T", "3600", "-n")
        with open(self._sockets / "pgbench.log", "w") as output:
            self._bench = subprocess.Popen(**command, stdout=subprocess.DEVNULL, stderr=output, text=True)

    def stop(self) -> None:
        if self._bench is not None:
            if self._bench.poll() is not None:
                output = (self._sockets / "pgbench.log").read_text().strip().splitlines()
                raise ClaimError(f"pgbench ended with exit code {self._bench.returncode}: {' | '.join(output[-3:])}")
            self._bench.terminate()
            self._bench.wait()
            self._bench = None
        self._down(self.folder, "immediate")

    def prove(self, folder: Path, at_least: int) -> None:
        self._up(folder)
        try:
            sums = "SELECT (SELECT sum(abalance) FROM pgbench_accounts), (SELECT sum(tbalance) FROM pgbench_tellers)"
            sums += ", (SELECT sum(bbalance) FROM pgbench_branches), (SELECT sum(delta) FROM pgbench_history)"
            sums += ", (SELECT count(*) FROM pgbench_history)"
            *balances, count = self._run("psql", "-XAtc", sums).stdout.strip().split("|")
            claim(True, "PostgreSQL: starts from it and recovers by itself")
            claim(
                len(set(balances)) == 1, f"PostgreSQL: accounts, tellers, branches and history add up to {balances[0]}"
            )
            claim(int(count) > 0, f"PostgreSQL: {count} transactions in the history")
            if (self._binaries / "pg_amcheck").exists() and self._run(
                "psql", "-XAtc", "CREATE EXTENSION IF NOT EXISTS amcheck", check=False
            ).returncode == 0:
                done = self._run("pg_amcheck", "-d", "postgres", check=False)
                claim(done.returncode == 0, "PostgreSQL: pg_amcheck finds nothing")
        finally:
            self._down(folder)

    def damage(self) -> None:
        shutil.rmtree(self.folder / "base")
        (self.folder / "global" / "pg_control").write_bytes(os.urandom(8192))

    def is_broken(self, folder: Path) -> bool:
        try:
            self._up(folder)
        except ClaimError:
            return True
        self._down(folder)
        return False


Database = Sqlite | Postgres


def postgres_binaries() -> Path | None:
    found = sorted(glob.glob("/usr/lib/postgresql/*/bin/pgbench"))
    return Path(found[-1]).parent if found else None


def run_story(base: Path, seconds: float, with_postgres: bool) -> None:
    """The story, in `base`."""
    volume, mnt = base / "volume", base / "mnt"
    mnt.mkdir()
    with timed(f"snapfs mount {volume} {mnt}   (a new volume; the mount answers)"):
        snapfs("mount", volume, mnt)
    databases: list[Database] = [Sqlite(mnt / "sqlite")]
    binaries = postgres_binaries()
    if with_postgres and binaries is not None:
        databases.append(Postgres(mnt / "postgres", base / "sockets", binaries))
    else:
        print("              PostgreSQL is left out")
    try:
        for database in databases:
            with timed(f"{database.name} makes its database on the mount"):
                database.create()
        acknowledged, shown = work_and_snapshot(mnt, databases, seconds)
        destroy(databases)
        bring_back_elsewhere(base, volume, databases, acknowledged, shown)
        bring_back_in_place(mnt, databases, acknowledged, shown)
    finally:
        for database in databases:
            with contextlib.suppress(ClaimError):
                database.stop()
        # It names the holder, where and why, rather than to wait for ever: another mount namespace, for one.
        ended = snapfs("umount", "--timeout", "60s", mnt, check=False)
        if ended.returncode:
            print(f"umount {mnt}: {ended.stderr.strip()}", file=sys.stderr)
    with timed("snapfs verify: everything stored is read back and checked"):
        print("    " + snapfs("verify", volume).stdout.strip())
    print(snapfs("list", volume).stdout)


def work_and_snapshot(mnt: Path, databases: list[Database], seconds: float) -> tuple[list[int], str]:
    print(f"\nBoth work for {seconds:.0f} s, and a snapshot is made of both at one instant, again and again:")
    for database in databases:
        database.start()
    acknowledged: list[int] = []
    count = max(int(seconds), 2)
    for number in range(count):
        time.sleep(seconds / count)
        if number == count // 2:
            acknowledged = [database.acknowledged for database in databases]
        snapshot(mnt, "before-upgrade" if number == count // 2 else f"load-{number}")
    with timed("content hash of .snapfs/snapshots/before-upgrade, while the databases go on"):
        shown = content_hash(mnt / ".snapfs" / "snapshots" / "before-upgrade")
    print(f"              {shown}")
    for database in databases:
        database.stop()
    claim(content_hash(mnt / ".snapfs" / "snapshots" / "before-upgrade") == shown, "the snapshot is what it was")
    claim(".snapfs" not in os.listdir(mnt), ".snapfs is not listed")
    return acknowledged, shown


def destroy(databases: list[Database]) -> None:
    print("\nThe upgrade goes wrong:")
    for database in databases:
        database.damage()
        claim(database.is_broken(database.folder), f"{database.name} is broken")


def prove_all(databases: list[Database], root: Path, acknowledged: list[int]) -> None:
    for database, at_least in zip(databases, acknowledged, strict=True):
        database.prove(root / database.folder.name, at_least)


def bring_back_elsewhere(
    base: Path, volume: Path, databases: list[Database], acknowledged: list[int], shown: str
) -> None:
    print("\nBack, into a plain directory:")
    restored = base / "restored"
    with timed("snapfs restore --verify"):
        print("    " + snapfs("restore", "--verify", volume, "before-upgrade", restored).stdout.strip())
    claim(content_hash(restored) == shown, "the restored directory has the content hash of the snapshot")
    prove_all(databases, restored, acknowledged)


def bring_back_in_place(mnt: Path, databases: list[Database], acknowledged: list[int], shown: str) -> None:
    print("\nBack, in place:")
    with timed("snapfs rollback"):
        print("    " + snapfs("rollback", mnt, "before-upgrade").stdout.strip())
    claim(content_hash(mnt) == shown, "the mount has the content hash of the snapshot")
    prove_all(databases, mnt, acknowledged)


def main() -> int:
    parser = argparse.ArgumentParser(description="See snapfs work.", epilog=__doc__)
    parser.add_argument("--seconds", type=float, default=6, help="how long the databases work (default: 6)")
    parser.add_argument("--dir", type=Path, help="where to work (default: the temporary directory)")
    parser.add_argument("--keep", action="store_true", help="leave the volume and the restored directory there")
    parser.add_argument("--no-postgres", action="store_true", help="SQLite alone")
    parser.add_argument("--loopback", action="store_true", help="no network namespaces, though they are possible")
    parser.add_argument(
        "--part", choices=["all", "one-host", "two-hosts", "promises"], default="all", help="which (default: all)"
    )
    parser.add_argument("--megabytes", type=int, default=200, help="state of the database that fails over")
    arguments = parser.parse_args()
    base = Path(tempfile.mkdtemp(prefix="snapfs-demo-", dir=arguments.dir))
    base.chmod(0o755)  # PostgreSQL runs as its own user
    started = time.monotonic()
    try:
        if arguments.part in ("all", "one-host"):
            run_story(base, arguments.seconds, not arguments.no_postgres)
        if arguments.part in ("all", "two-hosts"):
            demo_failover.run_story(
                base, arguments.seconds, not arguments.no_postgres, arguments.megabytes, arguments.loopback
            )
        if arguments.part in ("all", "promises"):
            demo_promises.run_story(base, arguments.seconds, claim)
    except (ClaimError, AssertionError, TimeoutError, demo_failover.FailedError) as failure:
        print(f"FAILED  {failure}", file=sys.stderr)
        return 1
    finally:
        if arguments.keep:
            print(f"kept: {base}")
        else:
            clean_up(base, shutil.rmtree)
    print(f"All of it held, in {time.monotonic() - started:.1f} s.")
    return 0


def clean_up(base: Path, remove: Callable[[Path], None]) -> None:
    if os.path.ismount(base / "mnt"):
        print(f"{base}/mnt is still mounted: left as it is", file=sys.stderr)
    else:
        remove(base)


if __name__ == "__main__":
    sys.exit(main())

"""The steps of a failover, run by a test, by the campaign in tools/chaos/failover, and by tools/demo.

A database works on host A and is replicated to the mirror. A is killed. B mounts what the mirror has, answers, and is
checked; A comes back, is fenced off, changes no byte on the mirror, and keeps what only it had. Then A resyncs as a
standby that takes what it has from its own old volume, and is given the work back without a loss.

Claims, each checked: everything that was acknowledged before the cut of the snapshot that was taken over is there, and
nothing twice; the database's own check finds it whole; the mirror's files are byte by byte what they were before A
came back.
"""

from __future__ import annotations

import contextlib
import glob
import hashlib
import json
import os
import pwd
import random
import re
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import tomlkit

from tests.fakes.mounts.hydrated import is_whole
from tests.fakes.patience import eventually
from tests.fakes.replication.hosts import REPLICATOR, FailedError, Host, Site

__all__ = ["REPLICATOR", "FailedError", "Host", "Site"]

LEDGER = str(Path(__file__).with_name("ledger.py"))
USER = "postgres"
_SUMS = "SELECT count(*), coalesce(max(k), 0) FROM ledger"


class Database(Protocol):
    """An application with a ledger of numbered rows."""

    name: str

    def create(self, host: Host, mount: Path) -> None: ...
    def load(self, host: Host, mount: Path, notes: Path) -> subprocess.Popen[str]:
        """Start to write rows, and to note those that were acknowledged; the process that does."""

    def query(self, host: Host, mount: Path) -> tuple[int, int]:
        """Start it if need be; how many rows there are, and the largest number."""

    def prove(self, host: Host, mount: Path) -> None:
        """Its own check of integrity."""

    def stop(self, host: Host, mount: Path) -> None: ...


class Sqlite:
    name = "SQLite"

    def __init__(self, folder: Path, rows: int = 2000) -> None:
        """`rows` of 4 kB beside the ledger."""
        self._rows = rows

    def create(self, host: Host, mount: Path) -> None:
        with contextlib.closing(sqlite3.connect(mount / "db")) as base, base:
            base.execute("CREATE TABLE bulk (k INTEGER PRIMARY KEY, v BLOB)")
            base.executemany("INSERT INTO bulk VALUES (?, randomblob(4000))", ((k,) for k in range(self._rows)))

    def load(self, host: Host, mount: Path, notes: Path) -> subprocess.Popen[str]:
        return host.start(sys.executable, LEDGER, "sqlite", mount / "db", notes)

    def query(self, host: Host, mount: Path) -> tuple[int, int]:
        with contextlib.closing(sqlite3.connect(mount / "db")) as base:
            count, newest = base.execute(_SUMS).fetchone()
        return count, newest

    def prove(self, host: Host, mount: Path) -> None:
        with contextlib.closing(sqlite3.connect(mount / "db")) as base:
            assert base.execute("PRAGMA integrity_check").fetchone() == ("ok",)
            assert base.execute("SELECT count(*) FROM bulk").fetchone() == (self._rows,)

    def stop(self, host: Host, mount: Path) -> None:
        pass


class Postgres:
    """A cluster below the mount; reached by a Unix socket, in a folder that each host has for itself."""

    name = "PostgreSQL"

    def __init__(self, folder: Path, scale: int = 1) -> None:
        self._folder, self._scale = folder, scale
        self._binaries = sorted(glob.glob("/usr/lib/postgresql/*/bin"))[-1]

    def _sockets(self, host: Host) -> Path:
        place = host.folder / "sockets"
        if not place.exists():
            place.mkdir()
            shutil.chown(place, USER, USER)
        return place

    def _run(self, host: Host, program: str, *words: str | Path, check: bool = True) -> str:
        path = f"{self._binaries}/{program}"
        return host.run("runuser", "-u", USER, "--", path, *words, check=check, cwd="/").stdout.strip()

    def create(self, host: Host, mount: Path) -> None:
        data = mount / "data"
        data.mkdir(mode=0o700)
        shutil.chown(data, USER, USER)
        self._run(host, "initdb", "-D", data, "-A", "trust", "-E", "UTF8", "--no-sync", "--data-checksums")
        self._start(host, mount)
        self._run(host, "pgbench", "-h", self._sockets(host), "-i", "-q", "-s", str(self._scale), "postgres")
        # What is to be replayed at a start is what came after the last checkpoint, not the making of the database.
        self._run(host, "psql", "-h", self._sockets(host), "-XAtc", "CHECKPOINT", "postgres")

    def _start(self, host: Host, mount: Path) -> None:
        sockets = self._sockets(host)
        options = f"-c listen_addresses= -c unix_socket_directories={sockets} -c shared_buffers=32MB"
        self._run(host, "pg_ctl", "-D", mount / "data", "-l", sockets / "log", "-o", options, "-w", "start")

    def load(self, host: Host, mount: Path, notes: Path) -> subprocess.Popen[str]:
        where = f"host={self._sockets(host)} user={USER} dbname=postgres"
        return host.start(sys.executable, LEDGER, "postgres", where, notes)

    def query(self, host: Host, mount: Path) -> tuple[int, int]:
        if not self._run(host, "pg_isready", "-h", self._sockets(host), check=False).endswith("accepting connections"):
            # Written on the host that died; its process number may be another's here. The runbook notes it, too.
            (mount / "data" / "postmaster.pid").unlink(missing_ok=True)
            self._start(host, mount)
        row = self._run(host, "psql", "-h", self._sockets(host), "-XAtc", _SUMS, "postgres")
        count, newest = row.split("|")
        return int(count), int(newest)

    def prove(self, host: Host, mount: Path) -> None:
        sockets = self._sockets(host)
        psql = ["psql", "-h", str(sockets), "-d", "postgres", "-XAtc"]
        self._run(host, *psql, "CREATE EXTENSION IF NOT EXISTS amcheck", check=False)
        self._run(host, "pg_amcheck", "-h", sockets, "-d", "postgres")
        rows = self._run(host, *psql, "SELECT count(*) FROM pgbench_accounts")
        assert int(rows) == 100_000 * self._scale

    def stop(self, host: Host, mount: Path) -> None:
        self._run(host, "pg_ctl", "-D", mount / "data", "-m", "fast", "-w", "stop", check=False)


def why_not_postgres() -> str:
    if not glob.glob("/usr/lib/postgresql/*/bin/pgbench"):
        return "PostgreSQL is not installed"
    if os.geteuid() != 0:
        return "starts PostgreSQL as its own user, which takes root"
    with contextlib.suppress(KeyError):
        pwd.getpwnam(USER)
        return ""
    return "there is no user postgres"


@contextlib.contextmanager
def reachable_folder() -> Iterator[Path]:
    """A folder that an application with a user of its own can reach."""
    with tempfile.TemporaryDirectory(prefix="snapfs-failover-") as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)


@dataclass
class Measured:
    """What came out. Seconds; `lost_s` from the cut that was taken over to the last acknowledgment before the kill."""

    rows: int = 0
    replicated_rows: int = 0
    lost_rows: int = 0
    lost_s: float = 0.0
    cut_to_kill_s: float = 0.0
    mount_s: float = 0.0
    first_answer_s: float = 0.0
    failback_bytes: int = 0
    state_bytes: int = 0
    times: dict[str, float] = field(default_factory=dict)


def hashes(folder: Path) -> dict[str, str]:
    """Every file below a folder, but for holds, which a reader takes and lets go of."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file() and path.parent.name != "holds")
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def acknowledged(notes: Path) -> list[tuple[int, int]]:
    """(number, time_ns) of each row, in order."""
    lines = notes.read_text().splitlines() if notes.exists() else []
    whole = (line.split(" ") for line in lines if re.fullmatch(r"\d+ \d+", line))
    return [(int(number), int(at)) for number, at in whole]


class Story:
    """`run` runs all of it, or call the parts in order. `report` gets a line for each claim that was checked."""

    def __init__(
        self,
        site: Site,
        database: Database,
        *,
        load_s: float = 5.0,
        seed: int = 1,
        report: Callable[[str], None] = lambda line: None,
        upstream: Callable[[Host], str] | None = None,
        during: Callable[[float], None] = time.sleep,
    ) -> None:
        """`upstream`: the volume's URL for a host; `during(seconds)`: what happens while the database works."""
        self.site, self.database, self.load_s, self.report = site, database, load_s, report
        self.url = upstream or site.url
        self._during, self._rng = during, random.Random(seed)
        self.a, self.b = site.a, site.b
        self.volume_a, self.mount_a = self.a.folder / "pg", self.a.folder / "mnt"
        self.volume_b, self.mount_b = self.b.folder / "pg", self.b.folder / "mnt"
        self.back_a = self.a.folder / "pg.new"
        self.notes = site.folder / "notes"
        self.measured = Measured()

    def run(self) -> None:
        self.site.start_mirror()
        self.work_on_a()
        self.kill_a()
        self.take_over_on_b()
        self.check_what_b_has()
        self.a_returns()
        self.fail_back()

    def _target(self, volume: Path, host: Host) -> None:
        """What the runbook has the reader put into volume.toml."""
        path = volume / "volume.toml"
        document = tomlkit.parse(path.read_text())
        table = tomlkit.table()
        table.update({"name": "mirror", "url": self.url(host), "token_file": str(self.site.token_file)})
        document.setdefault("replication", tomlkit.table())
        document["replication"]["target"] = tomlkit.aot()  # type: ignore[index]
        document["replication"]["target"].append(table)  # type: ignore[index, union-attr]
        document["snapshots"]["every"] = "500ms"  # type: ignore[index]
        path.write_text(tomlkit.dumps(document))

    def work_on_a(self) -> None:
        """Host A works for a while, replicated."""
        self.a.mount(self.volume_a, self.mount_a)
        self.a.umount(self.mount_a)
        self._target(self.volume_a, self.a)
        self.a.mount(self.volume_a, self.mount_a)
        self.database.create(self.a, self.mount_a)
        agent = self.a.agent(self.volume_a)

        def arrived(than: int) -> bool:
            self.a.check_lives(agent, "the agent", "agent.log")
            return self._newest_at(self.volume_a) > than

        eventually(lambda: arrived(0), "a first snapshot on the mirror")
        load = self.database.load(self.a, self.mount_a, self.notes)

        def works() -> bool:
            self.a.check_lives(load, f"the client of {self.database.name}")
            return len(acknowledged(self.notes)) > 10

        eventually(works, "rows")
        begun = self._newest_at(self.volume_a)
        self._during(self.load_s)
        eventually(lambda: arrived(begun), "a later snapshot on the mirror")

    def _newest_at(self, volume: Path) -> int:
        with contextlib.suppress(OSError, ValueError):
            facts = json.loads((volume / "replication.json").read_bytes())
            return max((target["newest"] or 0 for target in facts["targets"]), default=0)
        return 0

    def kill_a(self) -> None:
        """Everything on A is gone at once, in the middle of its work."""
        time.sleep(self._rng.random() / 3)
        self.killed_s = self.a.kill()
        self.acknowledged = acknowledged(self.notes)
        self.measured.rows = len(self.acknowledged)

    def take_over_on_b(self) -> None:
        """The remount command, and the first answered query."""
        started = time.monotonic()
        self.took = self.b.mount(
            "--from", self.url(self.b), "--token-file", self.site.token_file, self.volume_b, self.mount_b
        ).stderr
        self.measured.mount_s = time.monotonic() - started
        self.found = self.database.query(self.b, self.mount_b)
        self.measured.first_answer_s = time.monotonic() - started

    def check_what_b_has(self) -> None:
        """Against what was acknowledged."""
        taken = self.b.status(self.mount_b)["last_snapshot"]
        cut_ns: int = taken["cut_time_ns"]
        count, newest = self.found
        before = [number for number, at in self.acknowledged if at < cut_ns]
        self._claim(count == newest, f"{count} rows without a gap")
        self._claim(newest >= len(before), f"all {len(before)} that were acknowledged before the last replicated cut")
        self.database.prove(self.b, self.mount_b)
        self.report(f"{self.database.name}'s own check finds nothing wrong")
        lost = [at for number, at in self.acknowledged if number > newest]
        self.measured.replicated_rows, self.measured.lost_rows = len(before), len(lost)
        self.measured.cut_to_kill_s = self.killed_s - cut_ns / 1e9
        self.measured.lost_s = max(0.0, (max(lost) - cut_ns) / 1e9) if lost else 0.0
        self.generation = int(self.b.status(self.mount_b)["generation"])  # above 2 if an answer to a claim was lost
        expected = f"is taken over; generation {self.generation} begins"
        self._claim(self.generation > 1 and expected in self.took, self.took.strip().splitlines()[-1])

    def a_returns(self) -> None:
        """It boots, mounts its volume and starts its agent as ever; and is refused."""
        eventually(lambda: is_whole(self.b.status(self.mount_b)), "B's hydration")
        eventually(lambda: not list((self.site.mirror_root / "pg" / "store").glob("**/*.new")), "the mirror's quiet")
        before = hashes(self.site.mirror_root / "pg")
        self.site.plug_in(self.a)
        self.a.mount(self.volume_a, self.mount_a)
        agent = self.a.agent(self.volume_a)
        eventually(lambda: (self.a.status(self.mount_a)["fenced"] or {}).get("branch_kept", False), "A's fencing")
        facts = self.a.status(self.mount_a)["fenced"]
        knows = facts["by_generation"] >= 2 and facts["read_only"]
        self._claim(knows, f"A knows: {facts['by_holder']} is the writer now")
        try:
            (self.mount_a / "late").write_bytes(b"x")
        except OSError as error:
            self._claim(error.errno == 30, "A's mount refuses changes: Read-only file system")
        else:
            raise AssertionError("A could write")
        eventually(lambda: self._link(self.volume_a) == "fenced", "A's agent knows")
        pushed = self.a.run(*REPLICATOR, "push", "--once", self.volume_a, check=False)
        self._claim(pushed.returncode != 0, "A's push is refused")
        self._claim(hashes(self.site.mirror_root / "pg") == before, "no byte on the mirror has changed")
        self._look_at_tail(facts)
        self.a.end(agent)
        self.a.umount(self.mount_a)

    def _link(self, volume: Path) -> str:
        done = self.a.run(*REPLICATOR, "status", volume, "--json", check=False)
        link: str = json.loads(done.stdout)["volumes"][0]["targets"][0]["link"]
        return link

    def _look_at_tail(self, facts: dict[str, Any]) -> None:
        branch = facts["branch"]
        if branch is None:
            self.report("nothing on A came after the last replicated cut")
            return
        lost = self.site.folder / "tail"
        self.a.snapfs("diff", self.volume_a, facts["last_replicated"], branch)
        self.a.snapfs("restore", self.volume_a, branch, lost)
        listed = {each["name"]: each for each in json.loads(self.a.snapfs("list", self.volume_a, "--json").stdout)}
        held = [each["holder"] for each in listed[branch]["held_by"]]
        self._claim(branch in held, f"what came after it is kept on A as {branch}: listed, compared, exported, held")
        if isinstance(self.database, Sqlite):
            count, _ = self.database.query(self.a, lost)
            self._claim(count >= len(self.acknowledged), f"with all {len(self.acknowledged)} rows ever acknowledged")
        shutil.rmtree(lost)

    def fail_back(self) -> None:
        """B replicates; A follows as a standby that has nearly everything already; then A is given the work back."""
        self._target(self.volume_b, self.b)
        self.database.stop(self.b, self.mount_b)
        (self.mount_b / "from-b").write_bytes(b"B was here")
        self._settle_b("handover")
        words = ["standby", "--once", "--from", self.url(self.a), "--from", self.volume_a]
        output = self.a.snapfs(*words, "--token-file", self.site.token_file, self.back_a).stderr
        found = re.search(r"([\d.]+ \S+) from another host, of ([\d.]+ \w+)", output)
        assert found, output
        self.report(f"A's standby fetched {found[1]} of {found[2]}: the rest was in its old volume")
        taken = self.a.mount(self.back_a, self.mount_a).stderr
        self._claim(f"generation {self.generation + 1} begins" in taken, taken.strip().splitlines()[-1])
        self._claim((self.mount_a / "from-b").read_bytes() == b"B was here", "A has what was done on B")
        rows = self.database.query(self.a, self.mount_a)
        self._claim(rows == self.found, f"and all {rows[0]} rows: nothing was lost on the way back")
        self.database.prove(self.a, self.mount_a)
        self.database.stop(self.a, self.mount_a)

    def _settle_b(self, name: str) -> None:
        """A last snapshot of B that the mirror has: the moment from which on nothing is lost."""
        self.b.snapfs("snapshot", self.mount_b, name)
        self.b.umount(self.mount_b)
        pushed = self.b.run(*REPLICATOR, "push", "--once", self.volume_b)
        self._claim(pushed.returncode == 0, "B's last snapshot is on the mirror")

    def _claim(self, holds: bool, words: str) -> None:
        assert holds, words
        self.report(words)


def mirror_of(site: Site) -> subprocess.CompletedProcess[str]:
    """What `snapfs-replicator list` prints on the mirror."""
    return site.mirror.run(*REPLICATOR, "list", site.mirror_root)

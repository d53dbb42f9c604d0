"""PostgreSQL under pgbench on the mount: it starts from every snapshot, passes pg_amcheck and the balance sum."""

from __future__ import annotations

import contextlib
import glob
import os
import pwd
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from tests.fakes.patience import PATIENCE_S
from tests.fakes.targets.ports import free_port

BINARIES = next(iter(sorted(glob.glob("/usr/lib/postgresql/*/bin"), reverse=True)), "")
pytestmark = [
    pytest.mark.skipif(not BINARIES, reason="PostgreSQL is not installed"),
    pytest.mark.skipif(os.getuid() != 0, reason="starts PostgreSQL as its own user, which takes root"),
    pytest.mark.timeout(900),
]
USER = "postgres"


def as_postgres(*command: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    user = pwd.getpwnam(USER)
    done = subprocess.run(
        [f"{BINARIES}/{command[0]}", *command[1:]], user=user.pw_uid, group=user.pw_gid, extra_groups=[],
        cwd="/", capture_output=True, text=True, check=False, timeout=280,
    )  # fmt: skip
    assert not check or done.returncode == 0, f"{command}: {done.stdout} {done.stderr}"
    return done


class Cluster:
    """A PostgreSQL over one data directory, fully durable, reached over a loopback port of its own."""

    def __init__(self, data: Path) -> None:
        self.data = data
        self.port = free_port()

    def initialise(self) -> None:
        self.data.mkdir(mode=0o700)
        shutil.chown(self.data, USER, USER)
        as_postgres("initdb", "-D", str(self.data), "-A", "trust", "-U", USER, "--no-sync")

    def start(self) -> None:
        options = f"-p {self.port} -c listen_addresses=127.0.0.1 -c unix_socket_directories= -c shared_buffers=16MB"
        log = Path("/tmp") / f"snapfs-test-postgres-{self.port}.log"
        try:
            as_postgres("pg_ctl", "-D", str(self.data), "-o", options, "-l", str(log), "-w", "-t", "120", "start")
        except AssertionError as error:
            raise AssertionError(f"{error}\n{log.read_text()[-3000:]}") from None
        finally:
            log.unlink(missing_ok=True)

    def stop(self, mode: str = "fast") -> None:
        as_postgres("pg_ctl", "-D", str(self.data), "-m", mode, "-w", "stop", check=mode == "fast")

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        self.start()
        try:
            yield
        finally:
            self.stop()

    def connect(self) -> psycopg.Connection[Any]:
        return psycopg.connect(host="127.0.0.1", port=self.port, user=USER, dbname="postgres", autocommit=True)

    def pgbench(self, *arguments: str) -> subprocess.Popen[str]:
        user = pwd.getpwnam(USER)
        return subprocess.Popen(
            [f"{BINARIES}/pgbench", "-h", "127.0.0.1", "-p", str(self.port), "-U", USER, *arguments, "postgres"],
            user=user.pw_uid, group=user.pw_gid, extra_groups=[], cwd="/", text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip

    def check(self) -> int:
        """The database's own checks; returns the newest acknowledged-style entry."""
        as_postgres(
            "pg_amcheck", "-h", "127.0.0.1", "-p", str(self.port), "-U", USER, "--install-missing", "--heapallindexed",
            "postgres",
        )  # fmt: skip
        with self.connect() as connection:
            sums = connection.execute(
                "SELECT (SELECT sum(abalance) FROM pgbench_accounts), (SELECT sum(bbalance) FROM pgbench_branches),"
                " (SELECT sum(tbalance) FROM pgbench_tellers), (SELECT coalesce(sum(delta), 0) FROM pgbench_history)"
            ).fetchone()
            assert sums is not None
            assert len(set(sums)) == 1, sums
            row = connection.execute("SELECT count(*), coalesce(max(id), 0) FROM entry").fetchone()
            assert row is not None
            assert row[0] == row[1]
            return int(row[1])


def prepare(host: Any) -> Cluster:
    host.mount()
    cluster = Cluster(host.mountpoint / "pg")
    cluster.initialise()
    cluster.start()
    bench = cluster.pgbench("-i", "-s", "2", "-q")
    output, _ = bench.communicate()
    assert bench.returncode == 0, output
    with cluster.connect() as connection:
        connection.execute("CREATE TABLE entry(id bigint PRIMARY KEY)")
    return cluster


def test_every_snapshot_starts_and_adds_up(host: Any, story: Any, tmp_path: Path) -> None:
    cluster = prepare(host)
    bench = cluster.pgbench("-c", "2", "-T", str(int(story.LOAD_SECONDS) + 4))
    with cluster.connect() as connection:
        writer = story.Writer(lambda sequence: connection.execute("INSERT INTO entry VALUES(%s)", [sequence]))
        writer.start()
        names = story.snapshots_under_load(host)
        writer.stop(at_least=21)
    output, _ = bench.communicate()
    assert bench.returncode == 0, output
    assert writer.error is None
    cluster.stop()
    host.umount()
    records = {record["name"]: record for record in host.snapshots() if record["name"]}
    for name in names:
        host.restore(name, tmp_path / name)
        restored = Cluster(tmp_path / name / "pg")
        (restored.data / "postmaster.pid").unlink(missing_ok=True)  # as every restore of a running server
        with restored.running():
            newest = restored.check()
        wanted = writer.acknowledged.newest_before(records[name]["cut_time_ns"])
        assert wanted <= newest <= writer.acknowledged.newest + 1
        shutil.rmtree(tmp_path / name)
    assert writer.acknowledged.newest > 20


def test_a_killed_daemon_loses_nothing_acknowledged(host: Any, story: Any) -> None:
    cluster = prepare(host)
    newest = 0
    for life in range(2):
        if life:
            host.mount()
            (cluster.data / "postmaster.pid").unlink(missing_ok=True)
            cluster.start()
            assert cluster.check() >= newest
        bench = cluster.pgbench("-n", "-c", "2", "-T", "60")  # -n: else it empties pgbench_history first
        with contextlib.suppress(psycopg.Error), cluster.connect() as connection:
            row = connection.execute("SELECT coalesce(max(id), 0) FROM entry").fetchone()
            assert row is not None
            writer = story.Writer(
                lambda sequence, c=connection: c.execute("INSERT INTO entry VALUES(%s)", [sequence]), row[0] + 1
            )
            writer.start()
            writer.wait_for(row[0] + 1)
            time.sleep(1.0)
            host.snapshot(f"life-{life}")
            time.sleep(0.7)
            host.kill()
            writer.join(PATIENCE_S)
            assert writer.error is not None
            newest = max(newest, writer.acknowledged.newest)
        bench.kill()
        bench.communicate()
        subprocess.run(["pkill", "-9", "-f", f"postgres.*-D {cluster.data}"], check=False)
        search = ["pgrep", "-f", f"-D {cluster.data}"]
        story.eventually(
            lambda search=search: subprocess.run(search, capture_output=True, check=False).returncode != 0,
            "PostgreSQL to be gone",
        )
    host.mount()
    (cluster.data / "postmaster.pid").unlink(missing_ok=True)
    with cluster.running():
        assert cluster.check() >= newest > 0
    host.umount()

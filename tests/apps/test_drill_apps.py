"""Drills with the real applications: each recovers from a snapshot that was cut under load, and not from a bad one."""

from __future__ import annotations

import json
import os
import pwd
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.apps.test_hooks_apps import mariadb, mariadb_server
from tests.apps.test_postgres_app import BINARIES, Cluster
from tests.apps.test_redis_app import Server, put
from tests.fakes.patience import eventually

AS_ROOT = pytest.mark.skipif(os.getuid() != 0, reason="starts a server as its own user, which takes root")
NO_POSTGRES = pytest.mark.skipif(not BINARIES, reason="PostgreSQL is not installed")
NO_REDIS = pytest.mark.skipif(shutil.which("redis-server") is None, reason="redis-server is not installed")
NO_MARIADB = pytest.mark.skipif(shutil.which("mariadbd") is None, reason="MariaDB is not installed")


def drill(host: Any, check: str, code: int = 0) -> list[dict[str, Any]]:
    """The results of a drill of the volume, which is mounted and in use."""
    done = host.run("drill", str(host.volume), "--check", check, "--json", check=False)
    assert done.returncode == code, f"{done.returncode} {done.stdout} {done.stderr}"
    facts = json.loads(done.stdout)
    assert facts["recorded"] is True
    results: list[dict[str, Any]] = facts["results"]
    return results


@NO_POSTGRES
@AS_ROOT
def test_postgres_recovers_and_a_damaged_index_is_found(host: Any) -> None:
    host.mount()
    cluster = Cluster(host.mountpoint / "pg")
    cluster.initialise()
    with cluster.running(), cluster.connect() as connection:
        connection.execute("CREATE TABLE entry(id bigint PRIMARY KEY, text text)")
        connection.execute("INSERT INTO entry SELECT n, repeat('x', 100) FROM generate_series(1, 5000) AS n")
        row = connection.execute("SELECT pg_relation_filepath('entry_pkey')").fetchone()
        assert row is not None
        index = cluster.data / row[0]
        host.snapshot("running")
        (result,) = drill(host, "postgres")
        assert result["name"] == "running"
        assert "databases answer, and pg_amcheck finds nothing" in result["found"][0]
        assert 0 < result["mount_s"] < result["ready_s"] < result["recovery_s"] <= result["whole_s"]
        assert result["fetched_bytes"] > 1 << 20
    with open(index, "r+b") as file:  # the leaf pages are emptied: every query goes on, and finds less
        file.seek(8192 * 2)
        file.write(bytes(8192))
    host.snapshot("bad")
    bad, good = drill(host, "postgres", 10)
    assert (bad["name"], bad["passed"], good["name"], good["passed"]) == ("bad", False, "running", True)
    assert bad["why"].startswith("pg_amcheck: ")
    (quick,) = drill(host, "postgres:quick")
    assert (quick["name"], quick["passed"]) == ("bad", True)


@NO_REDIS
def test_redis_loads_its_append_only_files(host: Any) -> None:
    host.mount()
    directory = host.mountpoint / "redis"
    directory.mkdir()
    server = Server(directory)
    try:
        for sequence in range(1, 60):
            put(server.client, sequence)
        host.snapshot("running")
    finally:
        server.stop()
    (result,) = drill(host, "redis")
    assert result["found"] == ["Redis in redis: the append-only file is loaded, 60 keys"]
    shutil.rmtree(directory / "appendonlydir")
    (directory / "dump.rdb").write_bytes(b"REDIS0011" + bytes(100))
    host.snapshot("bad")
    bad, good = drill(host, "redis", 10)
    assert (bad["passed"], good["passed"]) == (False, True)
    assert "does not start" in bad["why"]


@NO_MARIADB
@AS_ROOT
def test_mariadb_recovers_and_a_cut_off_tablespace_is_found(host: Any, tmp_path: Path) -> None:
    host.mount()
    data = host.mountpoint / "mysql"
    data.mkdir()
    install = ["mariadb-install-db", "--no-defaults", f"--datadir={data}", "--auth-root-authentication-method=normal"]
    subprocess.run([*install, "--user=root", "--skip-test-db"], check=True, capture_output=True)
    with mariadb_server(data, tmp_path / "socket"):
        mariadb(tmp_path / "socket", "CREATE TABLE mysql.kept (n INT) ENGINE=InnoDB")
        mariadb(tmp_path / "socket", "INSERT INTO mysql.kept VALUES (1), (2)")
        nobody = pwd.getpwnam("nobody")
        for folder, _, names in os.walk(data):
            for path in (folder, *(os.path.join(folder, name) for name in names)):
                os.chown(path, nobody.pw_uid, nobody.pw_gid)
        host.snapshot("running")
    (result,) = drill(host, "mariadb")
    assert "CHECK TABLE finds nothing in" in result["found"][0]
    os.truncate(data / "ibdata1", 1 << 16)
    host.snapshot("bad")
    bad, good = drill(host, "mariadb", 10)
    assert (bad["passed"], good["passed"]) == (False, True)


def test_what_a_check_started_ends_with_it(host: Any) -> None:
    """A command that leaves a process behind, and is late: the drill fails in its time, and nothing is left."""
    host.mount()
    (host.mountpoint / "file").write_text("x")
    host.snapshot("one")
    mark = str(host.base / "still-here")
    check = f"(exec -a {mark} sleep 600) & echo begun; sleep 600"
    done = host.run(
        "drill", str(host.volume), "--check", f"bash -c {json.dumps(check)}", "--timeout", "4s", "--json", check=False
    )
    assert done.returncode == 10, done.stderr
    assert json.loads(done.stdout)["results"][0]["why"] == "it did not end in its time"
    eventually(lambda: not _runs(mark), "the end of what the check started")


def _runs(name: str) -> bool:
    for process in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if process.read_bytes().startswith(name.encode()):
                return True
        except OSError:
            continue
    return False

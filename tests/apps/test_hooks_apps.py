"""The hooks that come with snapfs, on the real applications: what they bring about is in the snapshot."""

from __future__ import annotations

import contextlib
import glob
import json
import os
import pwd
import shutil
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from snapfs.base.blocks import Disk
from snapfs.base.volumes.volume import Volume
from tests.fakes.patience import PATIENCE_S, eventually
from tests.fakes.targets.ports import free_port

PG_BINARIES = next(iter(sorted(glob.glob("/usr/lib/postgresql/*/bin"), reverse=True)), "")
pytestmark = [
    pytest.mark.skipif(os.getuid() != 0, reason="starts databases as users of their own, which takes root"),
]


@pytest.fixture
def hooked(host: Any) -> Callable[..., Any]:
    """Mount the volume with these hooks."""

    def mounted(before: list[str], **more: object) -> Any:
        Volume.create(str(host.volume), Disk())
        settings = {"before": before, "timeout": "60s", **more}
        text = "".join(f"{name} = {json.dumps(value)}\n" for name, value in settings.items())
        config = host.volume / "volume.toml"
        config.write_text(config.read_text().replace("[hooks]\n", f"[hooks]\n{text}"))
        host.mount()
        return host

    return mounted


def cut_of(host: Any, name: str) -> dict[str, Any]:
    record: dict[str, Any] = json.loads(host.run("show", "--json", str(host.volume), name).stdout)
    return dict(record.get("cut", {}))


def test_sqlite_is_checkpointed_while_its_file_is_on_the_very_mount(hooked: Any, tmp_path: Path) -> None:
    host = hooked(["snapfs", "hook", "sqlite", "app.db"])
    database = sqlite3.connect(host.mountpoint / "app.db", isolation_level=None)
    database.execute("PRAGMA journal_mode=WAL")
    database.execute("CREATE TABLE t (n)")
    database.executemany("INSERT INTO t VALUES (?)", [(n,) for n in range(50)])
    assert (host.mountpoint / "app.db-wal").stat().st_size > 0
    host.snapshot("one")
    database.close()
    cut = cut_of(host, "one")
    assert cut["consistency"] == "application"
    assert 0 < cut["pause_s"] < cut["held_s"]
    assert host.status()["hooks"]["last"]["consistency"] == "application"
    assert "snapfs_hook_held_seconds_count 1" in (host.mountpoint / ".snapfs/metrics").read_text()
    alone = tmp_path / "app.db"
    shutil.copy(
        host.mountpoint / ".snapfs/snapshots/one/app.db", alone
    )  # without its WAL: the file itself has everything
    with contextlib.closing(sqlite3.connect(alone)) as restored:
        assert restored.execute("SELECT count(*) FROM t").fetchone() == (50,)


def test_a_hook_that_fails_fails_the_snapshot_where_that_is_wanted(hooked: Any) -> None:
    host = hooked(["snapfs", "hook", "sqlite", "none.db"], on_failure="fail")
    done = host.run("snapshot", str(host.mountpoint), "two", check=False)
    assert done.returncode == 7
    assert "none.db does not exist" in done.stderr
    assert host.snapshots() == []


@pytest.mark.skipif(not PG_BINARIES, reason="PostgreSQL is not installed")
def test_postgres_makes_a_checkpoint(hooked: Any, tmp_path: Path) -> None:
    user = pwd.getpwnam("postgres")
    sockets = tmp_path / "sockets"
    sockets.mkdir()
    shutil.chown(sockets, "postgres", "postgres")
    host = hooked(["snapfs", "hook", "postgres", "--", "-h", str(sockets), "-U", "postgres"])
    data = host.mountpoint / "data"

    def postgres(*command: str) -> str:
        return subprocess.run(
            [f"{PG_BINARIES}/{command[0]}", *command[1:]], user=user.pw_uid, group=user.pw_gid, extra_groups=[],
            cwd="/", capture_output=True, text=True, check=True, timeout=PATIENCE_S,
        ).stdout  # fmt: skip

    def newest_checkpoint(folder: Path) -> str:
        lines = postgres("pg_controldata", str(folder)).splitlines()
        return next(line for line in lines if line.startswith("Latest checkpoint location"))

    data.mkdir(mode=0o700)
    shutil.chown(data, "postgres", "postgres")
    postgres("initdb", "-D", str(data), "-A", "trust", "-U", "postgres", "--no-sync")
    log = tmp_path / "sockets/log"
    options = f"-c listen_addresses= -c unix_socket_directories={sockets} -c shared_buffers=16MB"
    postgres("pg_ctl", "-D", str(data), "-o", options, "-l", str(log), "-w", "-t", "120", "start")
    try:
        postgres("psql", "-h", str(sockets), "-U", "postgres", "-c", "CREATE TABLE t AS SELECT generate_series(1, 500)")
        before = newest_checkpoint(data)
        host.snapshot("one")
    finally:
        postgres("pg_ctl", "-D", str(data), "-m", "immediate", "-w", "stop")
    assert cut_of(host, "one")["consistency"] == "application"
    host.restore("one", tmp_path / "restored")
    assert newest_checkpoint(tmp_path / "restored/data") != before


def redis(port: str, *words: str) -> str:
    done = subprocess.run(
        ["redis-cli", "-p", port, *words], capture_output=True, text=True, check=False, timeout=PATIENCE_S
    )
    return done.stdout.strip()


@pytest.mark.skipif(not shutil.which("redis-server"), reason="Redis is not installed")
def test_redis_brings_what_it_answered_to_the_disk(hooked: Any, tmp_path: Path) -> None:
    port = str(free_port())
    host = hooked(["snapfs", "hook", "redis", "--", "-p", port])
    for appends in ("no", "yes"):
        words = ["redis-server", "--port", port, "--save", "", "--appendonly", appends, "--appendfsync", "no"]
        folder = host.mountpoint / appends
        folder.mkdir()
        server = subprocess.Popen([*words, "--dir", str(folder)], stdout=subprocess.DEVNULL)
        try:
            eventually(lambda: redis(port, "PING") == "PONG", "redis")
            assert redis(port, "SET", "key", "of-the-snapshot") == "OK"
            host.snapshot(appends)
        finally:
            server.kill()
            server.wait()
        assert cut_of(host, appends)["consistency"] == "application"
    for appends in ("no", "yes"):
        files = list((host.mountpoint / ".snapfs/snapshots" / appends / appends).rglob("*.*"))
        assert any(b"of-the-snapshot" in path.read_bytes() for path in files if path.is_file())


@contextlib.contextmanager
def mariadb_server(data: Path, socket_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    server = subprocess.Popen(
        [
            "mariadbd", "--no-defaults", f"--datadir={data}", f"--socket={socket_path}", "--skip-networking",
            "--user=root", "--innodb-buffer-pool-size=16M", f"--pid-file={socket_path}.pid", "--aria-log-file-size=8M",
        ],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        eventually(lambda: "1" in mariadb(socket_path, "SELECT 1", check=False), "mariadbd")
        yield server
    finally:
        server.kill()
        server.wait()


def mariadb(socket_path: Path, statement: str, check: bool = True) -> str:
    command = ["mariadb", "--no-defaults", f"--socket={socket_path}", "-N", "-e", statement]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=PATIENCE_S)
    assert not check or not done.returncode, done.stderr
    return done.stdout.strip()


@pytest.mark.skipif(not shutil.which("mariadbd"), reason="MariaDB is not installed")
def test_mariadb_is_held_by_a_session_from_before_to_after_the_cut(hooked: Any, tmp_path: Path) -> None:
    socket_path, looks = tmp_path / "socket", tmp_path / "looks"
    locked = f"mariadb --no-defaults --socket={socket_path} -N -e 'SHOW PROCESSLIST' >> {looks}"
    host = hooked(
        ["snapfs", "hook", "mariadb", "--", "--no-defaults", f"--socket={socket_path}"],
        after=["sh", "-c", f"grep -q . {tmp_path}/rows && {locked}"],
    )
    data = host.mountpoint / "data"
    install = ["mariadb-install-db", "--no-defaults", f"--datadir={data}", "--auth-root-authentication-method=normal"]
    subprocess.run([*install, "--user=root", "--skip-test-db"], check=True, capture_output=True, timeout=PATIENCE_S)
    ended = threading.Event()
    with mariadb_server(data, socket_path):
        for kind in ("MyISAM", "InnoDB"):
            mariadb(socket_path, f"CREATE TABLE mysql.{kind} (n INT) ENGINE={kind}")

        def write() -> None:
            command = ["mariadb", "--no-defaults", f"--socket={socket_path}"]
            rows = "".join(f"INSERT INTO mysql.{kind} VALUES (1);" for kind in ("MyISAM", "InnoDB"))
            while not ended.is_set():
                subprocess.run([*command, "-e", rows * 20], check=True, capture_output=True, timeout=PATIENCE_S)
                (tmp_path / "rows").write_text("some")

        writer = threading.Thread(target=write)
        writer.start()
        try:
            eventually((tmp_path / "rows").exists, "rows")
            host.snapshot("one")
            (tmp_path / "rows").unlink()
            eventually((tmp_path / "rows").exists, "a write after the cut: nothing is held any more")
        finally:
            ended.set()
            writer.join()
        assert "Sleep" not in mariadb(socket_path, "SHOW PROCESSLIST")
    assert cut_of(host, "one")["consistency"] == "application"
    assert "Sleep" in looks.read_text()  # the session with the lock, seen after the cut
    host.restore("one", tmp_path / "restored")
    restored = tmp_path / "restored/data"
    with mariadb_server(restored, tmp_path / "socket2"):
        checked = mariadb(tmp_path / "socket2", "CHECK TABLE mysql.MyISAM FAST QUICK")
        assert "closed" not in checked  # "clients are using or haven't closed the table properly"
        counts = [mariadb(tmp_path / "socket2", f"SELECT count(*) FROM mysql.{kind}") for kind in ("MyISAM", "InnoDB")]
    assert int(counts[0]) - int(counts[1]) in (0, 1)  # one statement after another, and the cut between two


def test_the_next_daemon_ends_what_held_the_application(hooked: Any, tmp_path: Path) -> None:
    """The daemon is killed between `before` and `after`: the command goes on with the next one, and nothing is held."""
    before = f"sleep 600 & echo $! >> {tmp_path}/left; echo before >> {tmp_path}/story; sleep 1"
    after = f"echo after $SNAPFS_OUTCOME >> {tmp_path}/story"
    host = hooked(["sh", "-c", before], after=["sh", "-c", after])
    pid = host.status()["pid"]
    snapshot = subprocess.Popen([sys.executable, "-m", "snapfs", "snapshot", str(host.mountpoint), "one"])
    eventually((tmp_path / "story").exists, "the hook")
    os.kill(pid, 9)
    assert snapshot.wait(PATIENCE_S) == 0
    assert (tmp_path / "story").read_text().splitlines() == ["before", "after died", "before", "after made"]
    for left in map(int, (tmp_path / "left").read_text().split()):
        assert not Path(f"/proc/{left}").exists() or " Z " in Path(f"/proc/{left}/stat").read_text()

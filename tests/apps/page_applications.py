"""The applications that have a page: how a test starts each, writes to it and counts what was written."""

from __future__ import annotations

import glob
import json
import shutil
import signal
import socket
import subprocess
import time
import urllib.parse
import urllib.request
from pathlib import Path

from tests.fakes.patience import PATIENCE_S, eventually


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Application:
    """One application. `start` and `stop` are what `systemctl` does; `add` and `count` are its work."""

    ports: tuple[int, ...] = ()
    """Those that the page names."""
    end = signal.SIGTERM

    def __init__(self, base: Path) -> None:
        self.base, self.port = base, free_port()
        self.places = {str(port): str(free_port()) for port in self.ports}
        """What stands for words of the page."""
        self.process: subprocess.Popen[bytes] | None = None

    def user_of(self, package: str) -> str:
        """The user that a package makes, or another one where only the programs are installed; so in the page, too."""
        user, group = (package, package) if self.run("id", package) else ("nobody", "nogroup")
        self.places |= {f"--{word}={package}": f"--{word}={user}" for word in ("user", "reuid")}
        self.places[f"--regid={package}"] = f"--regid={group}"
        return user

    def make(self, data: Path) -> None:
        data.mkdir(parents=True)

    def command(self, data: Path) -> list[str]:
        raise NotImplementedError

    def is_ready(self) -> bool:
        raise NotImplementedError

    def start(self, data: Path) -> None:
        with open(self.base / "app.log", "ab") as log:
            self.process = subprocess.Popen(self.command(data), stdout=log, stderr=log, cwd="/")
        eventually(self.is_ready, "the application answers")

    def stop(self) -> None:
        if self.process is not None:
            self.process.send_signal(self.end)
            self.process.wait(PATIENCE_S)
            self.process = None

    def run(self, *command: str) -> str:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=PATIENCE_S, cwd="/")
        return done.stdout.strip() if done.returncode == 0 else ""

    def add(self) -> None:
        raise NotImplementedError

    def count(self) -> int:
        raise NotImplementedError


class Redis(Application):
    ports = (6380,)

    def command(self, data: Path) -> list[str]:
        return [
            "redis-server", "--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(data), "--appendonly", "yes",
            "--appendfsync", "always",
        ]  # fmt: skip

    def is_ready(self) -> bool:
        return self._cli("ping") == "PONG"

    def _cli(self, *words: str) -> str:
        return self.run("redis-cli", "-p", str(self.port), *words)

    def add(self) -> None:
        self._cli("incr", "entry")

    def count(self) -> int:
        return int(self._cli("get", "entry") or 0)


class Sqlite(Application):
    def start(self, data: Path) -> None:
        self.file = str(data / "wiki.db")
        self.run("sqlite3", self.file, "PRAGMA journal_mode=WAL; CREATE TABLE IF NOT EXISTS entry (n INT)")

    def add(self) -> None:
        self.run("sqlite3", self.file, "INSERT INTO entry VALUES (1)")

    def count(self) -> int:
        return int(self.run("sqlite3", self.file, "SELECT count(*) FROM entry"))


class Postgres(Application):
    """With the folders of Debian: the settings of a cluster are in /etc/postgresql. Both versions of the page are the
    installed one, which pg_upgrade takes for old and new, too."""

    ports = (5433,)
    end = signal.SIGINT  # "fast": as systemd's unit of it

    def __init__(self, base: Path) -> None:
        super().__init__(base)
        self.programs = max(glob.glob("/usr/lib/postgresql/*/bin"))
        self.places |= {f"/usr/lib/postgresql/{version}/bin": self.programs for version in (15, 17)}

    def make(self, data: Path) -> None:
        for host in "ab":
            settings, sockets = self._settings(host), self.base / host / "var/run/postgresql"
            for folder in (settings, sockets):
                folder.mkdir(parents=True)
                shutil.chown(folder, "postgres", "postgres")
            (settings / "pg_hba.conf").write_text("local all all peer\n")
            (settings / "pg_ident.conf").write_text("")
            lines = {
                "data_directory": self.base / host / "var/lib/postgresql/15/main", "listen_addresses": "",
                "hba_file": settings / "pg_hba.conf", "ident_file": settings / "pg_ident.conf",
                "unix_socket_directories": sockets, "shared_buffers": "16MB",
            }  # fmt: skip
            (settings / "postgresql.conf").write_text("".join(f"{name} = '{each}'\n" for name, each in lines.items()))
        data.mkdir(parents=True)
        shutil.chown(data, "postgres", "postgres")
        self._as_postgres("initdb", "-D", str(data / "15/main"), "--no-sync", "--auth=peer")
        for name in ("postgresql.conf", "pg_hba.conf", "pg_ident.conf"):
            (data / "15/main" / name).unlink()

    def _settings(self, host: str) -> Path:
        return self.base / host / "etc/postgresql/15/main"

    def _as_postgres(self, program: str, *words: str) -> str:
        return self.run("runuser", "-u", "postgres", "--", f"{self.programs}/{program}", *words)

    def command(self, data: Path) -> list[str]:
        host = data.relative_to(self.base).parts[0]
        self.sockets = str(self.base / host / "var/run/postgresql")
        options = ["-D", str(data / "15/main"), "-c", f"config_file={self._settings(host)}/postgresql.conf"]
        return [
            "setpriv",
            "--reuid=postgres",
            "--regid=postgres",
            "--clear-groups",
            f"{self.programs}/postgres",
            *options,
        ]

    def is_ready(self) -> bool:
        return bool(self._psql("CREATE TABLE IF NOT EXISTS entry (n INT)"))

    def _psql(self, statement: str) -> str:
        return self._as_postgres("psql", "-X", "-A", "-t", "-h", self.sockets, "-c", statement)

    def add(self) -> None:
        self._psql("INSERT INTO entry VALUES (1)")

    def count(self) -> int:
        return int(self._psql("SELECT count(*) FROM entry"))


class Etcd(Application):
    """One member, with a name for each host."""

    ports = (2389, 2390)

    def __init__(self, base: Path) -> None:
        super().__init__(base)
        self.user, self.peers = self.user_of("etcd"), f"http://127.0.0.1:{free_port()}"
        self.clients = f"http://127.0.0.1:{self.port}"

    def make(self, data: Path) -> None:
        data.mkdir(parents=True)
        shutil.chown(data, self.user)

    def command(self, data: Path) -> list[str]:
        name = f"host-{data.relative_to(self.base).parts[0]}"
        return [
            "setpriv", f"--reuid={self.user}", "--clear-groups", "etcd", f"--name={name}", f"--data-dir={data}/default",
            f"--listen-client-urls={self.clients}", f"--advertise-client-urls={self.clients}",
            f"--listen-peer-urls={self.peers}", f"--initial-advertise-peer-urls={self.peers}",
            f"--initial-cluster={name}={self.peers}",
        ]  # fmt: skip

    def is_ready(self) -> bool:
        return bool(self._etcdctl("endpoint", "status"))

    def _etcdctl(self, *words: str) -> str:
        return self.run("etcdctl", f"--endpoints={self.clients}", *words)

    def add(self) -> None:
        self._etcdctl("put", f"entry{time.time_ns()}", "1")

    def count(self) -> int:
        return len(self._etcdctl("get", "entry", "--prefix", "--keys-only").split())


class Mariadb(Application):
    def __init__(self, base: Path) -> None:
        super().__init__(base)
        self.user = self.user_of("mysql")
        self.socket = f"{base}/tmp/mariadb.sock"

    def make(self, data: Path) -> None:
        data.mkdir(parents=True)
        shutil.chown(data, self.user)
        install = ["mariadb-install-db", "--no-defaults", f"--datadir={data}", f"--user={self.user}", "--skip-test-db"]
        self.run(*install, "--skip-name-resolve", "--auth-root-authentication-method=normal")

    def command(self, data: Path) -> list[str]:
        return [
            "mariadbd", "--no-defaults", f"--user={self.user}", f"--datadir={data}", f"--socket={self.socket}",
            f"--pid-file={self.socket}.pid", "--skip-networking", "--innodb-buffer-pool-size=16M",
        ]  # fmt: skip

    def is_ready(self) -> bool:
        return bool(self._sql("CREATE TABLE IF NOT EXISTS mysql.entry (n INT) ENGINE=InnoDB; SELECT 1"))

    def _sql(self, statement: str) -> str:
        return self.run("mariadb", "--no-defaults", f"--socket={self.socket}", "-N", "-e", statement)

    def add(self) -> None:
        self._sql("INSERT INTO mysql.entry VALUES (1)")

    def count(self) -> int:
        return int(self._sql("SELECT count(*) FROM mysql.entry"))


class Prometheus(Application):
    """A rule makes samples: what is scraped begins 5 s after a start. Those up to the last `add` are counted, so that
    later ones do not hide that some are lost."""

    ports = (9091,)
    until_s = 0.0

    def make(self, data: Path) -> None:
        self.user = self.user_of("prometheus")
        data.mkdir(parents=True)
        shutil.chown(data, self.user)
        self.config, rules = self.base / "prometheus.yml", self.base / "rules.yml"
        self.config.write_text(json.dumps({"rule_files": [str(rules)]}))
        group = {"name": "own", "interval": "100ms", "rules": [{"record": "entry", "expr": "vector(1)"}]}
        rules.write_text(json.dumps({"groups": [group]}))

    def command(self, data: Path) -> list[str]:
        return [
            "setpriv", f"--reuid={self.user}", "--clear-groups", "prometheus", f"--config.file={self.config}",
            f"--storage.tsdb.path={data}", f"--web.listen-address=127.0.0.1:{self.port}",
        ]  # fmt: skip

    def is_ready(self) -> bool:
        return self._samples(time.time()) is not None

    def _samples(self, until_s: float) -> int | None:
        query = urllib.parse.urlencode({"query": "count_over_time(entry[1h])", "time": until_s})
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/api/v1/query?{query}") as answer:
                series = json.load(answer)["data"]["result"]
        except OSError:
            return None
        return sum(int(each["value"][1]) for each in series)

    def add(self) -> None:
        before = self._samples(time.time()) or 0
        eventually(lambda: (self._samples(time.time()) or 0) > before, "a sample")
        self.until_s = time.time()

    def count(self) -> int:
        return self._samples(self.until_s) or 0


APPLICATIONS: dict[str, tuple[type[Application], str]] = {
    "etcd": (Etcd, "etcdctl"),
    "mariadb": (Mariadb, "mariadbd"),
    "postgresql": (Postgres, "/usr/lib/postgresql/*/bin/pg_upgrade"),
    "prometheus": (Prometheus, "prometheus"),
    "redis": (Redis, "redis-server"),
    "sqlite": (Sqlite, "sqlite3"),
}
"""By page: the application, and the program that has to be installed, or a pattern of its path."""

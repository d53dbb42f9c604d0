"""The check `postgres`: each PostgreSQL of the snapshot is started from crash recovery, and answers.

Each folder with PG_VERSION and global/pg_control is one. It is started as its owner on a socket in the scratch folder,
never on a network; then a query to every database, and pg_amcheck, which reads all tables and B-trees (not with
`postgres:quick`). Archiving, replication, preloaded libraries and TLS are off, and the settings are the cluster's own
otherwise: what runs here must not reach what the original reaches.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from snapfs.commands.drills.check_process import (
    CheckContext,
    CheckFailedError,
    CheckImpossibleError,
    folders_with,
    program,
    unprivileged_owner_of,
)

_OVERRIDES = {
    "listen_addresses": "",
    "port": "5432",
    "archive_mode": "off",
    "shared_preload_libraries": "",
    "synchronous_standby_names": "",
    "primary_conninfo": "",
    "ssl": "off",
    "logging_collector": "off",
    "log_destination": "stderr",
    "autovacuum": "off",
    "restart_after_crash": "off",
    "external_pid_file": "",
}
_TRUST = "local all all trust\n"
_QUERY = "SELECT count(*) FROM pg_class"


def check_postgres(context: CheckContext) -> None:
    """Raises CheckFailedError, CheckImpossibleError."""
    _check(context, thorough=True)


def check_postgres_quick(context: CheckContext) -> None:
    """The same without pg_amcheck."""
    _check(context, thorough=False)


def _check(context: CheckContext, *, thorough: bool) -> None:
    found = [each for each in folders_with(context.mount, "PG_VERSION", "global") if _is_cluster(each)]
    if not found:
        raise CheckFailedError("there is no data directory of PostgreSQL in the snapshot")
    for number, data in enumerate(found):
        _check_cluster(context, data, context.scratch / f"pg{number}", thorough=thorough)


def _is_cluster(folder: Path) -> bool:
    return (folder / "global" / "pg_control").is_file()


def _check_cluster(context: CheckContext, data: Path, own: Path, *, thorough: bool) -> None:
    version, user = (data / "PG_VERSION").read_text().strip(), unprivileged_owner_of(data)
    folders = [f"/usr/lib/postgresql/{version}/bin", f"/usr/pgsql-{version}/bin"]
    os.mkdir(own, 0o700)
    if user is not None:
        os.chown(own, user, -1)
    server = context.start([program("postgres", folders=folders), *_options(data, own, user)], user)
    psql = [program("psql", folders=folders), "-X", "-w", "-A", "-t", "-h", str(own), "-v", "ON_ERROR_STOP=1"]
    role = ""

    def answers() -> bool:
        nonlocal role
        for name in ("postgres", _name_of(user)):
            with contextlib.suppress(CheckFailedError):
                context.run([*psql, "-U", name, "-d", "template1", "-c", "SELECT 1"], user)
                role = name
                return True
        if "starting up" not in server.log.read_text(errors="replace") and _is_up(own):
            raise CheckImpossibleError("neither `postgres` nor the owner of the files is a role that may log in")
        return False

    context.wait_for(lambda: _is_up(own) and answers(), server)
    databases = _databases(context, psql, role, user)
    context.answered()
    where = data.relative_to(context.mount).as_posix()
    line = f"PostgreSQL {version} in {where}: {len(databases)} databases answer"
    if thorough:
        amcheck = [program("pg_amcheck", folders=folders), "-h", str(own), "-U", role, "-w", "--install-missing"]
        context.run([*amcheck, "--all"], user)
        line += ", and pg_amcheck finds nothing in their tables and indexes"
    context.lines.append(line)
    server.check_alive()


def _options(data: Path, own: Path, user: int | None) -> list[str]:
    """Of the server, for a data directory with or without its configuration in it."""
    for name in ("postmaster.pid", "standby.signal", "recovery.signal"):
        (data / name).unlink(missing_ok=True)
    (own / "pg_hba.conf").write_text(_TRUST)
    (own / "pg_ident.conf").write_text("")
    files = {"hba_file": own / "pg_hba.conf", "ident_file": own / "pg_ident.conf"}
    if not (data / "postgresql.conf").exists():  # as Debian keeps it elsewhere
        (own / "postgresql.conf").write_text("")
        files["config_file"] = own / "postgresql.conf"
    if user is not None:
        for path in own.iterdir():
            os.chown(path, user, -1)
    settings = {**_OVERRIDES, "unix_socket_directories": str(own), **{name: str(path) for name, path in files.items()}}
    return ["-D", str(data), *(word for name, value in settings.items() for word in ("-c", f"{name}={value}"))]


def _is_up(own: Path) -> bool:
    return (own / ".s.PGSQL.5432").exists()


def _name_of(user: int | None) -> str:
    import pwd

    with contextlib.suppress(KeyError):
        return pwd.getpwuid(os.geteuid() if user is None else user).pw_name
    return "postgres"


def _databases(context: CheckContext, psql: list[str], role: str, user: int | None) -> list[str]:
    """The databases, each of which has answered a query."""
    wanted = "SELECT datname FROM pg_database WHERE datallowconn ORDER BY 1"
    found = context.run([*psql, "-U", role, "-d", "template1", "-c", wanted], user).splitlines()
    for name in found:
        context.run([*psql, "-U", role, "-d", name, "-c", _QUERY], user)
    return found

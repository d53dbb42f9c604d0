"""The check `mariadb`: each MariaDB or MySQL of the snapshot recovers, answers, and CHECK TABLE finds nothing.

Each folder with ibdata1 and mysql/ is one. The server runs as the owner of the files on a socket in the scratch folder,
without network, grant tables, events, binary log or replication.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from snapfs.commands.drills.check_process import (
    CheckContext,
    CheckFailedError,
    folders_with,
    program,
    unprivileged_owner_of,
)

_ALONE = (
    "--skip-networking", "--skip-grant-tables", "--skip-slave-start", "--skip-log-bin", "--event-scheduler=OFF",
    "--innodb-buffer-pool-size=64M",
)  # fmt: skip


def check_mariadb(context: CheckContext) -> None:
    """Raises CheckFailedError, CheckImpossibleError."""
    found = list(folders_with(context.mount, "ibdata1", "mysql"))
    if not found:
        raise CheckFailedError("there is no data directory of MariaDB in the snapshot")
    for number, data in enumerate(found):
        _check(context, data, context.scratch / f"mariadb{number}")


def _check(context: CheckContext, data: Path, own: Path) -> None:
    user = unprivileged_owner_of(data)
    os.mkdir(own, 0o700)
    if user is not None:
        os.chown(own, user, -1)
    place = str(own / "socket")
    files = [f"--datadir={data}", f"--socket={place}", f"--pid-file={own / 'pid'}", f"--tmpdir={own}"]
    server = context.start([program("mariadbd", "mysqld"), "--no-defaults", *files, *_ALONE], user)
    client = [program("mariadb", "mysql"), "--no-defaults", f"--socket={place}", "--batch", "--skip-column-names"]

    def answers() -> bool:
        with contextlib.suppress(CheckFailedError):
            return os.path.exists(place) and bool(context.run([*client, "-e", "SELECT 1"], user))
        return False

    context.wait_for(answers, server)
    context.answered()
    checking = [program("mariadb-check", "mysqlcheck"), "--no-defaults", f"--socket={place}", "--all-databases"]
    output = context.run([*checking, "--check"], user)
    bad = [line for line in output.splitlines() if line.startswith(("error", "Error")) or "Corrupt" in line]
    if bad:
        raise CheckFailedError(f"mariadb-check: {' '.join(bad[0].split())}")
    tables = sum(line.rstrip().endswith("OK") for line in output.splitlines())
    where = data.relative_to(context.mount).as_posix()
    context.lines.append(f"MariaDB in {where}: it answers, and CHECK TABLE finds nothing in {tables} tables")
    server.check_alive()

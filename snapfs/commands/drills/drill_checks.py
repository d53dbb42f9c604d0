"""The checks by name, and a command of the user as a check."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

from snapfs.commands.drills.check_process import CheckContext, CheckFailedError, CheckImpossibleError
from snapfs.commands.drills.files_check import check_files
from snapfs.commands.drills.mariadb_check import check_mariadb
from snapfs.commands.drills.postgres_check import check_postgres, check_postgres_quick
from snapfs.commands.drills.redis_check import check_redis
from snapfs.commands.drills.sqlite_check import check_sqlite

Check = Callable[[CheckContext], None]
CHECKS: Final[Mapping[str, Check]] = {
    "files": check_files,
    "mariadb": check_mariadb,
    "postgres": check_postgres,
    "postgres:quick": check_postgres_quick,
    "redis": check_redis,
    "sqlite": check_sqlite,
}
_NOT_RUN = (126, 127)  # of the shell: it cannot be executed, it was not found


def check_named(text: str) -> Check:
    """The check of this name, or this text as a command for the shell."""
    return CHECKS.get(text) or _command(text)


def _command(text: str) -> Check:
    def check(context: CheckContext) -> None:
        try:
            output = context.run(["/bin/sh", "-c", text])
        except CheckFailedError as error:
            if error.status in _NOT_RUN:
                raise CheckImpossibleError(str(error)) from None
            raise
        context.answered()
        last = next((line.strip() for line in reversed(output.splitlines()) if line.strip()), "")
        context.lines.append(f"the command succeeded{f': {last[:200]}' if last else ''}")

    return check

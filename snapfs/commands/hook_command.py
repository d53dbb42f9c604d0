"""The hooks that come with snapfs: each brings one kind of application to a better state than that after a crash.

They are commands of the hook `before` in volume.toml, and need the application's own client: psql, mariadb, redis-cli.
Each ends with exit code 3 and one line where the application refuses or cannot be reached, well within
SNAPFS_HOOK_TIMEOUT. Only `mariadb` holds something until after the cut: a session with a global read lock, in the
process group of the hook, which the daemon ends after the cut. That session ends by itself after SESSION_SECONDS,
whatever becomes of the daemon.
"""

from __future__ import annotations

import os
import select
import shutil
import sqlite3
import subprocess
import time
from collections.abc import Sequence

import click

from snapfs.base.errors import UserError

SESSION_SECONDS = 60
_LOOK_S = 0.02


@click.group("hook", short_help="The hooks that come with snapfs, for applications.")
def hook() -> None:
    """Bring an application to a state from which it starts well: for `hooks.before` in volume.toml.

    \b
    [hooks]
    before = ["snapfs", "hook", "postgres", "--", "-h", "/run/postgresql"]
    """


@hook.command("postgres", short_help="CHECKPOINT, so that a start from the snapshot has little to replay.")
@click.argument("options", nargs=-1, type=click.UNPROCESSED)
def postgres(options: tuple[str, ...]) -> None:
    """Have PostgreSQL make a CHECKPOINT. OPTIONS are those of psql that say where it is, behind `--`."""
    _run([_found("psql"), "-X", "-q", "-w", "-v", "ON_ERROR_STOP=1", *options, "-c", "CHECKPOINT"])


@hook.command("mariadb", short_help="FLUSH TABLES WITH READ LOCK, held across the cut.")
@click.argument("options", nargs=-1, type=click.UNPROCESSED)
def mariadb(options: tuple[str, ...]) -> None:
    """Have MariaDB close its tables and hold the global read lock until after the cut: MyISAM and Aria tables are whole
    then, too.

    OPTIONS are those of the client that say where it is, behind `--`.
    """
    command = [_found("mariadb", "mysql"), *options, "--batch", "--skip-column-names", "--unbuffered"]
    read_end, write_end = os.pipe()
    client = subprocess.Popen(command, stdin=read_end, stdout=subprocess.PIPE)
    os.close(read_end)
    os.write(write_end, b"FLUSH TABLES WITH READ LOCK;\nSELECT 'locked';\n")
    assert client.stdout is not None
    if select.select([client.stdout], [], [], _patience_s())[0] and client.stdout.readline().strip() == b"locked":
        # Its input stays open for so long, and so does the session: until our group is ended, or the time is over.
        subprocess.Popen(["sleep", str(SESSION_SECONDS)], pass_fds=[write_end], stdout=subprocess.DEVNULL)
        return  # the client is left to live
    client.kill()
    client.wait()
    raise UserError("MariaDB gave no read lock: see its log, and what holds its tables")


@hook.command("redis", short_help="WAITAOF, or BGSAVE where there is no append-only file.")
@click.argument("options", nargs=-1, type=click.UNPROCESSED)
def redis(options: tuple[str, ...]) -> None:
    """Have Redis bring what it answered to the disk.

    By WAITAOF with an append-only file, else (and before Redis 7.2) by a BGSAVE that is waited for.

    OPTIONS are those of redis-cli that say where it is, behind `--`.
    """
    client = [_found("redis-cli"), *options]
    if _field(client, "persistence", "aof_enabled") == "1":
        asked = ["WAITAOF", "1", "0", str(int(_patience_s() * 1000))]
        answer = _run([*client, *asked], "unknown command")
        if answer.split()[:1] == ["1"]:
            return
        if "unknown command" not in answer:
            raise UserError("Redis did not sync its append-only file in time: raise hooks.timeout")
    before, deadline = _field(client, "persistence", "rdb_saves"), time.monotonic() + _patience_s()
    _run([*client, "BGSAVE", "SCHEDULE"])
    while _field(client, "persistence", "rdb_saves") == before:
        if time.monotonic() > deadline:
            raise UserError("Redis did not end its BGSAVE in time: raise hooks.timeout")
        time.sleep(_LOOK_S)
    if _field(client, "persistence", "rdb_last_bgsave_status") != "ok":
        raise UserError("Redis reports that its BGSAVE failed: see its log")


@hook.command("sqlite", short_help="A checkpoint of the WAL, so that the database file has everything.")
@click.argument("files", nargs=-1, required=True)
def sqlite(files: tuple[str, ...]) -> None:
    """Checkpoint the write-ahead logs of SQLite databases. A FILE that is not absolute is below the mountpoint."""
    for name in files:
        path = os.path.join(os.environ.get("SNAPFS_MOUNTPOINT", "."), name)
        if not os.path.exists(path):
            raise UserError(f"{path} does not exist: name the file from the top of the mount")
        try:
            database = sqlite3.connect(path, timeout=_patience_s())
            try:
                busy, *_ = database.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
            finally:
                database.close()
        except sqlite3.Error as error:
            raise UserError(f"{path}: {error}") from None
        if busy:
            raise UserError(f"{path}: a reader or writer kept the checkpoint from ending: raise hooks.timeout")


def _patience_s() -> float:
    """Shorter than the daemon's, so that the reason is on record."""
    return 0.8 * float(os.environ.get("SNAPFS_HOOK_TIMEOUT", "10"))


def _found(*names: str) -> str:
    found = next(filter(None, map(shutil.which, names)), None)
    if found is None:
        raise UserError(
            f"{names[0]} is not installed, or not in the PATH of the daemon: name its folder with `env PATH=...`"
        )
    return found


def _field(client: Sequence[str], section: str, name: str) -> str:
    for line in _run([*client, "INFO", section]).splitlines():
        if line.startswith(f"{name}:"):
            return line.partition(":")[2].strip()
    raise UserError(f"Redis says nothing of {name}: it is too old, take a newer one")


def _run(command: Sequence[str], allowed: str = "\0") -> str:
    """What it prints. UserError, with the last line of its errors, if it fails; but for an `allowed` one."""
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace", check=False,
            timeout=_patience_s() * 1.1,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        raise UserError(f"{os.path.basename(command[0])} did not end in time: raise hooks.timeout") from None
    except OSError as error:
        raise UserError(f"{command[0]}: {error.strerror}") from None
    words = (done.stderr or done.stdout).strip().splitlines()
    if allowed in done.stdout + done.stderr:
        return allowed
    if done.returncode or done.stdout.startswith(("ERR ", "(error)", "NOAUTH")):
        raise UserError(f"{os.path.basename(command[0])}: {words[-1] if words else done.returncode}")
    return done.stdout


COMMANDS = (hook,)

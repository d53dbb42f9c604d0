"""The check `redis`: a server loads the RDB or the append-only files of the snapshot, answers PING, and has its keys.

It listens on a socket in the scratch folder alone, is nobody's replica, and saves nothing.
"""

from __future__ import annotations

import contextlib
import os
import re
import socket
from pathlib import Path

from snapfs.commands.drills.check_process import CheckContext, CheckFailedError, owner_of, program

_ANSWER_BYTES = 1 << 16


def check_redis(context: CheckContext) -> None:
    """Raises CheckFailedError, CheckImpossibleError."""
    found = list(_data(context.mount))
    if not found:
        raise CheckFailedError("there is no RDB file of Redis in the snapshot, and no append-only file")
    for number, (folder, options, what) in enumerate(found):
        _check(context, folder, options, what, context.scratch / f"redis{number}")


def _check(context: CheckContext, folder: Path, options: list[str], what: str, own: Path) -> None:
    user = owner_of(folder)
    os.mkdir(own, 0o700)
    if user is not None:
        os.chown(own, user, -1)
    place = str(own / "socket")
    alone = ["--port", "0", "--unixsocket", place, "--save", "", "--daemonize", "no", "--dir", str(folder)]
    server = context.start([program("redis-server", "valkey-server"), *alone, *options], user)
    context.wait_for(lambda: _ask(place, "PING") == "+PONG", server)
    context.answered()
    keys = _keys(place)
    where = folder.relative_to(context.mount).as_posix()
    context.lines.append(f"Redis in {where}: {what} is loaded, {keys} keys")
    server.check_alive()


def _data(mount: Path) -> list[tuple[Path, list[str], str]]:
    """(folder, options, what) of each: append-only files go before an RDB in the same folder, as with the server."""
    found: list[tuple[Path, list[str], str]] = []
    for folder in _folders(mount):
        manifest = next(folder.glob("*/*.aof.manifest"), None)
        if manifest is not None:
            names = [
                "--appenddirname",
                manifest.parent.name,
                "--appendfilename",
                manifest.name.removesuffix(".manifest"),
            ]
            found.append((folder, ["--appendonly", "yes", *names], "the append-only file"))
        elif (folder / "appendonly.aof").is_file():
            found.append((folder, ["--appendonly", "yes"], "the append-only file"))
        else:
            rdb = next(path for path in sorted(folder.glob("*.rdb")) if _is_rdb(path))
            found.append((folder, ["--appendonly", "no", "--dbfilename", rdb.name], rdb.name))
    return found


def _folders(mount: Path) -> list[Path]:
    folders: list[Path] = []
    for folder, names, files in os.walk(mount):
        here = Path(folder)
        has_parts = any(True for name in names for _ in (here / name).glob("*.aof.manifest"))
        has_rdb = any(_is_rdb(here / name) for name in files if name.endswith(".rdb"))
        if "appendonly.aof" in files or has_parts or has_rdb:
            folders.append(here)
    inner = {folder / name for folder in folders for name in os.listdir(folder)}
    return sorted({folder for folder in folders if folder not in inner})


def _is_rdb(path: Path) -> bool:
    with contextlib.suppress(OSError), open(path, "rb") as file:
        return file.read(5) == b"REDIS"
    return False


def _ask(place: str, words: str) -> str:
    """The first line of the answer; "" if there is none."""
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as link:
        link.settimeout(5)
        link.connect(place)
        link.sendall(f"{words}\r\n".encode())
        return link.recv(_ANSWER_BYTES).decode(errors="replace").partition("\r\n")[0]
    return ""


def _keys(place: str) -> int:
    """Over all databases."""
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as link:
        link.settimeout(5)
        link.connect(place)
        link.sendall(b"INFO keyspace\r\n")
        text = link.recv(_ANSWER_BYTES).decode(errors="replace")
        return sum(int(count) for count in re.findall(r"^db\d+:keys=(\d+)", text, re.MULTILINE))
    raise CheckFailedError("redis-server does not answer INFO")

"""The database file of the namespace: its tables, its version, and what its failures mean.

Invariants:
1. `application_id` and `user_version` are written in the transaction that creates the tables: a file has
   all of them or none, and one that has none is empty and filled anew.
2. A later version is refused before anything is written to the file (`VersionError`).
3. Every connection is opened here, in WAL mode with ``synchronous=NORMAL``. SQLite then never writes back
   a page from the WAL before it has synced the WAL, so a power cut leaves a prefix of the transactions.
4. `namespace.db` and `-shm` must be opened by nothing else in this process: closing any descriptor of
   them would drop SQLite's POSIX locks. (The WAL itself carries no locks.)

Tables
    inode       attributes; `parent` of a directory for ".."; an index of those without links (orphans)
    entry       names of directories; `cookie` orders a listing and is never reused
    xattr       extended attributes
    epochs      each epoch whose changes are not sealed yet, the current one last, with the first inode number
                given out in it: all numbers from there on are new in it and need no row in `touched`
    touched     what was changed in an epoch: an inode (empty name) or a name in a directory
    absent      regular files whose bytes are still only in the store
    unloaded    directories whose names are still only in the store (versions 2 and 4; else the table is empty)
    pending_swap  regular files whose staged bytes must still be renamed into place (a rollback's redo list)
    meta        counters (reserved ahead in steps, see number_counter.py), the last sealed epoch and
                what the store calls its snapshot
    refit       backing files that must still be brought to what a standby's tree became (apply_changes.py)
    answer      the outcomes of the newest changes, by the number of the kernel's request (reply_cache.py)
    command     the last command of each open handle of the control file (reply_cache.py)

The last three, and `unloaded`, came later than the others and are made where they are missing. The last two mean
nothing to the next mount.
"""

from __future__ import annotations

import errno
import os
import sqlite3
from collections.abc import Callable
from pathlib import Path

from snapfs.base.errors import CorruptionError, VersionError
from snapfs.live.database.namespace_rows import FIRST_COOKIE, error

APPLICATION_ID = 0x736E6E73  # "snns"
SCHEMA_VERSION = 4
PLAIN_VERSION = 3
"""Of a file without unloaded directories, which the first version would show as empty ones."""
UNSUMMED = {1: PLAIN_VERSION, 2: SCHEMA_VERSION}
"""What versions without page checksums become: a snapfs of theirs would change pages and leave the checksums."""
PAGE_SIZE = 2048
"""Measured: half the WAL bytes of 4096 at the same time per operation; 1024 costs more calls."""
WRITER_CACHE_KIB = 16 << 10
READER_CACHE_KIB = 4 << 10
BUSY_TIMEOUT_S = 10.0
MAGIC = b"SQLite format 3\0"

TABLES = (
    "CREATE TABLE inode (ino INTEGER PRIMARY KEY, mode INTEGER NOT NULL, uid INTEGER NOT NULL, gid INTEGER NOT NULL,"
    " rdev INTEGER NOT NULL, nlink INTEGER NOT NULL, atime_ns INTEGER NOT NULL, mtime_ns INTEGER NOT NULL,"
    " ctime_ns INTEGER NOT NULL, target BLOB NOT NULL, parent INTEGER NOT NULL)",
    "CREATE INDEX orphan ON inode(ino) WHERE nlink = 0",
    "CREATE TABLE entry (parent INTEGER NOT NULL, name BLOB NOT NULL, ino INTEGER NOT NULL, cookie INTEGER NOT NULL,"
    " PRIMARY KEY (parent, name)) WITHOUT ROWID",
    "CREATE UNIQUE INDEX listing ON entry(parent, cookie, ino)",
    "CREATE TABLE xattr (ino INTEGER NOT NULL, name BLOB NOT NULL, value BLOB NOT NULL,"
    " PRIMARY KEY (ino, name)) WITHOUT ROWID",
    "CREATE TABLE epochs (epoch INTEGER PRIMARY KEY, first_ino INTEGER NOT NULL)",
    "CREATE TABLE touched (epoch INTEGER NOT NULL, ino INTEGER NOT NULL, name BLOB NOT NULL,"
    " PRIMARY KEY (epoch, ino, name)) WITHOUT ROWID",
    "CREATE TABLE absent (ino INTEGER PRIMARY KEY, size INTEGER NOT NULL, mtime_ns INTEGER NOT NULL,"
    " ctime_ns INTEGER NOT NULL, origin BLOB NOT NULL)",
    "CREATE TABLE pending_swap (ino INTEGER PRIMARY KEY)",
    "CREATE TABLE meta (key TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID",
)
LATER_TABLES = (
    "CREATE TABLE IF NOT EXISTS refit (ino INTEGER PRIMARY KEY, action INTEGER NOT NULL)",
    "CREATE TABLE IF NOT EXISTS unloaded (ino INTEGER PRIMARY KEY, listing BLOB NOT NULL)",
    "CREATE TABLE IF NOT EXISTS answer (slot INTEGER PRIMARY KEY, serial INTEGER NOT NULL, request INTEGER NOT NULL,"
    " value INTEGER NOT NULL)",
    "CREATE TABLE IF NOT EXISTS command (handle INTEGER PRIMARY KEY, request INTEGER NOT NULL, newest INTEGER NOT NULL,"
    " reply BLOB, errno INTEGER NOT NULL)",
)


def connect(path: str, cache_kib: int = READER_CACHE_KIB) -> sqlite3.Connection:
    """Open a connection in the mode every one of them shares. `sqlite3.Error` if it cannot be."""
    db = sqlite3.connect(
        path, timeout=BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False, cached_statements=256
    )
    try:
        db.execute("PRAGMA synchronous=NORMAL")
        db.execute("PRAGMA wal_autocheckpoint=0")
        db.execute(f"PRAGMA cache_size=-{cache_kib}")
    except BaseException:
        db.close()
        raise
    return db


def open_database(path: str, now_ns: int, look: Callable[[], bool], closing: Callable[[], None]) -> sqlite3.Connection:
    """Open the namespace at `path`, or create it with an empty root. VersionError, CorruptionError, OSError.

    `look` is called when SQLite has read its log, before anything is written; whether the log has all it should;
    `closing` before the connection is closed again.
    """
    check_magic(path)
    try:
        db = connect(path, WRITER_CACHE_KIB)
        try:
            prepare(db, path, now_ns, look)
        except BaseException:
            try:
                closing()
            finally:
                db.close()
            raise
    except (sqlite3.Error, UnicodeDecodeError) as failure:
        raise opening_error(failure, path) from failure
    return db


def check_magic(path: str) -> None:
    """Refuse a file that is no SQLite database; create the file, private to its owner, where there is none."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        magic = os.pread(fd, len(MAGIC), 0)
    finally:
        os.close(fd)
    if magic not in (b"", MAGIC):
        raise CorruptionError("the namespace", path, "the file is not an SQLite database")


def prepare(db: sqlite3.Connection, path: str, now_ns: int, look: Callable[[], bool]) -> None:
    """Check the version of the file, or fill an empty one."""
    (tables,) = db.execute("SELECT count(*) FROM sqlite_master").fetchone()
    if not look() and not tables:
        why = "it ends before what was answered, and all names were in it: clone the newest snapshot into a new volume"
        raise CorruptionError("the log of the namespace", f"{path}-wal", why)
    (version,) = db.execute("PRAGMA user_version").fetchone()
    (application,) = db.execute("PRAGMA application_id").fetchone()
    if version > SCHEMA_VERSION:
        raise VersionError(later(path, version))
    if version in (*UNSUMMED, PLAIN_VERSION, SCHEMA_VERSION) and application == APPLICATION_ID:
        for table in LATER_TABLES:
            db.execute(table)
        if version in UNSUMMED:
            db.execute(f"PRAGMA user_version={UNSUMMED[version]}")
        return
    if version or application or tables:
        raise CorruptionError("the namespace", path, "it was not written by snapfs")
    fill(db, now_ns)


def later(path: str, version: int) -> str:
    """The message for a file of a later version."""
    return f"{path} has namespace format {version}; this snapfs reads up to {SCHEMA_VERSION}: use a newer snapfs"


def fill(db: sqlite3.Connection, now_ns: int) -> None:
    """Create all tables, the root directory and the counters in one transaction."""
    db.execute(f"PRAGMA page_size={PAGE_SIZE}")
    db.execute("PRAGMA journal_mode=WAL")
    db.execute("BEGIN IMMEDIATE")
    for table in (*TABLES, *LATER_TABLES):
        db.execute(table)
    root = (1, 0o040755, os.geteuid(), os.getegid(), 0, 2, now_ns, now_ns, now_ns, b"", 1)
    db.execute("INSERT INTO inode VALUES (?,?,?,?,?,?,?,?,?,?,?)", root)
    # The root is as new as everything else: an epoch that begins at inode 1.
    db.execute("INSERT INTO epochs VALUES (1, 1)")
    db.execute("INSERT INTO meta VALUES ('next_ino', 2), ('next_cookie', ?), ('sealed', 0)", (FIRST_COOKIE,))
    db.execute(f"PRAGMA application_id={APPLICATION_ID}")
    db.execute(f"PRAGMA user_version={PLAIN_VERSION}")
    db.execute("COMMIT")


def opening_error(failure: sqlite3.Error | UnicodeDecodeError, path: str) -> Exception:
    """What a failure to open means to the user."""
    if isinstance(failure, UnicodeDecodeError):  # SQLite reports a damaged schema in a damaged message
        return CorruptionError("the namespace", path, "its schema is no text")
    code = primary_code(failure)
    if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_ERROR):
        return CorruptionError("the namespace", path, str(failure))
    return os_error(failure, path)


def primary_code(failure: sqlite3.Error) -> int:
    """SQLite's primary result code, 0 where the failure is Python's own (as a closed connection)."""
    return int(getattr(failure, "sqlite_errorcode", 0)) & 0xFF


def os_error(failure: sqlite3.Error, path: str) -> OSError:
    """The `OSError` an application should see for `failure`."""
    code = primary_code(failure)
    if code in (sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN) and is_full(path):
        return error(errno.ENOSPC, path)
    return error(ERRNO_OF.get(code, errno.EIO), path)


ERRNO_OF = {
    sqlite3.SQLITE_FULL: errno.ENOSPC,
    sqlite3.SQLITE_READONLY: errno.EROFS,
    sqlite3.SQLITE_PERM: errno.EACCES,
    sqlite3.SQLITE_AUTH: errno.EACCES,
    sqlite3.SQLITE_NOMEM: errno.ENOMEM,
    sqlite3.SQLITE_TOOBIG: errno.E2BIG,
}


def is_full(path: str) -> bool:
    """Whether the disk has no room: SQLite reports a full disk as an I/O error where it grows its shared memory."""
    try:
        room = os.statvfs(Path(path).parent)
    except OSError:
        return False
    return room.f_bavail * room.f_frsize < PAGE_SIZE * 16

"""What an import has copied so far: a database beside the copies, so that a killed import goes on where it was.

Owns `import.db`. An inode of the source is known by its number there (one filesystem), and has the number that it gets
in the volume, which never changes.

Invariants:
1. A part counts as copied only with the state (`Signature`) that its file had before and after it was read.
2. A name counts if its directory was seen in the last pass; what no such name means is not taken over.
3. A kill leaves a prefix of the transactions. After a power cut a part may be listed whose bytes are not on the disk:
   the hashes find it (copied_content.py).
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
from collections.abc import Iterator
from typing import NamedTuple

from snapfs.base.blocks import ROOT_INO, Disk, Ino
from snapfs.base.errors import VersionError

PLAN_FILE = "import.db"
_APPLICATION_ID = 0x736E696D  # "snim"
PLAN_VERSION = 1

_TABLES = (
    "CREATE TABLE source (path BLOB NOT NULL, device INTEGER NOT NULL, pass INTEGER NOT NULL)",
    "CREATE TABLE inode (src INTEGER PRIMARY KEY, ino INTEGER NOT NULL UNIQUE, mode INTEGER NOT NULL,"
    " uid INTEGER NOT NULL, gid INTEGER NOT NULL, rdev INTEGER NOT NULL, links INTEGER NOT NULL, size INTEGER NOT NULL,"
    " atime_ns INTEGER NOT NULL, mtime_ns INTEGER NOT NULL, ctime_ns INTEGER NOT NULL, target BLOB NOT NULL,"
    " copied INTEGER NOT NULL, shared INTEGER NOT NULL, seen INTEGER NOT NULL)",
    "CREATE TABLE entry (parent INTEGER NOT NULL, name BLOB NOT NULL, src INTEGER NOT NULL,"
    " PRIMARY KEY (parent, name)) WITHOUT ROWID",
    "CREATE INDEX meaning ON entry(src)",
    "CREATE TABLE xattr (src INTEGER NOT NULL, name BLOB NOT NULL, value BLOB NOT NULL,"
    " PRIMARY KEY (src, name)) WITHOUT ROWID",
    "CREATE TABLE part (src INTEGER NOT NULL, number INTEGER NOT NULL, at_ns INTEGER NOT NULL, ranges BLOB NOT NULL,"
    " hash BLOB NOT NULL, PRIMARY KEY (src, number)) WITHOUT ROWID",
)
_SIGNATURE = "mode, uid, gid, rdev, links, size, mtime_ns, ctime_ns"


class Signature(NamedTuple):
    """What of an inode shows that it changed. A change of bytes, owner, mode or xattrs moves the ctime."""

    mode: int
    uid: int
    gid: int
    rdev: int
    links: int
    size: int
    mtime_ns: int
    ctime_ns: int

    @staticmethod
    def of(facts: os.stat_result) -> Signature:
        return Signature(
            facts.st_mode, facts.st_uid, facts.st_gid, facts.st_rdev, facts.st_nlink, facts.st_size,
            facts.st_mtime_ns, facts.st_ctime_ns,
        )  # fmt: skip


class PlannedState(NamedTuple):
    """An inode as the plan has it. `copied_at_ns`: when the pass that copied it began; 0 if it is not copied."""

    ino: Ino
    signature: Signature
    copied_at_ns: int

    @property
    def is_settled(self) -> bool:
        """Whether the pass that copied it began after its last change, by more than a tick of the clock."""
        return self.copied_at_ns > self.signature.ctime_ns


class CopiedPart(NamedTuple):
    """A copied part of a file: when the pass that read it began, its ranges with data, and the hash of these
    (copied_content.py)."""

    number: int
    at_ns: int
    ranges: bytes
    hash: bytes


class PlannedInode(NamedTuple):
    """An inode that the volume gets."""

    src: int
    ino: Ino
    mode: int
    uid: int
    gid: int
    rdev: int
    links: int
    size: int
    atime_ns: int
    mtime_ns: int
    ctime_ns: int
    target: bytes


class ImportPlan:
    """One import's plan. One thread. `close` it."""

    def __init__(self, path: str, source: bytes, device: int) -> None:
        """Open the plan at `path`, or begin it. A damaged one is begun anew. VersionError; OSError."""
        self.path = path
        try:
            self._db = self._open(source, device)
        except (sqlite3.DatabaseError, ValueError):
            _discard(path)
            self._db = self._open(source, device)
        row = self._db.execute("SELECT path, device, pass FROM source").fetchone()
        self.source: bytes = row[0]
        self.passes: int = row[2]
        self._next = (self._db.execute("SELECT max(ino) FROM inode").fetchone()[0] or ROOT_INO) + 1
        self._db.execute("BEGIN")

    def _open(self, source: bytes, device: int) -> sqlite3.Connection:
        db = sqlite3.connect(self.path, isolation_level=None, check_same_thread=False)
        try:
            (version,) = db.execute("PRAGMA user_version").fetchone()
            (application,) = db.execute("PRAGMA application_id").fetchone()
            if version > PLAN_VERSION:
                raise VersionError(f"{self.path} is of a later snapfs: go on with that one, or remove the folder")
            db.execute("PRAGMA journal_mode=WAL")
            db.execute("PRAGMA synchronous=NORMAL")
            if not version:
                db.execute("BEGIN")
                for table in _TABLES:
                    db.execute(table)
                db.execute("INSERT INTO source VALUES (?,?,0)", (source, device))
                db.execute(f"PRAGMA application_id={_APPLICATION_ID}")
                db.execute(f"PRAGMA user_version={PLAN_VERSION}")
                db.execute("COMMIT")
            elif application != _APPLICATION_ID:
                raise ValueError(self.path)
            db.execute("SELECT path FROM source").fetchone()
        except BaseException:
            db.close()
            raise
        return db

    # -- while the source is walked

    def begin_pass(self) -> int:
        self.passes += 1
        self._db.execute("UPDATE source SET pass = ?", (self.passes,))
        return self.passes

    def known(self, src: int) -> PlannedState | None:
        row = self._db.execute(f"SELECT ino, copied, {_SIGNATURE} FROM inode WHERE src = ?", (src,)).fetchone()
        return None if row is None else PlannedState(Ino(row[0]), Signature(*row[2:]), row[1])

    def put(self, src: int, facts: os.stat_result, known: PlannedState | None, *, is_root: bool = False) -> Ino:
        """Take over what is new or changed of an inode, which is then not copied. Its number in the volume."""
        ino = ROOT_INO if is_root else known.ino if known is not None else self._new_ino()
        signature = Signature.of(facts)
        if known is None:
            sql = "INSERT INTO inode VALUES (?,?,?,?,?,?,?,?,?,?,?,x'',0,0,0)"
            self._db.execute(sql, (src, ino, *signature[:6], facts.st_atime_ns, *signature[6:]))
            return ino
        if known.signature == signature:  # the access time stays: our own first look moved it
            self._db.execute("UPDATE inode SET copied=0, shared=0 WHERE src=?", (src,))
        else:
            self._db.execute("DELETE FROM part WHERE src = ?", (src,))
            self._db.execute(
                "UPDATE inode SET mode=?, uid=?, gid=?, rdev=?, links=?, size=?, atime_ns=?, mtime_ns=?, ctime_ns=?,"
                " copied=0, shared=0 WHERE src=?",
                (*signature[:6], facts.st_atime_ns, *signature[6:], src),
            )
        self._db.execute("DELETE FROM xattr WHERE src = ?", (src,))
        return ino

    def _new_ino(self) -> Ino:
        self._next += 1
        return Ino(self._next - 1)

    def copied(self, src: int, at_ns: int, xattrs: list[tuple[bytes, bytes]], target: bytes, shared: bool) -> None:
        """All of the inode is copied, by the pass that began at `at_ns`. `shared`: its bytes are the source's own."""
        if xattrs:
            self._db.executemany("INSERT INTO xattr VALUES (?,?,?)", [(src, name, value) for name, value in xattrs])
        self._db.execute(
            "UPDATE inode SET copied = ?, target = ?, shared = ? WHERE src = ?", (at_ns, target, shared, src)
        )

    def put_part(self, src: int, part: CopiedPart) -> None:
        self._db.execute("INSERT OR REPLACE INTO part VALUES (?,?,?,?,?)", (src, *part))

    def parts(self, src: int) -> list[CopiedPart]:
        rows = self._db.execute("SELECT number, at_ns, ranges, hash FROM part WHERE src = ? ORDER BY number", (src,))
        return [CopiedPart(*row) for row in rows]

    def drop_parts(self, src: int) -> None:
        """Have the file copied anew."""
        self._db.execute("DELETE FROM part WHERE src = ?", (src,))
        self._db.execute("UPDATE inode SET copied = 0 WHERE src = ?", (src,))

    def list_names(self, parent: int, names: dict[bytes, int]) -> bool:
        """The names of a directory are these now, and it was seen in this pass; whether they changed."""
        self._db.execute("UPDATE inode SET seen = ? WHERE src = ?", (self.passes, parent))
        before = self.names(parent)
        if before == names:
            return False
        gone = [(parent, name) for name in before.keys() - names.keys()]
        self._db.executemany("DELETE FROM entry WHERE parent = ? AND name = ?", gone)
        fresh = [(parent, name, src) for name, src in names.items() if before.get(name) != src]
        self._db.executemany("INSERT OR REPLACE INTO entry VALUES (?,?,?)", fresh)
        return True

    def names(self, parent: int) -> dict[bytes, int]:
        """The names of a directory, and what each means, by the numbers of the source."""
        return dict(self._db.execute("SELECT name, src FROM entry WHERE parent = ?", (parent,)))

    def commit(self) -> None:
        """Let a killed import go on from here."""
        self._db.execute("COMMIT")
        self._db.execute("BEGIN")

    # -- when it is whole

    def forget_unseen(self) -> None:
        """Remove what the last pass did not see."""
        self._db.execute("DELETE FROM entry WHERE parent NOT IN (SELECT src FROM inode WHERE seen = ?)", (self.passes,))
        self._db.execute("DELETE FROM inode WHERE ino != ? AND src NOT IN (SELECT src FROM entry)", (ROOT_INO,))
        for table in ("xattr", "part"):
            self._db.execute(f"DELETE FROM {table} WHERE src NOT IN (SELECT src FROM inode)")
        self.commit()

    def inodes(self) -> Iterator[PlannedInode]:
        """In the order of their numbers in the volume."""
        sql = (
            "SELECT src, ino, mode, uid, gid, rdev, links, size, atime_ns, mtime_ns, ctime_ns, target FROM inode"
            " ORDER BY ino"
        )
        return (PlannedInode(*row) for row in self._db.execute(sql))

    def xattrs(self) -> dict[int, list[tuple[bytes, bytes]]]:
        """Those of all inodes that have some, by the number in the source."""
        found: dict[int, list[tuple[bytes, bytes]]] = {}
        for src, name, value in self._db.execute("SELECT src, name, value FROM xattr ORDER BY src, name"):
            found.setdefault(src, []).append((name, value))
        return found

    def entries(self) -> Iterator[tuple[Ino, bytes, Ino]]:
        """(parent, name, inode) by the numbers of the volume."""
        sql = (
            "SELECT above.ino, entry.name, below.ino FROM entry JOIN inode above ON above.src = entry.parent"
            " JOIN inode below ON below.src = entry.src ORDER BY above.ino, entry.name"
        )
        return ((Ino(parent), name, Ino(ino)) for parent, name, ino in self._db.execute(sql))

    def link_counts(self) -> dict[int, int]:
        """How many names within the source mean an inode, where it is more than one; directories are not among them."""
        return dict(self._db.execute("SELECT src, count(*) FROM entry GROUP BY src HAVING count(*) > 1"))

    def subdirectories(self) -> dict[int, int]:
        """How many directories each directory has, by its number in the source."""
        sql = (
            "SELECT entry.parent, count(*) FROM entry JOIN inode ON inode.src = entry.src"
            " WHERE (inode.mode & 61440) = 16384 GROUP BY entry.parent"
        )
        return dict(self._db.execute(sql))

    def copies(self) -> Iterator[tuple[int, Ino, int, bool]]:
        """(number in the source, inode, size, whether its bytes are shared) of each regular file."""
        sql = "SELECT src, ino, size, shared FROM inode WHERE (mode & 61440) = 32768 ORDER BY ino"
        return ((src, Ino(ino), size, bool(shared)) for src, ino, size, shared in self._db.execute(sql))

    def a_name(self, src: int) -> bytes:
        """A path of the inode, for messages."""
        parts: list[bytes] = []
        while row := self._db.execute("SELECT parent, name FROM entry WHERE src = ? LIMIT 1", (src,)).fetchone():
            src = row[0]
            parts.append(row[1])
            if len(parts) > 64:
                break
        return b"/".join(reversed(parts)) or b"."

    def close(self) -> None:
        """Twice is fine."""
        with contextlib.suppress(sqlite3.Error):  # a full disk: the last moments are copied again
            self._db.execute("COMMIT")
        self._db.close()


def discard_plan(path: str, disk: Disk) -> None:
    """Remove the files of a closed plan: its import is over."""
    for suffix in ("", "-wal", "-shm"):
        with contextlib.suppress(FileNotFoundError):
            disk.unlink("import:plan", f"{path}{suffix}")


def _discard(path: str) -> None:
    discard_plan(path, Disk())

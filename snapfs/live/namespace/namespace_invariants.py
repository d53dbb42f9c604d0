"""The invariants of the namespace, checked in the database itself (namespace.py lists them).

Each is a query for what must not be there. It reads the whole database: for tests, `doctor` and debug runs.
"""

from __future__ import annotations

from snapfs.live.writer.namespace_writer import NamespaceWriter

IS_DIRECTORY = f"(mode & {0o170000}) = {0o040000}"
LAZY = "EXISTS (SELECT 1 FROM unloaded)"
SHOWN = 5

NAMED = "WITH named AS MATERIALIZED (SELECT ino, count(*) AS names, max(parent) AS parent FROM entry GROUP BY ino)"
INSIDE = (
    "WITH inside AS MATERIALIZED (SELECT parent, count(*) AS directories FROM inode"
    f" WHERE {IS_DIRECTORY} AND parent != 0 AND ino != 1 GROUP BY parent)"
)

FORBIDDEN = {
    "a name means no inode": "SELECT parent, name, ino FROM entry WHERE ino NOT IN (SELECT ino FROM inode)",
    "a name lies in no living directory": "SELECT parent, name FROM entry WHERE parent NOT IN"
    f" (SELECT ino FROM inode WHERE {IS_DIRECTORY} AND nlink > 0)",
    "the root is no directory": "SELECT 1 WHERE NOT EXISTS"
    f" (SELECT 1 FROM inode WHERE ino = 1 AND {IS_DIRECTORY} AND parent = 1)",
    "a file's link count is not the number of its names": f"{NAMED} SELECT ino, nlink, names FROM inode"
    f" LEFT JOIN named USING (ino) WHERE NOT {IS_DIRECTORY} AND nlink != coalesce(names, 0)"
    f" AND NOT (nlink > coalesce(names, 0) AND {LAZY})",
    "a living directory does not have one name": f"{NAMED} SELECT ino, nlink, names FROM inode"
    f" LEFT JOIN named USING (ino) WHERE {IS_DIRECTORY} AND coalesce(names, 0) != (ino != 1 AND nlink > 0)",
    "a directory's parent is not the one that names it": f"{NAMED} SELECT ino, inode.parent, named.parent FROM inode"
    f" JOIN named USING (ino) WHERE {IS_DIRECTORY} AND inode.parent != named.parent",
    "a directory's link count is not 2 and its subdirectories": f"{INSIDE} SELECT ino, nlink, directories FROM inode"
    f" LEFT JOIN inside ON inside.parent = ino WHERE {IS_DIRECTORY} AND nlink > 0"
    " AND nlink != 2 + coalesce(directories, 0) AND ino NOT IN (SELECT ino FROM unloaded)",
    "an unloaded directory is none, or has names of its own that are not the store's": "SELECT ino FROM unloaded"
    f" WHERE ino NOT IN (SELECT ino FROM inode WHERE {IS_DIRECTORY} AND nlink > 0)",
    "an inode that is no living directory has a parent": "SELECT ino, parent FROM inode"
    f" WHERE parent != 0 AND NOT ({IS_DIRECTORY} AND nlink > 0)",
    "a directory is not reachable from the root": "WITH RECURSIVE reached(ino) AS (SELECT 1 UNION"
    f" SELECT d.ino FROM reached JOIN (SELECT ino, parent FROM inode WHERE {IS_DIRECTORY}) AS d"
    " ON d.parent = reached.ino)"
    f" SELECT ino FROM inode WHERE {IS_DIRECTORY} AND nlink > 0 AND ino NOT IN reached",
    "a number in use is not below its counter": "SELECT key, value FROM meta WHERE"
    " key = 'next_ino' AND value <= (SELECT max(ino) FROM inode)"
    " OR key = 'next_cookie' AND value <= (SELECT max(cookie) FROM entry)",
    "an attribute belongs to no inode": "SELECT ino, name FROM xattr WHERE ino NOT IN (SELECT ino FROM inode)",
    "an absent file does not exist": "SELECT ino FROM absent WHERE ino NOT IN (SELECT ino FROM inode)",
    "there is no current epoch after the sealed one": "SELECT value FROM meta WHERE key = 'sealed'"
    " AND value >= (SELECT coalesce(max(epoch), 0) FROM epochs)",
    "a change belongs to an epoch that is not open": "SELECT DISTINCT epoch FROM touched"
    " WHERE epoch > (SELECT value FROM meta WHERE key = 'sealed') AND epoch NOT IN (SELECT epoch FROM epochs)",
}


def check(writer: NamespaceWriter) -> None:
    """AssertionError with every invariant that does not hold and the first rows that break it."""
    broken = []
    for what, query in FORBIDDEN.items():
        rows = writer.rows(f"{query} LIMIT {SHOWN}")
        if rows:
            broken.append(f"{what}: {rows}")
    for ino, remembered in writer.cache.items():
        row = writer.row("SELECT mode, nlink FROM inode WHERE ino = ?", (ino,))
        if row != (remembered.mode, remembered.nlink):
            broken.append(f"memory and database differ: {remembered}, {row}")
    assert not broken, "\n".join(broken)

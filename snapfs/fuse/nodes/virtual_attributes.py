"""How a virtual node looks to the kernel: one place that fills in pyfuse3's attributes."""

from __future__ import annotations

import stat

import pyfuse3

from snapfs.base.blocks import BLOCK_SIZE
from snapfs.fuse.nodes.node_ids import NodeId
from snapfs.store.tables.snapshot import InodeRecord

FOREVER_SECONDS = 365.0 * 86400
"""A timeout for what cannot change: the kernel need not look again."""


def of_record(node: NodeId, record: InodeRecord) -> pyfuse3.EntryAttributes:
    """The attributes of an inode of a snapshot; they never change."""
    entry = pyfuse3.EntryAttributes()
    entry.st_ino = pyfuse3.InodeT(node)
    entry.generation = 0
    entry.entry_timeout = entry.attr_timeout = FOREVER_SECONDS
    entry.st_mode = pyfuse3.ModeT(record.mode)
    entry.st_nlink = record.nlink
    entry.st_uid, entry.st_gid, entry.st_rdev = record.uid, record.gid, record.rdev
    entry.st_size = len(record.target) if stat.S_ISLNK(record.mode) else record.size
    entry.st_blksize = BLOCK_SIZE
    entry.st_blocks = -(-entry.st_size // 512)
    entry.st_atime_ns, entry.st_mtime_ns, entry.st_ctime_ns = record.atime_ns, record.mtime_ns, record.ctime_ns
    return entry


def of_own(node: NodeId, mode: int, owner: tuple[int, int], time_ns: int, timeout_s: float) -> pyfuse3.EntryAttributes:
    """The attributes of a node that exists only in `.snapfs`; `owner` is (uid, gid)."""
    entry = pyfuse3.EntryAttributes()
    entry.st_ino = pyfuse3.InodeT(node)
    entry.generation = 0
    entry.entry_timeout = entry.attr_timeout = timeout_s
    entry.st_mode = pyfuse3.ModeT(mode)
    entry.st_nlink = 2 if stat.S_ISDIR(mode) else 1
    entry.st_uid, entry.st_gid = owner
    entry.st_size = 0
    entry.st_blksize = BLOCK_SIZE
    entry.st_blocks = 0
    entry.st_atime_ns = entry.st_mtime_ns = entry.st_ctime_ns = time_ns
    return entry


def nothing() -> pyfuse3.EntryAttributes:
    """For a directory entry whose inode cannot be read: the kernel then has the name alone."""
    return pyfuse3.EntryAttributes()

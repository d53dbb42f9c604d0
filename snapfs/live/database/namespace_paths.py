"""Where the files beside ``namespace.db`` are; `path` is that of the database."""

from __future__ import annotations


def log_path(path: str) -> str:
    """SQLite's write-ahead log."""
    return f"{path}-wal"


def reserve_path(path: str) -> str:
    """The file whose room is freed on a full disk (reserve.py)."""
    return f"{path}-reserve"


def mark_path(path: str) -> str:
    """The high-water mark of the log (high_water_mark.py)."""
    return f"{path}-mark"


def sums_path(path: str) -> str:
    """The checksums of the database's pages (page_checksums.py)."""
    return f"{path}-sums"


def damaged_path(path: str) -> str:
    """The copy of a log that was found to be damaged."""
    return f"{path}-wal.damaged"

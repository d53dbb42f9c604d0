"""Stray files: what recovery must not delete, in live/aside/, a folder for each time that it found something.

Recovery removes files of creations and removals that were cut short: those that no inode has. Which inodes there are is
in the namespace's log. Where that is known to lack what was answered, or its high-water mark does not confirm it
(high_water_mark.py), such files may be all that is left of what was lost: they are renamed to

    aside/<UTC time>-<damage or unknown>/record.json     what was found, and when
                                         data/<inode>    bytes of files that no inode has
                                         presence/<inode>    the residency of a file that was partly present
                                         namespace.db-wal.damaged    the log as it was found

Nothing of snapfs reads them again. A person takes out what is of use and removes the folder. Of those called unknown
the newest `KEPT` stay; one called damage is never removed here.

A crash leaves a folder with a part of the files; the next recovery finds the rest, and makes another.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from dataclasses import dataclass
from typing import Any

from snapfs.base.blocks import Disk

KEPT = 16
RECORD_VERSION = 1
DAMAGED = "DAMAGED: "
"""How a line of recovery begins that reports a loss."""


@dataclass(frozen=True, slots=True)
class StrayRecord:
    """What lies in one of the folders."""

    path: str
    files: int
    size: int
    is_damage: bool

    def facts(self) -> dict[str, Any]:
        return {"folder": self.path, "files": self.files, "bytes": self.size, "damage": self.is_damage}


class StrayFolder:
    """Of one recovery, in one thread. The folder is made with the first file."""

    def __init__(self, live_dir: str, disk: Disk, why: str, *, damage: bool) -> None:
        self._root, self._disk, self.why, self.damage = os.path.join(live_dir, "aside"), disk, why, damage
        self.path = ""
        self.files = 0
        self._folders: set[str] = set()

    def put(self, path: str, kind: str) -> None:
        """Move the file at `path` to the folder `kind`. OSError. No file is fine."""
        if os.path.lexists(path):
            self._disk.rename("strays:put", path, os.path.join(self._folder(kind), os.path.basename(path)))
            self._folders.add(os.path.dirname(path))
            self.files += kind == "data"

    def settle(self) -> None:
        """Make it durable that all of it is here, and no longer where it was."""
        for folder in sorted(self._folders):
            self._disk.sync_dir("strays:settle", folder)
        self._folders.clear()

    def _folder(self, kind: str) -> str:
        if not self.path:
            self._make()
        folder = os.path.join(self.path, kind).rstrip("/")
        if not os.path.isdir(folder):
            self._disk.mkdir("strays:folder", folder)
            self._folders.add(self.path)
        self._folders.add(folder)
        return folder

    def _make(self) -> None:
        with contextlib.suppress(FileExistsError):
            self._disk.mkdir("strays:folder", self._root)
            self._disk.sync_dir("strays:folder", os.path.dirname(self._root))
        _forget_oldest(self._root, self._disk)
        stamp, kind = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime()), "damage" if self.damage else "unknown"
        number, path = 1, os.path.join(self._root, f"{stamp}-{kind}")
        while os.path.lexists(path):
            number += 1
            path = os.path.join(self._root, f"{stamp}-{number}-{kind}")
        self._disk.mkdir("strays:folder", path)
        record = {"version": RECORD_VERSION, "time": stamp, "kind": kind, "why": self.why}
        self._disk.replace_file("strays:record", os.path.join(path, "record.json"), json.dumps(record).encode() + b"\n")
        self._disk.sync_dir("strays:folder", self._root)
        self.path = path


def _forget_oldest(root: str, disk: Disk) -> None:
    """Make room for one more of those of unknown use. Nothing depends on it: no error."""
    unknown = sorted(name for name in os.listdir(root) if name.endswith("-unknown"))
    for name in unknown[: len(unknown) - KEPT + 1] if len(unknown) >= KEPT else ():
        disk.remove_tree("strays:forget", os.path.join(root, name), ignore_errors=True)


def kept(live_dir: str) -> list[StrayRecord]:
    """The folders of strays, oldest first."""
    root, found = os.path.join(live_dir, "aside"), []
    with contextlib.suppress(FileNotFoundError):
        for name in sorted(os.listdir(root)):
            path, sizes = os.path.join(root, name), []
            with contextlib.suppress(FileNotFoundError), os.scandir(os.path.join(path, "data")) as entries:
                sizes = [entry.stat(follow_symlinks=False).st_size for entry in entries]
            found.append(StrayRecord(path, len(sizes), sum(sizes), name.endswith("-damage")))
    return found

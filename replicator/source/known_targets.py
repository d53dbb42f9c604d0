"""VOLUME/targets.json: which targets this volume has been pushed to, and by which id each is recognised.

A target has an id, made with it (a folder's or mirror's volume: its target.json; a bucket: its head). A disk that is
not mounted, a mirror whose root is empty, a bucket that was emptied look like new targets, and the history would begin
anew beside the real one, "up to date". So a target is made only where none was known before, and in a folder, where a
missing disk looks like a folder that can be made, only when a person has marked it as new (`target init`).

What `may_make` and `judge` decide:

    known here        there                              what happens
    no, no folder     nothing                            made
    no, folder        nothing                            MISSING: a person marks it as new
    yes               nothing                            MISSING
    yes               the same id                        recognised
    yes               another id, or none; history       adopted, reported: it was put in the other's place
    yes               another id, or none; empty         MISSING: that is not the one
    marked as new     anything                           made, or taken as it is

Invariants:
1. An id is in the file, durably, before anything is pushed to a target.
   Each change is made under the flock of the volume's folder: a volume's targets are opened at the same time, and a
   person may mark one as new meanwhile. None of these loses what another has noted.
2. A volume of before there was this file: what replication.json has as pushed to is known, without an id.
"""

from __future__ import annotations

import os
from typing import Final

import msgspec

from snapfs.base.blocks import Disk
from snapfs.base.errors import CorruptionError, UserError, VersionError
from snapfs.base.file_lock import locked_folder
from snapfs.base.json_file import JsonFile
from snapfs.store.log import replica_state

FILE: Final = "targets.json"


class KnownTarget(msgspec.Struct, frozen=True):
    """`id`: "" until it has been seen. `new`: a person marked it to be made."""

    name: str
    url: str
    id: str = ""
    new: bool = False


class KnownTargets(msgspec.Struct, frozen=True):
    """The file."""

    targets: list[KnownTarget]
    format: int = 1


TARGETS: Final = JsonFile(
    "list of known targets", KnownTargets,
    advice="see that the targets are there, remove the file, and run `snapfs-replicator target init` for new ones",
)  # fmt: skip


class Memory:
    """What a volume knows of one target. `pushed`: replication.json has it as pushed to."""

    def __init__(self, volume_path: str, disk: Disk, name: str, url: str, *, pushed: bool = False) -> None:
        """Raises CorruptionError, VersionError, OSError."""
        self._folder, self._path, self._disk = volume_path, os.path.join(volume_path, FILE), disk
        self._name, self._url, self._pushed = name, url, pushed

    @property
    def known(self) -> KnownTarget | None:
        """None if it was never pushed to. Raises CorruptionError, VersionError, OSError."""
        for each in read_targets(self._path):
            if (each.name, each.url) == (self._name, self._url):
                return each
        return KnownTarget(self._name, self._url) if self._pushed else None

    def may_make(self) -> bool:
        """Whether it may be made if it is not there."""
        known = self.known
        is_folder = self._url.startswith("file://")
        return known.new if known is not None else not is_folder

    def judge(self, target_id: str, *, is_empty: bool) -> str:
        """What is there, with that id: take it, and remember it; a note for people, "" for none.

        Raises UserError if it is not the target that was pushed to; OSError. Waits for others who change the file.
        """
        with locked_folder(self._folder):
            return self._judge(target_id, is_empty)

    def _judge(self, target_id: str, is_empty: bool) -> str:
        known, note = self.known, ""
        if known is not None and not known.new and known.id != target_id:
            if is_empty and target_id:
                raise self.missing("another target is there, and it is empty")
            if known.id and target_id:
                note = "another target than before is there, with this volume's history: it is taken for its copy"
        if known is None or known.new or (target_id and known.id != target_id):
            self._put(KnownTarget(self._name, self._url, target_id))
        return note

    def missing(self, what: str) -> UserError:
        """The error when it is not there."""
        where = "is its disk mounted" if self._url.startswith("file://") else "has it lost its disk"
        return UserError(
            f"{self._url}: {what} ({where}?). Nothing is made there by itself: if it is new, run "
            f"`snapfs-replicator target init {self._folder} {self._name}`"
        )

    def mark_new(self) -> None:
        """Note that a person wants it made. Raises OSError. Waits for others who change the file."""
        with locked_folder(self._folder):
            self._put(KnownTarget(self._name, self._url, new=True))

    def _put(self, target: KnownTarget) -> None:
        """Replace what the file has of this target. The caller holds the folder's lock."""
        others = [each for each in read_targets(self._path) if (each.name, each.url) != (target.name, target.url)]
        TARGETS.write("targets:file", self._path, KnownTargets([*others, target]), self._disk)


def pushed_to(volume_path: str, volume_id: str) -> set[tuple[str, str]]:
    """Name and URL of the targets that replication.json knows a snapshot of."""
    found = replica_state.read(replica_state.path_of(volume_path), volume_id)
    return {(each.name, each.url) for each in (found.targets if found is not None else ()) if each.newest}


def ids_of(volume_path: str) -> dict[tuple[str, str], str]:
    """By name and URL, the ids of the targets that have been seen. A damaged file counts as none here; OSError."""
    try:
        return {(each.name, each.url): each.id for each in read_targets(os.path.join(volume_path, FILE))}
    except (CorruptionError, VersionError):
        return {}


def read_targets(path: str) -> list[KnownTarget]:
    """Raises CorruptionError, VersionError, OSError."""
    found = TARGETS.read(path)
    return found.targets if found is not None else []

"""How commands name what is in a history: paths with the place they belong to, and SNAPSHOT:PATH.

A place is what the other commands take: a mountpoint, a volume, a target's URL. Where the first word is none, the words
are paths of files, there or not, below one mount of this host. Where a command takes SNAPSHOT:PATH alone, the place is
the mount that the process is in.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import NamedTuple

import click

from snapfs.base.errors import UserError
from snapfs.base.mountinfo import resolved
from snapfs.base.volumes.volume import Volume
from snapfs.commands.support.locate import mount_entries
from snapfs.store.history.tree_lookup import Located, locate_path
from snapfs.store.repository.repository import Repository, SnapshotRecord


class PlacedPaths(NamedTuple):
    """A place, and paths from the top of its tree."""

    place: str
    paths: list[bytes]


def placed_paths(words: tuple[str, ...]) -> PlacedPaths:
    """PLACE PATH..., or paths below a mount. Raises UserError, click.UsageError."""
    if not words:
        raise click.UsageError("Missing argument 'PATH...'.")
    first = words[0]
    if "://" in first or Volume.exists(os.path.abspath(first)) or _top_of_mount(first):
        if len(words) == 1:
            raise click.UsageError("Missing argument 'PATH...'.")
        return PlacedPaths(first, [os.fsencode(word) for word in words[1:]])
    places = {word: _mount_above(word) for word in words}
    mountpoints = set(places.values())
    if len(mountpoints) > 1:
        raise UserError(f"{words[0]} and others of these paths are below different mounts: name one mount at a time")
    mountpoint = mountpoints.pop()
    below = (os.path.relpath(_absolute(word), mountpoint) for word in words)
    return PlacedPaths(mountpoint, [os.fsencode(path) for path in below])


def _absolute(path: str) -> str:
    """The path with its folder's symbolic links resolved, not its own."""
    folder, name = os.path.split(os.path.abspath(path))
    return os.path.join(resolved(folder), name)


def _top_of_mount(path: str) -> bool:
    return any(entry.mountpoint == resolved(os.path.abspath(path)) for entry in mount_entries())


def _mount_above(path: str) -> str:
    for entry in sorted(mount_entries(), key=lambda entry: len(entry.mountpoint), reverse=True):
        if _absolute(path).startswith(f"{entry.mountpoint}/"):
            return entry.mountpoint
    raise UserError(f"{path} is not inside a snapfs mount: name PLACE first, a mountpoint, a volume or a URL")


def place_first(words: tuple[str, ...], rest: int) -> tuple[str, tuple[str, ...]]:
    """(place, `rest` words): the place may be left out in a mount."""
    return (words[0], words[1:]) if len(words) > rest else (os.curdir, words)


def found_snapshot(repository: Repository, word: str) -> tuple[SnapshotRecord, bytes | None]:
    """SNAPSHOT or SNAPSHOT:PATH. A name of a snapshot may have a colon. Raises UserError."""
    ends = [len(word), *(at for at, letter in enumerate(word) if letter == ":")]
    for end in ends:
        try:
            found = repository.find_anywhere(word[:end])
        except UserError:
            continue
        return found, os.fsencode(word[end + 1 :]) if end < len(word) else None
    snapshot, _, _ = word.partition(":")
    return repository.find_anywhere(snapshot), None  # raises


def located(repository: Repository, word: str) -> Located:
    """SNAPSHOT:PATH. Raises UserError, CorruptionError."""
    snapshot, path = found_snapshot(repository, word)
    if path is None:
        raise click.UsageError(f"{word}: write SNAPSHOT:PATH.")
    return locate_path(repository, snapshot, path)


@contextlib.contextmanager
def kept(repository: Repository, snapshot: SnapshotRecord, act: str) -> Iterator[None]:
    """Hold the snapshot while it is read, here or at its target. `act`: why, in a word. UserError if it was dropped."""
    from snapfs.transfer.lazy.snapshot_hold import held_while
    from snapfs.transfer.sources.remote_history import held_there

    with held_while(repository, snapshot, act), held_there(repository, snapshot):
        yield

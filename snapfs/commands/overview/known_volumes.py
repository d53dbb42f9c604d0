"""Which volumes this host has: there is no list that somebody would have to keep; what names them already is read.

In this order: the snapfs mounts that are there, the units' settings (/etc/snapfs/NAME.env with VOLUME= and MOUNTPOINT=,
agent.env with VOLUMES=), and the lines of /etc/fstab with the type fuse.snapfs; and the forks that lie beside any of
these (known_forks.py).

Invariants:
1. Finding them asks no daemon and changes nothing.
2. A mount by another user who does not own the volume that it names shows nothing: anybody may mount under any name.
3. A file that cannot be read or understood hides no volume that another one names.
"""

from __future__ import annotations

import contextlib
import os
import re
import shlex
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final

from snapfs.base.mountinfo import FUSE_TYPE
from snapfs.commands.overview.known_forks import forks_beside
from snapfs.commands.support.locate import MountEntry

ETC: Final = "/etc"
_OCTAL: Final = re.compile(r"\\([0-7]{3})")


@dataclass(frozen=True, slots=True)
class KnownVolume:
    """`mountpoint`: where it is mounted, else where it is to be; "" if no one says. `named_by`: "mount" or a file."""

    path: str
    mountpoint: str
    is_mounted: bool
    named_by: str

    @property
    def is_wanted(self) -> bool:
        """Whether somebody configured a mount that is not there."""
        return bool(self.mountpoint) and not self.is_mounted


def known_volumes(mounts: Iterable[MountEntry], etc: str = ETC) -> list[KnownVolume]:
    """All of this host, each once, by path. Raises nothing: what is wrong with one is found when it is looked at."""
    found: dict[str, KnownVolume] = {}
    for each in (*_mounted(mounts), *_of_units(etc), *_of_fstab(etc)):
        place = os.path.realpath(each.path)
        before = found.get(place)
        if before is None or (each.is_wanted and not before.mountpoint):
            found[place] = each
    for path, fork in [pair for each in list(found.values()) for pair in forks_beside(each.path)]:
        found.setdefault(os.path.realpath(path), KnownVolume(path, "", False, f"the forks of {fork.origin}"))
    return sorted(found.values(), key=lambda each: each.path)


def _mounted(mounts: Iterable[MountEntry]) -> Iterator[KnownVolume]:
    for entry in mounts:
        if os.path.isabs(entry.volume) and (entry.owner in (None, 0) or entry.is_of(entry.volume)):
            yield KnownVolume(entry.volume, entry.mountpoint, True, "mount")


def _of_units(etc: str) -> Iterator[KnownVolume]:
    folder = os.path.join(etc, "snapfs")
    names: list[str] = []
    with contextlib.suppress(OSError):
        names = sorted(os.listdir(folder))
    for name in names:
        if name.endswith(".env"):
            path = os.path.join(folder, name)
            settings = _environment(path)
            if os.path.isabs(volume := settings.get("VOLUME", "")):
                yield KnownVolume(volume, settings.get("MOUNTPOINT", ""), False, path)
            for listed in _words(settings.get("VOLUMES", "")):
                yield KnownVolume(listed, "", False, path)


def _environment(path: str) -> dict[str, str]:
    """NAME=VALUE lines, as systemd reads them: quotes go, the last one of a name counts."""
    found: dict[str, str] = {}
    for line in _lines(path):
        name, is_one, value = line.partition("=")
        if is_one:
            value = value.strip()
            quoted = len(value) > 1 and value[0] == value[-1] and value[0] in "'\""
            found[name.strip()] = value[1:-1] if quoted else value
    return found


def _words(value: str) -> list[str]:
    with contextlib.suppress(ValueError):
        return [word for word in shlex.split(value) if os.path.isabs(word)]
    return []


def _of_fstab(etc: str) -> Iterator[KnownVolume]:
    path = os.path.join(etc, "fstab")
    for line in _lines(path):
        fields = [_OCTAL.sub(lambda match: chr(int(match[1], 8)), field) for field in line.split()]
        if len(fields) >= 3 and fields[2] == FUSE_TYPE and os.path.isabs(fields[0]):
            is_automatic = "noauto" not in (fields[3] if len(fields) > 3 else "").split(",")
            yield KnownVolume(fields[0], fields[1] if is_automatic else "", False, path)


def _lines(path: str) -> list[str]:
    with contextlib.suppress(OSError), open(path, encoding="utf-8", errors="surrogateescape") as file:
        return [line.strip() for line in file if line.strip() and not line.lstrip().startswith(("#", ";"))]
    return []

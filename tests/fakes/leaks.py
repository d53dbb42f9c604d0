"""The search for what a test left behind: descriptors, threads, mounts, and objects whose end is a warning.

A warning about an object (a pipe or a process that nobody closed) comes when the object is collected. pytest keeps the
traceback of a failed test, and with it all variables of its frames, until another test fails: without what is done here
an innocent test would be blamed, and one failure would be followed by many.
"""

from __future__ import annotations

import contextlib
import gc
import os
import sys
import threading
from dataclasses import dataclass, field

from snapfs.base.mountinfo import mounts

_NOT_OURS = ("/dev/null", "/dev/urandom", "/dev/pts/", "anon_inode:inotify", "/usr/", "/lib/")
"""Descriptors that the interpreter and its libraries open once and keep."""


def descriptors() -> dict[int, str]:
    found = {}
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            target = os.readlink(f"/proc/self/fd/{name}")
            if not target.startswith(_NOT_OURS) and ".hypothesis" not in target:
                found[int(name)] = target
    return found


def threads() -> set[threading.Thread]:
    """Living threads, but for the ones that trio keeps for its next call."""
    return {thread for thread in threading.enumerate() if not thread.name.startswith("Trio thread")}


def snapfs_mounts(below: str = "") -> set[str]:
    """Mountpoints of snapfs in this mount namespace whose path begins with `below`."""
    places = {mount.mountpoint for mount in mounts() if "snapfs" in mount.kind}
    return {place for place in places if place.startswith(below)}


@dataclass
class Before:
    """What there was when a test began. What a fixture of a wider scope holds belongs to it."""

    base: str
    """Mounts elsewhere belong to others."""
    descriptors: dict[int, str] = field(default_factory=descriptors)
    threads: set[threading.Thread] = field(default_factory=threads)
    mounts: set[str] = field(init=False)

    def __post_init__(self) -> None:
        self.mounts = snapfs_mounts(self.base)

    def new_mounts(self) -> set[str]:
        return snapfs_mounts(self.base) - self.mounts

    def leaks(self) -> list[str]:
        return [
            *(f"descriptor {fd} -> {to}" for fd, to in descriptors().items() if self.descriptors.get(fd) != to),
            *(f"thread {thread.name}" for thread in threads() - self.threads),
            *(f"mount at {place}" for place in self.new_mounts()),
        ]


def collect() -> None:
    """Collect what the test made and nothing uses any more, so that a warning of it comes while the test is running."""
    for name in (
        "last_type",
        "last_value",
        "last_traceback",
        "last_exc",
    ):  # the failure that pytest keeps, for a debugger
        if hasattr(sys, name):
            delattr(sys, name)
    gc.collect()


def freeze() -> None:
    """Leave what exists now, as all modules do, out of each later collection, which takes a millisecond then."""
    gc.collect()
    gc.freeze()

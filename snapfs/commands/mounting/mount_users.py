"""The processes that use a mount."""

from __future__ import annotations

import contextlib
import os

from snapfs.base.mountinfo import resolved
from snapfs.commands.support import output


def users_of(mountpoint: str, besides: int = 0) -> list[str]:
    """Processes with something open below `mountpoint`, as far as we may see: ``postgres (812)``. `besides`: one that
    does not count."""
    found, place = [], resolved(mountpoint)
    for pid in filter(str.isdecimal, os.listdir("/proc")):
        if int(pid) == besides:
            continue
        with contextlib.suppress(OSError):
            links = [f"/proc/{pid}/cwd", f"/proc/{pid}/root", *(e.path for e in os.scandir(f"/proc/{pid}/fd"))]
            if any(_leads_into(link, place) for link in links):
                with open(f"/proc/{pid}/comm", "rb") as name:  # a process chooses it: any bytes
                    found.append(f"{output.printable(os.fsdecode(name.read().strip()))} ({pid})")
    return found[:5]


def _leads_into(link: str, mountpoint: str) -> bool:
    try:
        return f"{os.readlink(link)}/".startswith(f"{mountpoint}/")
    except OSError:
        return False

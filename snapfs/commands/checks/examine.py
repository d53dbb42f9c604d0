"""Is this machine fit for snapfs, and is a volume well, are its targets? All checks, for the command doctor.

Invariants:
1. Nothing is repaired, no dead mount is cleared, nothing that a check creates stays, here or at a target.
2. A check that cannot be made is a finding of its own; no check keeps another from being made.
3. Every BAD or WARN finding states what to do.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING

from snapfs.base.errors import CorruptionError, SnapfsError, VersionError
from snapfs.commands.checks import target_checks
from snapfs.commands.checks.filesystem_checks import filesystem, space
from snapfs.commands.checks.findings import Finding, Level
from snapfs.commands.checks.host_checks import (
    data_path,
    dead_mounts,
    descriptors,
    fuse_device,
    fusermount,
    kernel,
    outliving,
    user_allow_other,
)
from snapfs.commands.checks.volume_checks import adoption, forks, identity, live_tree, store, supervisor

if TYPE_CHECKING:
    from snapfs.transfer.sources.source_access import Access


def examine(volume_path: str | None = None, *, targets: bool = False) -> list[Finding]:
    """All findings about this machine and, if it is named, the volume there; `targets`: and its targets."""
    checks: list[Callable[[], Iterator[Finding]]]
    checks = [fuse_device, fusermount, kernel, data_path, outliving, user_allow_other, descriptors, dead_mounts]
    if volume_path is not None:
        looks = (filesystem, space, identity, forks, store, live_tree, supervisor, adoption)
        checks += [partial(check, volume_path) for check in looks]
        if targets:
            checks.append(partial(target_checks.targets_of, volume_path))
    return _found(checks)


def examine_target(url: str, access: Access) -> list[Finding]:
    """All findings about a target."""
    return _found([partial(target_checks.target, url, access)])


def _found(checks: Sequence[Callable[[], Iterator[Finding]]]) -> list[Finding]:
    return list(dict.fromkeys(finding for check in checks for finding in _guarded(check)))


def _guarded(check: Callable[[], Iterator[Finding]]) -> list[Finding]:
    found: list[Finding] = []
    try:
        found.extend(check())
    except CorruptionError as error:
        found.append(Finding(error.what, Level.BAD, str(error), damage=True))
    except VersionError as error:
        found.append(Finding("format", Level.BAD, str(error), newer=True))
    except (OSError, SnapfsError) as error:
        found.append(Finding("check", Level.BAD, " ".join(str(error).split())))
    return found

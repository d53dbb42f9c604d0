"""The wrapped keys of an encrypted volume, carried from its sources to the volume that goes on with it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from typing import Any

from snapfs.base.blocks import Disk
from snapfs.base.errors import SnapfsError
from snapfs.transfer.sources.source_access import Access
from snapfs.transfer.sources.sources import Source


def encryption_settings(access: Access, keys: bytes) -> dict[str, dict[str, Any]]:
    """Settings with which the new volume encrypts for its targets with the key that the sources were read with."""
    named = {"key_file": access.key_file, "key_command": access.key_command}
    given = {name: value for name, value in named.items() if value and keys}
    return {"replication": {"encryption": given}} if given else {}


def wrapped_keys_of(sources: Iterable[Source]) -> bytes:
    """The wrapped keys of the first source that has some, so that pushes from here use them too; b"" for none."""
    for source in sources:
        with contextlib.suppress(OSError, SnapfsError):
            found = source.keys()
            if found:
                return found
    return b""


def write_keys(folder: str, keys: bytes, disk: Disk) -> None:
    """Write the wrapped keys into a volume's folder. Raises OSError.

    Damaged keys are left out, since a takeover must not fail on them: the agent fetches others from the targets.
    """
    if keys:
        from snapfs.store.crypto import keys as wrapped  # most mounts need no cipher

        with contextlib.suppress(SnapfsError):
            wrapped.write_keys(folder, wrapped.WrappedKeys.decode(keys, "the source"), disk)

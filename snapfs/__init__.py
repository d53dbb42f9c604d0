"""snapfs: a filesystem for state directories, with crash-consistent snapshots and replicas."""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

_HOMES = {
    "AsyncFork": "api.async_volume:AsyncFork", "AsyncVolume": "api.async_volume:AsyncVolume",
    "Change": "api.volume_handle:ChangedPath", "Fork": "api.volume_handle:Fork",
    "Snapshot": "api.volume_handle:MadeSnapshot", "Volume": "api.volume_handle:VolumeHandle",
    "BusyError": "base.errors:BusyError", "CorruptionError": "base.errors:CorruptionError",
    "SnapfsError": "base.errors:SnapfsError", "SnapshotError": "base.errors:SnapshotError",
    "UserError": "base.errors:UserError",
}  # fmt: skip
"""The public names (`__init__.pyi` has their types), and where each is."""


def __getattr__(name: str) -> Any:
    """Import a public name when it is used: a daemon imports this package, too, and needs none of them."""
    if name not in _HOMES:
        raise AttributeError(f"module 'snapfs' has no attribute {name!r}")
    module, _, own = _HOMES[name].partition(":")
    return getattr(importlib.import_module(f"snapfs.{module}"), own)


def __dir__() -> list[str]:
    return [*globals(), *_HOMES]

"""The names of the files in a volume's folder that more than one module, or both programs, open.

A file that one module owns alone is named there. docs/internals/formats.md lists them all.
"""

from __future__ import annotations

from typing import Final

VOLUME_TOML: Final = "volume.toml"
VOLUME_LOCK: Final = "lock"
"""A flock on it is held by the process that may change the volume."""
NAMESPACE_DB: Final = "namespace.db"
"""Below live/."""
SNAPSHOTS_LOG: Final = "snapshots.log"
"""Below store/."""
KEYS_FILE: Final = "keys.json"
HOT_FILE: Final = "hot"
"""The hot list of the live tree; below store/ a folder of that name has those of snapshots."""
REPLICATION_FILE: Final = "replication.json"
REPLICATION_LOCK: Final = "replication.lock"
"""A flock on it is held by the volume's one agent for as long as it lives."""
STANDBY_FILE: Final = "standby.json"
SUPERVISOR_FILE: Final = "supervisor.json"
DAEMON_LOG: Final = "daemon.log"

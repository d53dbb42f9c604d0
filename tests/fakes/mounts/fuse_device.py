"""/dev/fuse as udev makes it, where there is no udev: for tests with users that are not root."""

from __future__ import annotations

import os


def open_to_all() -> None:
    """Let every user open the device. It stays so: other tests may be at it as this one ends."""
    os.chmod("/dev/fuse", 0o666)

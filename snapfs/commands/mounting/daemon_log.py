"""What the processes of a mount log: lines with the time in UTC, to stderr: VOLUME/daemon.log or a journal."""

from __future__ import annotations

import logging
import time


def start_log() -> None:
    """Log from now on. Once a process."""
    logging.Formatter.converter = time.gmtime
    logging.basicConfig(
        level=logging.INFO, format="%(asctime)sZ %(levelname)s %(message)s", datefmt="%Y-%m-%dT%H:%M:%S"
    )

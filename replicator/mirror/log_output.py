"""Logs to stderr: lines for people on a terminal, one JSON object a line for machines."""

from __future__ import annotations

import logging
import sys
import time
from typing import Final

import msgspec

FORMATS: Final = ("auto", "text", "json")


class JsonFormatter(logging.Formatter):
    """One object a line: time (UTC, ISO 8601), level, logger, message, and the traceback if there is one."""

    def format(self, record: logging.LogRecord) -> str:
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        fields = {
            "time": f"{stamp}.{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            fields["traceback"] = self.formatException(record.exc_info)
        return msgspec.json.encode(fields).decode()


def set_up(form: str, verbose: bool) -> None:
    """Log to stderr from now on. `form`: one of FORMATS; auto is text on a terminal, else JSON."""
    handler = logging.StreamHandler(sys.stderr)
    if form == "text" or (form == "auto" and sys.stderr.isatty()):
        formatter = logging.Formatter("%(asctime)s %(levelname)-7s %(message)s", "%H:%M:%S")
    else:
        formatter = JsonFormatter()
    handler.setFormatter(formatter)
    logging.basicConfig(level=logging.DEBUG if verbose else logging.INFO, handlers=[handler], force=True)
    for name in ("asyncio", "aiohttp"):
        logging.getLogger(name).setLevel(logging.WARNING)

"""A line of a log as JSON, and which volume it is about.

A line names its volume where that is known: a call's own (`extra={"volume": ...}`), else that of the task or thread
(`volume`), else that of the process.
"""

from __future__ import annotations

import contextvars
import logging
import time

import msgspec

volume: contextvars.ContextVar[str] = contextvars.ContextVar("volume", default="")
"""The volume that a task, and what it calls in threads, is about."""
_process_volume = ""


def set_process_volume(path: str) -> None:
    """The volume of all lines that name no other."""
    global _process_volume
    _process_volume = path


class JsonFormatter(logging.Formatter):
    """One object a line: time (UTC, ISO 8601), level, logger, volume, message, and the exception if there is one."""

    def format(self, record: logging.LogRecord) -> str:
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        fields = {
            "time": f"{stamp}.{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if place := getattr(record, "volume", "") or volume.get() or _process_volume:
            fields["volume"] = place
        if record.exc_info:
            fields["exception"] = self.formatException(record.exc_info)
        try:
            return msgspec.json.encode(fields).decode()
        except UnicodeEncodeError:  # a name that is not UTF-8
            shown = {name: each.encode(errors="replace").decode() for name, each in fields.items()}
            return msgspec.json.encode(shown).decode()

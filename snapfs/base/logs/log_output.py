"""What a process logs, on stderr: lines for people, or one JSON object a line for machines.

1. The format is chosen by `--log-format`; where that is silent, by the environment (VARIABLE). A mount puts its choice
   there (`pass_on`), for the processes that replace its own: those of an upgrade, and of a supervisor that slept.
2. Where JSON is chosen everything that this process writes to stderr is such a line, also what ends it (`is_json`).
"""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
from typing import Any, Final

from snapfs.base.logs import json_lines
from snapfs.base.logs.json_lines import JsonFormatter

FORMATS: Final = ("auto", "text", "json")
VARIABLE: Final = "SNAPFS_LOG_FORMAT"

_in_json = False


def choose(form: str) -> str:
    """The format to log in, where `form` is what was asked for: if that is auto, the environment's. One of FORMATS."""
    chosen = os.environ.get(VARIABLE, "auto") if form == "auto" else form
    return chosen if chosen in FORMATS else "auto"


def pass_on(form: str) -> None:
    """Have what this process executes or starts log in the same format."""
    if form != "auto":
        os.environ[VARIABLE] = form


def is_json() -> bool:
    """Whether all that this process writes to stderr has to be JSON, line by line."""
    return _in_json


def set_up(form: str, verbose: bool) -> None:
    """Log to stderr from now on. `form`: one of FORMATS; auto, and the environment silent: text on a terminal, else
    JSON."""
    chosen = choose(form)
    if chosen == "text" or (chosen == "auto" and sys.stderr.isatty()):
        formatter = logging.Formatter("%(asctime)s %(levelname)-7s %(message)s", "%H:%M:%S")
    else:
        formatter = JsonFormatter()
    _install(formatter, logging.DEBUG if verbose else logging.INFO, in_json=chosen == "json")
    for name in ("asyncio", "aiohttp"):
        logging.getLogger(name).setLevel(logging.WARNING)


def set_up_mount(path: str, form: str = "auto") -> None:
    """The same for a process of the mount of the volume at `path`: in text, with UTC times, unless JSON is chosen."""
    json_lines.set_process_volume(path)
    if choose(form) == "json":
        return _install(JsonFormatter(), logging.INFO, in_json=True)
    formatter = logging.Formatter("%(asctime)sZ %(levelname)s %(message)s", "%Y-%m-%dT%H:%M:%S")
    formatter.converter = time.gmtime
    return _install(formatter, logging.INFO, in_json=False)


def _install(formatter: logging.Formatter, level: int, *, in_json: bool) -> None:
    global _in_json
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(formatter)
    logging.basicConfig(level=level, handlers=[handler], force=True)
    _in_json = in_json
    if in_json:
        logging.captureWarnings(True)
        sys.excepthook = _unhandled
        threading.excepthook = _unhandled_in_thread
        sys.unraisablehook = _unraisable


def _unhandled(kind: type[BaseException], error: BaseException, trace: Any) -> None:
    logging.getLogger("snapfs").critical("a bug: %r", error, exc_info=(kind, error, trace))


def _unhandled_in_thread(failure: threading.ExceptHookArgs) -> None:
    error = failure.exc_value
    if error is not None:
        name = failure.thread.name if failure.thread is not None else "?"
        found = type(error), error, failure.exc_traceback
        logging.getLogger("snapfs").error("a bug, in the thread %s: %r", name, error, exc_info=found)


def _unraisable(failure: Any) -> None:
    error = failure.exc_value
    found = None if error is None else (type(error), error, failure.exc_traceback)
    logging.getLogger("snapfs").error("ignored: %s %r", failure.err_msg or "", failure.object, exc_info=found)

"""Prometheus' own tool, where it is installed: `tools/setup --test` installs it from Debian's package `prometheus`."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

needs_promtool = pytest.mark.skipif(
    shutil.which("promtool") is None, reason="promtool is not installed: Debian's package prometheus has it"
)


def promtool(*arguments: str | Path, text: str | None = None) -> str:
    """Run it; what it printed. An AssertionError with its words if it finds fault with anything."""
    done = subprocess.run(
        ["promtool", *map(str, arguments)], input=text, capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def lint(text: str) -> None:
    """Refuse a text that Prometheus would not read, and names that are against its conventions."""
    assert promtool("check", "metrics", text=text) == ""

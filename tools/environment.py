"""The interpreter of this checkout, which `tools/setup --test` makes in .venv, for the scripts of tools/.

A script is started by whatever `env python3` finds, which need not have the packages that it imports. Standard library
only: this is imported before any of them.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def enter() -> None:
    """Run this script again with ROOT/.venv/bin/python, unless that runs it now; SystemExit if there is none."""
    home = ROOT / ".venv"
    if Path(sys.prefix).resolve() == home.resolve():
        return
    python = home / "bin" / "python"
    if not os.access(python, os.X_OK):
        sys.exit(f"{sys.argv[0]}: there is no {python}: run tools/setup --test first")
    os.execv(python, [str(python), *sys.orig_argv[1:]])

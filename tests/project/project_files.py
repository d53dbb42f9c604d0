"""Which files belong to the project: those of git in a checkout, and all that lie there in an unpacked sdist."""

from __future__ import annotations

import fnmatch
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
MADE = {"PKG-INFO", "setup.cfg"}
"""Made by setuptools for an sdist, besides the folder snapfs.egg-info."""


def project_files(root: Path = ROOT) -> list[str]:
    """Paths below `root`, sorted; in a checkout also of files that are new and not yet committed."""
    if not (root / ".git").exists():
        return sorted(path for path in _lying_there(root) if path not in MADE and not _is_ignored(root, path))
    listed = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    done = subprocess.run(listed, cwd=root, capture_output=True, text=True, check=True)
    return sorted(path for path in set(done.stdout.split("\0")) if path and (root / path).is_file())


def _lying_there(root: Path) -> list[str]:
    return [str(path.relative_to(root)) for path in root.rglob("*") if path.is_file()]


def _is_ignored(root: Path, path: str) -> bool:
    """Whether a line of .gitignore names the file or a folder above it, as far as our lines go: names, or paths."""
    parts = Path(path).parts
    for line in (root / ".gitignore").read_text().split():
        if line.startswith("/") and path == line.removeprefix("/"):
            return True
        if any(fnmatch.fnmatchcase(part, line.rstrip("/")) for part in parts):
            return True
    return False

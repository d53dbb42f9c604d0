"""What the benchmark compares: a plain directory and snapfs mounts, all below one base directory."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

SNAPFS = [sys.executable, "-m", "snapfs.cli"]


def snapfs(*arguments: str) -> str:
    done = subprocess.run([*SNAPFS, *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"snapfs {' '.join(arguments)}: {done.stderr}")
    return done.stdout


@contextlib.contextmanager
def plain(base: Path) -> Iterator[Path]:
    directory = base / "plain"
    directory.mkdir()
    try:
        yield directory
    finally:
        shutil.rmtree(directory)


@contextlib.contextmanager
def mounted(base: Path, every: str) -> Iterator[Path]:
    """A fresh volume, mounted, that cuts a snapshot `every` so often ("off": none)."""
    volume, mountpoint = base / "volume", base / "mnt"
    mountpoint.mkdir()
    snapfs("mount", "-o", f"snapshots.every={every}", str(volume), str(mountpoint))
    try:
        yield mountpoint
    finally:
        snapfs("umount", str(mountpoint))
        shutil.rmtree(volume)
        mountpoint.rmdir()


def status(mountpoint: Path) -> dict[str, Any]:
    facts: dict[str, Any] = json.loads((mountpoint / ".snapfs/status").read_text())
    return facts


def control(mountpoint: Path, command: str) -> dict[str, Any]:
    """Write a command to the control file and read its reply on the same descriptor."""
    descriptor = os.open(mountpoint / ".snapfs/control", os.O_RDWR)
    try:
        os.write(descriptor, command.encode())
        reply: dict[str, Any] = json.loads(os.pread(descriptor, 65536, 0))
        return reply
    finally:
        os.close(descriptor)


def resident_bytes(pid: int) -> tuple[int, int]:
    """Resident memory of a process: now, and at its highest."""
    fields = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines() if ":" in line)
    return int(fields["VmRSS"].split()[0]) * 1024, int(fields["VmHWM"].split()[0]) * 1024

"""What the benchmark compares: a plain directory and snapfs mounts, all below one base directory."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

SNAPFS = [sys.executable, "-P", "-m", "snapfs"]
PLAIN, PASSTHROUGH = "plain", "passthrough"
COLUMNS = {  # snapshots.every, live.data_path
    "python": ("off", "python"),
    "python_1s": ("1s", "python"),
    "native": ("off", "native"),
    "native_1s": ("1s", "native"),
}


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
def mounted(base: Path, every: str, data_path: str = "auto") -> Iterator[Path]:
    """A fresh volume, mounted, that cuts a snapshot `every` so often ("off": none)."""
    volume, mountpoint = base / "volume", base / "mnt"
    mountpoint.mkdir()
    options = f"snapshots.every={every},live.data_path={data_path}"
    snapfs("mount", "-o", options, str(volume), str(mountpoint))
    try:
        yield mountpoint
    finally:
        snapfs("umount", str(mountpoint))
        shutil.rmtree(volume)
        mountpoint.rmdir()


@contextlib.contextmanager
def passed_through(base: Path, command: str) -> Iterator[Path]:
    """What `command` mounts over a plain directory."""
    source, mountpoint = base / "source", base / "mnt"
    source.mkdir()
    mountpoint.mkdir()
    words = [word.format(source=source, mountpoint=mountpoint) for word in shlex.split(command)]
    daemon = subprocess.Popen(words, stdout=subprocess.DEVNULL)
    try:
        while not os.path.ismount(mountpoint):
            if daemon.poll() is not None:
                raise RuntimeError(f"{command}: exit code {daemon.returncode}")
            time.sleep(0.02)
        yield mountpoint
    finally:
        subprocess.run(["umount", str(mountpoint)], check=False)
        daemon.wait(30)
        shutil.rmtree(source)
        mountpoint.rmdir()


def opened(base: Path, column: str, command: str | None) -> contextlib.AbstractContextManager[Path]:
    """A directory of that column, gone afterwards."""
    if column == PLAIN:
        return plain(base)
    if column == PASSTHROUGH:
        assert command is not None
        return passed_through(base, command)
    return mounted(base, *COLUMNS[column])


def available(column: str, command: str | None) -> bool:
    """Whether this machine has it."""
    if column == PASSTHROUGH:
        return command is not None
    return COLUMNS[column][1] != "native" or importlib.util.find_spec("snapfs.fuse.kernel._router") is not None


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

"""Damage to the store under a living volume: the live tree goes on, and so does its history."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest


def everything(top: Path) -> dict[str, bytes]:
    return {str(path.relative_to(top)): path.read_bytes() for path in sorted(top.rglob("*")) if path.is_file()}


def build(top: Path) -> None:
    for number in range(40):
        (top / f"directory-{number % 7}").mkdir(exist_ok=True)
        (top / f"directory-{number % 7}/file-{number}").write_bytes(os.urandom(20_000))


def spoil_frames(segment: Path) -> None:
    """Every object is bad, but the table of their places is not: it is noticed when one is needed."""
    with open(segment, "r+b") as file:
        for offset in range(200, segment.stat().st_size // 2 + 300_000, 997):
            if offset < segment.stat().st_size - 30_000:
                file.seek(offset)
                byte = file.read(1)
                file.seek(offset)
                file.write(bytes([byte[0] ^ 0xFF]))


def cut_off(segment: Path) -> None:
    os.truncate(segment, segment.stat().st_size // 2)


@pytest.mark.parametrize("harm", [spoil_frames, cut_off, Path.unlink])
def test_a_history_goes_on_after_its_newest_snapshot_is_damaged(
    mounted: Any, mount: Callable[..., Any], harm: Callable[[Path], None]
) -> None:
    build(mounted.path)
    mounted.snapshot("old")
    subprocess.run(["umount", str(mounted.path)], check=True)
    (segment,) = (mounted.volume / "store/segments").iterdir()
    harm(segment)
    mounted = mount()
    (mounted.path / "directory-3/file-3").unlink()
    (mounted.path / "directory-1/file-1").write_bytes(b"changed")
    (mounted.path / "new").write_bytes(b"new")
    expected = everything(mounted.path)
    mounted.snapshot("new")
    assert everything(mounted.path / ".snapfs/snapshots/new") == expected
    assert mounted.command("verify new")["good"]
    (mounted.path / "newer").write_bytes(b"newer")
    mounted.snapshot("newer")
    assert mounted.status()["last_snapshot"]["parent"] == 2
    assert everything(mounted.path / ".snapfs/snapshots/newer") == expected | {"newer": b"newer"}

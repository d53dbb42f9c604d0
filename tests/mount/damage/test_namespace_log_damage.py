"""A daemon that was killed, and a bit of the namespace's log that flips: what the user sees."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from snapfs.live.database.high_water_mark import read_claim
from snapfs.live.database.wal_files import FRAME_SIZE

BYTES = b"the only copy of this\n" * 500


def test_the_mount_says_it_and_exits_with_5_and_nothing_is_deleted(
    mounted: Any, snapfs: Callable[..., Any], tmp_path: Path
) -> None:
    (mounted.path / "first").write_bytes(b"first")
    mounted.snapshot("before")
    for number in range(20):
        (mounted.path / f"file-{number}").write_bytes(BYTES + b"%d" % number)
    mounted.command("snapshot after")
    mounted.kill()
    live = mounted.volume / "live"
    claim = read_claim(str(live / "namespace.db-mark"))
    assert claim is not None
    with (live / "namespace.db-wal").open("r+b") as log:
        log.seek(32 + claim.committed.frames * 2 // 3 * FRAME_SIZE)
        (byte,) = log.read(1)
        log.seek(-1, 1)
        log.write(bytes([byte ^ 1]))
    done = snapfs("mount", mounted.volume, mounted.path, "--", "touch", tmp_path / "was-run", check=False)
    assert done.returncode == 5, done.stderr
    assert "DAMAGED" in done.stderr
    assert "was not run" in done.stderr
    assert not (tmp_path / "was-run").exists()
    (folder,) = (live / "aside").glob("*-damage")
    assert str(folder) in done.stderr
    stray = {path.read_bytes() for path in (folder / "data").iterdir()}
    assert f"{folder} has {len(stray)} files" in snapfs("doctor", mounted.volume, check=False).stdout
    assert snapfs("mount", mounted.volume, mounted.path).returncode == 0, "it is reported once"
    facts = json.loads(snapfs("status", "--json", mounted.path).stdout)
    assert [(each["folder"], each["damage"]) for each in facts["stray_files"]] == [(str(folder), True)]
    assert str(folder) in snapfs("status", mounted.path).stdout
    there = {path.read_bytes() for path in mounted.path.iterdir()}
    assert {BYTES + b"%d" % number for number in range(20)} <= stray | there
    mounted.command("snapshot next")
    shown = {path.name: path.read_bytes() for path in (mounted.path / ".snapfs/snapshots/next").iterdir()}
    assert shown == {path.name: path.read_bytes() for path in mounted.path.iterdir()}, "it has everything, and no more"
    assert len(list((mounted.path / ".snapfs/snapshots/after").iterdir())) == 21
    snapfs("umount", mounted.path)

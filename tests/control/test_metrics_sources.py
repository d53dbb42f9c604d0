"""The metrics of the live tree have true values."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from prometheus_client.parser import text_string_to_metric_families


def metrics(path: Path) -> dict[str, float]:
    text = (path / ".snapfs/metrics").read_text()
    return {
        sample.name: sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if not sample.labels
    }


def test_new_files_are_dirty_and_open_ones_are_open(mounted: Any) -> None:
    assert mounted.status()["dirty"]["files"] == 0
    for number in range(7):
        (mounted.path / f"new-{number}").write_bytes(b"x" * 5000)
    (mounted.path / "new-6").unlink()
    assert mounted.status()["dirty"]["files"] == 6
    found = metrics(mounted.path)
    assert found["snapfs_dirty_files"] == 6
    assert found["snapfs_open_files"] >= 6
    mounted.snapshot()
    assert mounted.status()["dirty"]["files"] == 0
    (mounted.path / "new-0").write_bytes(b"changed")
    assert metrics(mounted.path)["snapfs_dirty_files"] == 1


def test_what_is_copied_aside_is_counted(mounted: Any) -> None:
    size = 24 << 20
    with open(mounted.path / "file", "w+b") as file:
        file.write(os.urandom(size))
        file.flush()
        os.fsync(file.fileno())
        before = metrics(mounted.path)
        assert before["snapfs_preserved_bytes"] == before["snapfs_copied_aside_bytes_total"] == 0
        for attempt in range(20):  # until a write comes while a seal is still reading
            control = os.open(mounted.control, os.O_RDWR)
            pid = os.fork()
            if not pid:
                os.write(control, b"snapshot")
                os._exit(0)
            while metrics(mounted.path)["snapfs_seal_running"] == 0 and os.waitpid(pid, os.WNOHANG) == (0, 0):
                pass
            for offset in range(size - 4096, 0, -(1 << 20)):
                os.pwrite(file.fileno(), b"%d" % attempt * 4096, offset)
            os.fsync(file.fileno())
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, 0)
            os.close(control)
            if metrics(mounted.path)["snapfs_copied_aside_bytes_total"]:
                break
            os.pwrite(file.fileno(), os.urandom(size), 0)
            os.fsync(file.fileno())
    after = metrics(mounted.path)
    assert after["snapfs_copied_aside_bytes_total"] >= 4096
    assert after["snapfs_preserved_bytes"] == 0


def test_what_arrives_is_counted(mounted: Any, snapfs: Callable[..., Any], tmp_path: Path) -> None:
    for name in "ab":
        (mounted.path / name).write_bytes(os.urandom(100_000))
    mounted.snapshot("origin")
    snapfs("clone", mounted.path, "origin", tmp_path / "clone")
    snapfs("umount", mounted.path)
    snapfs("mount", tmp_path / "clone", mounted.path)
    assert metrics(mounted.path)["snapfs_absent_files"] == 2
    with open(mounted.path / "a", "r+b") as file:
        file.write(b"x")
    mounted.command("sync")
    found = metrics(mounted.path)
    assert (found["snapfs_absent_files"], found["snapfs_hydrated_files_total"]) == (1, 1)
    assert found["snapfs_hydrated_bytes_total"] == 100_000

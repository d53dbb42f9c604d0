"""The targets of a mount in its status and metrics, with and without an agent."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

from replicator.commands.target_commands import mark_new
from tests.fakes.patience import PATIENCE_S, eventually
from tests.fakes.replication.agent_process import AgentProcess
from tests.fakes.targets.mirror_process import REPLICATOR


def target_of(mounted: Any) -> dict[str, Any]:
    (found,) = mounted.status()["replication"]["targets"]
    return dict(found)


def name_target(volume: Path, folder: Path) -> None:
    with open(volume / "volume.toml", "a", encoding="utf-8") as file:
        file.write(f'\n[[replication.target]]\nurl = "file://{folder}"\nname = "disk"\n')
    mark_new(str(volume), ["disk"])


def test_the_status_of_a_mount_knows_a_dead_agent_and_what_is_missing(
    snapfs: Any, mounted: Any, tmp_path: Path
) -> None:
    """In the status and the metrics of the mount itself."""
    assert mounted.status()["replication"]["state"] == "none"
    name_target(mounted.volume, tmp_path / "copy")
    assert mounted.status()["replication"]["state"] == "never"
    (mounted.path / "a").write_text("1")
    snapfs("snapshot", mounted.path)
    agent = AgentProcess(mounted.volume)
    agent.start()
    try:
        eventually(lambda: mounted.status()["replication"]["state"] == "current", "everything there")
        text = (mounted.path / ".snapfs/metrics").read_text()
        assert 'snapfs_replication_state{state="current",target="disk"} 1.0' in text
        assert "snapfs_replication_agent_up 1.0" in text
        assert "disk: current" in snapfs("status", mounted.path).stdout
    finally:
        agent.end()
    (mounted.path / "a").write_text("2")
    snapfs("snapshot", mounted.path)
    target = target_of(mounted)
    assert (target["state"], target["missing"], target["link"]) == ("stale", 1, "unknown")
    assert target["lag_s"] > 0
    assert mounted.status()["replication"]["agent"] is False
    text = (mounted.path / ".snapfs/metrics").read_text()
    assert 'snapfs_replication_state{state="stale",target="disk"} 1.0' in text
    assert 'snapfs_replication_missing_snapshots{target="disk"} 1.0' in text
    assert "snapfs_replication_agent_up 0.0" in text
    assert "disk: stale, lacks 1 snapshots" in snapfs("status", mounted.path).stdout


def test_a_target_that_was_named_after_the_mount_counts_at_once(snapfs: Any, mounted: Any, tmp_path: Path) -> None:
    """`wait=replicated` failed with 'no target' until the next mount."""
    (mounted.path / "a").write_text("1")
    name_target(mounted.volume, tmp_path / "copy")
    agent = AgentProcess(mounted.volume)
    agent.start()
    try:
        reply = json.loads(command(mounted.path, f"snapshot one wait=replicated timeout={PATIENCE_S:.0f}s"))
        assert (reply["ok"], reply["replicated"]["targets"]) == (True, ["disk"])
    finally:
        agent.end()
    done = subprocess.run([*REPLICATOR, "status", "--max-age", "1h", mounted.volume], check=False)
    assert done.returncode == 0


def command(mountpoint: Path, words: str) -> str:
    with open(mountpoint / ".snapfs/control", "r+b", buffering=0) as control:
        control.write(words.encode())
        return control.read().decode()

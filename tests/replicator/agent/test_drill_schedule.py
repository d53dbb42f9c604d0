"""The agent runs the drills of a volume: the log says when the last one was, and nothing is left when it ends."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from replicator.agent.drill_schedule import DrillSchedule, DrillTimes, target_words
from snapfs.base.blocks import Disk
from snapfs.base.settings import config
from snapfs.base.volumes.volume import Volume
from snapfs.store.log.snapshot_log import SnapshotLog
from tests.conftest import Mounted
from tests.fakes.patience import eventually
from tests.fakes.replication.agent_process import AgentProcess
from tests.fakes.targets.mirror_process import REPLICATOR

SETTINGS = '\n[[replication.target]]\nname = "far"\nurl = "file://{0}/far"\n'


def drills(snapfs: Any, volume: Path) -> list[dict[str, Any]]:
    lines = map(json.loads, snapfs("log", volume, "--json").stdout.splitlines())
    return [line for line in lines if line["kind"] == "drilled"]


def test_the_agent_drills_what_the_target_has(mounted: Mounted, snapfs: Any, tmp_path: Path) -> None:
    (mounted.path / "file").write_text("x")
    toml = mounted.volume / "volume.toml"
    text = toml.read_text().replace('#check = ""', "check = 'test -s file'").replace("[drill]", '[drill]\nevery = "7d"')
    toml.write_text(text + SETTINGS.format(tmp_path))
    mounted.snapshot("one")
    subprocess.run([*REPLICATOR, "push", "--once", "--new", mounted.volume], check=True, capture_output=True)
    agent = AgentProcess(mounted.volume)
    agent.start()
    try:
        eventually(lambda: drills(snapfs, mounted.volume), "a drill")
        eventually(lambda: "the drill passed: snapshot 1 (one)" in agent.log(), "its report")
    finally:
        agent.end(15)
    (line,) = drills(snapfs, mounted.volume)
    assert (line["snapshot"], line["passed"], line["place"]) == (1, True, f"file://{tmp_path}/far")
    assert "snapfs_drill_passed 1" in (mounted.path / ".snapfs" / "metrics").read_text()
    times = DrillTimes(Volume.open(str(mounted.volume), Disk()))
    assert times.last_s() == line["time_ns"] / 1e9
    times.close()


@pytest.fixture
def idle(volume_dir: Path, tmp_path: Path) -> Volume:
    """A volume with a schedule, that was never mounted."""
    Volume.create(str(volume_dir), Disk(), settings={"drill": {"every": "1h", "check": "true"}}).unlock()
    volume = Volume.open(str(volume_dir), Disk())
    os.makedirs(volume.store_dir, exist_ok=True)
    SnapshotLog.create(os.path.join(volume.store_dir, "snapshots.log"), Disk(), volume.volume_id)
    return volume


def script(folder: Path, text: str) -> list[str]:
    path = folder / "drill.sh"
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return [str(path)]


def test_one_that_cannot_be_run_is_tried_again_later(
    idle: Volume, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    schedule = DrillSchedule(idle, script(tmp_path, f'echo "$@" >> {tmp_path}/calls; echo no program; exit 3'))

    async def some_looks() -> list[float]:
        times = DrillTimes(idle)
        try:
            return [await schedule._step(times) for _ in range(3)]
        finally:
            times.close()

    assert asyncio.run(some_looks()) == [0.0, 30.0, 30.0]
    assert (tmp_path / "calls").read_text() == f"drill {idle.path}\n"
    assert "could not be run (exit code 3): no program" in caplog.text


def test_the_daemon_of_a_drill_does_not_report_to_the_service_manager_of_the_agent(
    idle: Volume, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It said READY=1 and gave its descriptors to the unit of the agent, which refused both, in the journal."""
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "manager"))
    schedule = DrillSchedule(idle, script(tmp_path, f'echo "<$NOTIFY_SOCKET>" > {tmp_path}/seen; exit 3'))

    async def one_look() -> None:
        times = DrillTimes(idle)
        try:
            await schedule._step(times)
        finally:
            times.close()

    asyncio.run(one_look())
    assert (tmp_path / "seen").read_text() == "<>\n"


def test_an_agent_that_ends_ends_the_drill_in_order(idle: Volume, tmp_path: Path) -> None:
    here = tmp_path / "ended"
    text = f"trap 'echo in order > {here}; exit 0' TERM\necho > {tmp_path}/begun\nwhile :; do sleep 0.05; done"

    async def run() -> None:
        task = asyncio.create_task(DrillSchedule(idle, script(tmp_path, text)).run())
        while not (tmp_path / "begun").exists():
            await asyncio.sleep(0.02)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    asyncio.run(run())
    assert here.read_text() == "in order\n"


@pytest.mark.skipif(os.getuid() != 0, reason="gives a file away, which takes root")
def test_commands_of_another_user_are_not_run(idle: Volume, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    os.chown(idle.toml_path, 65534, 65534)
    asyncio.run(DrillSchedule(idle, script(tmp_path, f"touch {tmp_path}/ran")).run())
    assert not (tmp_path / "ran").exists()
    assert "no drills: its settings are user 65534's" in caplog.text


def test_which_target_is_drilled() -> None:
    near = {"url": "file:///near", "name": "near"}
    far = {"url": "file:///far", "name": "far"}
    table: list[tuple[dict[str, Any], list[str]]] = [
        ({}, []),
        ({"replication": {"target": [near, far]}}, ["--target", "near"]),
        ({"replication": {"target": [near, far]}, "drill": {"target": "far"}}, ["--target", "far"]),
    ]
    for tables, words in table:
        assert target_words(config.decode(tables, "volume.toml")) == words
